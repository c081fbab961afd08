//! A connection of ours: opened, kept alive, closed.

use super::server::{Backends, connections};
use anyhow::{Context as _, bail};
use podbay::{
    ConnectionId, OwnerId, refusal_of,
    v1::{self, open_connection_response::Event},
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
    anyhow::anyhow!("{}{about}", refusal.message)
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

/// Opens a connection for this user; what takes long is told on stderr.
pub async fn open(backends: &Backends, channel: &Channel, user: &str) -> anyhow::Result<Connection> {
    let (id, owner) = (ConnectionId::from_bytes(rand::random()), OwnerId::from_bytes(rand::random()));
    let request = v1::OpenConnectionRequest {
        connection_id: id.to_string(),
        owner_id: owner.to_string(),
        user: Some(v1::User { name: user.to_owned(), authenticated_name: String::new() }),
        ..v1::OpenConnectionRequest::default()
    };
    let mut events = connections(channel).open_connection(request).await.map_err(|status| told(&status))?.into_inner();
    let mut heartbeats = None;
    loop {
        let event = events.message().await.map_err(|status| told(&status))?;
        match event.context("the backend ended without an answer")?.event {
            // The lease is there from here on.
            Some(Event::Accepted(_)) => {
                heartbeats.get_or_insert_with(|| Heartbeats::start(backends.clone(), channel.clone(), owner, id));
            }
            Some(Event::Progress(progress)) if long(progress.elapsed) => eprintln!("podbay: {}", progress.message),
            Some(Event::Progress(_)) | None => {}
            Some(Event::Opened(opened)) => {
                let Some(heartbeats) = heartbeats else { bail!("the backend answers out of order") };
                return Ok(Connection { id, owner, handle: opened.handle.to_vec(), heartbeats });
            }
        }
    }
}

/// What is worth a line: a start of more than two seconds.
pub fn long(elapsed: Option<prost_types::Duration>) -> bool {
    elapsed.is_some_and(|elapsed| elapsed.seconds >= 2)
}

/// The owner ends; with `close`, its connection first. What can't be told is left to the lease's end.
pub async fn end(channel: &Channel, heartbeats: Heartbeats, connection: ConnectionId, close: bool) {
    let mut client = connections(channel);
    if close {
        let message = v1::CloseConnectionRequest { connection_id: connection.to_string(), keep_detached: false };
        if let Err(status) = client.close_connection(bounded(message)).await {
            eprintln!("podbay: the pod is not deleted yet: {:#}", told(&status));
        }
    }
    let owner = heartbeats.owner;
    // A renewal behind it would make the lease anew.
    drop(heartbeats);
    let leaving =
        v1::HeartbeatRequest { owner_id: owner.to_string(), leaving: true, ..v1::HeartbeatRequest::default() };
    let _ = client.heartbeat(bounded(leaving)).await;
}
