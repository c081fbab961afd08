//! How many sessions, how long, and an API that does not answer.

use crate::world::*;

#[tokio::test(start_paused = true)]
async fn a_connection_has_no_more_sessions_at_once_than_the_policy_allows() {
    let mut world = World::connection().await;
    world.contents.security.most = NonZeroU32::new(2).map(Most::Sessions);
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            program.stdin().await;
            StreamEnd::ExitCode(ZERO)
        }
        .boxed()
    });
    let (mut first, mut second) = (world.open(&shell()), world.open(&exec("x")));
    first.started().await;
    second.started().await;
    let began = Instant::now();
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::Limit);
    assert!(refusal.message.contains("at most 2"), "{refusal:?}");
    assert!(began.elapsed() <= Duration::from_secs(1));
    assert_eq!(world.cluster.count(Call::Stream), 2, "it was not started");
    // Another connection has its own places.
    let mine = std::mem::replace(&mut world.contents.connection, ConnectionId::from_bytes([3; 16]));
    world.open(&shell()).started().await;
    world.contents.connection = mine;
    // One whose Exit was read makes room, and one that was given up.
    first.send(Frame::Eof(v1::Eof { stream: Stream::Stdin.into(), offset: 0, id: 1 })).await;
    assert_eq!(first.all_after_start().await.exit, Some(End::Code(0)));
    let mut third = world.open(&shell());
    third.started().await;
    drop(second);
    world.open(&shell()).started().await;
}

#[tokio::test(start_paused = true)]
async fn in_session_mode_the_pods_of_all_replicas_count() {
    let mut world = World::session_mode().await;
    world.contents.security.most = NonZeroU32::new(1).map(Most::Sessions);
    world.runs_on("");
    let mut first = world.open(&exec("x"));
    first.started().await;
    // Another replica: its own places are all free.
    let leases = Leases::new(Arc::new(world.cluster.clone()), Ownership::new(NS));
    let here = std::mem::replace(&mut world.sessions, Sessions::new(world.lifecycle.clone(), leases));
    let other = v1::Open { session_id: "cd".repeat(16), ..exec("x") };
    let refusal = world.open(&other).all().await.refusal.expect("a refusal");
    assert_eq!((refusal.reason(), world.cluster.count(Call::CreatePod)), (Reason::Limit, 1));
    // The same session, started again where the answer was lost, is no second one.
    let mut again = world.open(&exec("x"));
    again.started().await;
    // A pod that is on its way out is no session.
    let pod = world.cluster.pods().remove(0);
    world.cluster.set_termination(None);
    let pod = PodRef { namespace: NS.into(), name: pod.metadata.name.expect("a name"), uid: None };
    world.cluster.delete_pod(&pod, Some(Duration::from_mins(5))).await.expect("deleted");
    drop(again);
    world.open(&other).started().await;
    drop((here, first));
}

fn unreachable() -> ClusterError {
    ClusterError::Unreachable { message: "connection refused".into() }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_can_not_be_reached_is_waited_for_and_told() {
    let world = World::connection().await;
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            StreamEnd::ExitCode(ZERO)
        }
        .boxed()
    });
    world.cluster.faults(Call::Stream, 6, Fault::Fail(unreachable()));
    let (mut session, began) = (world.open(&shell()), Instant::now());
    let mut told = Vec::new();
    loop {
        match session.next().await.expect("a frame").expect("no refusal") {
            Back::Progress(progress) => told.push((progress.message, began.elapsed())),
            Back::Started(_) => break,
            other => panic!("{other:?} before Started"),
        }
    }
    assert_eq!(world.cluster.count(Call::Stream), 7);
    assert!(told[0].0.contains("waiting for the Kubernetes API: can't be reached: connection refused"), "{told:?}");
    assert!(told.len() <= 2 && told[0].1 < Duration::from_secs(1), "at once, and then every 5 s: {told:?}");
    assert_eq!(session.all_after_start().await.exit, Some(End::Code(0)));
    // Not beyond commandStart, and then with the reason.
    world.cluster.faults(Call::Stream, usize::MAX, Fault::Fail(unreachable()));
    let began = Instant::now();
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::KubernetesUnavailable);
    assert!(refusal.message.contains("connection refused"), "{refusal:?}");
    assert!(
        began.elapsed() > Duration::from_secs(50) && began.elapsed() <= Duration::from_mins(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_arrived_is_never_repeated() {
    let world = World::connection().await;
    for error in [
        ClusterError::Unavailable { message: "connection reset".into(), retry_after: None },
        ClusterError::Timeout(Duration::from_secs(15)),
    ] {
        let before = world.cluster.count(Call::Stream);
        world.cluster.fault(Call::Stream, Fault::LoseAnswer(error));
        let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
        assert_eq!(refusal.reason(), Reason::KubernetesUnavailable);
        assert_eq!(world.cluster.count(Call::Stream), before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn in_session_mode_the_reads_before_the_pod_are_repeated() {
    let world = World::session_mode().await;
    world.runs_on("");
    world.cluster.faults(Call::GetLease, 4, Fault::Fail(unreachable()));
    world.cluster.faults(Call::CreatePod, 2, Fault::Fail(unreachable()));
    world.cluster.faults(Call::Stream, 2, Fault::Fail(unreachable()));
    let mut session = world.open(&exec("x"));
    session.started().await;
    assert_eq!((world.cluster.count(Call::CreatePod), world.cluster.count(Call::Stream)), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_warned_and_cut_when_its_time_is_over() {
    let mut world = World::connection().await;
    world.contents.security.max_session_time = Duration::from_secs(400);
    world.runs_on("busy");
    let mut session = world.open(&shell());
    session.started().await;
    let began = Instant::now();
    let mut seen = Vec::new();
    let refusal = loop {
        let frame = session.frame().await;
        match frame {
            Back::Notice(notice) => seen.push((began.elapsed().as_secs(), notice.message)),
            Back::Exit(exit) => break lost(exit.end),
            Back::Data(_) | Back::Eof(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(seen, [(340, "this session ends in 1m: its time is over then".to_owned())]);
    assert_eq!((began.elapsed().as_secs(), refusal.reason()), (400, Reason::Policy));
    assert!(!refusal.connection_id.is_empty());
    let report = session.report().await;
    assert_eq!((report.kind, report.refusal.map(|refusal| refusal.reason())), ("lost", Some(Reason::Policy)));
}

#[tokio::test(start_paused = true)]
async fn bytes_of_either_direction_keep_a_session() {
    let mut world = World::connection().await;
    world.contents.security.idle_timeout = Duration::from_secs(100);
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            let _ = program.stream.input.recv().await;
            tokio::time::sleep(Duration::from_secs(90)).await;
            program.say("late").await;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = world.open(&shell());
    session.started().await;
    let began = Instant::now();
    tokio::time::sleep(Duration::from_mins(1)).await;
    session.send(Frame::Data(v1::Data { stream: Stream::Stdin.into(), offset: 0, data: "x".into() })).await;
    let refusal = lost(session.all_after_start().await.exit);
    assert_eq!((began.elapsed().as_secs(), refusal.reason()), (60 + 90 + 100, Reason::Policy));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_does_not_hold_a_cut_up() {
    let mut world = World::connection().await;
    world.contents.security.max_session_time = Duration::from_secs(10);
    world.runs_on("unread");
    let mut session = world.open(&v1::Open { stdout_credit: 0, ..shell() });
    session.started().await;
    let began = Instant::now();
    let all = session.all_after_start().await;
    assert_eq!((all.exit, began.elapsed().as_secs()), (None, 15));
    assert_eq!(session.report().await.kind, "lost");
}
