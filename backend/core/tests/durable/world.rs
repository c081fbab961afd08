//! One pod with an agent on the fake cluster, its sessions and their clients.
#![allow(unreachable_pub, missing_debug_implementations)]

pub use crate::agent::{Agent, killed};
pub use futures::FutureExt as _;
pub use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
pub use podbay::{
    ConnectionId, MAX_CREDIT, OwnerId, SessionId,
    v1::{self, Reason, Refusal, exit::End, open, run_session_request::Frame, run_session_response::Frame as Back},
};
pub use podbay_agent_wire::program::Exit;
pub use podbay_backend_core::{
    cluster::{Cluster as _, ClusterError, Output, StreamEnd},
    config::{Ownership, Settings, Timeouts},
    fake::{Call, FakeCluster, Fault, Program, script},
    handle::{Contents, Target},
    identity::{self, Identity, User},
    lifecycle::Lifecycle,
    ownership::Leases,
    session::{Opening, Report, Sessions, Stopping},
    template,
};
pub use podbay_runtime::config::Document;
pub use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
pub use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
pub use tokio_stream::wrappers::ReceiverStream;
pub use tokio_util::task::TaskTracker;

pub const NS: &str = "ns";
pub const PATIENCE: Duration = Duration::from_mins(20);
pub const AGENT: &str = "/usr/bin/containerssh-agent";

/// A connection's pod with an agent in it.
pub struct World {
    pub cluster: FakeCluster,
    pub sessions: Sessions,
    pub contents: Contents,
}

impl World {
    pub async fn new(
        on_stream: impl Fn(Program) -> futures::future::BoxFuture<'static, StreamEnd> + Send + Sync + 'static,
    ) -> Self {
        let cluster = FakeCluster::new();
        let lifecycle = Lifecycle::new(Arc::new(cluster.clone()), Timeouts::default(), TaskTracker::new());
        let leases = Leases::new(Arc::new(cluster.clone()), Ownership::new(NS));
        let mut pod = script::pod(NS, "pod");
        pod.spec.as_mut().expect("a spec").restart_policy = Some("Never".into());
        let pod = cluster.create_pod(&pod).await.expect("created");
        cluster.change_pod(NS, "pod", |pod| pod.status = Some(script::running(pod)));
        cluster.on_stream(on_stream);
        let contents = Contents {
            connection: ConnectionId::from_bytes([1; 16]),
            owner: OwnerId::from_bytes([2; 16]),
            user: User::named("alice"),
            timeouts: Timeouts::default(),
            console: "shell".into(),
            shell: vec!["/bin/bash".into()],
            subsystems: std::collections::BTreeMap::new(),
            environment: std::collections::BTreeMap::new(),
            agent: Some(AGENT.to_owned()),
            security: podbay_backend_core::policy::Security::default(),
            only_shells: false,
            stays: false,
            target: Target::Pod {
                namespace: NS.into(),
                name: "pod".into(),
                uid: pod.metadata.uid.expect("a uid"),
                image_id: "sha256:image".into(),
            },
        };
        Self { cluster, sessions: Sessions::new(lifecycle, leases), contents }
    }

    pub async fn with_agent() -> (Self, Agent) {
        let agent = Agent::new(1);
        let runs = agent.clone();
        (Self::new(move |program| runs.attach(program)).await, agent)
    }

    /// Whose programs have pods of their own.
    pub async fn session_mode() -> (Self, Agent) {
        let (mut world, agent) = Self::with_agent().await;
        world.cluster.remove_pod(NS, "pod");
        let text = "kubernetes: {pod: {mode: session, metadata: {namespace: ns}}}";
        let document = Document::parse("f", text).expect("YAML");
        let settings = Settings::read(&mut document.root());
        document.finish().expect("no mistakes");
        let who = Identity {
            connection: world.contents.connection,
            owner: world.contents.owner,
            caller: "frontend".into(),
            user: User::named("alice"),
            remote: None,
        };
        let base = template::base_pod(&settings.expect("settings").pod, &who, &std::collections::BTreeMap::new());
        world.contents.target = Target::Template(Box::new(base));
        let leases = Leases::new(Arc::new(world.cluster.clone()), Ownership::new(NS));
        leases.renew(who.owner, &who.caller, Instant::now() + PATIENCE).await.expect("a lease");
        (world, agent)
    }

