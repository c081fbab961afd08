//! The process: what all connections share, and its way from start to end.

use crate::{
    backend::{Backend, connector::Security, login::Login, owner::Owner, pool::Pool},
    config::{Config, HostKeys},
    hostkey::{self, HostKeyError},
    listen::{self, Bounds, Door},
    metrics::Metrics,
    reload::Reloading,
    ssh::{Conn, russh_config},
};
use arc_swap::ArcSwap;
use podbay::v1;
use podbay_runtime::{admin::Readiness, codes, reload::Source, shutdown::Shutdown, webhook::Facts};
use prometheus_client::registry::Registry;
use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

/// To say goodbye to the backend.
const LEAVING: Duration = Duration::from_secs(5);

/// What the caller gives to [`run`] besides the configuration.
#[derive(Debug, Default)]
pub struct Parts {
    /// Where to count; absent = nowhere that is seen.
    pub metrics: Option<Metrics>,
    /// The backend, where it is not to be called over gRPC: tests.
    pub backend: Option<Arc<dyn Backend>>,
    /// Set while connections are accepted and a replica of the backend says that it serves.
    pub readiness: Readiness,
    /// When to end.
    pub shutdown: Shutdown,
    /// Where the configuration came from; absent = it stays as it is.
    pub source: Option<Source>,
}

/// What counts for connections that begin now.
pub(crate) struct Current {
    pub(crate) config: Arc<Config>,
    pub(crate) russh: Arc<russh::server::Config>,
}

impl Current {
    /// # Errors
    /// No host key.
    pub(crate) fn new(config: Config) -> Result<Arc<Self>, HostKeyError> {
        let keys = match &config.ssh.host_keys {
            HostKeys::Given(keys) => keys.clone(),
            HostKeys::Kept => vec![hostkey::kept(&config.frontend.state_dir).inspect_err(|error| {
                error!(code = codes::CORE_HOST_KEY_GENERATION_FAILED, %error, "there is no host key, and none can be kept");
            })?],
        };
        let russh = Arc::new(russh_config(&config.ssh, keys, config.auth.methods(&config.users)));
        for warning in &config.auth.warnings {
            let code =
                warning.starts_with(codes::CONFIG_AUTH_URL_DEPRECATED).then_some(codes::CONFIG_AUTH_URL_DEPRECATED);
            warn!(code, "{warning}");
        }
        Ok(Arc::new(Self { config: Arc::new(config), russh }))
    }
}

/// What all connections share.
pub struct Server {
    current: ArcSwap<Current>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) owner: Arc<Owner>,
    pub(crate) metrics: Metrics,
    pub(crate) door: Door,
    /// SSH connections.
    pub(crate) connections: TaskTracker,
    /// Connections towards the backend; each outlives its SSH connection.
    pub(crate) logins: TaskTracker,
    /// A line for all running sessions.
    pub(crate) notice: watch::Sender<Option<Arc<str>>>,
    /// Ends all connections, with this text.
    end_all: watch::Sender<Option<Arc<str>>>,
    queued: AtomicUsize,
    stuck: AtomicUsize,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("connections", &self.connections.len()).finish_non_exhaustive()
    }
}

impl Server {
    fn new(config: Config, backend: Arc<dyn Backend>, metrics: Metrics) -> Result<Arc<Self>, HostKeyError> {
        let current = Current::new(config)?;
        let door = Door::new(Bounds::of(&current.config.frontend), &current.config.ssh.penalties);
        Ok(Arc::new(Self {
            current: ArcSwap::new(current),
            backend,
            owner: Owner::new(),
            metrics,
            door,
            connections: TaskTracker::new(),
            logins: TaskTracker::new(),
            notice: watch::Sender::new(None),
            end_all: watch::Sender::new(None),
            queued: AtomicUsize::new(0),
            stuck: AtomicUsize::new(0),
        }))
    }

    /// What counts for connections that begin now; those that are there keep theirs ([`Conn::config`]).
    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// From now on this counts.
    pub(crate) fn change(&self, current: Arc<Current>) {
        self.door.change(Bounds::of(&current.config.frontend), &current.config.ssh.penalties);
        self.current.store(current);
    }

    /// Whether all connections are being ended.
    pub(crate) fn is_ending(&self) -> bool {
        self.end_all.borrow().is_some()
    }

    /// The client of `conn` has logged in: opens the connection at the backend, in a task of its own.
    pub(crate) fn login(
        self: &Arc<Self>,
        conn: &Arc<Conn>,
        user: &str,
        known: Facts,
        restrictions: Option<v1::Restrictions>,
    ) {
        let login = Login {
            id: conn.id,
            user: user.to_owned(),
            known,
            restrictions,
            version: conn.version.get().cloned().unwrap_or_default(),
            port: conn.port,
            remote: conn.remote.to_string(),
            accept_timeout: conn.config.frontend.accept_timeout,
            phase: conn.phase.clone(),
            gone: conn.gone.clone(),
            ended: conn.ended.clone(),
        };
        let server = Arc::clone(self);
        self.logins.spawn(async move {
            login.run(&*server.backend, &server.owner, &server.metrics).await;
        });
    }

