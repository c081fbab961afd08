//! One program of one SSH channel: from its request to its end.
//!
//! [`Session::run`] waits for the connection, starts the program, and reads the backend's frames, always, into memory that
//! credit bounds. Beside it run one task for each direction ([`output`], [`stdin`]) and one for signals and sizes
//! ([`control`]), so that nothing ever waits behind unread data.

mod control;
mod link;
mod open;
mod output;
mod stdin;

use crate::{
    backend::{Choice, Failure, Phase, Terms, Tour, phase::Opened},
    metrics::{SessionEnd, Turned},
    ssh::{Admitted, Conn, Input, LateAnswer, Slot, TOO_MANY, signal_of},
};
use control::Controls;
use futures::StreamExt as _;
use link::Link;
use output::Output;
use podbay::v1::{self, run_session_response::Frame};
use podbay_frontend_core::{Ending, Report, Start, WindowSize, exit::LOST};
use russh::{
    ChannelWriteHalf,
    server::{Handle, Msg},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

/// Added to the backend's own deadlines, so that its answer, which says more, arrives first.
const GRACE: Duration = Duration::from_secs(2);

/// Told when a session ends for the memory its input takes.
const EVICTED: &str = "ended: the program does not read its input, and too much of it waits on this connection";

/// A program and its channel.
pub struct Session {
    pub conn: Arc<Conn>,
    pub handle: Handle,
    pub write: Arc<ChannelWriteHalf<Msg>>,
    pub input: Arc<Input>,
    pub start: Start,
    pub signals: mpsc::Receiver<String>,
    pub size: watch::Receiver<Option<WindowSize>>,
    pub answer: LateAnswer,
    pub slot: Slot,
}

/// A program that runs.
struct Running {
    _admitted: Admitted,
    link: Arc<Link>,
    frames: crate::backend::Frames<v1::RunSessionResponse>,
}

/// Why no program runs.
enum NotStarted {
    /// The request is answered with success, and this is how the session ends: told on stderr, with a status. sshd does
    /// the same for a command that can't be executed, and a failure would hide the reason from OpenSSH's users.
    Ended(Ending),
    /// The request is answered with failure.
    NoSubsystem(String),
}

/// How an attempt to start went.
enum Attempt {
    Running { link: Arc<Link>, frames: crate::backend::Frames<v1::RunSessionResponse> },
    Failed(Failure),
    Refused(v1::Refusal),
    Ended(v1::Exit),
}

/// Counts the session, also when its task is aborted, and lets go of its input.
struct Counted {
    conn: Arc<Conn>,
    input: Arc<Input>,
    end: SessionEnd,
    _slot: Slot,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.input.close();
        self.conn.server.metrics.session_ended(self.end);
    }
}

impl Session {
    /// Runs the program and closes the channel. Aborting it gives the program up; the client is then gone already.
    pub async fn run(self) {
        let Self { conn, handle, write, input, start, signals, size, answer, slot } = self;
        conn.server.metrics.session_began();
        input.has_program();
        let mut counted =
            Counted { conn: Arc::clone(&conn), input: Arc::clone(&input), end: SessionEnd::Abandoned, _slot: slot };
        let mut tasks = JoinSet::new();
        let output = Output::new(&conn, &write, start.pty.is_some(), &mut tasks);
        let mut starting = Starting { conn: &conn, output: &output, answer, start: &start, since: Instant::now() };
        let program = async {
            let controls = Controls { signals, size, first: start.pty.as_ref().map(|pty| pty.size) };
            let ending = match starting.run().await {
                Ok((running, terms)) => run(running, &terms, &conn, &input, &output, controls).await,
                Err(NotStarted::Ended(ending)) => ending,
                Err(NotStarted::NoSubsystem(refusal)) => return Err(refusal),
            };
            Ok(ending)
        };
        let ended = tokio::select! {
            ended = program => ended,
            () = input.evicted() => Ok(Ending::Lost(EVICTED.to_owned())),
            text = conn.ended_for_session() => Ok(Ending::Lost(text.to_string())),
        };
        let ending = match ended {
            Ok(ending) => {
                starting.answer.success().await;
                ending
            }
            // Clients say this themselves; OpenSSH shows nothing else once it has read a failure.
            Err(refusal) => {
                info!(connection = %conn.id, "{refusal}");
                if starting.answer.failure().await { Ending::Code(LOST) } else { Ending::Lost(refusal) }
            }
        };
        input.close();
        debug!(connection = %conn.id, channel = write.id().number(), ?ending, "session ended");
        let report = ending.report();
        if let Report::Failed { message, .. } = &report {
            output.note(message);
        }
        // All output goes out first, however long the client takes to read it.
        output.finish();
        while tasks.join_next().await.is_some() {}
        counted.end = close(&handle, &write, report).await;
    }
}

