//! One link's task: makes its stream, carries the bytes of its [`Programs`] both ways, and tells how it stands.

use super::{Found, Health, News, Place, Shared, commands::Command, programs::Programs};
use crate::{
    cluster::{ClusterError, Input, Output, StreamEnd, StreamRequest, Streams},
    failure::short,
    lifecycle::Backoff,
};
use bytes::BytesMut;
use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Pod;
use podbay_agent_wire::{client::LinkError, frame::FrameError};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
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
    programs: Programs,
    wire: Wire,
    backoff: Backoff,
    words: Vec<u8>,
    tries: u32,
    greeted: bool,
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
        let programs = Programs::new(place.pod.name.clone());
        Self {
            shared,
            key,
            place,
            commands,
            left,
            health,
            programs,
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
            self.programs.tell();
            let busy = self.programs.want_link();
            if busy {
                idle_at = Instant::now() + IDLE;
            }
            if let (Wire::Down { retry }, true) = (&self.wire, busy)
                && *retry <= Instant::now()
            {
                self.wire = Wire::Connecting(self.connect());
            }
            match self.next(busy, idle_at, &out).await {
                Happened::Command(Some((token, what))) => self.programs.act(token, what, Instant::now()),
                // Nobody can ask for more; what is under way goes on until it is done.
                Happened::Command(None) | Happened::Idle => {
                    self.shared.remove(&self.key);
                    self.commands.close();
                    match self.commands.try_recv() {
                        Ok((token, what)) => self.programs.act(token, what, Instant::now()),
                        Err(_) if busy => {}
                        Err(_) => return,
                    }
                }
                Happened::Left(token) => {
                    // What the session said before it left lies in the other queue, and may be that it gives its program up.
                    for _ in 0..self.commands.len() {
                        if let Ok((token, what)) = self.commands.try_recv() {
                            self.programs.act(token, what, Instant::now());
                        }
                    }
                    self.programs.leave(token);
                }
                Happened::Connected(Ok(streams)) => {
                    self.words.clear();
                    self.programs.client.connected(Instant::now().into_std());
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
                        self.programs.client.transmit(&mut out, BATCH, Instant::now().into_std());
                    }
                    if let (Wire::Up(streams), false) = (&self.wire, out.is_empty()) {
                        // `next` has seen room; a stream that is gone tells by its output.
                        let _ = streams.input.try_send(Input::Stdin(out.split().freeze()));
                    }
                }
                Happened::Due => {
                    if let Err(error) = self.programs.client.tick(Instant::now().into_std()) {
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
        let due = self.programs.client.next_deadline().map(Instant::from_std);
        let writes = !out.is_empty() || self.programs.client.wants_output();
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
        self.programs.client.disconnected();
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
            Some(Output::Stdout(bytes)) => match self.programs.client.receive(&bytes, Instant::now().into_std()) {
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
                    self.programs.tell();
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
        let _ = self.programs.client.ended();
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
        if self.programs.client.is_linked() && !self.greeted {
            self.greeted = true;
            self.shared.learn(&self.place.image, Found::Podbay);
        }
        if self.programs.client.is_linked() {
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

    fn end_all(&mut self, news: impl Fn() -> News) {
        self.programs.tell();
        self.commands.close();
        while let Ok((token, what)) = self.commands.try_recv() {
            self.programs.act(token, what, Instant::now());
        }
        self.programs.end(news);
    }
}

/// Whether the container is gone for good: then no program of it is left.
fn is_gone(pod: &Result<Pod, ClusterError>, container: &str) -> bool {
    match pod {
        Err(ClusterError::NotFound { .. }) => true,
        Err(_) => false,
        Ok(pod) => crate::session::is_over(pod, container),
    }
}
