//! Sessions of programs that outlive their streams: podbay-agent's supervisor owns them, and a link carries them.
//!
//! The stream's end is not the program's: a client that leaves without a Hangup may come back, on any replica, with the next
//! attempt. Offsets, credit and acknowledgements pass through end to end; what is checked here is that the client keeps
//! to the contract before its bytes meet those of others on the link.

mod begin;
mod frames;
mod over;
mod waits;

pub(super) use frames::end;

use super::{
    driver::{LAST_OUTPUT, Report, ToClient},
    places::Place,
    rules::{Ids, MAX_CONTROL},
    start::OwnPod,
};
use crate::{
    cluster::{Cluster, PodRef},
    handle::Contents,
    link::{Commands, Found, Health, LinkEnded, LinkProgram, News},
    ownership::Leases,
    policy::{Clock, Security, Tick},
};
use futures::{FutureExt as _, Stream as FrameStream, StreamExt as _, future::BoxFuture};
use over::{Over, Told, ended, told};
use podbay::v1::{self, Reason, Refusal, exit::End, run_session_response::Frame as Out};
use podbay_agent_wire::{client::Event, proto};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use waits::{Wait, Waits};

/// The client's ends of a session's stream.
pub(super) struct Client<S> {
    pub frames: S,
    pub to: ToClient,
    /// This replica ends: the session is cut.
    pub cut: CancellationToken,
    /// This replica drains: its sessions should go elsewhere.
    pub moving: CancellationToken,
}

/// How a start over a link went.
pub(super) enum Begun {
    /// The program runs.
    Running(Box<Durable>),
    /// The session is over before it began: a program that was to be continued is gone.
    Ended(v1::Exit),
    /// There is another agent at that path, or none.
    Other(Found, String),
}

/// A program on a link.
pub(super) struct Durable {
    pod: PodRef,
    /// The program's own pod, in mode `session`.
    pub own_pod: Option<OwnPod>,
    /// One of those that the connection may have; free for the next one once Exit is under way.
    pub place: Option<Place>,
    leases: Leases,
    cluster: Arc<dyn Cluster>,
    link: LinkProgram,
    commands: Commands,
    tty: bool,
    ids: Ids,
    stdin: Stdin,
    stdout: Output,
    stderr: Output,
    /// Eof's id: its answer is not the client's.
    eof: Option<u64>,
    control: VecDeque<Out>,
    data: VecDeque<Out>,
    /// It is over; what is told of it is being found out.
    ending: Option<BoxFuture<'static, Told>>,
    exit: Option<v1::Exit>,
    signal_bound: Duration,
    window_bound: Duration,
    resizes: VecDeque<u64>,
    waits: Waits,
    policy: Security,
    clock: Clock,
    /// Its time is over: until then the client may take the rest.
    cut: Option<Instant>,
}

#[derive(Debug, Default)]
struct Stdin {
    from: u64,
    at: u64,
    limit: u64,
    ended: bool,
}

#[derive(Debug, Default)]
struct Output {
    from: u64,
    at: u64,
    ended: bool,
}

/// Why the stream ends without Exit.
enum Stop {
    /// The client is gone, or has said that it comes back elsewhere.
    Gone,
    /// It gave the program up.
    GivenUp,
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<LinkEnded> for Stop {
    fn from(LinkEnded: LinkEnded) -> Self {
        Self::Refused(Refusal::new(Reason::Internal, "the link to the pod's agent ended"))
    }
}

impl Durable {
    /// Carries everything until the program's exit was sent, or the stream ends otherwise.
    pub async fn run<S, E>(mut self, contents: &Contents, client: &mut Client<S>) -> Report
    where
        S: FrameStream<Item = Result<v1::RunSessionRequest, E>> + Unpin,
    {
        let result = self.carry(contents, client).await;
        let bytes =
            [self.stdin.at - self.stdin.from, self.stdout.at - self.stdout.from, self.stderr.at - self.stderr.from];
        let (kind, refusal) = match result {
            Ok(()) => {
                if self.own_pod.as_ref().is_some_and(|own| own.detached) {
                    self.keep_pod();
                }
                match self.exit.take().and_then(|exit| exit.end) {
                    Some(End::Code(_)) => ("exit", None),
                    Some(End::Signal(_)) => ("signal", None),
                    Some(End::Lost(refusal)) => ("lost", Some(refusal)),
                    None => ("lost", None),
                }
            }
            Err(Stop::GivenUp) => {
                // Its own pod goes with it; in a pod of many, the agent ends it.
                let _ = self.commands.release().await;
                self.own_pod = None;
                ("gone", None)
            }
            Err(Stop::Gone) => {
                self.keep_pod();
                ("gone", None)
            }
            Err(Stop::Refused(refusal)) => {
                if matches!(refusal.reason(), Reason::Superseded | Reason::Draining | Reason::KubernetesUnavailable) {
                    self.keep_pod();
                }
                let refusal = refusal.about(contents.connection);
                let _ = client.to.send(Err(refusal.clone())).await;
                ("refused", Some(refusal))
            }
        };
        Report { kind, refusal, bytes }
    }

    /// The session may go on over another stream: its pod stays, until the connection is closed or its owner's lease ends.
    fn keep_pod(&mut self) {
        if let Some(own) = self.own_pod.take() {
            own.keep();
        }
    }

