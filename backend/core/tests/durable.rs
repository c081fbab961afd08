//! Programs that podbay-agent owns, in virtual time: how their ends are told, and what a broken link costs.

mod agent;

use agent::{Agent, killed};
use futures::FutureExt as _;
use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use podbay::{
    ConnectionId, MAX_CREDIT, OwnerId,
    v1::{self, Reason, Refusal, exit::End, open, run_session_request::Frame, run_session_response::Frame as Back},
};
use podbay_agent_wire::program::Exit;
use podbay_backend_core::{
    cluster::{Cluster as _, ClusterError, Output, StreamEnd},
    config::{Ownership, Timeouts},
    fake::{Call, FakeCluster, Fault, Program, script},
    handle::{Contents, Target},
    identity::User,
    lifecycle::Lifecycle,
    ownership::Leases,
    session::{Opening, Report, Sessions, Stopping},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;

const NS: &str = "ns";
const PATIENCE: Duration = Duration::from_mins(20);
const AGENT: &str = "/usr/bin/containerssh-agent";

/// A connection's pod with an agent in it.
struct World {
    cluster: FakeCluster,
    sessions: Sessions,
    contents: Contents,
}

impl World {
    async fn new(
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

    async fn with_agent() -> (Self, Agent) {
        let agent = Agent::new(1);
        let runs = agent.clone();
        (Self::new(move |program| runs.attach(program)).await, agent)
    }

    fn open(&self, open: &v1::Open) -> Session {
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
    async fn running(&self, n: u8) -> Session {
        let mut session = self.open(&shell(n));
        let frame = session.frame().await.expect("no refusal");
        assert!(matches!(&frame, Back::Started(started) if started.durable), "{frame:?}");
        session
    }

    fn changes(&self, change: impl FnOnce(&mut Pod)) {
        assert!(self.cluster.change_pod(NS, "pod", change));
    }

    fn is_deleted(&self) {
        self.changes(|pod| pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH)));
    }
}

fn shell(n: u8) -> v1::Open {
    v1::Open {
        session_id: format!("{n:032x}"),
        program: Some(open::Program::Shell(v1::Shell {})),
        stdout_credit: MAX_CREDIT,
        stderr_credit: MAX_CREDIT,
        ..v1::Open::default()
    }
}

/// The client's side.
struct Session {
    client: mpsc::Sender<Result<v1::RunSessionRequest, ()>>,
    from: mpsc::Receiver<Result<v1::RunSessionResponse, Refusal>>,
    task: JoinHandle<Report>,
}

/// What a client reads to the end.
#[derive(Debug, Default)]
struct All {
    stdout: Vec<u8>,
    notices: Vec<String>,
    exit: Option<End>,
    refusal: Option<Refusal>,
    took: Duration,
}

impl Session {
    async fn send(&self, frame: Frame) {
        self.client.send(Ok(v1::RunSessionRequest { frame: Some(frame) })).await.expect("it is there");
    }

    async fn next(&mut self) -> Option<Result<Back, Refusal>> {
        let item = timeout(PATIENCE, self.from.recv()).await.expect("in time")?;
        Some(item.map(|frame| frame.frame.expect("a frame")))
    }

    async fn frame(&mut self) -> Result<Back, Refusal> {
        loop {
            match self.next().await.expect("a frame") {
                Ok(Back::Progress(_)) => {}
                other => return other,
            }
        }
    }

    async fn all(mut self) -> All {
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

fn lost(all: &All) -> (Reason, &str) {
    match &all.exit {
        Some(End::Lost(refusal)) => (refusal.reason(), &refusal.message),
        other => panic!("not lost: {other:?} {:?}", all.refusal),
    }
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn a_deleted_pods_programs_say_so() {
    let (world, agent) = World::with_agent().await;
    let (first, second) = (world.running(1).await, world.running(2).await);
    world.is_deleted();
    agent.stops();
    assert_eq!(agent.signals(), [(0, "HUP".to_owned()), (1, "HUP".to_owned())]);
    agent.says(1, "bye");
    agent.exits(0, killed("HUP"));
    agent.exits(1, Exit::Code(3));
    let (first, second) = (first.all().await, second.all().await);
    assert_eq!(lost(&first), (Reason::PodGone, "the pod was deleted"));
    // What ends by its own word is its own; the user learns why all the same.
    assert_eq!((&second.exit, &second.stdout[..]), (&Some(End::Code(3)), &b"bye"[..]));
    assert_eq!(second.notices, ["the pod was deleted"]);
    assert!(first.took < SOON && second.took < SOON);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_something_else_killed_is_that_signals() {
    let (world, agent) = World::with_agent().await;
    let session = world.running(1).await;
    agent.exits(0, killed("KILL"));
    let all = session.all().await;
    assert!(matches!(&all.exit, Some(End::Signal(signal)) if signal.name == "KILL" && signal.message.is_empty()));
    assert_eq!(all.took, Duration::ZERO, "nothing is waited for");
    // A container that is stopped for reasons that the pod does not tell (a probe, somebody in the pod).
    let session = world.running(2).await;
    agent.stops();
    agent.exits(1, killed("HUP"));
    let all = session.all().await;
    let told = matches!(&all.exit, Some(End::Signal(signal)) if signal.message == "the container was stopped");
    assert!(told && all.took < SOON, "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn what_took_the_container_away_is_told_when_the_kubelet_tells_it() {
    let evicted = PodStatus {
        reason: Some("Evicted".into()),
        message: Some("The node was low on resource: memory.".into()),
        ..script::status("Failed")
    };
    let cases: [(PodStatus, Reason, &str); 3] = [
        (evicted, Reason::PodGone, "the pod was evicted: The node was low on resource: memory."),
        (script::ended("shell", "Error", 137), Reason::ProgramLost, "the pod's container ended"),
        (script::ended("shell", "OOMKilled", 137), Reason::Unspecified, "out of memory"),
    ];
    for (status, reason, words) in cases {
        let (world, _agent) = World::with_agent().await;
        let sessions = [world.running(1).await, world.running(2).await];
        // The processes first; the status later.
        world.cluster.on_stream(|_| async { StreamEnd::Lost("the container is gone".into()) }.boxed());
        world.cluster.break_streams();
        sleep(Duration::from_millis(1500)).await;
        world.changes(|pod| pod.status = Some(status));
        for session in sessions {
            let all = session.all().await;
            match &all.exit {
                Some(End::Lost(refusal)) => {
                    assert_eq!(refusal.reason(), reason);
                    assert!(refusal.message.contains(words), "{refusal:?}");
                }
                Some(End::Signal(signal)) => assert!(reason == Reason::Unspecified && signal.message.contains(words)),
                other => panic!("{other:?}"),
            }
            assert!(all.took < Duration::from_secs(10), "{all:?}");
        }
    }
}

fn unavailable() -> ClusterError {
    ClusterError::Unavailable { message: "connection reset".into(), retry_after: None }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_comes_back_is_told_once_and_waited_for() {
    let (world, agent) = World::with_agent().await;
    let session = world.running(1).await;
    world.cluster.down(unavailable());
    sleep(Duration::from_mins(4)).await;
    world.cluster.up();
    sleep(Duration::from_secs(30)).await;
    agent.says(0, "there");
    agent.exits(0, Exit::Code(4));
    let all = session.all().await;
    assert_eq!((&all.exit, &all.stdout[..]), (&Some(End::Code(4)), &b"there"[..]));
    let [broke, back] = all.notices.as_slice() else { panic!("{:?}", all.notices) };
    assert!(broke.contains("waiting for the Kubernetes API") && broke.contains("connection reset"), "{broke}");
    assert_eq!(back, "the connection to the pod is there again");
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_nobodys_news() {
    let (world, agent) = World::with_agent().await;
    let session = world.running(1).await;
    world.cluster.break_streams();
    sleep(Duration::from_secs(10)).await;
    agent.exits(0, Exit::Code(0));
    let all = session.all().await;
    assert_eq!((&all.exit, all.notices.len()), (&Some(End::Code(0)), 0));
}

#[tokio::test(start_paused = true)]
async fn an_api_that_stays_away_ends_the_wait_by_its_timeout() {
    let (world, _agent) = World::with_agent().await;
    let session = world.running(1).await;
    world.cluster.down(unavailable());
    let all = session.all().await;
    let refusal = all.refusal.expect("a refusal: another replica may know better");
    assert_eq!(refusal.reason(), Reason::KubernetesUnavailable);
    assert!(refusal.message.contains("timeouts.relink") && refusal.message.contains("connection reset"), "{refusal:?}");
    let within = world.contents.timeouts.relink;
    assert!(all.took >= within && all.took < within + SOON, "{:?}", all.took);
    assert_eq!(all.notices.len(), 1, "{:?}", all.notices);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stays_away_ends_the_wait_by_its_timeout() {
    let (world, _agent) = World::with_agent().await;
    let session = world.running(1).await;
    // The API answers, and its exec hangs or fails.
    world.cluster.fault(Call::Stream, Fault::Hang);
    world.cluster.faults(Call::Stream, 1000, Fault::Fail(ClusterError::Timeout(Duration::from_secs(30))));
    world.cluster.break_streams();
    let all = session.all().await;
    let (reason, message) = lost(&all);
    assert_eq!(reason, Reason::StreamLost);
    assert!(message.contains("the pod's agent could not be reached"), "{message}");
    let within = world.contents.timeouts.relink;
    assert!(all.took >= within && all.took < within + SOON, "{:?}", all.took);
    assert!(all.notices[0].contains("waiting for the pod's agent"), "{:?}", all.notices);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_can_not_be_continued_yet_is_not_given_up() {
    let (world, agent) = World::with_agent().await;
    let session = world.running(1).await;
    world.cluster.down(unavailable());
    drop(session);
    let mut open = shell(1);
    (open.attempt, open.resume_from) = (2, Some(v1::ResumeFrom::default()));
    let all = world.open(&open).all().await;
    assert_eq!(all.refusal.map(|refusal| refusal.reason()), Some(Reason::KubernetesUnavailable));
    world.cluster.up();
    sleep(Duration::from_mins(1)).await;
    assert_eq!(agent.signals(), []);
    open.attempt = 3;
    let session = world.open(&open);
    agent.exits(0, Exit::Code(6));
    assert_eq!(session.all().await.exit, Some(End::Code(6)));
}

/// An agent that greets as podbay-agent does, and then goes on so.
fn says(then: &'static [u8], end: StreamEnd) -> impl Fn(Program) -> futures::future::BoxFuture<'static, StreamEnd> {
    move |program| {
        let end = end.clone();
        async move {
            let _ = program.output.send(Output::Stdout(then.into())).await;
            if end == StreamEnd::Success {
                std::future::pending::<()>().await
            }
            end
        }
        .boxed()
    }
}
