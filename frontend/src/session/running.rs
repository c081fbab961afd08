//! A program that runs, over all its streams.
//!
//! Where the program outlives its streams, a stream that breaks or a replica that drains leads to the next attempt on another
//! replica, and the user sees nothing; else it is a lost session.

use super::{
    control::Controls,
    end_with, ending,
    link::{Link, Requests},
    open, stdin,
};
use crate::{
    backend::{Choice, Failure, Frames, Replica, Tour, phase::Opened},
    session::output::Output,
    ssh::{Admitted, Conn, Input},
};
use bytes::Bytes;
use futures::StreamExt as _;
use podbay::{SessionId, v1};
use podbay_frontend_core::{Ending, Event, Start};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, info, warn};

/// Between rounds over all replicas.
const PAUSE: Duration = Duration::from_millis(200);

/// How long the call that says that an exit is known may take; nothing waits for it.
const ACK: Duration = Duration::from_secs(15);

/// How long a stream is kept for the word that its program is given up.
const HANGUP: Duration = Duration::from_secs(5);

/// Both directions of one RunSession.
pub(super) struct Stream {
    pub replica: Replica,
    pub requests: Requests,
    pub frames: Frames<v1::RunSessionResponse>,
}

/// What all streams of a program have in common.
pub(super) struct Program<'a> {
    pub conn: &'a Arc<Conn>,
    pub opened: Arc<Opened>,
    pub id: SessionId,
    pub start: &'a Start,
    pub link: Arc<Link>,
    pub output: &'a Output,
    /// When it started.
    pub since: Instant,
    /// One of the sessions that the connection may have.
    pub _admitted: Admitted,
}

/// A program and its present stream. Dropping it before its end gives the program up.
pub(super) struct Running<'a> {
    program: Program<'a>,
    /// `None` between two streams, and after the end.
    stream: Option<Stream>,
}

/// An exit that the pod keeps until it is told that it is known.
pub(super) struct Kept {
    conn: Arc<Conn>,
    handle: Bytes,
    id: SessionId,
}

/// How a stream ended.
enum Over {
    Ended(Ending),
    Broke(Failure),
    Moving,
}

/// Why a stream could not be had.
enum NotResumed {
    Failed(Failure),
    Ended(Ending),
}

impl<'a> Running<'a> {
    /// A program that was started on this stream.
    pub const fn new(program: Program<'a>, stream: Stream) -> Self {
        Self { program, stream: Some(stream) }
    }

    /// Carries everything until the program has ended, or can't be followed any more.
    pub async fn run(mut self, input: &Input, controls: Controls) -> (Ending, Option<Kept>) {
        let (conn, output, link) = (self.program.conn, self.program.output, Arc::clone(&self.program.link));
        let terms = Arc::clone(&self.program.opened.terms);
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
            ended = self.follow() => ended,
            () = output.broken() => (Ending::Lost("the client is gone".to_owned()), None),
            () = feeding => (Ending::Lost(String::new()), None),
            () = controls.run(&link, &terms, output) => (Ending::Lost(String::new()), None),
            () = says => (Ending::Lost(String::new()), None),
        }
    }

    async fn follow(&mut self) -> (Ending, Option<Kept>) {
        loop {
            let failure = match self.read().await {
                Over::Ended(ending) => {
                    self.stream = None;
                    let kept = || Kept {
                        conn: Arc::clone(self.program.conn),
                        handle: Bytes::clone(&self.program.opened.handle.load()),
                        id: self.program.id,
                    };
                    return (ending, self.program.link.is_durable().then(kept));
                }
                Over::Broke(failure) => {
                    info!(connection = %self.program.conn.id, session = %self.program.id, "a session's stream broke: {failure}");
                    Some(failure)
                }
                Over::Moving => None,
            };
            if !self.program.link.is_durable() {
                self.stream = None;
                let why = failure.map_or_else(
                    || "the server that ran this session shuts down".to_owned(),
                    |failure| failure.refusal().message,
                );
                return (Ending::Lost(format!("{why}; how the program ended is not known")), None);
            }
            if let Err(ending) = self.resume(failure).await {
                return (ending, None);
            }
        }
    }

    /// Takes every frame of the present stream at once: what it leads to waits elsewhere.
    async fn read(&mut self) -> Over {
        let Some(stream) = &mut self.stream else {
            return Over::Broke(Failure::NoReplica);
        };
        let mut writing = std::pin::pin!(self.program.link.write(&stream.requests));
        loop {
            let frame = tokio::select! {
                frame = stream.frames.next() => frame,
                never = &mut writing => match never {},
            };
            let event = match frame {
                Some(Ok(frame)) => self.program.link.receive(frame),
                Some(Err(failure)) => return Over::Broke(failure),
                None => {
                    let text = "the backend ended the session without saying how the program ended";
                    return Over::Broke(Failure::Broken(stream.replica, tonic::Status::unavailable(text)));
                }
            };
            match event {
                Ok(Event::Data(data)) => self.program.output.data(&self.program.link, data),
                Ok(Event::Exit(exit)) => return Over::Ended(ending(self.program.conn, exit)),
                Ok(Event::Notice(text)) => self.program.output.note(&text),
                Ok(Event::Gap(bytes)) => self.program.output.note(&format!("{bytes} bytes of output were dropped")),
                // Without the agent's replay there is nowhere to go: the session runs on for as long as the replica lets it.
                Ok(Event::Moving) if self.program.link.is_durable() => return Over::Moving,
                Ok(
                    Event::Nothing
                    | Event::Room
                    | Event::Answered(..)
                    | Event::Moving
                    | Event::Progress(_)
                    | Event::Started(_),
                ) => {}
                Err(error) => {
                    warn!(connection = %self.program.conn.id, "the backend breaks the protocol: {error}");
                    return Over::Ended(Ending::Lost(format!("the backend breaks the protocol: {error}")));
                }
            }
        }
    }

    /// The next stream, within the time that sessions wait for a backend. `failure` is how the last one broke; `None`: its
    /// replica drains.
    async fn resume(&mut self, failure: Option<Failure>) -> Result<(), Ending> {
        let deadline = Instant::now() + self.program.opened.terms.backend_wait;
        let mut tour = Tour::default();
        // The last one's replica is asked last.
        tour.choice.avoid.extend(self.stream.take().map(|stream| stream.replica));
        let mut last = failure.map(|failure| failure.refusal());
        let waits = async {
            sleep(self.program.conn.config.frontend.progress_after).await;
            self.program
                .output
                .note("the connection to the backend broke; the program runs on, waiting for another backend");
            std::future::pending::<std::convert::Infallible>().await
        };
        let program = &self.program;
        let resuming = async {
            loop {
                program.link.reopen();
                match program.reach(tour.choice.clone()).await {
                    Ok(stream) => return Ok(stream),
                    Err(NotResumed::Ended(ending)) => return Err(ending),
                    Err(NotResumed::Failed(failure)) => {
                        debug!(connection = %self.program.conn.id, "not resumed: {failure}");
                        let refusal = failure.refusal();
                        let waits = failure.may_retry() || refusal.reason() == v1::Reason::KubernetesUnavailable;
                        if !waits {
                            end_with(program.conn, &refusal);
                            return Err(Ending::Lost(refusal.message));
                        }
                        if !matches!(failure, Failure::NoReplica) {
                            last = Some(refusal);
                        }
                        if tour.failed(failure).is_err() {
                            sleep(PAUSE).await;
                        }
                    }
                }
            }
        };
        let resumed = tokio::select! {
            resumed = timeout_at(deadline, resuming) => resumed,
            never = waits => match never {},
        };
        match resumed {
            Ok(Ok(stream)) => {
                self.program.conn.server.metrics.session_resumed();
                info!(connection = %self.program.conn.id, session = %self.program.id, replica = %stream.replica, "session resumed");
                self.stream = Some(stream);
                Ok(())
            }
            Ok(Err(ending)) => Err(ending),
            Err(_) => {
                let why = last.map_or_else(|| "no backend can be reached".to_owned(), |refusal| refusal.message);
                Err(Ending::Lost(format!("{why}; how the program ended is not known")))
            }
        }
    }
}

