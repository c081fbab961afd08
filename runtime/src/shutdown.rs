//! An ordered end: a first signal asks, a second one cuts.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a process watches to know that it is to end.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Stop accepting, tell peers, drain, then end; within the process's own deadline.
    pub soft: CancellationToken,
    /// End at once. Implies `soft`.
    pub hard: CancellationToken,
}

impl Shutdown {
    /// One that nothing triggers but its owner.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM or SIGINT triggers: the first softly, the second hard. Call it once, inside a runtime; the
    /// watching task ends with the runtime.
    ///
    /// # Errors
    /// When the handlers can't be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let tokens = shutdown.clone();
        tokio::spawn(async move {
            for stage in [&tokens.soft, &tokens.hard] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stage.cancel();
            }
        });
        Ok(shutdown)
    }

    /// The same for a program in the foreground: SIGHUP, which says that its terminal is gone, asks too. However often it comes (shells send
    /// one of their own), it does not cut.
    ///
    /// # Errors
    /// As [`Self::on_signals`].
    pub fn on_signals_and_hangup() -> std::io::Result<Self> {
        let mut hangup = signal(SignalKind::hangup())?;
        let shutdown = Self::on_signals()?;
        let soft = shutdown.soft.clone();
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                soft.cancel();
            }
        });
        Ok(shutdown)
    }
}
