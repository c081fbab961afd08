//! One replica: its HTTP/2 connections, its health, and how much of ours runs there.

use super::{
    Replica,
    connector::{Security, connect, why},
};
use futures::StreamExt as _;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, task::JoinSet, time::sleep};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint as Http2},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tracing::{info, warn};

/// limits.md 3.1: stream window × streams of a connection.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;

/// A message of 32 KiB comes in one frame; the default of 16 KiB makes it three.
const MAX_FRAME: u32 = 64 * 1024;

/// From this many streams a connection is full, and another is made; servers allow 128.
const STREAMS_A_CONNECTION: usize = 100;

/// The most connections to one replica.
const MAX_CONNECTIONS: usize = 64;

/// What is known of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It says that it serves.
    Serving = 0,
    /// Nothing yet.
    Unknown = 1,
    /// It says that it does not: it drains.
    Draining = 2,
    /// It can't be reached.
    Gone = 3,
}

/// A connection to the replica and the number of our streams on it.
#[derive(Debug, Clone)]
struct Lane {
    channel: Channel,
    streams: Arc<AtomicUsize>,
}

/// One replica.
#[derive(Debug)]
pub struct Endpoint {
    /// Which.
    pub replica: Replica,
    host: String,
    security: Security,
    lanes: Mutex<Vec<Lane>>,
    streams: Arc<AtomicUsize>,
    health: AtomicU8,
    /// Told when that changes.
    changed: Arc<Notify>,
    /// The health watch; ends with the endpoint.
    watchers: Mutex<JoinSet<()>>,
}

/// A stream of ours that runs at a replica; counted until dropped.
#[derive(Debug)]
pub struct Running {
    channel: Channel,
    counts: [Arc<AtomicUsize>; 2],
}

impl Running {
    /// Where to call.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for count in &self.counts {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Endpoint {
    /// A replica with `connections` connections, each made at its first call, and watched from now on.
    /// What is found out about its health is told to `changed`.
    pub fn new(
        replica: Replica,
        host: &str,
        security: &Security,
        connections: usize,
        changed: &Arc<Notify>,
    ) -> Arc<Self> {
        let endpoint = Arc::new(Self {
            replica,
            host: host.to_owned(),
            security: security.clone(),
            lanes: Mutex::default(),
            streams: Arc::default(),
            health: AtomicU8::new(Health::Unknown as u8),
            changed: Arc::clone(changed),
            watchers: Mutex::default(),
        });
        let lanes = (0..connections.clamp(1, MAX_CONNECTIONS)).map(|_| endpoint.lane()).collect();
        *endpoint.lanes.lock().unwrap_or_else(PoisonError::into_inner) = lanes;
        let watched = Arc::downgrade(&endpoint);
        let channel = endpoint.lane().channel;
        endpoint.watchers.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
            loop {
                let Some(endpoint) = watched.upgrade() else { return };
                drop(endpoint);
                let found = watch(channel.clone(), &watched).await;
                let Some(endpoint) = watched.upgrade() else { return };
                match found {
                    Ok(health) => endpoint.set_health(health),
                    Err(status) => endpoint.lost(&status),
                }
                drop(endpoint);
                sleep(Duration::from_secs(1)).await;
            }
        });
        endpoint
    }

    fn lane(&self) -> Lane {
        let (address, host, security) = (self.replica.0, self.host.clone(), self.security.clone());
        // The URI is only the `:authority`; where to connect is the connector's business.
        let channel = Http2::from_static("http://podbay-backend")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(tower::service_fn(move |_| connect(address, host.clone(), security.clone())));
        Lane { channel, streams: Arc::default() }
    }

    /// What is known of it.
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Serving,
            1 => Health::Unknown,
            2 => Health::Draining,
            _ => Health::Gone,
        }
    }

    /// Notes what was found.
    pub fn set_health(&self, health: Health) {
        if self.health.swap(health as u8, Ordering::Relaxed) != health as u8 {
            info!(replica = %self.replica, ?health, "backend replica");
            self.changed.notify_one();
        }
    }

    /// Notes that it can't be reached; why, is told once, at warning level: until it is mended nobody may get in.
    fn lost(&self, status: &Status) {
        let before = self.health.swap(Health::Gone as u8, Ordering::Relaxed);
        if before == Health::Gone as u8 {
            return;
        }
        let (health, error) = (Health::Gone, why(status));
        if before == Health::Draining as u8 {
            info!(replica = %self.replica, ?health, error, "backend replica");
        } else {
            warn!(replica = %self.replica, ?health, error, "backend replica");
        }
        self.changed.notify_one();
    }

    /// How many of our streams run there.
    pub fn load(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Begins a stream, on the connection with the fewest.
    pub fn begin(&self) -> Running {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let least = lanes.iter().min_by_key(|lane| lane.streams.load(Ordering::Relaxed)).cloned();
        let lane = match least {
            Some(lane)
                if lane.streams.load(Ordering::Relaxed) < STREAMS_A_CONNECTION || lanes.len() >= MAX_CONNECTIONS =>
            {
                lane
            }
            Some(_) | None => {
                let lane = self.lane();
                lanes.push(lane.clone());
                lane
            }
        };
        drop(lanes);
        lane.streams.fetch_add(1, Ordering::Relaxed);
        self.streams.fetch_add(1, Ordering::Relaxed);
        Running { channel: lane.channel, counts: [lane.streams, Arc::clone(&self.streams)] }
    }
}

/// Follows `grpc.health.v1` for the server as a whole until the watch ends. Returns what that means, or why there is none.
async fn watch(channel: Channel, endpoint: &std::sync::Weak<Endpoint>) -> Result<Health, Status> {
    let mut client = HealthClient::new(channel);
    let mut answers = match client.watch(HealthCheckRequest { service: String::new() }).await {
        Ok(answers) => answers.into_inner(),
        // A server without the health service is taken at its word.
        Err(status) if status.code() == Code::Unimplemented => return Ok(Health::Serving),
        Err(status) => return Err(status),
    };
    while let Some(answer) = answers.next().await {
        let health = match answer?.status() {
            ServingStatus::Serving => Health::Serving,
            ServingStatus::NotServing => Health::Draining,
            ServingStatus::Unknown | ServingStatus::ServiceUnknown => Health::Unknown,
        };
        match endpoint.upgrade() {
            Some(endpoint) => endpoint.set_health(health),
            None => return Ok(health),
        }
    }
    Err(Status::unavailable("it ended the health watch"))
}