    pub fn open(&self, open: &v1::Open) -> Session {
        let opening = Opening::parse(open, &self.contents).expect("a valid Open");
        let (client, frames) = mpsc::channel::<Result<v1::RunSessionRequest, ()>>(16);
        let (sender, from) = mpsc::channel(8);
        let (sessions, contents) = (self.sessions.clone(), self.contents.clone());
        let task = tokio::spawn(async move {
            let frames = ReceiverStream::new(frames);
            Box::pin(sessions.run(&contents, "frontend", opening, frames, sender, Stopping::default())).await
        });
        Session { client, from, task }
    }

    /// One that runs, as session n.
    pub async fn running(&self, n: u8) -> Session {
        let mut session = self.open(&shell(n));
        let frame = session.frame().await.expect("no refusal");
        assert!(matches!(&frame, Back::Started(started) if started.durable), "{frame:?}");
        session
    }

    pub fn changes(&self, change: impl FnOnce(&mut Pod)) {
        assert!(self.cluster.change_pod(NS, "pod", change));
    }

    pub fn is_deleted(&self) {
        self.changes(|pod| pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH)));
    }
}

pub fn shell(n: u8) -> v1::Open {
    v1::Open {
        session_id: format!("{n:032x}"),
        program: Some(open::Program::Shell(v1::Shell {})),
        stdout_credit: MAX_CREDIT,
        stderr_credit: MAX_CREDIT,
        ..v1::Open::default()
    }
}

/// The client's side.
pub struct Session {
    pub client: mpsc::Sender<Result<v1::RunSessionRequest, ()>>,
    pub from: mpsc::Receiver<Result<v1::RunSessionResponse, Refusal>>,
    pub task: JoinHandle<Report>,
}

/// What a client reads to the end.
#[derive(Debug, Default)]
pub struct All {
    pub stdout: Vec<u8>,
    pub notices: Vec<String>,
    pub exit: Option<End>,
    pub refusal: Option<Refusal>,
    pub took: Duration,
}

impl Session {
    pub async fn send(&self, frame: Frame) {
        self.client.send(Ok(v1::RunSessionRequest { frame: Some(frame) })).await.expect("it is there");
    }

    pub async fn next(&mut self) -> Option<Result<Back, Refusal>> {
        let item = timeout(PATIENCE, self.from.recv()).await.expect("in time")?;
        Some(item.map(|frame| frame.frame.expect("a frame")))
    }

    pub async fn frame(&mut self) -> Result<Back, Refusal> {
        loop {
            match self.next().await.expect("a frame") {
                Ok(Back::Progress(_)) => {}
                other => return other,
            }
        }
    }

    pub async fn all(mut self) -> All {
        let (mut all, began) = (All::default(), Instant::now());
        while let Some(item) = self.next().await {
            match item {
                Err(refusal) => all.refusal = Some(refusal),
                Ok(Back::Data(data)) => all.stdout.extend_from_slice(&data.data),
                Ok(Back::Notice(notice)) => all.notices.push(notice.message),
                Ok(Back::Exit(exit)) => all.exit = exit.end,
                Ok(_) => {}
            }
        }
        all.took = began.elapsed();
        timeout(PATIENCE, self.task).await.expect("in time").expect("no panic");
        all
    }
}

pub fn lost(all: &All) -> (Reason, &str) {
    match &all.exit {
        Some(End::Lost(refusal)) => (refusal.reason(), &refusal.message),
        other => panic!("not lost: {other:?} {:?}", all.refusal),
    }
}

pub const SOON: Duration = Duration::from_secs(5);

pub fn unavailable() -> ClusterError {
    ClusterError::Unavailable { message: "connection reset".into(), retry_after: None }
}