impl Program<'_> {
    /// One RunSession, up to Started.
    async fn reach(&self, choice: Choice) -> Result<Stream, NotResumed> {
        let (requests, frames) = self.link.stream(open::frame(&self.opened, self.id, self.start, self.since.elapsed()));
        let called = self.conn.server.backend.run_session(choice, frames).await;
        let (replica, mut frames) = called.map_err(NotResumed::Failed)?;
        let until = Instant::now() + self.opened.terms.command_start;
        loop {
            let frame = tokio::select! {
                frame = frames.next() => frame,
                () = sleep_until(until) => {
                    let status = tonic::Status::unavailable("the replica does not resume the session");
                    return Err(NotResumed::Failed(Failure::Broken(replica, status)));
                }
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(failure)) => return Err(NotResumed::Failed(failure)),
                None => {
                    let status = tonic::Status::unavailable("the stream ended before Started");
                    return Err(NotResumed::Failed(Failure::Broken(replica, status)));
                }
            };
            match self.link.receive(frame) {
                Ok(Event::Started(_)) => return Ok(Stream { replica, requests, frames }),
                Ok(Event::Exit(exit)) => return Err(NotResumed::Ended(ending(self.conn, exit))),
                Ok(_) => {}
                Err(error) => {
                    let text = format!("the backend breaks the protocol: {error}");
                    return Err(NotResumed::Ended(Ending::Lost(text)));
                }
            }
        }
    }
}

impl Drop for Running<'_> {
    /// A program that outlives its streams is told that nobody comes back; any other ends with its stream.
    fn drop(&mut self) {
        let Some(Stream { requests, mut frames, .. }) = self.stream.take() else { return };
        if !self.program.link.is_durable() {
            return;
        }
        let link = Arc::clone(&self.program.link);
        self.program.conn.server.logins.spawn(async move {
            let given_up = async {
                link.hang_up(&requests).await;
                while let Some(Ok(_)) = frames.next().await {}
            };
            if timeout(HANGUP, given_up).await.is_err() {
                debug!("a program that was given up has not been let go of; it ends by its own time");
            }
        });
    }
}

impl Kept {
    /// Says that the exit has gone out, in the background. Where that fails, its time in the pod ends by itself.
    pub fn known(self) {
        let Self { conn, handle, id } = self;
        // With the connection its pods go, and what is in them.
        if conn.gone.is_cancelled() {
            return;
        }
        let server = Arc::clone(&conn.server);
        conn.server.logins.spawn(async move {
            let request = v1::AckExitRequest { handle, session_id: id.to_string() };
            if let Err(failure) = server.backend.ack_exit(Choice::default(), request, ACK).await {
                debug!(session = %id, "the exit stays in the pod for a while: {failure}");
            }
        });
    }
}
