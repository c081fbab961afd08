//! Certificates that change on disk: read again without a restart.
//!
//! They are looked at now and then ([`Seen`]), as all files of a configuration are. A cert and its key don't change at the same
//! instant; what does not fit together (yet) leaves the last good configuration in use.

use super::{TlsError, WebServer, client, server};
use crate::{codes, files::Seen};
use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// A TLS configuration that follows its files. Connections that are there keep what they were made with.
pub struct Followed<C> {
    current: ArcSwap<C>,
    make: Box<dyn Fn() -> Result<Arc<C>, TlsError> + Send + Sync>,
    files: Vec<PathBuf>,
    seen: Mutex<Seen>,
}

/// What a look at the files found.
#[derive(Debug)]
pub enum Checked {
    /// Nothing new.
    Same,
    /// New files, in use from now on.
    New,
    /// New files that can't be used; what was in use still is. Told once, until they change again.
    Bad(TlsError),
}

impl<C> fmt::Debug for Followed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Followed<ServerConfig> {
    /// As [`server`].
    ///
    /// # Errors
    /// Where the files can't be used now.
    pub fn server(cert: PathBuf, key: PathBuf, client_ca: Option<PathBuf>) -> Result<Arc<Self>, TlsError> {
        let files = [&cert, &key].into_iter().chain(&client_ca).cloned().collect();
        Self::new(files, move || server(&cert, &key, client_ca.as_deref()))
    }

    /// The same for HTTPS. Where no file is named nothing changes.
    ///
    /// # Errors
    /// Where they can't be used now.
    pub fn web_server(web: WebServer) -> Result<Arc<Self>, TlsError> {
        Self::new(web.files(), move || web.config())
    }
}

impl Followed<ClientConfig> {
    /// As [`client`].
    ///
    /// # Errors
    /// Where the files can't be used now.
    pub fn client(ca: PathBuf, identity: Option<(PathBuf, PathBuf)>) -> Result<Arc<Self>, TlsError> {
        let files = std::iter::once(&ca).chain(identity.iter().flat_map(|(cert, key)| [cert, key])).cloned().collect();
        Self::new(files, move || client(&ca, identity.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()))))
    }
}

impl<C: Send + Sync + 'static> Followed<C> {
    fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<Arc<C>, TlsError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TlsError> {
        // Before: a change in between is then found at the next look.
        let seen = Mutex::new(Seen::of(&files));
        Ok(Arc::new(Self { current: ArcSwap::new(make()?), make: Box::new(make), files, seen }))
    }

    /// For the next handshake.
    pub fn load(&self) -> Arc<C> {
        self.current.load_full()
    }

    /// Looks at the files. Blocks as reading files does.
    pub fn check(&self) -> Checked {
        let found = Seen::of(&self.files);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == found {
                return Checked::Same;
            }
            *seen = found;
        }
        match (self.make)() {
            Ok(made) => {
                self.current.store(made);
                Checked::New
            }
            Err(error) => Checked::Bad(error),
        }
    }

    /// Which files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Looks again and again until `stop`, and logs what it finds; `told` is for counting: whether new files are good.
    pub async fn follow(self: Arc<Self>, every: Duration, stop: CancellationToken, told: impl Fn(bool) + Send + Sync) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            Arc::clone(&self).look(&told).await;
        }
    }

    /// One such look, now.
    pub async fn look(self: Arc<Self>, told: impl Fn(bool) + Send) {
        let this = Arc::clone(&self);
        match tokio::task::spawn_blocking(move || this.check()).await {
            Ok(Checked::Same) => {}
            Ok(Checked::New) => {
                tracing::info!(code = codes::TLS_RELOADED, files = ?self.files, "new certificate files are in use");
                told(true);
            }
            Ok(Checked::Bad(error)) => {
                tracing::error!(code = codes::TLS_RELOAD_FAILED, %error, "new certificate files can't be used; going on with the old ones");
                told(false);
            }
            Err(error) => tracing::error!(%error, "looking at certificate files failed"),
        }
    }
}
