//! The log: which lines, how they look, where they go. (Metrics are each process's own; [`crate::admin`] serves them. What
//! lines are called is in [`crate::codes`].)

mod format;
mod lines;
mod output;
mod record;
mod section;
mod severity;
mod syslog;

pub use format::Format;
pub use output::Destination;
pub use section::Level;
pub use severity::Severity;
pub use syslog::Syslog;

use lines::{Least, Lines};
use output::Output;
use std::{
    io,
    sync::{Arc, OnceLock},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

/// The `log` section.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    /// Which lines.
    pub level: Level,
    /// How they look.
    pub format: Format,
    /// Where they go.
    pub destination: Destination,
}

/// Where this process's log goes, for whoever rotates it.
static OUTPUT: OnceLock<Arc<Output>> = OnceLock::new();

/// What lets this process's lines through.
static LEVELS: OnceLock<(reload::Handle<EnvFilter, Registry>, Arc<Least>)> = OnceLock::new();

/// Sends this process's log where it shall go. `RUST_LOG` overrides the level. A second call does nothing.
///
/// # Errors
/// The file can't be written, or nothing listens where syslog should be.
pub fn init(log: &Log) -> io::Result<()> {
    let output = Arc::new(Output::open(log.destination.clone())?);
    let (filter, least) = levels(&log.level);
    let (filter, handle) = reload::Layer::new(filter);
    let least = Arc::new(Least::new(least));
    let lines = Lines::new(log.format, Arc::clone(&least), Arc::clone(&output));
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = OUTPUT.set(output);
        let _ = LEVELS.set((handle, least));
    }
    Ok(())
}

/// Changes the level of this process's log, unless `RUST_LOG` has set it. Format and destination stay.
pub fn set_level(log: &Log) {
    // Without levels there is no log of ours to change.
    let Some((handle, current)) = LEVELS.get() else { return };
    let (filter, least) = levels(&log.level);
    // It fails with the subscriber gone, at the very end of the process.
    let _ = handle.reload(filter);
    current.set(least);
}

/// What lets lines through: tracing's filter, and the least severity.
fn levels(level: &Level) -> (EnvFilter, Severity) {
    let given = EnvFilter::try_from_default_env().ok();
    // Whoever debugs by the environment wants to see what it names.
    let least = if given.is_some() { Severity::Debug } else { level.least() };
    let filter =
        given.or_else(|| EnvFilter::try_new(level.directives()).ok()).unwrap_or_else(|| EnvFilter::new("info"));
    (filter, least)
}

/// From now on SIGHUP opens the log file anew, or connects to syslog anew, and is no longer the end of the process. Others may wait for the
/// signal besides. Call it inside a runtime; the waiting task ends with it.
///
/// # Errors
/// The handler can't be installed.
pub fn reopen_on_hangup() -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            if let Some(output) = OUTPUT.get() {
                output.reopen();
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests;
