//! A configuration that is read again while the process runs: on SIGHUP, and when its file changes, or one that it names.
//!
//! A reading is whole or not at all: what is refused leaves everything as it was. What a process does with a good one is its own
//! ([`Reload`]). How often files are looked at, and why they are not watched: docs/design/0012-reload.md.

mod metrics;
mod settle;

pub use metrics::{Outcome, ReloadMetrics};

use crate::{
    config::{Document, Mistakes, Noted, parse_duration},
    files::Seen,
};
use prometheus_client::registry::Registry;
use settle::{Next, Settling};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How often files are looked at, unless told otherwise.
pub const EVERY: Duration = Duration::from_secs(5);

/// Reads the argument `--reload-interval`.
///
/// # Errors
/// What it must be.
pub fn interval(text: &str) -> Result<Duration, &'static str> {
    let every = parse_duration(text).map_err(|_| "write for example 5s or 500ms")?;
    let fits = every.is_zero() || every >= Duration::from_millis(100);
    if fits { Ok(every) } else { Err("must be 0 (only on SIGHUP) or at least 100ms") }
}

/// A changed file must look the same twice, so far apart.
const SETTLE: Duration = Duration::from_millis(250);

/// Why a configuration without mistakes is not taken. One line.
pub type Refused = String;

/// A process that can change its configuration.
pub trait Reload: Send + Sync + 'static {
    /// The whole configuration.
    type Config: Send + 'static;

    /// Reads it, with the files that it names. Blocks as that does.
    ///
    /// # Errors
    /// Every mistake.
    fn read(document: Document) -> Result<Self::Config, Mistakes>;

    /// Uses it for what begins from now on, and gives the keys that were changed and need a restart.
    ///
    /// # Errors
    /// Why not; then nothing has changed.
    fn take(&self, config: Self::Config) -> impl Future<Output = Result<Vec<&'static str>, Refused>> + Send;
}

/// What asks for a reading at once.
enum Asked {
    Never,
    Hangup(Signal),
    By(Arc<Notify>),
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "Never",
            Self::Hangup(_) => "Hangup",
            Self::By(_) => "By",
        })
    }
}

impl Asked {
    /// Cancel safe.
    async fn next(&mut self) {
        match self {
            Self::Never => std::future::pending().await,
            Self::Hangup(signal) => {
                if signal.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
            }
            Self::By(notify) => notify.notified().await,
        }
    }
}

/// The file that a process was started with, and what makes it look there again.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    /// Else another reading would hold something else, or nothing.
    regular: bool,
    /// Zero: only when asked.
    every: Duration,
    seen: Seen,
    asked: Asked,
    metrics: ReloadMetrics,
}

/// Reads a configuration, and notes what the files held that it was read of.
fn read<C>(path: &Path, interpret: impl FnOnce(Document) -> Result<C, Mistakes>) -> (Seen, Result<C, Mistakes>) {
    let noted = Noted::default();
    let config = Document::read_noting(path, &noted).and_then(interpret);
    (noted.seen(), config)
}

impl Source {
    /// Reads the configuration for the start. By itself it is then looked at every [`EVERY`].
    ///
    /// # Errors
    /// Every mistake.
    pub fn read<C>(
        path: &Path,
        interpret: impl FnOnce(Document) -> Result<C, Mistakes>,
    ) -> Result<(C, Self), Mistakes> {
        let (seen, config) = read(path, interpret);
        // One that is not there just now is being replaced.
        let regular = path.metadata().map_or(true, |meta| meta.is_file());
        let (path, metrics) = (path.to_owned(), ReloadMetrics::default());
        Ok((config?, Self { path, regular, every: EVERY, seen, asked: Asked::Never, metrics }))
    }

    /// Looked at so often; zero = only when asked.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    /// Read at each SIGHUP, which ends the process no more. Call it once, inside a runtime.
    ///
    /// # Errors
    /// Where the handler can't be installed.
    pub fn on_hangup(mut self) -> io::Result<Self> {
        self.asked = Asked::Hangup(signal(SignalKind::hangup())?);
        Ok(self)
    }

    /// Read when this is notified.
    #[must_use]
    pub fn when(mut self, asked: Arc<Notify>) -> Self {
        self.asked = Asked::By(asked);
        self
    }

    /// Counted here.
    #[must_use]
    pub fn counted(mut self, registry: &mut Registry) -> Self {
        self.metrics = ReloadMetrics::new(registry);
        self
    }

    /// Reads again and again until `stop`, and gives what is good to `to`. Logs and counts what comes of it.
    pub async fn follow<R: Reload>(self, to: Arc<R>, stop: CancellationToken) {
        let Self { path, regular, every, seen, mut asked, metrics } = self;
        let every = if regular { every } else { Duration::ZERO };
        let follower = Follower { path, to, metrics };
        let (mut settling, mut good) = (Settling::new(seen.clone()), seen);
        let mut next = Next::Wait;
        loop {
            let look = async {
                match next {
                    Next::Wait if every.is_zero() => std::future::pending().await,
                    Next::Wait | Next::Read => sleep(every).await,
                    Next::Soon => sleep(every.min(SETTLE)).await,
                }
            };
            let was_asked = tokio::select! {
                () = stop.cancelled() => return,
                () = asked.next() => true,
                () = look => false,
            };
            if !was_asked {
                let seen = settling.seen().clone();
                let Ok(found) = spawn_blocking(move || seen.again()).await else { continue };
                next = settling.look(found);
                if next != Next::Read {
                    continue;
                }
            }
            next = Next::Wait;
            if let Some((seen, outcome)) = follower.read(&good).await {
                follower.metrics.count(outcome);
                settling.was_read(seen.clone());
                if outcome != Outcome::Refused {
                    good = seen;
                }
            }
        }
    }
}

/// Where a configuration comes from and goes to.
struct Follower<R> {
    path: PathBuf,
    to: Arc<R>,
    metrics: ReloadMetrics,
}

impl<R: Reload> Follower<R> {
    /// One reading. `None` where it came to no end: a bug, which is logged.
    async fn read(&self, good: &Seen) -> Option<(Seen, Outcome)> {
        let (path, file) = (self.path.clone(), self.path.display());
        let (seen, config) = match spawn_blocking(move || read(&path, R::read)).await {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%file, %error, "reading the configuration failed; going on with the old one");
                return None;
            }
        };
        let config = match config {
            Ok(_) if seen == *good => {
                tracing::info!(%file, "the configuration was read again: nothing has changed");
                return Some((seen, Outcome::Unchanged));
            }
            Ok(config) => config,
            Err(Mistakes(mistakes)) => {
                for mistake in &mistakes {
                    tracing::error!("the configuration is refused: {mistake}");
                }
                tracing::error!(%file, mistakes = mistakes.len(), "going on with the old configuration");
                return Some((seen, Outcome::Refused));
            }
        };
        match self.to.take(config).await {
            Ok(waiting) => {
                self.metrics.waiting_for_restart(waiting.len());
                tracing::info!(%file, "the configuration was read again, and counts for what begins from now on");
                for key in waiting {
                    tracing::warn!(key, "{key} was changed, which needs a restart: going on with the old value");
                }
                Some((seen, Outcome::Ok))
            }
            Err(why) => {
                tracing::error!(%file, "the configuration is refused, going on with the old one: {why}");
                Some((seen, Outcome::Refused))
            }
        }
    }
}

#[cfg(test)]
mod tests;
