//! Links to pods: one exec of `podbay-agent attach` for each pod in which this replica has programs.
//!
//! Each link is a task ([`actor`]) that owns the exec's stream and the wire's [`Client`](podbay_agent_wire::client::Client); it
//! makes the stream again whenever it breaks, for as long as a program wants it. Sessions speak to it through a
//! [`LinkProgram`]: commands go into a bounded queue that the task never lets wait, events come in a queue that
//! credit bounds. Whether an image has podbay-agent at all is learnt from the first link and remembered by image.

mod actor;
mod commands;
mod programs;

pub use commands::Commands;

use crate::{
    cluster::{Cluster, ClusterError, PodRef},
    images::Images,
};
use bytes::Bytes;
use commands::{Command, Do};
use k8s_openapi::api::core::v1::Pod;
use podbay::{SessionId, v1::AgentLevel};
use podbay_agent_wire::{
    client::{Event, ResumeFrom},
    id::Attempt,
    program::Start,
    proto,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Commands under way to a link.
const COMMANDS: usize = 256;

/// Where an agent is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The pod, with its uid.
    pub pod: PodRef,
    /// The container.
    pub container: String,
    /// The agent's path in it.
    pub agent: String,
    /// What the container runs, by its status; the key for what is known of an image.
    pub image: String,
}

/// What an image has at the agent's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// podbay-agent.
    Podbay,
    /// Something that is not, and answers as containerssh-agent does.
    Containerssh,
    /// Nothing that runs.
    Nothing,
}

impl From<Found> for AgentLevel {
    fn from(found: Found) -> Self {
        match found {
            Found::Podbay => Self::Podbay,
            Found::Containerssh => Self::Containerssh,
            Found::Nothing => Self::None,
        }
    }
}

/// What a link tells a program.
#[derive(Debug)]
pub enum News {
    /// From the agent.
    Wire(Event),
    /// There is no podbay-agent; what is there instead, and in whose words.
    Other(Found, String),
    /// The pod or its container is gone, as this shows.
    Gone(Box<Result<Pod, ClusterError>>),
}

/// Whether a pod is reached over its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It is, or nothing is known against it yet.
    Up,
    /// Not since then; it is tried again and again.
    Down {
        /// When the link broke, or could not be made first.
        since: Instant,
        /// The API itself does not answer.
        api: bool,
        /// The last failure, in a line.
        why: String,
    },
}

/// What became of a file; else the agent's words.
pub type Written = Result<(), String>;

/// The links of this process. Clones share everything; the last one ends them.
#[derive(Debug, Clone)]
pub struct Links {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    cluster: Arc<dyn Cluster>,
    pods: Mutex<HashMap<String, Entry>>,
    images: Images<Found>,
    next: AtomicU64,
}

#[derive(Debug, Clone)]
struct Entry {
    id: u64,
    commands: mpsc::Sender<Command>,
    left: mpsc::UnboundedSender<u64>,
    health: watch::Receiver<Health>,
}

/// The link is gone; the next one to the pod is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkEnded;

impl Links {
    /// Links over this cluster.
    pub fn new(cluster: Arc<dyn Cluster>) -> Self {
        let stop = CancellationToken::new();
        let shared = Shared { cluster, pods: Mutex::default(), images: Images::default(), next: AtomicU64::new(0) };
        Self { shared: Arc::new(shared), _stop: Arc::new(stop.clone().drop_guard()), stop }
    }

    /// What is known of an image, by its id, or (for a while) by its name. An empty name is nobody's.
    pub fn found(&self, image: &str) -> Option<Found> {
        self.shared.images.get(image)
    }

    /// The same image by another of its names.
    pub(crate) fn learn(&self, image: &str, found: Found) {
        self.shared.images.learn(image, found);
    }

    /// A program's end of the link to its pod; the link is made if there is none.
    pub fn program(&self, place: &Place) -> LinkProgram {
        let entry = self.entry(place);
        let token = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (news, receiver) = mpsc::unbounded_channel();
        let health = entry.health.clone();
        LinkProgram { token, entry, sender: Some(news), news: receiver, health }
    }

