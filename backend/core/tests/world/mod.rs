//! A backend's core on a fake cluster.
#![allow(dead_code)] // each test file uses its part

use podbay::v1::{self, Refusal};
use podbay_backend_core::{
    cluster::ClusterError,
    config::Settings,
    connections::{Connections, Heartbeat, OpenEvent, OpenRequest},
    fake::FakeCluster,
    handle::KeyRing,
    lifecycle::Lifecycle,
    ownership::{Leases, Reaper},
};
use podbay_runtime::config::Document;
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

pub struct World {
    pub cluster: FakeCluster,
    pub connections: Connections,
    pub settings: Arc<Settings>,
    tracker: TaskTracker,
}

pub fn id(n: u8) -> String {
    format!("{n:032x}")
}

pub fn unavailable() -> ClusterError {
    ClusterError::Unavailable { message: "connection reset".into(), retry_after: None }
}

impl World {
    pub fn new(mode: &str) -> Self {
        Self::configured(&format!("disableAgent: true, mode: {mode}, metadata: {{namespace: ns}}"))
    }

    /// With these keys below `kubernetes.pod`.
    pub fn configured(pod: &str) -> Self {
        let text = format!("kubernetes: {{pod: {{{pod}}}}}");
        let document = Document::parse("f", &text).expect("YAML");
        let settings = Settings::read(&mut document.root());
        document.finish().expect("no mistake");
        let settings = Arc::new(settings.expect("settings"));
        let (cluster, tracker) = (FakeCluster::new(), TaskTracker::new());
        let lifecycle = Lifecycle::new(Arc::new(cluster.clone()), settings.timeouts, tracker.clone());
        let leases = Leases::new(Arc::new(cluster.clone()), settings.ownership.clone());
        let keys = Arc::new(KeyRing::random().expect("random"));
        Self { cluster, connections: Connections::new(lifecycle, leases, settings.clone(), keys), settings, tracker }
    }

    pub fn request(connection: u8, owner: u8, caller: &str) -> OpenRequest {
        Self::request_of("alice", connection, owner, caller)
    }

    pub fn request_of(user: &str, connection: u8, owner: u8, caller: &str) -> OpenRequest {
        let message = v1::OpenConnectionRequest {
            connection_id: id(connection),
            owner_id: id(owner),
            user: Some(v1::User { name: user.into(), authenticated_name: String::new() }),
            remote_address: "192.0.2.1".into(),
            ..v1::OpenConnectionRequest::default()
        };
        OpenRequest::parse(message, caller).expect("a request")
    }

    pub async fn open(&self, connection: u8, owner: u8, caller: &str) -> Result<v1::Opened, Refusal> {
        self.open_for("alice", connection, owner, caller).await
    }

    pub async fn open_for(&self, user: &str, connection: u8, owner: u8, caller: &str) -> Result<v1::Opened, Refusal> {
        let (sender, mut events) = mpsc::channel(64);
        self.connections.open(Self::request_of(user, connection, owner, caller), sender).await?;
        while let Some(event) = events.recv().await {
            if let OpenEvent::Opened(opened) = event {
                return Ok(opened);
            }
        }
        panic!("no Opened");
    }

    pub async fn beat(
        &self,
        owner: u8,
        caller: &str,
        known: &[u8],
        complete: bool,
    ) -> Result<v1::HeartbeatResponse, Refusal> {
        let message = v1::HeartbeatRequest {
            owner_id: id(owner),
            connection_ids: known.iter().map(|n| id(*n)).collect(),
            complete,
            ..v1::HeartbeatRequest::default()
        };
        self.connections.heartbeat(Heartbeat::parse(message, caller).expect("a heartbeat")).await
    }

    pub async fn leave(&self, owner: u8, caller: &str) -> Result<v1::HeartbeatResponse, Refusal> {
        let message = v1::HeartbeatRequest { owner_id: id(owner), leaving: true, ..v1::HeartbeatRequest::default() };
        self.connections.heartbeat(Heartbeat::parse(message, caller).expect("a heartbeat")).await
    }

    pub fn reaper(&self) -> Reaper {
        let idle = self.settings.pod.persistent.as_ref().and_then(|which| which.idle_timeout);
        Reaper::new(self.connections.lifecycle().clone(), self.connections.leases().clone(), "ns").idle_timeout(idle)
    }

    pub fn duration(&self) -> Duration {
        self.settings.ownership.lease_duration
    }

    /// All that was to be done in the background is done.
    pub async fn settled(&self) {
        self.tracker.close();
        self.tracker.wait().await;
        self.tracker.reopen();
    }
}
