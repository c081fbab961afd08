//! Sessions of programs that outlive their streams: podbay-agent's supervisor owns them, and a link carries them.
//!
//! The stream's end is not the program's: a client that leaves without a Hangup may come back, on any replica, with the next
//! attempt. Offsets, credit and acknowledgements pass through end to end; what is checked here is that the client keeps
//! to the contract before its bytes meet those of others on the link.

use super::{
    Opening, Sessions,
    driver::{LAST_OUTPUT, Report, ToClient},
    ending::{self, STOPPED, explained, of_broken, of_lost_program, of_pod},
    machine::size_of,
    places::Place,
    start::OwnPod,
    violation,
};
use crate::{
    cluster::{Cluster, ClusterError, PodRef, StreamEnd},
    failure::short,
    handle::Contents,
    link::{Commands, Found, Health, LinkEnded, LinkProgram, News},
    ownership::Leases,
    policy::{Ask, Clock, Security, Tick},
};
use bytes::Bytes;
use futures::{FutureExt as _, Stream as FrameStream, StreamExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId, MAX_CREDIT,
    v1::{
        self, AgentLevel, Reason, Refusal, Stream, exit::End, run_session_request::Frame as In,
        run_session_response::Frame as Out,
    },
};
use podbay_agent_wire::{
    client::{Event, ResumeFrom},
    frame::Stream as WireStream,
    id::Attempt,
    program::{self, Exit, Pty, Size, Start},
    proto,
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

/// The largest Data frame that the contract allows.
const MAX_DATA: usize = 64 * 1024;
/// Answers and the like that wait to be sent; beyond it the client is not read until it has read.
const MAX_CONTROL: usize = 256;

/// Of a link that was not made again.
const RESTARTED: &str = "its container was restarted";

/// A link that is away for less is nobody's news.
const TELL_AFTER: Duration = Duration::from_secs(5);

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
    last_id: u64,
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

/// How a program came to its end.
enum Over {
    /// By itself; `stopping`: while its container was being stopped.
    Exit { exit: v1::Exit, stopping: bool },
    /// Its pod or container is gone, as this shows.
    Gone(Box<Result<Pod, ClusterError>>),
    /// Its supervisor is another one.
    Lost,
    /// It can't be reached, and may run on.
    Unreachable(v1::Exit),
}

/// What the client is told of an end.
struct Told {
    /// Why, where Exit is the program's own word.
    notice: Option<String>,
    exit: v1::Exit,
}

/// How long a session waits for its link.
#[derive(Debug)]
struct Waits {
    within: Duration,
    now: Option<Wait>,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    since: Instant,
    /// The user knows.
    told: bool,
}

impl Waits {
    /// When something is to be told, or done about it.
    fn due(&self) -> Option<Instant> {
        let wait = self.now?;
        let patience = if wait.told { self.within } else { self.within.min(TELL_AFTER) };
        Some(wait.since + patience)
    }
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

impl Sessions {
    /// Starts a program over the link, or continues with one. Dropping it leaves what was begun to its orphan timeout.
    pub(super) async fn begin(
        &self,
        contents: &Contents,
        opening: &Opening,
        pod: PodRef,
        mut link: LinkProgram,
        deadline: Instant,
    ) -> Result<Begun, Refusal> {
        let resume = opening.resume.unwrap_or_default();
        let from = ResumeFrom {
            stdout: resume.stdout,
            stdout_credit: opening.stdout_credit,
            stderr: resume.stderr,
            stderr_credit: if opening.tty { 0 } else { opening.stderr_credit },
        };
        let attempt = Attempt::new(opening.attempt);
        let continues = opening.take_over || opening.resume.is_some();
        let ended = |LinkEnded| Refusal::new(Reason::Internal, "the link to the pod's agent ended");
        if continues {
            link.attach(opening.session, attempt, opening.take_over, from).await.map_err(ended)?;
        } else {
            link.start(opening.session, attempt, start(opening), from).await.map_err(ended)?;
        }
        let event = match timeout_at(deadline, link.news.recv()).await {
            Ok(Some(News::Wire(event))) => event,
            Ok(Some(News::Other(found, words))) => return Ok(Begun::Other(found, words)),
            Ok(Some(News::Gone(found))) => {
                let end = StreamEnd::Lost(RESTARTED.to_owned());
                let exit = match of_pod(&found, &contents.console) {
                    Some(exit) => exit,
                    None => of_broken(&**self.lifecycle.cluster(), &pod, &contents.console, &end).await,
                };
                return Ok(Begun::Ended(exit));
            }
            Ok(None) => return Err(ended(LinkEnded)),
            Err(_) => {
                // What has begun by now is ended; what ran before may be reached by another replica.
                if !continues {
                    let _ = link.commands().release().await;
                }
                return Err(late(&link.health.borrow(), continues));
            }
        };
        match event {
            Event::Started { stdin_offset, stdin_credit, stdin_ended, terminal, .. } => {
                let mut durable = Durable {
                    pod,
                    own_pod: None,
                    place: None,
                    leases: self.leases.clone(),
                    cluster: Arc::clone(self.lifecycle.cluster()),
                    commands: link.commands(),
                    link,
                    tty: terminal,
                    last_id: 0,
                    stdin: Stdin { from: stdin_offset, at: stdin_offset, limit: stdin_credit, ended: stdin_ended },
                    stdout: Output { from: resume.stdout, at: resume.stdout, ended: false },
                    stderr: Output { from: resume.stderr, at: resume.stderr, ended: false },
                    eof: None,
                    control: VecDeque::new(),
                    data: VecDeque::new(),
                    ending: None,
                    exit: None,
                    waits: Waits { within: contents.timeouts.relink, now: None },
                    signal_bound: contents.timeouts.signal,
                    window_bound: contents.timeouts.window,
                    resizes: VecDeque::new(),
                    policy: contents.security.clone(),
                    clock: Clock::new(&contents.security, Instant::now(), opening.ran),
                    cut: None,
                };
                durable.control.push_back(Out::Started(v1::Started {
                    durable: true,
                    agent_level: AgentLevel::Podbay.into(),
                    stdin_offset,
                    stdin_credit,
                    pod_namespace: durable.pod.namespace.clone(),
                    pod_name: durable.pod.name.clone(),
                    warning: String::new(),
                }));
                Ok(Begun::Running(Box::new(durable)))
            }
            Event::Closed { reason: proto::Reason::UnknownSession | proto::Reason::InstanceDiffers, .. } => {
                let found = self.lifecycle.cluster().get_pod(&pod).await;
                Ok(Begun::Ended(of_lost_program(&found, &contents.console)))
            }
            Event::Closed { reason, message, .. } => Err(not_started(reason, &message)),
            other => {
                tracing::warn!(?other, "the agent tells something before Started");
                Err(Refusal::new(Reason::Internal, "the pod's agent answers out of order"))
            }
        }
    }
}

/// What is told of an end, from what the pod and the connection's marks show. Waits a little where the pod's status may come behind.
async fn told(over: Over, of: (Arc<dyn Cluster>, Leases), pod: PodRef, contents: (ConnectionId, String)) -> Told {
    let ((cluster, leases), (connection, console)) = (of, contents);
    let (notice, mut exit) = match over {
        Over::Exit { exit, stopping } => {
            let why = if stopping {
                explained(&*cluster, &pod, &console, STOPPED).await
            } else if ending::may_be_the_pods(&exit) {
                of_pod(&cluster.get_pod(&pod).await, &console)
            } else {
                None
            };
            match why {
                Some(why) if ending::may_be_the_pods(&exit) => (None, why),
                // It was told to end, and ended by itself.
                Some(why) => (ending::words(why), exit),
                None if stopping => (None, ending::stopped(exit)),
                None => (None, exit),
            }
        }
        Over::Gone(found) => match of_pod(&found, &console) {
            Some(exit) => (None, exit),
            None => (None, of_broken(&*cluster, &pod, &console, &StreamEnd::Lost(RESTARTED.to_owned())).await),
        },
        Over::Unreachable(exit) => (None, exit),
        Over::Lost => (None, of_lost_program(&cluster.get_pod(&pod).await, &console)),
    };
    if (notice.is_some() || ending::may_be_the_pods(&exit))
        && let Some(refusal) = leases.terminated(connection).await
    {
        match notice {
            Some(_) => return Told { notice: Some(refusal.message), exit },
            None => exit = v1::Exit { end: Some(End::Lost(refusal)) },
        }
    }
    if let Some(End::Lost(refusal)) = &mut exit.end {
        refusal.connection_id = connection.to_string();
    }
    Told { notice, exit }
}

/// Never, where nothing has ended. Cancel safe.
async fn ended(ending: &mut Option<BoxFuture<'static, Told>>) -> Told {
    match ending {
        Some(ending) => ending.await,
        None => std::future::pending().await,
    }
}

/// Why a session did not begin within its time. One that `continues` may do so on another replica.
fn late(health: &Health, continues: bool) -> Refusal {
    let text = "the program was not started in time (timeouts.commandStart)";
    let (reason, text) = match health {
        Health::Up => (Reason::CommandStartTimeout, text.to_owned()),
        Health::Down { api: true, why, .. } if continues => {
            (Reason::KubernetesUnavailable, format!("the Kubernetes API does not answer: {why}"))
        }
        Health::Down { api: false, why, .. } if continues => {
            (Reason::StreamLost, format!("the pod's agent can't be reached: {why}"))
        }
        Health::Down { why, .. } => {
            (Reason::CommandStartTimeout, format!("{text}: the pod's agent can't be reached: {why}"))
        }
    };
    Refusal::new(reason, text)
}

fn not_started(reason: proto::Reason, message: &str) -> Refusal {
    use proto::Reason as Wire;
    let words = short(message);
    match reason {
        Wire::NotFound | Wire::NotPermitted | Wire::ExecFailed => {
            Refusal::new(Reason::CommandNotStarted, format!("the program can't be started: {words}"))
        }
        Wire::AttemptTooLow | Wire::Superseded => {
            Refusal::new(Reason::Superseded, "another client has taken this session over")
        }
        Wire::Limit | Wire::OutOfMemory => Refusal::new(Reason::Limit, format!("too much runs in this pod: {words}")),
        Wire::SessionOver | Wire::Forgotten => Refusal::new(Reason::NotFound, "this session is over"),
        Wire::BadOffset | Wire::Invalid => {
            Refusal::new(Reason::InvalidRequest, format!("the session can't be continued there: {words}"))
        }
        other => Refusal::new(Reason::ContainerFailed, format!("the pod's agent refuses: {other:?} {words}")),
    }
}

fn start(opening: &Opening) -> Start {
    let mut start = Start::new(opening.argv.iter().map(|word| Bytes::from(word.clone())));
    start.environment = opening
        .environment
        .iter()
        .map(|(name, value)| (Bytes::from(name.clone()), Bytes::from(value.clone())))
        .collect();
    start.pty = opening.pty.as_ref().map(|pty| Pty {
        term: pty.term.clone(),
        size: wire_size(pty.size.unwrap_or_default()),
        modes: pty.modes.iter().filter_map(|mode| Some((u8::try_from(mode.opcode).ok()?, mode.value))).collect(),
    });
    start.output = opening.output;
    start
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

    /// The link was waited for.
    fn waited(&mut self, contents: &Contents) -> Result<(), Stop> {
        let Health::Down { since: _, api, why } = self.link.health.borrow().clone() else { return Ok(()) };
        let Some(wait) = &mut self.waits.now else { return Ok(()) };
        let within = self.waits.within;
        if Instant::now() < wait.since + within {
            wait.told = true;
            let whom = if api { "the Kubernetes API" } else { "the pod's agent" };
            let message = format!(
                "the connection to the pod broke and the program runs on: waiting for {whom}, at most {within:?} ({why})"
            );
            self.control.push_back(Out::Notice(v1::Notice { message }));
            return Ok(());
        }
        if api {
            // Another replica may have a better way to it.
            let text = format!("the Kubernetes API did not answer for {within:?}: {why} (timeouts.relink)");
            return Err(Refusal::new(Reason::KubernetesUnavailable, text).into());
        }
        let text = format!(
            "the pod's agent could not be reached for {within:?}: {why} (timeouts.relink); how the program ends is not known"
        );
        let exit = ending::lost(Reason::StreamLost, text);
        self.over(Over::Unreachable(exit), contents);
        Ok(())
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

    /// Where the link is gone, its last news tells.
    async fn receive(&mut self, frame: v1::RunSessionRequest) -> Result<(), Stop> {
        match frame.frame.ok_or_else(|| violation("a frame is empty or of a kind that is not known here"))? {
            In::Open(_) => return Err(violation("Open must be the first frame and only that").into()),
            In::Data(data) => self.stdin(data).await?,
            In::Credit(credit) => {
                let stream = credit.stream();
                let (wire, output) = self.output(stream)?;
                if credit.limit > output.at.saturating_add(MAX_CREDIT) {
                    return Err(violation("a credit is at most 256 KiB beyond what was sent").into());
                }
                let _ = self.commands.credit(wire, credit.limit).await;
            }
            In::Ack(ack) => {
                let (wire, output) = self.output(ack.stream())?;
                if ack.offset > output.at {
                    return Err(violation("acknowledged more than was sent").into());
                }
                let _ = self.commands.ack(wire, ack.offset).await;
            }
            In::Eof(eof) => {
                self.new_id(eof.id)?;
                if eof.stream() != Stream::Stdin || eof.offset != self.stdin.at {
                    return Err(violation("an end of another stream than stdin, or not where stdin stands").into());
                }
                // Said again by a client that has come back.
                if !std::mem::replace(&mut self.stdin.ended, true) {
                    self.eof = Some(eof.id);
                    let _ = self.commands.eof(eof.id, eof.offset).await;
                }
            }
            In::Signal(signal) => {
                self.new_id(signal.id)?;
                if signal.name.len() > 32 {
                    return Err(violation("a signal's name has at most 32 bytes").into());
                }
                if let Err(denied) = self.policy.admits(Ask::Signal(&signal.name)) {
                    tracing::info!(code = denied.code(), name = signal.name, "refused by policy");
                    self.answer(signal.id, Some(denied.refusal()));
                    return Ok(());
                }
                let deadline = Instant::now() + bounded(signal.deadline, self.signal_bound);
                let _ = self.commands.signal(signal.id, signal.name, deadline).await;
            }
            In::Resize(resize) => {
                self.new_id(resize.id)?;
                let wanted = resize.size.unwrap_or_default();
                size_of(wanted)?;
                if !self.tty {
                    let refusal = Refusal::new(Reason::InvalidRequest, "this program has no terminal");
                    self.answer(resize.id, Some(refusal));
                    return Ok(());
                }
                self.resizes.push_back(resize.id);
                let deadline = Instant::now() + bounded(resize.deadline, self.window_bound);
                let _ = self.commands.resize(resize.id, wire_size(wanted), deadline).await;
            }
            In::Hangup(v1::Hangup {}) => return Err(Stop::GivenUp),
        }
        Ok(())
    }

    async fn stdin(&mut self, data: v1::Data) -> Result<(), Stop> {
        let len = data.data.len();
        if data.stream() != Stream::Stdin || len == 0 || len > MAX_DATA {
            return Err(violation("a client sends data of stdin only, 1 to 65536 bytes in a frame").into());
        }
        let end = data.offset.saturating_add(len as u64);
        if data.offset != self.stdin.at || self.stdin.ended {
            let text = format!("data at {}, but stdin stands at {} or has ended", data.offset, self.stdin.at);
            return Err(violation(&text).into());
        }
        if end > self.stdin.limit {
            return Err(violation(&format!("data up to {end}, beyond the credit {}", self.stdin.limit)).into());
        }
        self.stdin.at = end;
        let _ = self.commands.stdin(data.offset, data.data).await;
        Ok(())
    }

    fn output(&mut self, stream: Stream) -> Result<(WireStream, &mut Output), Refusal> {
        match stream {
            Stream::Stdout => Ok((WireStream::Stdout, &mut self.stdout)),
            Stream::Stderr => Ok((WireStream::Stderr, &mut self.stderr)),
            Stream::Stdin | Stream::Unspecified => Err(violation("a client grants and acknowledges output only")),
        }
    }

    fn new_id(&mut self, id: u64) -> Result<(), Refusal> {
        if id <= self.last_id {
            return Err(violation("the ids of Eof, Signal and Resize must grow, from 1"));
        }
        self.last_id = id;
        Ok(())
    }

    fn answer(&mut self, id: u64, refusal: Option<Refusal>) {
        self.control.push_back(Out::Answer(v1::Answer { id, refusal }));
    }

    fn event(&mut self, event: Event) -> Result<(), Stop> {
        match event {
            Event::Data { stream, offset, data, .. } => {
                let (stream, output) = self.of_wire(stream);
                output.at = offset + data.len() as u64;
                self.data.push_back(Out::Data(v1::Data { stream: stream.into(), offset, data }));
            }
            Event::Gap { stream, from, to, .. } => {
                let (stream, output) = self.of_wire(stream);
                output.at = to;
                self.data.push_back(Out::Gap(v1::Gap { stream: stream.into(), from, to }));
            }
            Event::End { stream, offset, .. } => {
                let (stream, output) = self.of_wire(stream);
                if !std::mem::replace(&mut output.ended, true) {
                    self.data.push_back(Out::Eof(v1::Eof { stream: stream.into(), offset, id: 0 }));
                }
            }
            Event::Credit { limit, .. } => {
                self.stdin.limit = self.stdin.limit.max(limit);
                let stream = Stream::Stdin.into();
                self.control.push_back(Out::Credit(v1::Credit { stream, limit }));
            }
            Event::Ack { offset, .. } => {
                let stream = Stream::Stdin.into();
                self.control.push_back(Out::Ack(v1::Ack { stream, offset }));
            }
            Event::Answer { id, .. } if self.eof == Some(id) => {}
            Event::Answer { id, result, .. } => {
                let resize = self.resizes.iter().position(|asked| *asked == id);
                if let Some(at) = resize {
                    self.resizes.remove(at);
                }
                let refusal = result.err().map(|(reason, message)| not_done(reason, &message, resize.is_some()));
                self.answer(id, refusal);
            }
            Event::Closed { reason: proto::Reason::Detached, .. } => return Err(Stop::Gone),
            Event::Closed { reason, message, .. } => return Err(not_started(reason, &message).into()),
            // Nothing that its client sees, and what is told to others.
            Event::Relinked { .. }
            | Event::Started { .. }
            | Event::Exit { .. }
            | Event::Linked { .. }
            | Event::Forgotten { .. }
            | Event::Listed { .. }
            | Event::FileWritten { .. } => {}
        }
        Ok(())
    }

    fn of_wire(&mut self, stream: WireStream) -> (Stream, &mut Output) {
        match stream {
            WireStream::Stderr => (Stream::Stderr, &mut self.stderr),
            WireStream::Stdout | WireStream::Stdin => (Stream::Stdout, &mut self.stdout),
        }
    }
}

fn bounded(asked: Option<prost_types::Duration>, bound: Duration) -> Duration {
    asked.and_then(|asked| Duration::try_from(asked).ok()).map_or(bound, |asked| asked.min(bound))
}

/// A size, checked before.
pub(super) fn wire_size(size: v1::WindowSize) -> Size {
    let number = |n: u32| u16::try_from(n).unwrap_or(0);
    Size {
        columns: number(size.columns),
        rows: number(size.rows),
        width: number(size.width_pixels),
        height: number(size.height_pixels),
    }
}

fn not_done(reason: proto::Reason, message: &str, resize: bool) -> Refusal {
    use proto::Reason as Wire;
    let late = if resize { Reason::WindowTimeout } else { Reason::SignalTimeout };
    let (reason, text) = match reason {
        Wire::Deadline => (late, "it was not done in time; whether it was done is not known".to_owned()),
        Wire::Ended => (Reason::SignalNotDelivered, "the program has ended".to_owned()),
        Wire::UnknownSignal => {
            (Reason::SignalNotDelivered, format!("not a signal that can be sent {}", short(message)))
        }
        Wire::Limit => (Reason::Limit, "too many requests wait already".to_owned()),
        Wire::NoTerminal => (Reason::InvalidRequest, "this program has no terminal".to_owned()),
        other => (Reason::SignalNotDelivered, format!("the pod's agent refuses: {other:?} {}", short(message))),
    };
    Refusal::new(reason, text)
}

pub(super) fn end(exit: Exit) -> End {
    match exit {
        program::Exit::Code(code) => End::Code(code.into()),
        program::Exit::Signal { name, core_dumped, message } => {
            End::Signal(v1::ExitSignal { name, core_dumped, message })
        }
    }
}
