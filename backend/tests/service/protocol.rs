//! What a stream carries, in time; and what breaks its rules.

use crate::world::*;

#[tokio::test]
async fn garbage_ends_its_own_stream_and_nothing_else() {
    let world = World::new();
    let replica = world.replica().await;
    let mut client = world.client(&replica, "frontend.podbay").await;
    let handle = client.open(connection(1, "bob")).await.expect("opened").handle;
    let mut bystander = client.session(shell(&handle)).await.expect("a stream");
    assert!(matches!(bystander.next().await, Ok(Some(Back::Started(_)))));

    let violation = (Code::InvalidArgument, Reason::ProtocolViolation);
    // No Open.
    let mut session = client.stream().await.expect("a stream");
    session.send(data(0, b"x".to_vec())).await;
    assert_eq!(session.refusal().await, violation);
    // An end without Open.
    let Session { to, from } = client.stream().await.expect("a stream");
    drop(to);
    let mut session = Session { to: mpsc::channel(1).0, from };
    assert_eq!(session.refusal().await, violation);
    // What breaks the rules after it began.
    let frames: [&dyn Fn(u64) -> Frame; 3] =
        [&|_| data(1, b"x".to_vec()), &|_| Frame::Open(v1::Open::default()), &|_| data(0, vec![0; 70_000])];
    for frame in frames {
        let mut session = client.session(shell(&handle)).await.expect("a stream");
        assert!(matches!(session.next().await, Ok(Some(Back::Started(_)))));
        session.send(frame(0)).await;
        assert_eq!(session.refusal().await, violation);
    }
    // Beyond the credit, with a program that reads nothing.
    world.cluster.on_stream(|program| {
        async move {
            let nonce = program.request.command.clone().unwrap_or_default().get(4).cloned().unwrap_or_default();
            let _ = program.output.send(Output::Stdout(format!("{nonce}.").into())).await;
            let _unread = program;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = client.session(shell(&handle)).await.expect("a stream");
    let Ok(Some(Back::Started(started))) = session.next().await else { panic!("not started") };
    // The in-memory stream takes 16 pieces; then nothing is taken, and no credit granted, any more.
    for offset in 0..16 {
        session.send(data(offset, b"x".to_vec())).await;
    }
    let mut offset = 16;
    while offset < started.stdin_credit {
        let len = (started.stdin_credit - offset).min(65536);
        session.send(data(offset, vec![0; len as usize])).await;
        offset += len;
    }
    session.send(data(offset, b"x".to_vec())).await;
    assert_eq!(session.refusal().await, violation);
    let mut open = shell(&handle);
    open.session_id = "not an id".into();
    let mut session = client.session(open).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::InvalidArgument, Reason::InvalidRequest));
    let mut open = shell(&handle);
    open.attempt = 2;
    let mut session = client.session(open).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::Unimplemented, Reason::Unimplemented));
    // A message that is too large is refused before it is read.
    let mut session = client.session(shell(&handle)).await.expect("a stream");
    assert!(matches!(session.next().await, Ok(Some(Back::Started(_)))));
    session.send(data(0, vec![0; 512 * 1024])).await;
    while let Ok(Some(_)) = session.next().await {}
    // Bytes that are no TLS.
    let mut garbage = TcpStream::connect(replica.address).await.expect("connects");
    garbage.write_all(b"SSH-2.0-OpenSSH_10.0\r\n").await.expect("writes");
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, garbage.read_to_end(&mut rest)).await.expect("it is cut");

    // Nobody else noticed.
    bystander.send(data(0, b"still here".to_vec())).await;
    let mut seen = Vec::new();
    while seen != b"still here" {
        match bystander.next().await.expect("no refusal").expect("no end") {
            Back::Data(data) if data.stream() == v1::Stream::Stdout => seen.extend_from_slice(&data.data),
            _ => {}
        }
    }
    let metrics = metrics(&replica).await;
    assert!(metrics.contains("podbay_refused_peers_total{kind=\"tls\"} 1"), "{metrics}");
    assert!(metrics.contains("podbay_calls_total{method=\"RunSession\",code=\"INVALID_ARGUMENT\"}"), "{metrics}");
}

