//! The backend's replicas come and go; the owner's claim; the end of the process.

mod support;

use std::time::{Duration, Instant};
use support::{PATIENCE, Replica, World, until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

#[tokio::test(flavor = "multi_thread")]
async fn after_a_replica_s_death_the_next_session_goes_to_another() {
    let mut world = World::with(2, |_| {}).await;
    let client = world.client().await;
    let mut channel = client.channel_open_session().await.expect("opens");
    channel.exec(true, "sleep 1000").await.expect("sends");
    until("a program runs", || world.script.lock().running == 1).await;
    let dead = world.script.lock().sessions[0].0;
    world.replicas.iter_mut().find(|replica| replica.address == dead).expect("a replica").kill();
    let (mut status, mut told) = (None, String::new());
    while let Some(message) = timeout(PATIENCE, channel.wait()).await.expect("in time") {
        match message {
            russh::ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            russh::ChannelMsg::ExtendedData { data, .. } => told += &String::from_utf8_lossy(&data),
            _ => {}
        }
    }
    assert_eq!(status, Some(255), "a broken stream is no success");
    assert!(told.contains("the connection to the backend broke"), "{told}");
    let mut channel = client.channel_open_session().await.expect("opens");
    channel.exec(true, "echo elsewhere").await.expect("sends");
    let mut out = Vec::new();
    while let Some(message) = timeout(PATIENCE, channel.wait()).await.expect("in time") {
        if let russh::ChannelMsg::Data { data } = message {
            out.extend_from_slice(&data);
        }
    }
    assert_eq!(out, b"elsewhere\n");
    assert_ne!(world.script.lock().sessions.last().expect("a session").0, dead);
    // New connections too, and closing.
    world.ssh(&["host", "echo new"]).run().await.is(0, "new\n", "");
    client.disconnect(russh::Disconnect::ByApplication, "", "").await.expect("disconnects");
    until("both are closed", || world.script.lock().closed.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_replica_s_session_starts_on_another() {
    let world = World::with(2, |_| {}).await;
    // Every replica drains: each is asked once, then the user is told.
    let answered = world.ssh(&["host", "@draining"]).run().await;
    assert_eq!(answered.status, Some(255));
    assert!(answered.stderr.contains("this replica drains"), "{answered:?}");
    let script = world.script.lock();
    let asked: Vec<_> = script.sessions.iter().map(|(address, open)| (*address, open.attempt)).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_ne!(asked[0].0, asked[1].0);
    // Surely nothing ran: it is the same attempt.
    assert_eq!((asked[0].1, asked[1].1), (1, 1));
    assert_eq!(script.sessions[0].1.session_id, script.sessions[1].1.session_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_backend_the_user_is_told() {
    let mut world = World::with(1, |config| config.frontend.accept_timeout = Duration::from_millis(800)).await;
    world.replicas[0].kill();
    let answered = world.ssh(&["host", "true"]).run().await;
    assert_eq!(answered.status, Some(255));
    assert!(answered.stderr.starts_with("podbay: no backend can be reached at the moment"), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_while_a_backend_is_there_and_running_sessions_stay() {
    let mut world = World::with(2, |_| {}).await;
    until("it is ready", || world.readiness.get()).await;
    let mut child = world.ssh(&["host", "read line; echo $line"]).with_stdin().spawn();
    until("a program runs", || world.script.lock().running == 1).await;
    let used = world.script.lock().sessions[0].0;
    world.replicas.iter_mut().find(|replica| replica.address != used).expect("a replica").kill();
    child.stdin.take().expect("stdin").write_all(b"there\n").await.expect("writes");
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("in time").expect("ends");
    assert_eq!(output.stdout, b"there\n");
    assert!(world.readiness.get(), "one of two is enough");
    world.replicas.iter_mut().for_each(Replica::kill);
    until("it is not ready", || !world.readiness.get()).await;
    // It still takes who comes all the same, and tells them why nothing works.
    std::net::TcpStream::connect(world.address).expect("connects");
    world.replicas[0] = Replica::start_at(used, &world.script, None);
    until("it is ready again", || world.readiness.get()).await;
    world.ssh(&["host", "echo again"]).run().await.is(0, "again\n", "");
    world.end().await;
    assert!(!world.readiness.get(), "it has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_backend_it_is_not_ready_and_ends_at_once() {
    let mut world =
        World::with(0, |config| config.frontend.backend.addresses.names = vec!["127.0.0.1:1".to_owned()]).await;
    until("it serves", || std::net::TcpStream::connect(world.address).is_ok()).await;
    assert!(!world.readiness.get());
    let ending = Instant::now();
    world.end().await;
    // Nothing was ever claimed: there is no lease to give up, so no backend to wait for.
    assert!(ending.elapsed() < Duration::from_secs(3), "{:?}", ending.elapsed());
    assert_eq!(world.metric("backend_calls_total", "method=\"Heartbeat\""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_name_every_connection_and_the_end_is_told() {
    let mut world = World::new().await;
    let mut child = world.ssh(&["host", "cat"]).with_stdin().spawn();
    until("a program runs", || world.script.lock().running == 1).await;
    let id = world.script.lock().opened[0].connection_id.clone();
    until("a heartbeat names it", || {
        world.script.lock().heartbeats.iter().any(|beat| beat.complete && beat.connection_ids == [id.clone()])
    })
    .await;
    {
        let script = world.script.lock();
        let owner = &script.opened[0].owner_id;
        assert!(script.heartbeats.iter().all(|beat| beat.owner_id == *owner && !beat.leaving));
        assert!(script.heartbeats.iter().any(|beat| beat.handles == [format!("handle of {id}")]));
    }
    let mut stderr = child.stderr.take().expect("stderr");
    let ending = Instant::now();
    world.end().await;
    assert!(ending.elapsed() >= Duration::from_secs(2), "sessions were not waited for");
    let mut told = String::new();
    stderr.read_to_string(&mut told).await.expect("reads");
    assert!(
        told.starts_with("podbay: the server is shutting down; this session ends in 2 s at the latest\n"),
        "{told}"
    );
    let script = world.script.lock();
    assert_eq!(script.closed, [id]);
    assert!(script.heartbeats.last().expect("heartbeats").leaving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_in_time_is_not_cut() {
    let mut world = World::with(1, |config| config.frontend.drain_timeout = Duration::from_mins(1)).await;
    let mut child = world.ssh(&["host", "read line; echo $line"]).with_stdin().spawn();
    until("a program runs", || world.script.lock().running == 1).await;
    world.shutdown.soft.cancel();
    until("no new connection is taken", || std::net::TcpStream::connect(world.address).is_err()).await;
    child.stdin.take().expect("stdin").write_all(b"bye\n").await.expect("writes");
    let output = child.wait_with_output().await.expect("ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"bye\n"[..]));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_ends_the_connections_and_new_ones_have_a_new_owner() {
    let world = World::new().await;
    let child = world.ssh(&["host", "sleep 1000"]).spawn();
    until("a program runs", || world.script.lock().running == 1).await;
    world.script.lock().owner_expired = true;
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("in time").expect("ends");
    assert_eq!(output.status.code(), Some(255));
    world.ssh(&["host", "echo again"]).run().await.is(0, "again\n", "");
    let script = world.script.lock();
    assert_ne!(script.opened[0].owner_id, script.opened[1].owner_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_ends_running_sessions_and_idle_connections_with_his_words() {
    let world = World::new().await;
    // One with a program, and one without any.
    let busy = world.ssh(&["host", "sleep 1000"]).spawn();
    until("a program runs", || world.script.lock().running == 1).await;
    let idle = world.ssh_with(&["LogLevel=INFO"], &["-N", "host"]).spawn();
    until("both are open", || world.script.lock().opened.len() == 2).await;
    let ids: Vec<_> = world.script.lock().opened.iter().map(|one| one.connection_id.clone()).collect();
    world.script.lock().terminated = ids.iter().map(|id| (id.clone(), "maintenance".to_owned())).collect();
    let words = "an operator ended this connection: maintenance";
    let output = timeout(PATIENCE, busy.wait_with_output()).await.expect("in time").expect("ends");
    assert_eq!(output.status.code(), Some(255));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.starts_with(&format!("podbay: {words}\n")), "{told}");
    let output = timeout(PATIENCE, idle.wait_with_output()).await.expect("in time").expect("ends");
    let told = String::from_utf8_lossy(&output.stderr);
    // 11 is SSH_DISCONNECT_BY_APPLICATION.
    assert!(told.contains(&format!("11: {words}")), "{told}");
    until("both are closed", || world.script.lock().closed.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_session_that_hears_it_ends_the_connection() {
    let world = World::new().await;
    world.script.lock().heartbeat = Some(Duration::from_mins(1));
    let client = world.client().await;
    let mut beside = client.channel_open_session().await.expect("opens");
    beside.exec(true, "sleep 1000").await.expect("sends");
    until("a program runs", || world.script.lock().running == 1).await;
    let mut channel = client.channel_open_session().await.expect("opens");
    channel.exec(true, "@terminated").await.expect("sends");
    for channel in [&mut channel, &mut beside] {
        let (mut status, mut told) = (None, String::new());
        while let Some(message) = timeout(PATIENCE, channel.wait()).await.expect("in time") {
            match message {
                russh::ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                russh::ChannelMsg::ExtendedData { data, .. } => told += &String::from_utf8_lossy(&data),
                _ => {}
            }
        }
        assert_eq!(status, Some(255));
        assert_eq!(told, "podbay: an operator ended this connection: now\n");
    }
    until("the client is disconnected", || client.is_closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_may_have_had_its_effect_is_not_repeated_elsewhere() {
    let world = World::with(2, |_| {}).await;
    let answered = world.ssh(&["host", "@unavailable"]).run().await;
    assert_eq!(answered.status, Some(255));
    assert!(answered.stderr.starts_with("podbay: the API went away"), "{answered:?}");
    assert_eq!(world.script.lock().sessions.len(), 1);
}