    /// A connection's queued input and stuck channels have changed.
    pub(crate) fn count_input(&self, was: usize, was_stuck: usize, is: usize, is_stuck: usize) {
        if (was, was_stuck) == (is, is_stuck) {
            return;
        }
        let update = |sum: &AtomicUsize, was: usize, is: usize| {
            sum.fetch_add(is.wrapping_sub(was), Ordering::Relaxed).wrapping_add(is.wrapping_sub(was))
        };
        let queued = update(&self.queued, was, is);
        self.metrics.input(queued, update(&self.stuck, was_stuck, is_stuck));
    }

    /// Whether all connections together hold more input than they should.
    pub(crate) fn short_of_memory(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > self.current.load().config.frontend.max_queued_input
    }

    /// Returns when all connections are to end, with the text for them.
    pub(crate) async fn all_end(&self) -> Arc<str> {
        let mut end = self.end_all.subscribe();
        match end.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(text)) => Arc::clone(text),
            Ok(None) | Err(_) => Arc::from(""),
        }
    }
}

/// Why the frontend could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No host key.
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
}

/// Serves SSH on `listener` until `parts.shutdown`: softly, it stops accepting, tells its sessions, and waits for them up
/// to `frontend.drainTimeout`; hard, it cuts them. Either way connections are closed at the backend, as far as time allows,
/// and the owner's lease is given up.
///
/// # Errors
/// Before anything is accepted: no host key.
pub async fn run(config: Config, listener: TcpListener, parts: Parts) -> Result<(), StartError> {
    let metrics = parts.metrics.unwrap_or_else(|| Metrics::new(&mut Registry::default()));
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let (backend, pool): (Arc<dyn Backend>, _) = if let Some(backend) = parts.backend {
        (backend, None)
    } else {
        let to = &config.frontend.backend;
        let pool = Pool::new(to.addresses.clone(), to.security.clone(), metrics.clone());
        if let Security::Tls { config, reload_interval, .. } = &to.security {
            let counted = metrics.clone();
            let follow = Arc::clone(config).follow(*reload_interval, stop.clone(), move |good| counted.reloaded(good));
            tracker.spawn(follow);
        }
        (Arc::clone(&pool) as Arc<dyn Backend>, Some(pool))
    };
    let server = Server::new(config, backend, metrics)?;
    if let Some(source) = parts.source {
        let reloading = Arc::new(Reloading::new(&server));
        tracker.spawn(source.follow(reloading, stop.clone()));
    }
    tracker.spawn(Arc::clone(&server.owner).run(Arc::clone(&server.backend), stop.clone()));
    finish_after(server, Tasks { tracker, stop, pool }, listener, parts.readiness, parts.shutdown).await;
    Ok(())
}

/// The process's own tasks.
struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    pool: Option<Arc<Pool>>,
}

/// Keeps the readiness: new connections are for frontends that have a backend. Those that are there stay, whatever it says.
async fn follow(pool: Option<&Pool>, readiness: &Readiness) -> Infallible {
    let Some(pool) = pool else {
        readiness.set(true);
        return std::future::pending().await;
    };
    loop {
        readiness.set(pool.is_serving());
        pool.changed().await;
    }
}

async fn finish_after(
    server: Arc<Server>,
    tasks: Tasks,
    listener: TcpListener,
    readiness: Readiness,
    shutdown: Shutdown,
) {
    if let Some(pool) = &tasks.pool {
        pool.resolve().await;
        tasks.tracker.spawn(Arc::clone(pool).keep_resolving(tasks.stop.clone()));
    }
    let (address, users) = (listen::describe(&listener), server.current().config.users.len());
    info!(code = codes::SSH_AVAILABLE, address, users, "serving SSH");
    info!(code = codes::SERVICE_POOL_RUNNING, "everything serves");
    tokio::select! {
        () = listen::accept(Arc::clone(&server), listener, shutdown.soft.clone()) => {}
        never = follow(tasks.pool.as_deref(), &readiness) => match never {},
    }
    readiness.set(false);
    let drain = server.current().config.frontend.drain_timeout;
    let connections = server.connections.len();
    info!(code = codes::SERVICE_POOL_STOPPING, connections, ?drain, "shutting down");
    server.connections.close();
    let text = format!("the server is shutting down; this session ends in {} s at the latest", drain.as_secs());
    server.notice.send_replace(Some(text.into()));
    tokio::select! {
        () = server.connections.wait() => {}
        () = tokio::time::sleep(drain) => {}
        () = shutdown.hard.cancelled() => {}
    }
    server.end_all.send_replace(Some("the server is shutting down".into()));
    server.connections.wait().await;
    // What is closed one by one tells more than a lease that ends; a second signal, and the lease's end, shorten it.
    server.logins.close();
    tokio::select! {
        () = server.logins.wait() => {}
        () = tokio::time::sleep(drain.max(LEAVING)) => warn!("some connections are not closed yet"),
        () = shutdown.hard.cancelled() => {}
    }
    server.owner.leave(&*server.backend, LEAVING).await;
    tasks.stop.cancel();
    tasks.tracker.close();
    let _ = timeout(LEAVING, tasks.tracker.wait()).await;
    info!(code = codes::SERVICE_POOL_STOPPED, "the frontend has ended");
}
