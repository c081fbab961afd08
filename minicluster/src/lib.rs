//! A Kubernetes API small enough to embed: pods run as local processes, faults on demand.
//!
//! It is a test double and the engine of `podbay demo`: stock `kubectl` and the kube crate speak to it over TLS as they do to
//! a real cluster. It isolates nobody: a pod's programs run as this user, on this host. `docs/minicluster.md` says what is
//! like the real thing and what is not.
//!
//! An embedding program calls [`helper::maybe_run`] first in `main`: the supervisors of pods are the program itself, executed
//! again.

#![warn(missing_docs)]

mod api;
mod credentials;
pub mod faults;
pub mod helper;
pub mod image;
mod kinds;
mod kubelet;
mod options;
mod patch;
mod selector;
mod server;
mod status;
mod stdio;
mod store;
mod supervisor;
mod validate;

pub use api::Counts;
pub use faults::{Action, Fault, FaultId, On};
pub use image::Image;
pub use kubelet::Process;
pub use options::Options;

use api::{Api, Setup};
use credentials::Credentials;
use faults::FaultTable;
use k8s_openapi::api::core::v1::Pod;
use kinds::Kind;
use kubelet::{Kubelet, Settings};
use serde::Deserialize as _;
use serde_json::json;
use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};
use store::{Key, Store};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Why a minicluster can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener is not on a loopback address.
    #[error("{0} is not a loopback address: the minicluster isolates nobody and must not be reached from elsewhere")]
    NotLoopback(SocketAddr),
    /// The listener has no address.
    #[error("the listener's address: {0}")]
    Listener(#[source] io::Error),
    /// The state directory can't be made or used.
    #[error("the state directory {path}: {source}")]
    StateDir {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no program that can be a helper.
    #[error(transparent)]
    Helper(io::Error),
    /// Certificates could not be made.
    #[error("credentials: {0}")]
    Credentials(#[source] io::Error),
}

/// A running minicluster. Dropping it stops everything without waiting; [`Self::shutdown`] waits.
#[derive(Debug)]
pub struct Minicluster {
    api: Arc<Api>,
    kubelet: Arc<Kubelet>,
    credentials: Credentials,
    address: SocketAddr,
    stop: CancellationToken,
    server: Option<JoinHandle<()>>,
    shutdown_grace: Duration,
    // Last: removed when everything else is gone.
    state: StateDir,
}

impl Minicluster {
    /// Starts one on this runtime (which must be a multi-thread one if callers block).
    ///
    /// # Errors
    /// See [`StartError`]. Nothing is left behind then.
    #[allow(clippy::unused_async, reason = "needs a runtime; async says so")]
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let address = options.listener.local_addr().map_err(StartError::Listener)?;
        if !address.ip().is_loopback() {
            return Err(StartError::NotLoopback(address));
        }
        let helper = match options.helper {
            Some(helper) => helper,
            None => helper::find().map_err(StartError::Helper)?,
        };
        let credentials = Credentials::new(address).map_err(StartError::Credentials)?;
        let state = StateDir::make(options.state_dir)?;
        let store = Arc::new(Store::new());
        let faults = Arc::new(FaultTable::new());
        let settings = Settings {
            helper,
            pods: state.pods.clone(),
            images: options.images,
            backoff: options.backoff,
            max_backoff: options.max_backoff,
        };
        let kubelet = Kubelet::new(store.clone(), faults.clone(), settings);
        let setup = Setup {
            token: credentials.token.clone(),
            version: options.version,
            address: address.to_string(),
            grace: i64::try_from(options.grace.as_secs()).unwrap_or(i64::MAX),
            bookmarks: options.bookmarks,
        };
        for namespace in ["default", "kube-system"].into_iter().chain(options.namespaces.iter().map(String::as_str)) {
            create_namespace(&store, namespace);
        }
        let api = Api::new(store, kubelet.clone(), faults, setup);
        let stop = CancellationToken::new();
        let server = server::serve(options.listener, credentials.tls.clone(), api.clone(), stop.clone());
        Ok(Self {
            api,
            kubelet,
            credentials,
            address,
            stop,
            server: Some(tokio::spawn(server)),
            shutdown_grace: options.shutdown_grace,
            state,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig (JSON, which is YAML too) with a client certificate that may do everything. A secret.
    pub fn kubeconfig(&self) -> &str {
        &self.credentials.kubeconfig
    }

    /// The CA's certificate, PEM.
    pub fn ca_certificate(&self) -> &str {
        &self.credentials.ca
    }

    /// A bearer token that may do everything. A secret.
    pub fn bearer_token(&self) -> &str {
        &self.credentials.token
    }

    /// Faults on demand.
    pub fn faults(&self) -> Faults {
        Faults { api: self.api.clone() }
    }

    /// API requests so far, by verb and resource (as `("get", "pods/exec")`); also those that a fault refused.
    pub fn counts(&self) -> Counts {
        self.api.counts()
    }

    /// All pods as they are now.
    pub fn pods(&self) -> Vec<Pod> {
        let list = self.api.store.list(Kind::Pod, None);
        list.items.iter().filter_map(|(_, pod)| Pod::deserialize(&**pod).ok()).collect()
    }

    /// The processes that pods have now, with their supervisors, also of pods whose object is gone already.
    pub fn processes(&self) -> Vec<Process> {
        self.kubelet.processes()
    }

    /// The directory below which pods have theirs.
    pub fn state_dir(&self) -> &Path {
        &self.state.path
    }

    /// Ends every pod and all its processes, closes all connections and removes the state directory. When it returns, they
    /// are gone. If dropped early, the rest goes on as [`Drop`] has it.
    pub async fn shutdown(mut self) {
        // First, so that nothing new comes. Streams that run are not the server's any more.
        self.stop.cancel();
        if let Some(server) = self.server.take()
            && let Err(error) = server.await
        {
            tracing::error!(%error, "the server's task failed");
        }
        self.kubelet.shut_down(self.shutdown_grace).await;
        self.api.shut_down().await;
    }
}

impl Drop for Minicluster {
    fn drop(&mut self) {
        // Programs end because their supervisors lose us: the pods' tasks end and with them the pipes.
        self.stop.cancel();
        self.api.cut_connections();
        self.kubelet.delete_all_now();
    }
}

/// A handle on the faults of a running minicluster.
#[derive(Debug, Clone)]
pub struct Faults {
    api: Arc<Api>,
}

impl Faults {
    /// Adds a fault that stays until it is cleared or used up.
    pub fn add(&self, fault: Fault) -> FaultId {
        self.api.faults.add(fault)
    }

    /// Clears a fault; whether it was still there.
    pub fn clear(&self, id: FaultId) -> bool {
        self.api.faults.clear(id)
    }

    /// Clears all faults, and ends an [`Action::ApiDown`].
    pub fn clear_all(&self) {
        self.api.faults.clear_all();
        self.api.up();
    }

    /// Does something at once; false if there was nothing to do it to.
    pub async fn act(&self, action: Action) -> bool {
        self.api.act(action).await
    }
}

fn create_namespace(store: &Store, name: &str) {
    let mut namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name, "uid": kubelet::new_uid(), "creationTimestamp": kubelet::now(),
            "labels": { "kubernetes.io/metadata.name": name },
        },
    });
    validate::set_defaults(Kind::Namespace, &mut namespace, 0);
    // Fails only for one that was named twice.
    let _ = store.create(Key::new(Kind::Namespace, "", name), namespace);
}

/// The state directory; removed on drop, or if it was there before, what we made in it.
#[derive(Debug)]
struct StateDir {
    path: PathBuf,
    pods: PathBuf,
    remove: Remove,
}

#[derive(Debug)]
enum Remove {
    All,
    Pods,
}

/// Removing a directory that processes still use (after a drop without shutdown) can fail; it is tried so often, with this
/// pause.
const REMOVALS: u32 = 10;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

impl StateDir {
    fn make(path: Option<PathBuf>) -> Result<Self, StartError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::StateDir { path, source }
        };
        let (path, remove) = match path {
            None => {
                let dir = tempfile::Builder::new().prefix("minicluster-").tempdir();
                (dir.map_err(failed(&std::env::temp_dir()))?.keep(), Remove::All)
            }
            Some(path) if path.exists() => (path, Remove::Pods),
            Some(path) => {
                fs::create_dir_all(&path).map_err(failed(&path))?;
                (path, Remove::All)
            }
        };
        let path = fs::canonicalize(&path).map_err(failed(&path))?;
        let pods = path.join("pods");
        fs::create_dir_all(&pods).map_err(failed(&pods))?;
        Ok(Self { path, pods, remove })
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let path = match self.remove {
            Remove::All => &self.path,
            Remove::Pods => &self.pods,
        };
        for last in (0..REMOVALS).map(|n| n + 1 == REMOVALS) {
            match fs::remove_dir_all(path) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => return,
                Err(error) if last => tracing::warn!(%error, path = %path.display(), "the state directory is left"),
                Err(_) => thread::sleep(REMOVAL_PAUSE),
            }
        }
    }
}