    fn entry(&self, place: &Place) -> Entry {
        let key =
            format!("{}/{}/{}", place.pod.namespace, place.pod.name, place.pod.uid.as_deref().unwrap_or_default());
        let mut pods = self.shared.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = pods.get(&key).filter(|entry| !entry.commands.is_closed()) {
            return entry.clone();
        }
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (left, leaving) = mpsc::unbounded_channel();
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (tells, health) = watch::channel(Health::Up);
        let entry = Entry { id, commands, left, health };
        pods.insert(key.clone(), entry.clone());
        drop(pods);
        let actor = actor::Actor::new(Arc::clone(&self.shared), (key, id), place.clone(), (receiver, leaving, tells));
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = actor.run() => {}
                () = stop.cancelled() => {}
            }
        });
        entry
    }

    /// How many links there are.
    pub fn count(&self) -> usize {
        self.shared.pods.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Shared {
    fn learn(&self, image: &str, found: Found) {
        let known = self.images.learn(image, found);
        if known != Some(found) {
            let level = match found {
                Found::Podbay => "podbay-agent",
                Found::Containerssh => "containerssh-agent",
                Found::Nothing => "none",
            };
            tracing::info!(image, level, "the agent's level in this image is known");
        }
    }

    /// Takes a link off the list, unless another has taken its place.
    fn remove(&self, (key, id): &(String, u64)) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if pods.get(key).is_some_and(|entry| entry.id == *id) {
            pods.remove(key);
        }
    }
}

/// A program's end of a link. Dropping it leaves the program running, for its orphan timeout.
#[derive(Debug)]
pub struct LinkProgram {
    token: u64,
    entry: Entry,
    sender: Option<mpsc::UnboundedSender<News>>,
    /// What the agent tells; bounded by the credit that was given and the requests that were made.
    pub news: mpsc::UnboundedReceiver<News>,
    /// The link's.
    pub health: watch::Receiver<Health>,
}

impl LinkProgram {
    /// The commands' way in.
    pub fn commands(&self) -> Commands {
        Commands { token: self.token, commands: self.entry.commands.clone() }
    }

    /// Starts a program; attaches where the session exists.
    pub async fn start(
        &mut self,
        session: SessionId,
        attempt: Attempt,
        start: Start,
        from: ResumeFrom,
    ) -> Result<(), LinkEnded> {
        let news = self.sender.take().ok_or(LinkEnded)?;
        self.commands().send(Do::Start { session, attempt, start: Box::new(start), from, news }).await
    }

    /// Attaches to a program that runs, or has ended; with `take_over` whatever the attempt.
    pub async fn attach(
        &mut self,
        session: SessionId,
        attempt: Attempt,
        take_over: bool,
        from: ResumeFrom,
    ) -> Result<(), LinkEnded> {
        let news = self.sender.take().ok_or(LinkEnded)?;
        self.commands().send(Do::Attach { session, attempt, take_over, from, news }).await
    }

    /// Says that an exit is known. `true`: the pod has forgotten the session; `false`: it runs still.
    pub async fn ack_exit(&self, session: SessionId) -> Result<bool, LinkEnded> {
        let (done, told) = oneshot::channel();
        self.commands().send(Do::AckExit { session, done }).await?;
        told.await.map_err(|_| LinkEnded)
    }

    /// Writes a file whole, with the permissions of `mode`. [`LinkEnded`] too where there is no podbay-agent.
    pub async fn write_file(&self, path: &str, mode: u32, data: Bytes) -> Result<Written, LinkEnded> {
        let (done, told) = oneshot::channel();
        self.commands().send(Do::WriteFile { path: path.to_owned(), mode, data, done }).await?;
        told.await.map_err(|_| LinkEnded)
    }

    /// Lists the sessions in the pod.
    pub async fn list(&self, session: Option<SessionId>) -> Result<Vec<proto::Session>, LinkEnded> {
        let (done, told) = oneshot::channel();
        self.commands().send(Do::List { session, done }).await?;
        told.await.map_err(|_| LinkEnded)
    }
}

impl Drop for LinkProgram {
    fn drop(&mut self) {
        // A link that is gone has nothing of it any more.
        let _ = self.entry.left.send(self.token);
    }
}
