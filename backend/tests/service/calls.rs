//! Who calls, and for whom: the life of a connection on any replica.

use crate::world::*;

#[tokio::test]
async fn open_run_and_close_on_any_replica() {
    let world = World::new();
    let (first, second) = (world.replica().await, world.replica().await);
    let mut client = world.client(&first, "frontend.podbay").await;
    let opened = client.open(connection(1, "bob")).await.expect("opened");
    assert_eq!(opened.pod_namespace, "ns");
    client.echo(&opened.handle, "one").await;
    // The replica that opened it is gone; the other serves the connection.
    first.task.abort();
    let mut client = world.client(&second, "frontend.podbay").await;
    client.echo(&opened.handle, "two").await;
    let beat = v1::HeartbeatRequest { owner_id: id(99), ..v1::HeartbeatRequest::default() };
    assert!(client.connections.heartbeat(beat).await.expect("a heartbeat").into_inner().interval.is_some());
    let close = v1::CloseConnectionRequest { connection_id: id(1), keep_detached: false };
    let closed = client.connections.close_connection(close.clone()).await.expect("closed").into_inner();
    assert_eq!((closed.pods_deleted, world.cluster.pods().len()), (1, 0));
    assert_eq!(client.connections.close_connection(close).await.expect("again").into_inner().pods_deleted, 0);
    let mut session = client.session(shell(&opened.handle)).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::FailedPrecondition, Reason::PodGone));
}

#[tokio::test]
async fn who_calls_and_for_whom() {
    let world = World::new();
    let replica = world.replica().await;
    // Without certificate the handshake fails, at the latest with the first call.
    let refused = match world.channel(&replica, None).await {
        Err(_) => true,
        Ok(channel) => ConnectionServiceClient::new(channel).open_connection(connection(1, "x")).await.is_err(),
    };
    assert!(refused);
    let mut stranger = world.client(&replica, "stranger.podbay").await;
    let status = stranger.open(connection(1, ALICE)).await.expect_err("unknown");
    assert_eq!(reason(&status), (Code::Unauthenticated, Reason::CallerUnknown));
    let status = stranger.stream().await.err().expect("unknown");
    assert_eq!(reason(&status), (Code::Unauthenticated, Reason::CallerUnknown));

    let mut ci = world.client(&replica, "ci.podbay").await;
    let status = ci.open(connection(1, "bob")).await.expect_err("not for bob");
    assert_eq!(reason(&status), (Code::PermissionDenied, Reason::CallerNotAllowed));
    let opened = ci.open(connection(1, ALICE)).await.expect("for alice");
    assert_eq!(world.cluster.pods().len(), 1);

    // Its handle is nobody else's, and neither is its connection.
    let mut frontend = world.client(&replica, "frontend.podbay").await;
    let mut session = frontend.session(shell(&opened.handle)).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::PermissionDenied, Reason::HandleInvalid));
    let mut changed = opened.handle.to_vec();
    *changed.last_mut().expect("not empty") ^= 1;
    let mut session = ci.session(shell(&changed)).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::PermissionDenied, Reason::HandleInvalid));
    let close = v1::CloseConnectionRequest { connection_id: id(1), keep_detached: false };
    assert_eq!(frontend.connections.close_connection(close).await.expect("ok").into_inner().pods_deleted, 0);
    let list = v1::ListConnectionsRequest::default();
    assert_eq!(
        frontend.connections.list_connections(list.clone()).await.expect("ok").into_inner().connections.len(),
        0
    );
    assert_eq!(ci.connections.list_connections(list.clone()).await.expect("ok").into_inner().connections.len(), 1);
    let terminate = v1::TerminateConnectionRequest { connection_id: id(1), message: "bye".into() };
    let status = ci.connections.terminate_connection(terminate.clone()).await.expect_err("no operator");
    assert_eq!(reason(&status), (Code::PermissionDenied, Reason::CallerNotAllowed));

    let mut admin = world.client(&replica, "admin.podbay").await;
    assert_eq!(admin.connections.list_connections(list).await.expect("ok").into_inner().connections.len(), 1);
    let status = admin.open(connection(2, "admin")).await.expect_err("for nobody");
    assert_eq!(status.code(), Code::PermissionDenied);
    let ended = admin.connections.terminate_connection(terminate).await.expect("an operator").into_inner();
    assert_eq!((ended.pods_deleted, world.cluster.pods().len()), (1, 0));
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_no_pod() {
    let world = World::new();
    let replica = world.replica().await;
    world.cluster.on_create(|_| Vec::new());
    let mut client = world.client(&replica, "frontend.podbay").await;
    let mut stream = client.connections.open_connection(connection(1, "bob")).await.expect("headers").into_inner();
    assert!(stream.message().await.expect("accepted").is_some());
    eventually("the pod", async || !world.cluster.pods().is_empty()).await;
    drop(stream);
    eventually("its deletion", async || world.cluster.pods().is_empty()).await;
}