/// Eof, then the exit, then close: clients need the exit before the close.
async fn close(handle: &Handle, write: &ChannelWriteHalf<Msg>, report: Report) -> SessionEnd {
    let _ = write.eof().await;
    let end = match report {
        Report::Status(status) => {
            let _ = write.exit_status(status).await;
            SessionEnd::Status
        }
        Report::Failed { status, .. } => {
            let _ = write.exit_status(status).await;
            SessionEnd::Failed
        }
        Report::Signal { name, core_dumped, message } => {
            let signal = signal_of(&name);
            let _ = handle.exit_signal_request(write.id(), signal, core_dumped, message, String::new()).await;
            SessionEnd::Signal
        }
    };
    let _ = write.close().await;
    end
}

/// A session that waits for its connection and its program.
struct Starting<'a> {
    conn: &'a Arc<Conn>,
    output: &'a Output,
    answer: LateAnswer,
    start: &'a Start,
    since: Instant,
}

impl Starting<'_> {
    /// From the request to Started.
    async fn run(&mut self) -> Result<(Running, Arc<Terms>), NotStarted> {
        let opened = self.opened().await.map_err(|text| NotStarted::Ended(Ending::Lost(text)))?;
        if let Some(name) = open::unknown_subsystem(&self.start.program, &opened.terms) {
            return Err(NotStarted::NoSubsystem(format!("there is no subsystem {name} here")));
        }
        let terms = Arc::clone(&opened.terms);
        let Some(admitted) = self.conn.admit(terms.max_sessions) else {
            self.conn.server.metrics.turned(Turned::TooManySessions);
            return Err(self.lost(TOO_MANY));
        };
        let pod = if terms.session_mode { terms.pod_start } else { Duration::ZERO };
        let deadline = Instant::now() + terms.command_start + pod + GRACE;
        let mut tour = Tour::preferring(opened.replica);
        let id = rand::random();
        loop {
            // Whatever is repeated had no effect: it stays the first attempt, which is all that a pod without agent takes.
            let tried = tokio::select! {
                tried = self.attempt(&opened, tour.choice.clone(), id, 1) => tried,
                () = sleep_until(deadline) => {
                    return Err(self.lost("the program was not started in time (timeouts.commandStart)"));
                }
            };
            let failure = match tried {
                Attempt::Running { link, frames } => {
                    self.answer.success().await;
                    return Ok((Running { _admitted: admitted, link, frames }, terms));
                }
                Attempt::Failed(failure) => failure,
                Attempt::Refused(refusal) if refusal.reason() == v1::Reason::SubsystemUnknown => {
                    return Err(NotStarted::NoSubsystem(refusal.message));
                }
                Attempt::Refused(refusal) => {
                    end_with(self.conn, &refusal);
                    return Err(self.lost(&refusal.message));
                }
                Attempt::Ended(exit) => return Err(NotStarted::Ended(ending(self.conn, exit))),
            };
            debug!(connection = %self.conn.id, "the program is started elsewhere: {failure}");
            if let Err(failure) = tour.failed(failure) {
                info!(connection = %self.conn.id, "program not started: {failure}");
                return Err(self.lost(&failure.refusal().message));
            }
        }
    }

    fn lost(&self, text: &str) -> NotStarted {
        NotStarted::Ended(Ending::Lost(format!("{text} [connection {}]", self.conn.id)))
    }

    /// Waits for the connection, and shows what it waits for.
    async fn opened(&mut self) -> Result<Arc<Opened>, String> {
        let mut phase = self.conn.phase.subscribe();
        let mut shown = None;
        loop {
            let news = match &*phase.borrow_and_update() {
                Phase::Open(opened) => return Ok(Arc::clone(opened)),
                Phase::Failed(text) => return Err(text.to_string()),
                Phase::Asking => "waiting for the backend".to_owned(),
                Phase::Starting { progress, .. } => {
                    progress.clone().unwrap_or_else(|| "waiting for the pod to start".to_owned())
                }
            };
            let showing = self.show_at(&news, shown.as_ref());
            tokio::select! {
                changed = phase.changed() => changed.map_err(|_| "the server is shutting down".to_owned())?,
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
        (shown.map(String::as_str) != Some(news))
            .then_some(self.since + self.conn.server.config.frontend.progress_after)
    }

    /// One RunSession, up to Started.
    async fn attempt(&mut self, opened: &Opened, choice: Choice, id: [u8; 16], attempt: u32) -> Attempt {
        let (link, requests) = Link::new();
        let frame = open::frame(opened, podbay::SessionId::from_bytes(id), attempt, self.start, &link);
        // The receiver is in `requests`: there is room for a first frame.
        let _ = link.send(frame).await;
        let call = self.conn.server.backend.run_session(choice, requests);
        let mut call = std::pin::pin!(call);
        let (replica, mut frames) = loop {
            tokio::select! {
                called = &mut call => match called {
                    Ok(called) => break called,
                    Err(failure) if failure.may_retry_once_only() => return Attempt::Failed(failure),
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
            match frame {
                Some(Ok(v1::RunSessionResponse { frame })) => match frame {
                    Some(Frame::Progress(progress)) => news = Some(progress.message),
                    Some(Frame::Started(started)) => {
                        if !started.warning.is_empty() {
                            self.output.note(&started.warning);
                        }
                        link.started(&started);
                        return Attempt::Running { link: Arc::new(link), frames };
                    }
                    Some(Frame::Exit(exit)) => return Attempt::Ended(exit),
                    Some(
                        Frame::Data(_)
                        | Frame::Credit(_)
                        | Frame::Ack(_)
                        | Frame::Eof(_)
                        | Frame::Answer(_)
                        | Frame::Gap(_)
                        | Frame::Moving(_),
                    )
                    | None => debug!(connection = %self.conn.id, "a frame before Started"),
                },
                Some(Err(failure)) if failure.may_retry_once_only() => return Attempt::Failed(failure),
                Some(Err(failure)) => return Attempt::Refused(failure.refusal()),
                None => {
                    let status = tonic::Status::unavailable("the stream ended before Started");
                    return Attempt::Refused(Failure::Broken(replica, status).refusal());
                }
            }
        }
    }
}

/// A program that runs: reads its frames until it has ended.
async fn run(
    running: Running,
    terms: &Terms,
    conn: &Arc<Conn>,
    input: &Arc<Input>,
    output: &Output,
    controls: Controls,
) -> Ending {
    let Running { _admitted, link, frames } = running;
    let mut notice = conn.server.notice.subscribe();
    let says = async {
        if let Ok(text) = notice.wait_for(Option::is_some).await
            && let Some(text) = text.as_deref()
        {
            output.note(text);
        }
        std::future::pending::<()>().await;
    };
    let feeding = async {
        stdin::feed(&link, input).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ending = read(conn, &link, frames, output) => ending,
        () = output.broken() => Ending::Lost("the client is gone".to_owned()),
        () = feeding => Ending::Lost(String::new()),
        () = controls.run(&link, terms, output) => Ending::Lost(String::new()),
        () = says => Ending::Lost(String::new()),
    }
}

/// Takes every frame at once: what it leads to waits elsewhere.
async fn read(
    conn: &Conn,
    link: &Arc<Link>,
    mut frames: crate::backend::Frames<v1::RunSessionResponse>,
    output: &Output,
) -> Ending {
    while let Some(frame) = frames.next().await {
        let frame = match frame {
            Ok(frame) => frame.frame,
            Err(failure) => {
                info!("a session's stream broke: {failure}");
                return Ending::Lost(format!("{}; how the program ended is not known", failure.refusal().message));
            }
        };
        let taken = match frame {
            Some(Frame::Data(data)) => link.received(&data).map(|()| output.data(link, data)),
            Some(Frame::Credit(credit)) => {
                link.credited(&credit);
                Ok(())
            }
            Some(Frame::Ack(ack)) => link.acknowledged(&ack),
            Some(Frame::Eof(eof)) => link.ended(&eof),
            Some(Frame::Answer(answer)) => {
                link.answered(answer);
                Ok(())
            }
            Some(Frame::Exit(exit)) => return ending(conn, exit),
            Some(Frame::Gap(gap)) => {
                output.note(&format!("{} bytes of output were dropped", gap.to.saturating_sub(gap.from)));
                Ok(())
            }
            Some(Frame::Moving(_)) => {
                // Resuming elsewhere needs the agent's replay; without it the stream's end is told as lost.
                debug!("the replica drains");
                Ok(())
            }
            Some(Frame::Progress(_) | Frame::Started(_)) | None => Ok(()),
        };
        if let Err(error) = taken {
            warn!("the backend breaks the protocol: {error}");
            return Ending::Lost(format!("the backend breaks the protocol: {error}"));
        }
    }
    Ending::Lost("the backend ended the session without saying how the program ended".to_owned())
}

/// A connection that an operator ended is ended as a whole, before a heartbeat says so.
fn end_with(conn: &Conn, refusal: &v1::Refusal) {
    if refusal.reason() == v1::Reason::Terminated {
        conn.end(&refusal.message);
    }
}

fn ending(conn: &Conn, exit: v1::Exit) -> Ending {
    match exit.end {
        Some(v1::exit::End::Code(code)) => Ending::Code(code),
        Some(v1::exit::End::Signal(signal)) => {
            Ending::Signal { name: signal.name, core_dumped: signal.core_dumped, message: signal.message }
        }
        Some(v1::exit::End::Lost(refusal)) => {
            end_with(conn, &refusal);
            Ending::Lost(refusal.message)
        }
        None => Ending::Lost("the backend did not say how the program ended".to_owned()),
    }
}
