//! From a channel's request to a program that runs: the wait for the connection, and the first streams.

use super::{
    end_with, ending,
    link::Link,
    open,
    output::Output,
    running::{Program, Running, Stream},
};
use crate::{
    backend::{Choice, Failure, Phase, Tour, phase::Opened},
    metrics::Turned,
    ssh::{Conn, LateAnswer, TOO_MANY},
};
use futures::StreamExt as _;
use podbay::{Denied, SessionId, v1};
use podbay_frontend_core::{Ending, Event, Start};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info};

/// Between rounds over all replicas.
const PAUSE: Duration = Duration::from_millis(200);

/// Added to the backend's own deadlines, so that its answer, which says more, arrives first.
const GRACE: Duration = Duration::from_secs(2);

/// Why no program runs.
pub(super) enum NotStarted {
    /// The request is answered with success, and this is how the session ends: told on stderr, with a status. sshd does
    /// the same for a command that can't be executed, and a failure would hide the reason from OpenSSH's users.
    Ended(Ending),
    /// The request is answered with failure: there is no such subsystem, or the policy refuses it.
    Refused(String),
}

/// How an attempt to start went.
enum Attempt {
    Running(Stream),
    Failed(Failure),
    Refused(v1::Refusal),
    Ended(v1::Exit),
}

/// A session that waits for its connection and its program.
pub(super) struct Starting<'a> {
    pub conn: &'a Arc<Conn>,
    pub output: &'a Output,
    pub answer: LateAnswer,
    pub start: &'a Start,
    pub since: Instant,
}

