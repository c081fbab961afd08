//! One link's task.

use super::{Command, Do, Found, Health, News, Place, Shared, Written};
use crate::{
    cluster::{ClusterError, Input, Output, StreamEnd, StreamRequest, Streams},
    failure::short,
    lifecycle::Backoff,
};
use bytes::BytesMut;
use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Pod;
use podbay_agent_wire::{
    client::{Client, Config, Event, Key, LinkError, RequestError},
    frame::FrameError,
    proto,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};

/// A link without programs is let go of after this.
const IDLE: Duration = Duration::from_mins(1);

/// The longest wait for one exec of the agent: longer than an API server waits for a node.
const CONNECT: Duration = Duration::from_secs(45);

/// Bytes in one message to the agent.
const BATCH: usize = 64 * 1024;

/// The most of an agent's stderr that is kept for the log, for each stream.
const MAX_WORDS: usize = 4096;

/// Streams that end before the first hello, in a row, before the agent is taken for one that doesn't work.
const TRIES: u32 = 5;

pub(super) struct Actor {
    shared: Arc<Shared>,
    /// Its place on the list of links.
    key: (String, u64),
    place: Place,
    commands: mpsc::Receiver<Command>,
    left: mpsc::UnboundedReceiver<u64>,
    health: watch::Sender<Health>,
    client: Client,
    programs: HashMap<u64, Program>,
    tokens: HashMap<Key, u64>,
    acks: Vec<(podbay::SessionId, oneshot::Sender<bool>)>,
    lists: HashMap<u64, oneshot::Sender<Vec<proto::Session>>>,
    files: HashMap<u64, oneshot::Sender<Written>>,
    wire: Wire,
    backoff: Backoff,
    words: Vec<u8>,
    tries: u32,
    greeted: bool,
}

struct Program {
    key: Key,
    news: mpsc::UnboundedSender<News>,
}

