//! Draining, reflection, hostile peers and new certificates.

use crate::world::*;

#[tokio::test]
async fn a_draining_replica_refuses_new_work_waits_and_then_cuts() {
    let world = World::new();
    let replica = world.replica().await;
    let mut client = world.client(&replica, "frontend.podbay").await;
    let handle = client.open(connection(1, "bob")).await.expect("opened").handle;
    let mut quick = client.session(shell(&handle)).await.expect("a stream");
    let mut stuck = client.session(shell(&handle)).await.expect("a stream");
    for session in [&mut quick, &mut stuck] {
        assert!(matches!(session.next().await, Ok(Some(Back::Started(_)))));
    }
    replica.shutdown.soft.cancel();
    eventually("NOT_SERVING", async || client.serving("").await == Ok(ServingStatus::NotServing)).await;
    let status = client.open(connection(2, "bob")).await.expect_err("draining");
    assert_eq!(reason(&status), (Code::Unavailable, Reason::Draining));
    // One that ends in time ends well; the other is cut with a reason.
    quick.send(Frame::Eof(v1::Eof { stream: v1::Stream::Stdin.into(), offset: 0, id: 1 })).await;
    let mut exit = None;
    while let Some(frame) = quick.next().await.expect("no refusal") {
        if let Back::Exit(end) = frame {
            exit = end.end;
        }
    }
    assert_eq!(exit, Some(End::Code(7)));
    assert_eq!(stuck.refusal().await, (Code::Unavailable, Reason::Draining));
    timeout(PATIENCE, replica.task).await.expect("it ends").expect("no panic").expect("well");
    assert_eq!(world.cluster.pods().len(), 1, "the connection lives on, for other replicas");
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let world = World::new();
    let replica = world.replica().await;
    let channel = world.channel(&replica, Some("frontend.podbay")).await.expect("connects");
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("answers")
        .into_inner();
    let answer = answers.message().await.expect("an answer").expect("one");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("no list") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for wanted in ["podbay.v1.ConnectionService", "podbay.v1.SessionService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == wanted), "{names:?}");
    }
}

#[tokio::test]
async fn garbage_inside_tls_is_cut_and_counted() {
    let world = World::new();
    let replica = world.replica().await;
    let dir = world.dir.path();
    // The server's own certificate will do as a client's: its CA signed it.
    let identity = (dir.join("cert.pem"), dir.join("key.pem"));
    let tls = podbay_runtime::tls::client(&dir.join("ca.pem"), Some((&identity.0, &identity.1))).expect("TLS");
    let stream = TcpStream::connect(replica.address).await.expect("connects");
    let name = "localhost".try_into().expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.expect("handshake");
    stream.write_all(b"SSH-2.0-lost\r\n").await.expect("writes");
    // Cut: by an end or an error, but not by silence.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it is cut");
    let metrics = metrics(&replica).await;
    assert!(metrics.contains("podbay_refused_peers_total{kind=\"garbage\"} 1"), "{metrics}");
    world.client(&replica, "frontend.podbay").await.open(connection(1, "bob")).await.expect("others are served");
}

#[tokio::test]
async fn new_certificates_are_taken_up_without_a_restart_and_bad_ones_are_not() {
    let mut world = World::new();
    let replica = world.replica().await;
    let mut before = world.client(&replica, "frontend.podbay").await;
    before.open(connection(1, "bob")).await.expect("opened");
    let reloads = async |kind: &str, wanted: u32| {
        let line = format!("podbay_tls_reloads_total{{kind=\"{kind}\"}} {wanted}");
        eventually(&line, async || metrics(&replica).await.contains(&line)).await;
    };
    // A file of nonsense: the old ones stay.
    let good = std::fs::read(world.dir.path().join("cert.pem")).expect("reads");
    std::fs::write(world.dir.path().join("cert.pem"), "nonsense").expect("writes");
    reloads("bad", 1).await;
    world.client(&replica, "frontend.podbay").await.open(connection(2, "bob")).await.expect("as before");
    std::fs::write(world.dir.path().join("cert.pem"), good).expect("writes");
    reloads("good", 1).await;
    // All new, and a CA of its own: whoever has the old credentials is a stranger, but for connections that are there.
    let next = tempfile::tempdir().expect("a directory");
    let (ca, identities) = credentials(next.path());
    for name in ["key.pem", "cert.pem", "ca.pem"] {
        std::fs::rename(next.path().join(name), world.dir.path().join(name)).expect("renames");
    }
    eventually("the old credentials are refused", async || {
        world.channel(&replica, Some("frontend.podbay")).await.is_err()
    })
    .await;
    before.open(connection(3, "bob")).await.expect("an old connection goes on");
    (world.ca, world.identities) = (ca, identities);
    world.client(&replica, "frontend.podbay").await.open(connection(4, "bob")).await.expect("the new ones work");
}