impl<'a> Starting<'a> {
    /// From the request to Started.
    pub async fn run(&mut self) -> Result<Running<'a>, NotStarted> {
        let opened = self.opened().await?;
        if let Some(name) = open::unknown_subsystem(&self.start.program, &opened.terms) {
            return Err(NotStarted::Refused(format!("there is no subsystem {name} here")));
        }
        let terms = Arc::clone(&opened.terms);
        let Some(admitted) = self.conn.admit(terms.max_sessions) else {
            self.conn.server.metrics.turned(Turned::TooManySessions);
            return Err(self.lost(TOO_MANY));
        };
        let pod = if terms.session_mode { terms.pod_start } else { Duration::ZERO };
        let deadline = Instant::now() + terms.command_start + pod + GRACE;
        let mut tour = Tour::preferring(opened.replica);
        let id = podbay::SessionId::from_bytes(rand::random());
        let link = Arc::new(Link::new(self.start.pty.is_some()));
        // Told where another replica can only say that it can't go on with what the first one may have begun.
        let mut begun: Option<Failure> = None;
        loop {
            let tried = tokio::select! {
                tried = self.attempt(&opened, tour.choice.clone(), id, &link) => tried,
                () = sleep_until(deadline) => {
                    return Err(self.lost("the program was not started in time (timeouts.commandStart)"));
                }
            };
            let failure = match tried {
                Attempt::Running(stream) => {
                    self.answer.success().await;
                    let (conn, output, start) = (self.conn, self.output, self.start);
                    return Ok(Running::new(
                        Program { conn, opened, id, start, link, output, since: Instant::now(), _admitted: admitted },
                        stream,
                    ));
                }
                Attempt::Failed(failure) => failure,
                Attempt::Refused(refusal)
                    if matches!(refusal.reason(), v1::Reason::SubsystemUnknown | v1::Reason::Policy) =>
                {
                    return Err(NotStarted::Refused(refusal.message));
                }
                Attempt::Refused(refusal) => {
                    let first = begun.filter(|_| refusal.reason() == v1::Reason::Unimplemented);
                    let told = first.map_or(refusal, |failure| failure.refusal());
                    end_with(self.conn, &told);
                    return Err(self.lost(&told.message));
                }
                Attempt::Ended(exit) => return Err(NotStarted::Ended(ending(self.conn, exit))),
            };
            debug!(connection = %self.conn.id, "the program is started elsewhere: {failure}");
            if !failure.may_retry_once_only() {
                // It may run already: the next attempt attaches to it, or is refused.
                link.reopen();
                begun = Some(failure.clone());
            }
            let Err(failure) = tour.failed(failure) else { continue };
            // All were asked. One that answered has said why; where none could, another may be there soon.
            if matches!(failure, Failure::Answered(..)) {
                info!(connection = %self.conn.id, "program not started: {failure}");
                return Err(self.lost(&begun.unwrap_or(failure).refusal().message));
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(self.lost(&begun.unwrap_or(failure).refusal().message));
            }
            sleep(PAUSE).await;
        }
    }

    fn lost(&self, text: &str) -> NotStarted {
        NotStarted::Ended(Ending::Lost(format!("{text} [connection {}]", self.conn.id)))
    }

    /// Waits for the connection, and shows what it waits for.
    async fn opened(&mut self) -> Result<Arc<Opened>, NotStarted> {
        let lost = |text: String| NotStarted::Ended(Ending::Lost(text));
        let mut phase = self.conn.phase.subscribe();
        let mut shown = None;
        loop {
            let denied = phase.borrow_and_update().terms().and_then(|terms| terms.policy.refuses_start(self.start));
            if let Some(denied) = denied {
                let code = denied.code();
                info!(connection = %self.conn.id, code, "refused by policy");
                return Err(match denied {
                    // Its request was answered with success already.
                    Denied::Tty => self.lost(&format!("{denied} (ssh -T asks for none)")),
                    Denied::Env | Denied::Exec | Denied::Shell | Denied::Subsystem | Denied::Signal => {
                        NotStarted::Refused(denied.to_string())
                    }
                });
            }
            let news = match &*phase.borrow() {
                Phase::Open(opened) => return Ok(Arc::clone(opened)),
                Phase::Failed(text) => return Err(lost(text.to_string())),
                Phase::Asking => "waiting for the backend".to_owned(),
                Phase::Starting { progress, .. } => {
                    progress.clone().unwrap_or_else(|| "waiting for the pod to start".to_owned())
                }
            };
            let showing = self.show_at(&news, shown.as_ref());
            tokio::select! {
                changed = phase.changed() => changed.map_err(|_| lost("the server is shutting down".to_owned()))?,
                () = sleep_until(showing.unwrap_or_else(Instant::now)), if showing.is_some() => {
                    self.output.note(&news);
                    shown = Some(news);
                }
                () = self.answer.due() => self.answer.success().await,
            }
        }
    }

    /// When to show this news; never twice.
    fn show_at(&self, news: &str, shown: Option<&String>) -> Option<Instant> {
        (shown.map(String::as_str) != Some(news)).then_some(self.since + self.conn.config.frontend.progress_after)
    }

    /// One RunSession, up to Started.
    async fn attempt(&mut self, opened: &Opened, choice: Choice, id: SessionId, link: &Link) -> Attempt {
        let (requests, frames) = link.stream(open::frame(opened, id, self.start, Duration::ZERO));
        let call = self.conn.server.backend.run_session(choice, frames);
        let mut call = std::pin::pin!(call);
        let (replica, mut frames) = loop {
            tokio::select! {
                called = &mut call => match called {
                    Ok(called) => break called,
                    Err(failure) if failure.may_retry() => return Attempt::Failed(failure),
                    Err(failure) => return Attempt::Refused(failure.refusal()),
                },
                () = self.answer.due() => self.answer.success().await,
            }
        };
        let mut shown = None;
        let mut news: Option<String> = None;
        loop {
            let showing = news.as_ref().and_then(|news| self.show_at(news, shown.as_ref()));
            let frame = tokio::select! {
                frame = frames.next() => frame,
                () = self.answer.due() => {
                    self.answer.success().await;
                    continue;
                }
                () = sleep_until(showing.unwrap_or_else(Instant::now)), if showing.is_some() => {
                    shown.clone_from(&news);
                    self.output.note(news.as_deref().unwrap_or_default());
                    continue;
                }
            };
            let event = match frame {
                Some(Ok(frame)) => link.receive(frame),
                Some(Err(failure)) if failure.may_retry() => return Attempt::Failed(failure),
                Some(Err(failure)) => return Attempt::Refused(failure.refusal()),
                None => {
                    let status = tonic::Status::unavailable("the stream ended before Started");
                    return Attempt::Failed(Failure::Broken(replica, status));
                }
            };
            match event {
                Ok(Event::Progress(progress)) => news = Some(progress.message),
                Ok(Event::Started(started)) => {
                    if !started.warning.is_empty() {
                        self.output.note(&started.warning);
                    }
                    return Attempt::Running(Stream { replica, requests, frames });
                }
                Ok(Event::Exit(exit)) => return Attempt::Ended(exit),
                Ok(_) => {}
                Err(error) => {
                    let text = format!("the backend breaks the protocol: {error}");
                    return Attempt::Refused(v1::Refusal::new(v1::Reason::ProtocolViolation, text));
                }
            }
        }
    }
}
