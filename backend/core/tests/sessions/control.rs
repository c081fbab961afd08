//! Signals, sizes, deadlines, and streams that break.

use crate::world::*;

#[tokio::test(start_paused = true)]
async fn signals_and_resizes_are_answered_while_neither_side_reads() {
    let world = World::connection().await;
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            // Writes for ever, reads nothing.
            loop {
                program.say(&"x".repeat(32 * 1024)).await;
            }
        }
        .boxed()
    });
    let mut session = world.open(&on_terminal(v1::Open { stdout_credit: 0, ..shell() }));
    let started = session.started().await;
    // All the stdin that there is credit for; the program takes none of it.
    let mut offset = 0;
    while offset < started.stdin_credit {
        let data = v1::Data { stream: Stream::Stdin.into(), offset, data: vec![b'i'; 32 * 1024].into() };
        offset += 32 * 1024;
        session.send(Frame::Data(data)).await;
    }
    let began = Instant::now();
    session.send(Frame::Signal(v1::Signal { id: 1, name: "INT".into(), deadline: None })).await;
    let size = Some(v1::WindowSize { columns: 132, rows: 50, ..v1::WindowSize::default() });
    session.send(Frame::Resize(v1::Resize { id: 2, size, deadline: None })).await;
    let mut answers = Vec::new();
    while answers.len() < 2 {
        if let Back::Answer(answer) = session.frame().await {
            answers.push((answer.id, answer.refusal.map(|refusal| refusal.reason())));
        }
    }
    assert_eq!(answers, [(1, Some(Reason::SignalNotDelivered)), (2, None)]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_newest_size_reaches_the_program() {
    let world = World::connection().await;
    let (sizes, mut seen) = mpsc::channel(8);
    world.runs(move |mut program| {
        let sizes = sizes.clone();
        async move {
            let argv = program.argv();
            assert_eq!(argv[6..8], ["80", "24"]);
            assert!(argv.contains(&"TERM=xterm".to_owned()));
            assert!(program.stream.size.borrow().is_none(), "no resize before the mark");
            program.wrapper().await;
            while program.stream.size.changed().await.is_ok() {
                let size = *program.stream.size.borrow_and_update();
                sizes.send(size).await.expect("told");
            }
            StreamEnd::Success
        }
        .boxed()
    });
    let mut session = world.open(&on_terminal(shell()));
    session.started().await;
    assert_eq!(seen.recv().await, Some(Some((80, 24))));
    let size = Some(v1::WindowSize { columns: 100, rows: 30, ..v1::WindowSize::default() });
    session.send(Frame::Resize(v1::Resize { id: 1, size, deadline: None })).await;
    assert_eq!(timeout(PATIENCE, seen.recv()).await.expect("in time"), Some(Some((100, 30))));
}

#[tokio::test(start_paused = true)]
async fn command_start_fires_and_drops_the_stream() {
    let world = World::connection().await;
    let (dropped, mut drops) = mpsc::channel(1);
    world.runs(move |program| {
        let dropped = dropped.clone();
        async move {
            // Connected, but the wrapper never says that it runs.
            program.stream.output.closed().await;
            dropped.send(()).await.expect("told");
            StreamEnd::Success
        }
        .boxed()
    });
    let began = Instant::now();
    let mut session = world.open(&shell());
    session.send(Frame::Signal(v1::Signal { id: 1, name: "INT".into(), deadline: None })).await;
    assert!(matches!(session.frame().await, Back::Answer(_)), "answered while it starts");
    assert!(began.elapsed() < Duration::from_secs(1));
    let all = session.all().await;
    assert_eq!(all.refusal.expect("a refusal").reason(), Reason::CommandStartTimeout);
    assert_eq!(began.elapsed().as_secs(), 60);
    timeout(PATIENCE, async {
        tokio::select! { _ = drops.recv() => {}, () = tokio::time::sleep(PATIENCE / 2) => {} }
    })
    .await
    .expect("the stream is dropped");

    // The same where the API never answers the exec.
    world.cluster.fault(Call::Stream, Fault::Hang);
    let began = Instant::now();
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!((refusal.reason(), began.elapsed().as_secs()), (Reason::CommandStartTimeout, 60));
    assert_eq!(refusal.connection_id, "01".repeat(16));
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_told_and_a_gone_pod_too() {
    let world = World::connection().await;
    world.runs_on("some");
    let mut session = world.open(&shell());
    session.started().await;
    assert!(matches!(session.frame().await, Back::Data(_)));
    world.cluster.break_streams();
    assert_eq!(lost(session.all().await.exit).reason(), Reason::StreamLost);
    assert_eq!(session.report().await.kind, "lost");

    let mut session = world.open(&shell());
    session.started().await;
    assert!(matches!(session.frame().await, Back::Data(_)));
    world.cluster.remove_pod(NS, "pod");
    let refusal = lost(session.all().await.exit);
    assert_eq!((refusal.reason(), refusal.connection_id), (Reason::PodGone, "01".repeat(16)));
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::PodGone);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_the_stream() {
    let world = World::connection().await;
    let (ended, mut end) = mpsc::channel::<()>(1);
    world.runs(move |mut program| {
        let ended = ended.clone();
        async move {
            program.wrapper().await;
            let _ended = ended;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = world.open(&shell());
    session.started().await;
    let Session { client, from, task } = session;
    drop(from);
    let report = timeout(PATIENCE, task).await.expect("in time").expect("no panic");
    assert_eq!(report.kind, "gone");
    drop(client);
    world.runs(|_| std::future::ready(StreamEnd::Success).boxed());
    assert_eq!(timeout(PATIENCE, end.recv()).await.expect("the program's stream is dropped"), None);
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_protocol_ends_the_session() {
    let world = World::connection().await;
    world.runs_on("");
    let mut session = world.open(&shell());
    session.started().await;
    let data = v1::Data { stream: Stream::Stdin.into(), offset: 9, data: "x".into() };
    session.send(Frame::Data(data)).await;
    assert_eq!(session.all().await.refusal.expect("a refusal").reason(), Reason::ProtocolViolation);
    // One that closes its side ends stdin; output beyond its credit can't be had then.
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            assert_eq!(program.stdin().await, b"");
            program.say(&"x".repeat(1000)).await;
            StreamEnd::Success
        }
        .boxed()
    });
    for (credit, wanted) in [(1000, None), (999, Some(Reason::ProtocolViolation))] {
        let mut session = world.open(&v1::Open { stdout_credit: credit, ..shell() });
        let (unused, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut session.client, unused));
        let all = session.all().await;
        assert_eq!((all.refusal.map(|refusal| refusal.reason()), all.stdout.len() as u64), (wanted, credit));
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_ends_says_so() {
    let world = World::connection().await;
    world.runs_on("");
    let mut session = world.open(&shell());
    session.started().await;
    world.cut.cancel();
    assert_eq!(session.all().await.refusal.expect("a refusal").reason(), Reason::Draining);
}
