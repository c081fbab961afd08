//! Programs that podbay-agent owns, in virtual time: how their ends are told, and what a broken link costs.

mod agent;

use agent::{Agent, killed};
use futures::FutureExt as _;
use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use podbay::{
    ConnectionId, MAX_CREDIT, OwnerId, SessionId,
    v1::{self, Reason, Refusal, exit::End, open, run_session_request::Frame, run_session_response::Frame as Back},
};
use podbay_agent_wire::program::Exit;
use podbay_backend_core::{
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
use podbay_runtime::config::Document;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
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

    /// Whose programs have pods of their own.
    async fn session_mode() -> (Self, Agent) {
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
    assert!(told && all.took < Duration::from_secs(11), "{all:?}");
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

/// What stands at the agent's path, by how often it was executed.
async fn instead(
    what: impl Fn(usize, Program) -> futures::future::BoxFuture<'static, StreamEnd> + Send + Sync + 'static,
) -> (World, Arc<AtomicUsize>) {
    let times = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&times);
    let world = World::new(move |program| what(counts.fetch_add(1, Ordering::Relaxed), program)).await;
    (world, times)
}

async fn refused(world: &World) -> (Refusal, Duration) {
    let all = world.open(&shell(1)).all().await;
    (all.refusal.unwrap_or_else(|| panic!("not refused: {:?}", all.exit)), all.took)
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_hangs_is_named_when_the_time_is_over() {
    let (world, _) = instead(|_, _| std::future::pending().boxed()).await;
    let (refusal, took) = refused(&world).await;
    assert_eq!((refusal.reason(), took), (Reason::CommandStartTimeout, world.contents.timeouts.command_start));
    assert!(
        refusal.message.contains("commandStart") && refusal.message.contains("agent can't be reached"),
        "{refusal:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_floods_is_held_to_the_same_time() {
    let (world, _) = instead(|_, program| {
        async move {
            loop {
                for junk in [Output::Stderr(vec![b'x'; 32 * 1024].into()), Output::Stdout(vec![b'y'; 32 * 1024].into())]
                {
                    if program.output.send(junk).await.is_err() {
                        return StreamEnd::Success;
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        .boxed()
    })
    .await;
    let (refusal, took) = refused(&world).await;
    assert_eq!((refusal.reason(), took), (Reason::CommandStartTimeout, world.contents.timeouts.command_start));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_at_once_again_and_again_is_told_as_one_that_does_not_run() {
    let (world, times) = instead(|_, program| {
        async move {
            let _ = program.output.send(Output::Stderr("Segmentation fault\n".into())).await;
            StreamEnd::ExitCode(139)
        }
        .boxed()
    })
    .await;
    let (refusal, took) = refused(&world).await;
    assert_eq!(refusal.reason(), Reason::AgentMissing);
    assert!(refusal.message.contains("Segmentation fault") && refusal.message.contains(AGENT), "{refusal:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    let tries = times.load(Ordering::Relaxed);
    assert!((2..10).contains(&tries), "{tries}");
    // Nothing is concluded for the image: the next start tries anew.
    refused(&world).await;
    assert_eq!(times.load(Ordering::Relaxed), 2 * tries);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_break_the_protocol_cost_a_link_and_no_program() {
    let agent = Agent::new(1);
    let runs = agent.clone();
    // The second half of each exec's life is junk: of a frame, behind the true hello.
    let (world, times) = instead(move |n, program| {
        let (agent, output) = (runs.clone(), program.output.clone());
        let serve = agent.attach(program);
        async move {
            if n > 0 {
                return serve.await;
            }
            let junk = async {
                sleep(Duration::from_secs(1)).await;
                let _ = output.send(Output::Stdout(vec![0xff; 4096].into())).await;
                std::future::pending::<StreamEnd>().await
            };
            tokio::select! { end = serve => end, end = junk => end }
        }
        .boxed()
    })
    .await;
    let session = world.running(1).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(times.load(Ordering::Relaxed), 2, "another link");
    agent.says(0, "whole");
    agent.exits(0, Exit::Code(9));
    let all = session.all().await;
    assert_eq!((&all.exit, &all.stdout[..]), (&Some(End::Code(9)), &b"whole"[..]));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_falls_silent_costs_its_link_and_no_program() {
    let agent = Agent::new(1);
    let runs = agent.clone();
    let (world, times) = instead(move |n, program| {
        let (agent, serves) = (runs.clone(), n > 0);
        async move {
            let serve = agent.attach(program);
            if serves {
                return serve.await;
            }
            let _ = timeout(Duration::from_secs(2), serve).await;
            std::future::pending().await
        }
        .boxed()
    })
    .await;
    let session = world.running(1).await;
    // Pings every 5 s, 15 s of silence.
    sleep(Duration::from_secs(30)).await;
    assert_eq!(times.load(Ordering::Relaxed), 2, "another link");
    agent.exits(0, Exit::Code(9));
    assert_eq!(session.all().await.exit, Some(End::Code(9)));
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_died_takes_its_programs_along_and_that_is_said() {
    let (first, second) = (Agent::new(1), Agent::new(2));
    let (world, _) =
        instead(move |n, program| if n == 0 { first.attach(program) } else { second.attach(program) }).await;
    let sessions = [world.running(1).await, world.running(2).await];
    world.cluster.break_streams();
    for session in sessions {
        let all = session.all().await;
        assert_eq!(lost(&all).0, Reason::ProgramLost, "never a code");
    }
}

#[tokio::test(start_paused = true)]
async fn a_signal_to_a_program_that_just_ended_is_answered() {
    let (world, agent) = World::with_agent().await;
    let mut session = world.running(1).await;
    // Something in the background has its outputs still, so that the exit is not told yet.
    agent.exits_but_for_outputs(0, Exit::Code(2));
    session.send(Frame::Signal(v1::Signal { id: 1, name: "TERM".into(), deadline: None })).await;
    let answer = loop {
        match session.frame().await.expect("no refusal") {
            Back::Answer(answer) => break answer,
            Back::Exit(exit) => panic!("{exit:?}"),
            _ => {}
        }
    };
    assert_eq!((answer.id, answer.refusal.map(|refusal| refusal.reason())), (1, Some(Reason::SignalNotDelivered)));
    assert_eq!(agent.signals(), []);
    agent.closes_outputs(0);
    assert_eq!(session.all().await.exit, Some(End::Code(2)));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_continued_only_where_it_is_and_from_what_there_was() {
    let (world, agent) = World::with_agent().await;
    let session = world.running(1).await;
    agent.says(0, "12345");
    let resume = |n: u8, attempt: u32, stdout: u64| {
        let mut open = shell(n);
        (open.attempt, open.stdout_credit) = (attempt, stdout + MAX_CREDIT);
        open.resume_from = Some(v1::ResumeFrom { stdout, stderr: 0 });
        open
    };
    // More than there ever was.
    let all = world.open(&resume(1, 2, 6)).all().await;
    assert_eq!(all.refusal.map(|refusal| refusal.reason()), Some(Reason::InvalidRequest), "{:?}", all.exit);
    // Another's session, which runs in another pod: here nobody knows it.
    let all = world.open(&resume(7, 2, 0)).all().await;
    assert_eq!(lost(&all).0, Reason::ProgramLost);
    // A late attempt.
    let all = world.open(&resume(1, 1, 0)).all().await;
    assert_eq!(all.refusal.map(|refusal| refusal.reason()), Some(Reason::Superseded), "{:?}", all.exit);
    // None of them did the true one any harm.
    agent.exits(0, Exit::Code(1));
    let all = session.all().await;
    assert_eq!((&all.exit, &all.stdout[..]), (&Some(End::Code(1)), &b"12345"[..]));
    assert_eq!((agent.started(), agent.signals()), (1, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_program_with_its_own_pod_keeps_it_whoever_fails_to_come_back() {
    let (world, agent) = World::session_mode().await;
    let session = world.running(1).await;
    let pods = || world.cluster.pods().len();
    let mut late = shell(1);
    late.resume_from = Some(v1::ResumeFrom::default());
    let all = world.open(&late).all().await;
    assert_eq!(all.refusal.map(|refusal| refusal.reason()), Some(Reason::Superseded), "{:?}", all.exit);
    sleep(Duration::from_mins(3)).await;
    assert_eq!(pods(), 1, "a late stream's end is not the program's");
    // Nor is the end of a wait: another replica may reach it.
    world.cluster.down(unavailable());
    let all = session.all().await;
    assert_eq!(all.refusal.map(|refusal| refusal.reason()), Some(Reason::KubernetesUnavailable));
    world.cluster.up();
    sleep(Duration::from_mins(3)).await;
    assert_eq!(pods(), 1);
    late.attempt = 2;
    let session = world.open(&late);
    sleep(SOON).await;
    agent.exits(0, Exit::Code(8));
    assert_eq!(session.all().await.exit, Some(End::Code(8)));
    sleep(Duration::from_mins(3)).await;
    assert_eq!(pods(), 0, "with its end the pod goes");
}

#[tokio::test(start_paused = true)]
async fn what_containerssh_agent_can_not_do_is_refused_by_name() {
    let world = World::new(|program| {
        async move {
            let _ = program.output.send(Output::Stderr("Error: unknown mode: attach".into())).await;
            StreamEnd::ExitCode(1)
        }
        .boxed()
    })
    .await;
    let session = SessionId::from_bytes([1; 16]);
    // Twice: by the first answer, and by what is known from it.
    for _ in 0..2 {
        let detached = world.sessions.detach(&world.contents, session, None).await.map(drop);
        let acked = world.sessions.ack_exit(&world.contents, session).await;
        let collected = world.sessions.collect_exit(&world.contents, session, Duration::ZERO).await.map(drop);
        for result in [detached, acked, collected] {
            let refusal = result.expect_err("impossible there");
            assert_eq!(refusal.reason(), Reason::Unimplemented, "{refusal:?}");
            assert!(refusal.message.contains("containerssh-agent"), "{refusal:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_detached_program_ends_and_its_exit_is_collected() {
    let (world, agent) = World::with_agent().await;
    let session = SessionId::from_bytes(u128::from(1u8).to_be_bytes());
    world.changes(|pod| {
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(identity::MANAGED_BY.into(), identity::PODBAY.into());
        labels.insert(identity::PERSISTENT.into(), identity::PERSISTENT_YES.into());
    });
    let running = world.running(1).await;
    let hour = Duration::from_hours(1);
    assert_eq!(world.sessions.detach(&world.contents, session, Some(hour)).await, Ok(hour));
    let all = running.all().await;
    assert_eq!(all.refusal.map(|refusal| refusal.reason()), Some(Reason::Superseded));
    let mark = || identity::kept_until(&world.cluster.pods()[0].metadata);
    let first = mark().expect("kept");
    // Another that is kept for less does not make the mark less.
    drop(world.running(2).await);
    let other = SessionId::from_bytes(u128::from(2u8).to_be_bytes());
    world.sessions.detach(&world.contents, other, Some(Duration::from_mins(1))).await.expect("detached");
    assert_eq!(mark(), Some(first));

    assert_eq!(world.sessions.collect_exit(&world.contents, session, Duration::ZERO).await, Ok(None), "it runs");
    agent.exits(0, Exit::Code(5));
    sleep(Duration::from_mins(50)).await;
    let exit = world.sessions.collect_exit(&world.contents, session, Duration::ZERO).await;
    assert_eq!(exit.expect("kept").and_then(|exit| exit.end), Some(End::Code(5)));
    world.sessions.ack_exit(&world.contents, session).await.expect("acknowledged");
    let again = world.sessions.collect_exit(&world.contents, session, Duration::ZERO).await;
    assert_eq!(again.map_err(|refusal| refusal.reason()), Err(Reason::NotFound));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_others_made_is_not_changed_by_a_detach() {
    let (world, _agent) = World::with_agent().await;
    let session = SessionId::from_bytes(u128::from(1u8).to_be_bytes());
    let running = world.running(1).await;
    let before = world.cluster.pods();
    world.sessions.detach(&world.contents, session, None).await.expect("detached");
    drop(running);
    assert_eq!(world.cluster.pods(), before);
}