    async fn carry<S, E>(&mut self, contents: &Contents, client: &mut Client<S>) -> Result<(), Stop>
    where
        S: FrameStream<Item = Result<v1::RunSessionRequest, E>> + Unpin,
    {
        let mut client_open = true;
        let mut told_to_move = false;
        let mut passed = self.passed();
        loop {
            let at = self.passed();
            if at != passed {
                passed = at;
                self.clock.active(Instant::now());
            }
            let tick_at = self.cut.or_else(|| self.clock.due().filter(|_| self.exit.is_none()));
            if self.exit.is_some() && self.control.is_empty() && self.data.is_empty() {
                return Ok(());
            }
            let is_over = self.exit.is_some() || self.ending.is_some();
            let waits_until = self.waits.due();
            let reads = client_open && self.control.len() < MAX_CONTROL;
            let writes = !self.control.is_empty() || !self.data.is_empty();
            tokio::select! {
                frame = client.frames.next(), if reads => match frame {
                    Some(Ok(frame)) => self.receive(frame).await?,
                    Some(Err(_)) => return Err(Stop::Gone),
                    // Half closed: it sends no more, and may read on.
                    None => client_open = false,
                },
                news = self.link.news.recv(), if !is_over => match news {
                    Some(News::Wire(Event::Exit { exit, stopping, .. })) => {
                        self.over(Over::Exit { exit: v1::Exit { end: Some(end(exit)) }, stopping }, contents);
                    }
                    Some(News::Wire(Event::Closed {
                        reason: proto::Reason::UnknownSession | proto::Reason::InstanceDiffers, ..
                    })) => self.over(Over::Lost, contents),
                    Some(News::Wire(event)) => self.event(event)?,
                    Some(News::Gone(pod)) => self.over(Over::Gone(pod), contents),
                    Some(News::Other(..)) | None => return Err(LinkEnded.into()),
                },
                told = ended(&mut self.ending) => self.finish(told),
                Ok(()) = self.link.health.changed(), if !is_over => {
                    let is_up = matches!(*self.link.health.borrow_and_update(), Health::Up);
                    let told = self.waits.now.take_if(|_| is_up).is_some_and(|wait| wait.told);
                    if told {
                        let message = "the connection to the pod is there again".to_owned();
                        self.control.push_back(Out::Notice(v1::Notice { message }));
                    }
                    let now = Instant::now();
                    if !is_up && self.waits.now.is_none() {
                        self.waits.now = Some(Wait { since: now, told: false });
                    }
                }
                () = sleep_until(waits_until.unwrap_or_else(Instant::now)), if waits_until.is_some() && !is_over => {
                    self.waited(contents)?;
                }
                permit = client.to.reserve(), if writes => {
                    let Ok(permit) = permit else { return Err(Stop::Gone) };
                    if let Some(frame) = self.control.pop_front().or_else(|| self.data.pop_front()) {
                        permit.send(Ok(v1::RunSessionResponse { frame: Some(frame) }));
                    }
                }
                () = sleep_until(tick_at.unwrap_or_else(Instant::now)), if tick_at.is_some() => {
                    if self.cut.is_some() {
                        tracing::debug!("a client takes no output while its session is cut");
                        return Ok(());
                    }
                    self.tick(contents).await;
                }
                () = client.to.closed() => return Err(Stop::Gone),
                () = client.moving.cancelled(), if !told_to_move => {
                    told_to_move = true;
                    self.control.push_back(Out::Moving(v1::Moving { within: None }));
                }
                () = client.cut.cancelled() => {
                    let text = "this server is shutting down; the program runs on";
                    return Err(Refusal::new(Reason::Draining, text).into());
                }
            }
        }
    }

    /// Where the streams stand.
    const fn passed(&self) -> [u64; 3] {
        [self.stdin.at, self.stdout.at, self.stderr.at]
    }

    async fn tick(&mut self, contents: &Contents) {
        match self.clock.tick(Instant::now()) {
            Tick::Nothing => {}
            Tick::Warn(message) => self.control.push_back(Out::Notice(v1::Notice { message })),
            Tick::Cut(refusal) => {
                // The agent ends it, as one that its client gave up.
                let _ = self.commands.release().await;
                self.place = None;
                let exit = v1::Exit { end: Some(End::Lost(refusal.about(contents.connection))) };
                self.data.push_back(Out::Exit(exit.clone()));
                self.exit = Some(exit);
                self.cut = Some(Instant::now() + LAST_OUTPUT);
            }
        }
    }

    fn over(&mut self, over: Over, contents: &Contents) {
        let of = (Arc::clone(&self.cluster), self.leases.clone());
        let of_whom = (contents.connection, contents.console.clone());
        self.ending = Some(told(over, of, self.pod.clone(), of_whom).boxed());
    }

    fn finish(&mut self, told: Told) {
        let Told { notice, exit } = told;
        self.ending = None;
        // Its time may have been over meanwhile.
        if self.exit.is_some() {
            return;
        }
        self.place = None;
        self.control.extend(notice.map(|message| Out::Notice(v1::Notice { message })));
        self.data.push_back(Out::Exit(exit.clone()));
        self.exit = Some(exit);
    }
}