enum Wire {
    Down {
        retry: Instant,
    },
    Connecting(BoxFuture<'static, Result<Streams, ClusterError>>),
    /// It failed; is the pod there at all?
    Asking(BoxFuture<'static, Result<Pod, ClusterError>>),
    Up(Streams),
}

/// What happened; taken apart from what is done about it, so that nothing borrows twice.
enum Happened {
    Command(Option<Command>),
    Left(u64),
    Connected(Result<Streams, ClusterError>),
    Pod(Box<Result<Pod, ClusterError>>),
    Output(Option<Output>),
    Writable,
    Due,
    Retry,
    Idle,
}

/// What is known of a stream's end.
enum Ended {
    Other(Found, String),
    Unknown(String),
}

impl Actor {
    pub fn new(
        shared: Arc<Shared>,
        key: (String, u64),
        place: Place,
        (commands, left, health): (mpsc::Receiver<Command>, mpsc::UnboundedReceiver<u64>, watch::Sender<Health>),
    ) -> Self {
        Self {
            shared,
            key,
            place,
            commands,
            left,
            health,
            client: Client::new(Config {
                name: format!("podbay-backend {}", env!("CARGO_PKG_VERSION")),
                ..Config::default()
            }),
            programs: HashMap::new(),
            tokens: HashMap::new(),
            acks: Vec::new(),
            lists: HashMap::new(),
            files: HashMap::new(),
            wire: Wire::Down { retry: Instant::now() },
            backoff: Backoff::default(),
            words: Vec::new(),
            tries: 0,
            greeted: false,
        }
    }

    /// Until nothing needs the link any more.
    pub async fn run(mut self) {
        let mut idle_at = Instant::now() + IDLE;
        let mut out = BytesMut::new();
        loop {
            self.tell();
            let busy = !self.programs.is_empty() || self.client.wants_link();
            if busy {
                idle_at = Instant::now() + IDLE;
            }
            if let (Wire::Down { retry }, true) = (&self.wire, busy)
                && *retry <= Instant::now()
            {
                self.wire = Wire::Connecting(self.connect());
            }
            match self.next(busy, idle_at, &out).await {
                Happened::Command(Some((token, what))) => self.act(token, what),
                // Nobody can ask for more; what is under way goes on until it is done.
                Happened::Command(None) | Happened::Idle => {
                    self.shared.remove(&self.key);
                    self.commands.close();
                    match self.commands.try_recv() {
                        Ok((token, what)) => self.act(token, what),
                        Err(_) if busy => {}
                        Err(_) => return,
                    }
                }
                Happened::Left(token) => {
                    // What the session said before it left lies in the other queue, and may be that it gives its program up.
                    for _ in 0..self.commands.len() {
                        if let Ok((token, what)) = self.commands.try_recv() {
                            self.act(token, what);
                        }
                    }
                    self.leave(token);
                }
                Happened::Connected(Ok(streams)) => {
                    self.words.clear();
                    self.client.connected(Instant::now().into_std());
                    self.wire = Wire::Up(streams);
                }
                Happened::Connected(Err(error)) => {
                    tracing::debug!(pod = self.place.pod.name, %error, "no link to the agent");
                    self.down(None, Some(&error.to_string()));
                    self.ask();
                }
                Happened::Pod(pod) => {
                    if is_gone(&pod, &self.place.container) {
                        self.end_all(|| News::Gone(pod.clone()));
                        return;
                    }
                    match &*pod {
                        Ok(_) => self.down(Some(false), None),
                        Err(error) => self.down(Some(true), Some(&error.to_string())),
                    }
                    self.wire = Wire::Down { retry: Instant::now() + self.backoff.next(None) };
                }
                Happened::Output(output) => {
                    if let Some((found, words)) = self.output(output) {
                        self.end_all(|| News::Other(found, words.clone()));
                        self.shared.remove(&self.key);
                        return;
                    }
                }
                Happened::Writable => {
                    if out.is_empty() {
                        self.client.transmit(&mut out, BATCH, Instant::now().into_std());
                    }
                    if let (Wire::Up(streams), false) = (&self.wire, out.is_empty()) {
                        // `next` has seen room; a stream that is gone tells by its output.
                        let _ = streams.input.try_send(Input::Stdin(out.split().freeze()));
                    }
                }
                Happened::Due => {
                    if let Err(error) = self.client.tick(Instant::now().into_std()) {
                        self.broke(&error.to_string());
                    }
                }
                Happened::Retry => {}
            }
            if !matches!(self.wire, Wire::Up(_)) {
                out.clear();
            }
        }
    }

    async fn next(&mut self, busy: bool, idle_at: Instant, out: &BytesMut) -> Happened {
        let due = self.client.next_deadline().map(Instant::from_std);
        let writes = !out.is_empty() || self.client.wants_output();
        let wire = async {
            match &mut self.wire {
                Wire::Down { retry } if busy => {
                    sleep_until(*retry).await;
                    Happened::Retry
                }
                Wire::Down { .. } => std::future::pending().await,
                Wire::Connecting(connecting) => Happened::Connected(connecting.await),
                Wire::Asking(asking) => Happened::Pod(Box::new(asking.await)),
                Wire::Up(streams) => tokio::select! {
                    output = streams.output.recv() => Happened::Output(output),
                    Ok(_) = streams.input.reserve(), if writes => Happened::Writable,
                },
            }
        };
        tokio::select! {
            command = self.commands.recv(), if !self.commands.is_closed() || !self.commands.is_empty() => {
                Happened::Command(command)
            }
            Some(token) = self.left.recv() => Happened::Left(token),
            happened = wire => happened,
            () = sleep_until(due.unwrap_or(idle_at)), if due.is_some() => Happened::Due,
            () = sleep_until(idle_at), if !busy => Happened::Idle,
        }
    }

    fn connect(&self) -> BoxFuture<'static, Result<Streams, ClusterError>> {
        let (cluster, pod) = (Arc::clone(&self.shared.cluster), self.place.pod.clone());
        let command = [self.place.agent.as_str(), "attach", "--spawn"].map(str::to_owned).into();
        let container = self.place.container.clone();
        let request = StreamRequest { container, command: Some(command), tty: false, stdin: true };
        async move {
            timeout(CONNECT, cluster.stream(&pod, &request)).await.unwrap_or(Err(ClusterError::Timeout(CONNECT)))
        }
        .boxed()
    }

    fn ask(&mut self) {
        let (cluster, pod) = (Arc::clone(&self.shared.cluster), self.place.pod.clone());
        self.wire = Wire::Asking(async move { cluster.get_pod(&pod).await }.boxed());
    }

    /// The stream is gone, or must be.
    fn broke(&mut self, why: &str) {
        tracing::info!(pod = self.place.pod.name, why, "the link to the agent broke; it is made again");
        self.down(None, Some(why));
        self.client.disconnected();
        self.ask();
    }

    /// There is no link; `None` = as was known before.
    fn down(&self, api: Option<bool>, why: Option<&str>) {
        self.health.send_if_modified(|health| {
            let before = std::mem::replace(health, Health::Up);
            let (since, knew, known) = match &before {
                Health::Up => (Instant::now(), false, ""),
                Health::Down { since, api, why } => (*since, *api, why.as_str()),
            };
            let why = why.map_or_else(|| known.to_owned(), short);
            *health = Health::Down { since, api: api.unwrap_or(knew), why };
            *health != before
        });
    }

    /// Takes what came. `Some`: there is no podbay-agent.
    fn output(&mut self, output: Option<Output>) -> Option<(Found, String)> {
        let ended = match output {
            Some(Output::Stdout(bytes)) => match self.client.receive(&bytes, Instant::now().into_std()) {
                Ok(()) => {
                    self.greet();
                    return None;
                }
                Err(LinkError::Frame(FrameError::NotAnAgent(sample))) if !self.greeted => {
                    // The stream's end tells what it is; containerssh-agent writes its usage here.
                    let room = MAX_WORDS.saturating_sub(self.words.len());
                    self.words.extend(sample.bytes().take(room));
                    return None;
                }
                Err(error) => {
                    self.tell();
                    self.broke(&error.to_string());
                    return None;
                }
            },
            Some(Output::Stderr(bytes)) => {
                let room = MAX_WORDS.saturating_sub(self.words.len());
                self.words.extend(bytes.iter().take(room));
                return None;
            }
            Some(Output::End(end)) => self.ended(&end),
            None => Ended::Unknown("the stream ended without a word".to_owned()),
        };
        let _ = self.client.ended();
        match ended {
            Ended::Other(found, words) => {
                self.shared.learn(&self.place.image, found);
                Some((found, words))
            }
            Ended::Unknown(why) => {
                self.tries += 1;
                if !self.greeted && self.tries >= TRIES {
                    // Of this pod; the image may be sound.
                    return Some((Found::Nothing, why));
                }
                self.broke(&why);
                None
            }
        }
    }

    fn greet(&mut self) {
        if self.client.is_linked() && !self.greeted {
            self.greeted = true;
            self.shared.learn(&self.place.image, Found::Podbay);
        }
        if self.client.is_linked() {
            self.backoff = Backoff::default();
            self.health.send_if_modified(|health| std::mem::replace(health, Health::Up) != Health::Up);
        }
    }

    fn ended(&self, end: &StreamEnd) -> Ended {
        let words = || short(&String::from_utf8_lossy(&self.words));
        match end {
            _ if self.greeted => Ended::Unknown(format!("{end:?} {}", words())),
            StreamEnd::ExitCode(126 | 127) => Ended::Other(Found::Nothing, words()),
            // What containerssh-agent says of a mode that it does not know; our own ends otherwise.
            StreamEnd::ExitCode(1 | 2) => Ended::Other(Found::Containerssh, words()),
            StreamEnd::Failed { message, .. } if crate::session::is_missing(message) => {
                Ended::Other(Found::Nothing, short(message))
            }
            StreamEnd::ExitCode(_) | StreamEnd::Failed { .. } | StreamEnd::Success | StreamEnd::Lost(_) => {
                Ended::Unknown(format!("{end:?} {}", words()))
            }
        }
    }

    fn act(&mut self, token: u64, what: Do) {
        let now = Instant::now;
        match what {
            Do::Start { session, attempt, start, from, news } => {
                let key = self.client.start(wire_id(session), attempt, &start, from);
                self.programs.insert(token, Program { key, news });
                self.tokens.insert(key, token);
            }
            Do::Attach { session, attempt, take_over, from, news } => {
                let key = self.client.attach(wire_id(session), attempt, take_over, from);
                self.programs.insert(token, Program { key, news });
                self.tokens.insert(key, token);
            }
            Do::AckExit { session, done } => {
                self.client.ack_exit(wire_id(session));
                self.acks.push((session, done));
            }
            Do::List { session, done } => {
                let id = self.client.list(session.map(wire_id));
                self.lists.insert(id, done);
            }
            Do::WriteFile { path, mode, data, done } => {
                let id = self.client.write_file(path.into_bytes(), mode, data);
                self.files.insert(id, done);
            }
            Do::Stdin { offset, data } => {
                if let Some(program) = self.programs.get(&token)
                    && let Err(error) = self.client.stdin(program.key, offset, &data)
                {
                    // The session has checked it against the same credit.
                    tracing::debug!(%error, "stdin that a program does not take");
                }
            }
            Do::Eof { id, offset } => {
                if let Some(program) = self.programs.get(&token)
                    && let Err(error) = self.client.eof(program.key, id, offset)
                {
                    tracing::debug!(%error, "an end of stdin that a program does not take");
                }
            }
            Do::Signal { id, name, deadline } => {
                let result = self
                    .programs
                    .get(&token)
                    .map(|p| self.client.signal(p.key, id, &name, deadline.max(now()).into_std()));
                self.refused(token, id, result);
            }
            Do::Resize { id, size, deadline } => {
                let result = self
                    .programs
                    .get(&token)
                    .map(|p| self.client.resize(p.key, id, size, deadline.max(now()).into_std()));
                self.refused(token, id, result);
            }
            Do::Credit { stream, limit } => {
                if let Some(program) = self.programs.get(&token) {
                    self.client.credit(program.key, stream, limit);
                }
            }
            Do::Ack { stream, offset } => {
                if let Some(program) = self.programs.get(&token) {
                    self.client.ack(program.key, stream, offset);
                }
            }
            Do::Detach { keep } => {
                if let Some(program) = self.programs.get(&token) {
                    self.client.detach(program.key, keep);
                }
            }
            Do::Release => {
                if let Some(program) = self.programs.get(&token) {
                    self.client.release(program.key);
                }
            }
        }
    }

    /// A request that the client does not take is answered all the same.
    fn refused(&self, token: u64, id: u64, result: Option<Result<(), RequestError>>) {
        let (Some(Err(error)), Some(program)) = (result, self.programs.get(&token)) else { return };
        let reason = match error {
            RequestError::TooMany => proto::Reason::Limit,
            RequestError::Unknown => proto::Reason::Ended,
            RequestError::Flow(_) | RequestError::Id => proto::Reason::Invalid,
        };
        let result = Err((reason, error.to_string()));
        let _ = program.news.send(News::Wire(Event::Answer { key: program.key, id, result }));
    }

    /// Its session is gone: the program runs on for its orphan timeout.
    fn leave(&mut self, token: u64) {
        if let Some(program) = self.programs.remove(&token) {
            self.tokens.remove(&program.key);
            self.client.detach(program.key, None);
        }
    }

    /// Hands events on.
    fn tell(&mut self) {
        while let Some(event) = self.client.next_event() {
            let key = match &event {
                Event::Started { key, .. }
                | Event::Relinked { key }
                | Event::Data { key, .. }
                | Event::Gap { key, .. }
                | Event::End { key, .. }
                | Event::Credit { key, .. }
                | Event::Ack { key, .. }
                | Event::Answer { key, .. }
                | Event::Exit { key, .. }
                | Event::Closed { key, .. } => *key,
                Event::Linked { agent_version, .. } => {
                    tracing::debug!(pod = self.place.pod.name, agent_version, "linked to the agent");
                    continue;
                }
                Event::Forgotten { session, running } => {
                    let (done, waiting) =
                        std::mem::take(&mut self.acks).into_iter().partition(|(id, _)| wire_id(*id) == *session);
                    self.acks = waiting;
                    let done: Vec<_> = done;
                    for (_, done) in done {
                        let _ = done.send(!running);
                    }
                    continue;
                }
                Event::Listed { id, sessions } => {
                    if let Some(done) = self.lists.remove(id) {
                        let _ = done.send(sessions.clone());
                    }
                    continue;
                }
                Event::FileWritten { id, result } => {
                    if let Some(done) = self.files.remove(id) {
                        let _ = done.send(result.clone().map_err(|(_, words)| short(&words)));
                    }
                    continue;
                }
            };
            let closed = matches!(event, Event::Closed { .. });
            let Some(token) = self.tokens.get(&key).copied() else { continue };
            if let Some(program) = self.programs.get(&token) {
                // A session that is gone is on its way to `left`.
                let _ = program.news.send(News::Wire(event));
            }
            if closed {
                self.tokens.remove(&key);
                self.programs.remove(&token);
            }
        }
    }

    fn end_all(&mut self, news: impl Fn() -> News) {
        self.tell();
        self.commands.close();
        while let Ok((token, what)) = self.commands.try_recv() {
            self.act(token, what);
        }
        for (_, program) in self.programs.drain() {
            let _ = program.news.send(news());
        }
    }
}

fn wire_id(session: podbay::SessionId) -> podbay_agent_wire::id::SessionId {
    podbay_agent_wire::id::SessionId(*session.as_bytes())
}

/// Whether the container is gone for good: then no program of it is left.
fn is_gone(pod: &Result<Pod, ClusterError>, container: &str) -> bool {
    match pod {
        Err(ClusterError::NotFound { .. }) => true,
        Err(_) => false,
        Ok(pod) => crate::session::is_over(pod, container),
    }
}
