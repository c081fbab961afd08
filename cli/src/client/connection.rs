//! A connection of ours: opened, kept alive, closed.

use super::{
    say,
    server::{Backends, connections},
};
use anyhow::{Context as _, bail};
use podbay::{
    ConnectionId, OwnerId, refusal_of,
    v1::{self, Reason, open_connection_response::Event},
};
use std::time::Duration;
use tokio::{task::JoinHandle, time::sleep};
use tonic::{Request, Status, transport::Channel};

/// Unary calls are given so long.
const CALL: Duration = Duration::from_secs(70);
/// A renewal that failed is tried again so soon.
const AGAIN: Duration = Duration::from_secs(1);

/// What the user reads of a refused call.
pub fn told(status: &Status) -> anyhow::Error {
    let refusal = refusal_of(status);
    let about = match refusal.connection_id.as_str() {
        "" => String::new(),
        id => format!(" [connection {id}]"),
    };
    if is_broken(status) {
        return anyhow::anyhow!("the backend was lost: {}{about}", refusal.message);
    }
    anyhow::anyhow!("{}{about}", refusal.message)
}

/// Whether the transport says it, and not a backend: another one, or the same, may know better.
pub fn is_broken(status: &Status) -> bool {
    status.details().is_empty() && refusal_of(status).reason() == Reason::StreamLost
}

/// A request with a deadline.
pub fn bounded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL);
    request
}

/// An open connection.
pub struct Connection {
    pub id: ConnectionId,
    pub owner: OwnerId,
    pub handle: Vec<u8>,
    pub heartbeats: Heartbeats,
}

/// Renews an owner's lease until it is dropped.
pub struct Heartbeats {
    owner: OwnerId,
    task: JoinHandle<()>,
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Heartbeats {
    /// Begins at once.
    pub fn start(mut backends: Backends, mut channel: Channel, owner: OwnerId, connection: ConnectionId) -> Self {
        let task = tokio::spawn(async move {
            loop {
                // Not `complete`: another podbay may continue what this owner began.
                let message = v1::HeartbeatRequest {
                    owner_id: owner.to_string(),
                    connection_ids: vec![connection.to_string()],
                    ..v1::HeartbeatRequest::default()
                };
                let pause = if let Ok(answer) = connections(&channel).heartbeat(bounded(message)).await {
                    let interval = answer.into_inner().interval.and_then(|it| Duration::try_from(it).ok());
                    interval.unwrap_or(AGAIN * 10) / 2
                } else {
                    if let Ok(other) = backends.connect().await {
                        channel = other;
                    }
                    AGAIN
                };
                sleep(pause.max(AGAIN / 10)).await;
            }
        });
        Self { owner, task }
    }
}

/// A connection that is being opened. Its id is the same at every try: a second one finds what the first has begun.
pub struct Opening {
    backends: Backends,
    channel: Channel,
    id: ConnectionId,
    owner: OwnerId,
    /// From where the lease is there.
    heartbeats: Option<Heartbeats>,
}

impl Opening {
    /// Before the first try.
    pub fn new(backends: Backends, channel: Channel) -> Self {
        let (id, owner) = (ConnectionId::from_bytes(rand::random()), OwnerId::from_bytes(rand::random()));
        Self { backends, channel, id, owner, heartbeats: None }
    }

    /// Opens it for this user; what takes long is told on stderr. A backend that is lost meanwhile costs a try on each other one.
    /// After an error, and where this is dropped, [`Self::undo`].
    pub async fn open(&mut self, user: &str) -> anyhow::Result<Connection> {
        let mut tries = self.backends.count();
        loop {
            let status = match self.attempt(user).await? {
                Ok(connection) => return Ok(connection),
                Err(status) => status,
            };
            tries = tries.saturating_sub(1);
            if tries == 0 || !(is_broken(&status) || refusal_of(&status).reason() == Reason::Draining) {
                return Err(told(&status));
            }
            self.channel = self.backends.connect().await?;
        }
    }

    async fn attempt(&mut self, user: &str) -> anyhow::Result<Result<Connection, Status>> {
        let request = v1::OpenConnectionRequest {
            connection_id: self.id.to_string(),
            owner_id: self.owner.to_string(),
            user: Some(v1::User { name: user.to_owned(), authenticated_name: String::new() }),
            ..v1::OpenConnectionRequest::default()
        };
        let mut events = match connections(&self.channel).open_connection(request).await {
            Ok(events) => events.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        loop {
            let event = match events.message().await {
                Ok(event) => event.context("the backend ended without an answer: its log says why")?.event,
                Err(status) => return Ok(Err(status)),
            };
            match event {
                // The lease is there from here on.
                Some(Event::Accepted(_)) => {
                    let (backends, channel) = (&self.backends, &self.channel);
                    self.heartbeats.get_or_insert_with(|| {
                        Heartbeats::start(backends.clone(), channel.clone(), self.owner, self.id)
                    });
                }
                Some(Event::Progress(progress)) if long(progress.elapsed) => say(&progress.message),
                Some(Event::Progress(_)) | None => {}
                Some(Event::Opened(opened)) => {
                    let Some(heartbeats) = self.heartbeats.take() else { bail!("the backend answers out of order") };
                    let handle = opened.handle.to_vec();
                    return Ok(Ok(Connection { id: self.id, owner: self.owner, handle, heartbeats }));
                }
            }
        }
    }

    /// What was begun of it is closed.
    pub async fn undo(mut self) {
        if let Some(heartbeats) = self.heartbeats.take() {
            end(&mut self.backends, &self.channel, heartbeats, self.id, true).await;
        }
    }

    /// Where it was opened, and the others.
    pub fn into_backend(self) -> (Backends, Channel) {
        (self.backends, self.channel)
    }
}

/// What is worth a line: a start of more than two seconds.
pub fn long(elapsed: Option<prost_types::Duration>) -> bool {
    elapsed.is_some_and(|elapsed| elapsed.seconds >= 2)
}

/// The owner ends; with `close`, its connection first. Where the backend is lost, the others are asked; what can't be told is left to
/// the lease's end.
pub async fn end(
    backends: &mut Backends,
    channel: &Channel,
    heartbeats: Heartbeats,
    connection: ConnectionId,
    close: bool,
) {
    let mut client = connections(channel);
    if close {
        let mut tries = backends.count();
        loop {
            let message = v1::CloseConnectionRequest { connection_id: connection.to_string(), keep_detached: false };
            let Err(status) = client.close_connection(bounded(message)).await else { break };
            tries = tries.saturating_sub(1);
            let other = if is_broken(&status) && tries > 0 { backends.connect().await.ok() } else { None };
            let Some(other) = other else {
                say(format_args!("the pod is not deleted yet, the backends do it in a while: {:#}", told(&status)));
                break;
            };
            client = connections(&other);
        }
    }
    let owner = heartbeats.owner;
    // A renewal behind it would make the lease anew.
    drop(heartbeats);
    let leaving =
        v1::HeartbeatRequest { owner_id: owner.to_string(), leaving: true, ..v1::HeartbeatRequest::default() };
    let _ = client.heartbeat(bounded(leaving)).await;
}