#[tokio::test]
async fn answers_come_in_under_a_second_while_neither_side_reads() {
    let world = World::new();
    let replica = world.replica().await;
    world.cluster.on_stream(|program| {
        async move {
            let nonce = program.request.command.clone().unwrap_or_default().get(4).cloned().unwrap_or_default();
            let _ = program.output.send(Output::Stdout(format!("{nonce}.").into())).await;
            // Writes for ever, reads nothing.
            while program.output.send(Output::Stdout(vec![b'x'; 32 * 1024].into())).await.is_ok() {}
            StreamEnd::Lost("unread".into())
        }
        .boxed()
    });
    let mut client = world.client(&replica, "frontend.podbay").await;
    let handle = client.open(connection(1, "bob")).await.expect("opened").handle;
    let size = Some(v1::WindowSize { columns: 80, rows: 24, ..v1::WindowSize::default() });
    let open = v1::Open { pty: Some(v1::Pty { term: "xterm".into(), size, modes: Vec::new() }), ..shell(&handle) };
    let mut session = client.session(open).await.expect("a stream");
    let Ok(Some(Back::Started(started))) = session.next().await else { panic!("not started") };
    let mut offset = 0;
    while offset < started.stdin_credit {
        session.send(data(offset, vec![b'i'; 32 * 1024])).await;
        offset += 32 * 1024;
    }
    // The client reads no output beyond its first credit, and is not read by the program: its requests are answered.
    let began = Instant::now();
    session.send(Frame::Signal(v1::Signal { id: 1, name: "INT".into(), deadline: None })).await;
    session.send(Frame::Resize(v1::Resize { id: 2, size, deadline: None })).await;
    let mut answers = Vec::new();
    let mut output = 0;
    while answers.len() < 2 {
        match session.next().await.expect("no refusal").expect("no end") {
            Back::Answer(answer) => answers.push((answer.id, answer.refusal.map(|refusal| refusal.reason()))),
            Back::Data(data) => output += data.data.len() as u64,
            _ => {}
        }
    }
    assert_eq!(answers, [(1, Some(Reason::SignalNotDelivered)), (2, None)]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(output <= MAX_CREDIT);
}

#[tokio::test]
async fn command_start_fires_through_the_whole_stack() {
    let world = World::new();
    let replica = world.replica().await;
    world.cluster.on_stream(|_| std::future::pending().boxed());
    let mut client = world.client(&replica, "frontend.podbay").await;
    let handle = client.open(connection(1, "bob")).await.expect("opened").handle;
    let began = Instant::now();
    let mut session = client.session(shell(&handle)).await.expect("headers come at once");
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(session.refusal().await, (Code::DeadlineExceeded, Reason::CommandStartTimeout));
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn a_handle_that_is_none_is_refused_and_health_tells_apart() {
    let world = World::new();
    let replica = world.replica().await;
    let mut client = world.client(&replica, "frontend.podbay").await;
    let status = client.sessions.detach(v1::DetachRequest::default()).await.expect_err("no handle");
    assert_eq!(reason(&status), (Code::PermissionDenied, Reason::HandleInvalid));
    for name in ["", "podbay.v1.ConnectionService", "podbay.v1.SessionService", "kubernetes"] {
        let mut client = world.client(&replica, "frontend.podbay").await;
        eventually(name, async || client.serving(name).await == Ok(ServingStatus::Serving)).await;
    }
    let error = podbay_backend_core::cluster::ClusterError::Unavailable { message: "x".into(), retry_after: None };
    world.cluster.down(error);
    eventually("the outage", async || client.serving("kubernetes").await == Ok(ServingStatus::NotServing)).await;
    assert_eq!(client.serving("").await, Ok(ServingStatus::Serving));
}
