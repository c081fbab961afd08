//! Connections as the gRPC service sees them, on the fake. All in virtual time.

mod world;

use podbay::v1::{self, Reason};
use podbay_backend_core::{
    cluster::ClusterError,
    connections::{ListRequest, OpenEvent, OpenRequest},
    fake::{Call, Fault, script},
    handle::Target,
};
use std::time::Duration;
use tokio::{sync::mpsc, time::Instant};
use world::{World, id, unavailable};

#[tokio::test(start_paused = true)]
async fn a_connection_opens_is_listed_and_closes() {
    let world = World::new("connection");
    let opened = world.open(1, 9, "a").await.expect("opened");
    let contents = world.connections.keys().open(&opened.handle, "a").expect("a handle");
    assert!(matches!(&contents.target, Target::Pod { name, .. } if *name == opened.pod_name));
    assert!(world.connections.keys().open(&opened.handle, "b").is_err());
    assert_eq!(world.cluster.leases().len(), 1, "the owner's lease was made at its first use");

    let page = world.connections.list(&ListRequest::default()).await.expect("listed");
    let connection = &page.connections[0];
    assert_eq!((connection.connection_id.as_str(), connection.pods.len()), (id(1).as_str(), 1));
    assert_eq!(connection.user.as_ref().map(|user| user.name.as_str()), Some("alice"));
    assert_eq!((connection.remote_address.as_str(), connection.mode()), ("192.0.2.1", v1::ExecutionMode::Connection));

    let it = contents.connection;
    assert_eq!(world.connections.close(it, "b", false).await, Ok(0), "another caller closes nothing");
    assert_eq!(world.cluster.pods().len(), 1);
    assert_eq!(world.connections.close(it, "a", false).await, Ok(1));
    assert!(world.cluster.pods().is_empty());
    assert_eq!(world.connections.terminate(it, "").await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn accepted_comes_first_and_pod_start_counts_from_it() {
    let world = World::new("connection");
    world.cluster.on_create(|_| Vec::new());
    let (sender, mut events) = mpsc::channel(1);
    let request = World::request(1, 9, "a");
    let connections = world.connections.clone();
    let opening = tokio::spawn(async move { connections.open(request, sender).await });
    let Some(OpenEvent::Accepted(accepted)) = events.recv().await else { panic!("expected Accepted") };
    assert_eq!(accepted.timeouts.and_then(|t| t.pod_start).map(|d| d.seconds), Some(60));
    assert_eq!(accepted.policy.map(|policy| policy.subsystems), Some(vec!["sftp".to_owned()]));
    let start = Instant::now();
    while events.recv().await.is_some() {}
    let refusal = opening.await.expect("joined").expect_err("refused");
    assert_eq!((refusal.reason(), start.elapsed()), (Reason::PodStartTimeout, Duration::from_mins(1)));
    assert_eq!(refusal.connection_id, id(1));
    world.settled().await;
    assert!(world.cluster.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_undoes_the_opening() {
    let world = World::new("connection");
    world.cluster.on_create(|_| Vec::new());
    let (sender, mut events) = mpsc::channel(4);
    let request = World::request(1, 9, "a");
    let connections = world.connections.clone();
    let opening = tokio::spawn(async move { connections.open(request, sender).await });
    while world.cluster.pods().is_empty() {
        events.recv().await.expect("an event");
    }
    drop(events);
    assert_eq!(opening.await.expect("joined").map_err(|r| r.reason()), Err(Reason::Terminated));
    world.settled().await;
    assert!(world.cluster.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_lease_is_undone() {
    let world = World::new("connection");
    let no = ClusterError::Forbidden { message: "cannot create resource \"leases\"".into() };
    world.cluster.faults(Call::CreateLease, usize::MAX, Fault::Fail(no));
    let refusal = world.open(1, 9, "a").await.expect_err("refused");
    assert_eq!(refusal.reason(), Reason::BackendNotAllowed);
    world.settled().await;
    assert!(world.cluster.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_second_open_of_the_same_id_gets_the_same_pod_and_another_callers_none() {
    let world = World::new("connection");
    let first = world.open(1, 9, "a").await.expect("opened");
    let second = world.open(1, 9, "a").await.expect("adopted");
    assert_eq!((first.pod_name, world.cluster.pods().len()), (second.pod_name, 1));
    let refusal = world.open(1, 8, "b").await.expect_err("refused");
    assert_eq!(refusal.reason(), Reason::CallerNotAllowed);
    let refusal = world.open(2, 9, "b").await.expect_err("another caller's owner");
    assert_eq!(refusal.reason(), Reason::CallerNotAllowed);
    world.settled().await;
    assert_eq!(world.cluster.pods().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn session_mode_makes_no_pod_yet_and_a_closed_connection_none_ever() {
    let world = World::new("session");
    let opened = world.open(1, 9, "a").await.expect("opened");
    assert!(world.cluster.pods().is_empty() && opened.pod_name.is_empty());
    let contents = world.connections.keys().open(&opened.handle, "a").expect("a handle");
    let leases = world.connections.leases();
    assert_eq!(leases.admit(contents.owner, contents.connection, "a").await, Ok(()));
    let foreign = leases.admit(contents.owner, contents.connection, "b").await;
    assert_eq!(foreign.map_err(|r| r.reason()), Err(Reason::CallerNotAllowed));
    assert_eq!(world.connections.close(contents.connection, "a", false).await, Ok(0));
    let closed = leases.admit(contents.owner, contents.connection, "a").await;
    assert_eq!(closed.map_err(|r| r.reason()), Err(Reason::Terminated));
    assert_eq!(world.connections.close(contents.connection, "a", false).await, Ok(0), "again");
}

#[tokio::test(start_paused = true)]
async fn in_session_mode_nobody_closes_another_services_connection() {
    let world = World::new("session");
    let leases = world.connections.leases();
    let mut marks = 0;
    for (n, operator) in [(1, false), (2, true)] {
        let opened = world.open(n, 9, "a").await.expect("opened");
        let contents = world.connections.keys().open(&opened.handle, "a").expect("a handle");
        let admitted = async || leases.admit(contents.owner, contents.connection, "a").await.map_err(|r| r.reason());
        // Who knows its id can ask for it, as for one that is gone: which it is, no pod tells.
        assert_eq!(world.connections.close(contents.connection, "b", false).await, Ok(0));
        assert_eq!(admitted().await, Ok(()), "b's word is not a's");
        let done = if operator {
            world.connections.terminate(contents.connection, "").await
        } else {
            world.connections.close(contents.connection, "a", false).await
        };
        assert_eq!(done, Ok(0));
        assert_eq!(admitted().await, Err(Reason::Terminated), "though b was first");
        marks += 2;
        assert_eq!(world.cluster.leases().len(), 1 + marks, "the owner's, and both marks");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_answer_left_is_closed_by_a_complete_heartbeat_once_it_is_not_young() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    world.open(2, 9, "a").await.expect("opened, and the answer lost");
    world.open(3, 8, "a").await.expect("another owner's");
    let start = Instant::now();
    while world.cluster.pods().len() == 3 {
        assert!(start.elapsed() < Duration::from_secs(200), "never closed");
        world.beat(9, "a", &[1], true).await.expect("renewed");
        world.beat(8, "a", &[], false).await.expect("renewed, says nothing of its pods");
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    assert!(start.elapsed() >= Duration::from_mins(2), "podStart + podStop");
    let page = world.connections.list(&ListRequest::default()).await.expect("listed");
    let left: Vec<_> = page.connections.iter().map(|connection| connection.connection_id.as_str()).collect();
    assert_eq!(left, [id(1), id(3)]);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_leaves_takes_all_along() {
    let world = World::new("connection");
    for connection in [1, 2] {
        world.open(connection, 9, "a").await.expect("opened");
    }
    world.open(3, 8, "a").await.expect("another owner's");
    world.leave(9, "a").await.expect("left");
    assert_eq!((world.cluster.pods().len(), world.cluster.leases().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_is_tried_again_and_another_callers_refused() {
    let world = World::new("connection");
    world.cluster.fault(Call::GetLease, Fault::Fail(unavailable()));
    world.cluster.fault(Call::CreateLease, Fault::LoseAnswer(unavailable()));
    let answer = world.beat(9, "a", &[], true).await.expect("renewed");
    assert_eq!((answer.interval.map(|d| d.seconds), answer.lease_duration.map(|d| d.seconds)), (Some(30), Some(90)));
    let refusal = world.beat(9, "b", &[], true).await.expect_err("refused");
    assert_eq!(refusal.reason(), Reason::CallerNotAllowed);
    world.cluster.down(unavailable());
    let start = Instant::now();
    let refusal = world.beat(9, "a", &[], true).await.expect_err("refused");
    assert_eq!(refusal.reason(), Reason::KubernetesUnavailable);
    assert!(start.elapsed() <= Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn lists_are_paged_and_filtered() {
    let world = World::new("connection");
    for connection in 1..=5 {
        world.open(connection, 9, if connection == 5 { "b" } else { "a" }).await.ok();
    }
    world.settled().await; // the fifth was refused: its owner is another caller's
    let first = world.connections.list(&ListRequest { page_size: 3, ..ListRequest::default() }).await.expect("listed");
    assert_eq!(first.connections.len(), 3);
    let rest = ListRequest { page_size: 3, after: first.next, ..ListRequest::default() };
    let rest = world.connections.list(&rest).await.expect("listed");
    assert_eq!((rest.connections.len(), rest.next), (1, None));
    for (user, caller, count) in
        [(Some("alice"), None, 4), (Some("bob"), None, 0), (None, Some("b"), 0), (None, Some("a"), 4)]
    {
        let request =
            ListRequest { user: user.map(Into::into), caller: caller.map(Into::into), ..ListRequest::default() };
        assert_eq!(world.connections.list(&request).await.expect("listed").connections.len(), count, "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_channel_of_events_never_stalls_the_start() {
    let world = World::new("connection");
    world.cluster.on_create(|pod| {
        let mut steps: Vec<_> = (0..50)
            .map(|i| script::becomes(Duration::from_millis(100), script::unschedulable(&format!("reason {i}"))))
            .collect();
        steps.push(script::ready(Duration::from_millis(100), pod));
        steps
    });
    let (sender, mut events) = mpsc::channel(2);
    let start = Instant::now();
    let opening = world.connections.open(World::request(1, 9, "a"), sender);
    let reading = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let mut last = None;
        while let Some(event) = events.recv().await {
            last = Some(event);
        }
        last
    };
    let (result, last) = tokio::join!(opening, reading);
    assert_eq!(result, Ok(()));
    assert!(matches!(last, Some(OpenEvent::Opened(_))));
    assert!(start.elapsed() < Duration::from_secs(11));
}

#[test]
fn requests_are_parsed_at_the_door() {
    type Change = Box<dyn Fn(&mut v1::OpenConnectionRequest)>;
    let good = || v1::OpenConnectionRequest {
        connection_id: id(1),
        owner_id: id(2),
        user: Some(v1::User { name: "u".into(), authenticated_name: String::new() }),
        ..v1::OpenConnectionRequest::default()
    };
    assert!(OpenRequest::parse(good(), "a").is_ok());
    let wrong: Vec<(&str, Change)> = vec![
        ("connection_id", Box::new(|r| r.connection_id = "x".into())),
        ("owner_id", Box::new(|r| r.owner_id.clear())),
        ("user is missing", Box::new(|r| r.user = None)),
        ("user.name is empty", Box::new(|r| r.user = Some(v1::User::default()))),
        ("user.name is longer", Box::new(|r| r.user = Some(v1::User { name: "u".repeat(257), ..v1::User::default() }))),
        ("remote_address", Box::new(|r| r.remote_address = "host:1".into())),
        ("environment", Box::new(|r| drop(r.environment.insert("1A".into(), String::new())))),
        ("environment", Box::new(|r| drop(r.environment.insert("A".into(), "\0".into())))),
        ("environment", Box::new(|r| drop(r.environment.insert("A".into(), "x".repeat(65 * 1024))))),
        ("metadata", Box::new(|r| r.metadata.extend((0..65).map(|i| (i.to_string(), String::new()))))),
        ("restrictions.force_command", Box::new(|r| r.restrictions = Some(forces("")))),
        ("restrictions.force_command", Box::new(|r| r.restrictions = Some(forces(" \n")))),
        ("restrictions.force_command", Box::new(|r| r.restrictions = Some(forces("a\0")))),
        ("restrictions.force_command", Box::new(|r| r.restrictions = Some(forces(&"x".repeat(16 * 1024 + 1))))),
    ];
    for (field, change) in wrong {
        let mut request = good();
        change(&mut request);
        let refusal = OpenRequest::parse(request, "a").expect_err(field);
        assert_eq!(refusal.reason(), Reason::InvalidRequest);
        assert!(refusal.message.contains(field), "{}", refusal.message);
    }
}

fn forces(command: &str) -> v1::Restrictions {
    v1::Restrictions { force_command: Some(command.into()), no_terminal: false }
}

/// What an owner's heartbeat says of these connections.
async fn told(world: &World, owner: u8, known: &[u8]) -> Vec<(String, String)> {
    let answer = world.beat(owner, "a", known, true).await.expect("renewed");
    answer.terminated.into_iter().map(|one| (one.connection_id, one.message)).collect()
}

#[tokio::test(start_paused = true)]
async fn owners_learn_what_operators_ended_and_why() {
    for mode in ["connection", "session"] {
        let world = World::new(mode);
        for connection in [1, 2, 3] {
            world.open(connection, if connection == 3 { 8 } else { 9 }, "a").await.expect("opened");
        }
        let number = |n| podbay::ConnectionId::from_bytes(u128::from(n as u8).to_be_bytes());
        assert_eq!(told(&world, 9, &[1, 2]).await, []);
        assert_eq!(
            world.connections.terminate(number(1), "line\nbreak").await.map_err(|r| r.reason()),
            Err(Reason::InvalidRequest)
        );
        world.connections.terminate(number(1), "maintenance").await.expect("ended");
        world.connections.terminate(number(1), "twice").await.expect("ended");
        world.connections.terminate(number(3), "").await.expect("ended");
        assert_eq!(told(&world, 9, &[1, 2]).await, [(id(1), "maintenance".to_owned())]);
        assert_eq!(told(&world, 9, &[2]).await, [], "only what is asked for");
        assert_eq!(told(&world, 8, &[3]).await, [(id(3), String::new())]);
        assert_eq!(world.cluster.pods().len(), usize::from(mode == "connection"));
        // The caller closes it then, as usual.
        world.connections.close(number(1), "a", false).await.expect("closed");

        // A list that fails or hangs says nothing, and holds no renewal up.
        world.cluster.fault(Call::ListLeases, Fault::Fail(unavailable()));
        assert_eq!(told(&world, 9, &[1]).await, []);
        world.cluster.fault(Call::ListLeases, Fault::Hang);
        let began = Instant::now();
        assert_eq!(told(&world, 9, &[1]).await, []);
        assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(told(&world, 9, &[1]).await.len(), 1);
        let lists = world.cluster.count(Call::ListLeases);
        world.beat(9, "a", &[1, 2], true).await.expect("renewed");
        assert_eq!(world.cluster.count(Call::ListLeases), lists + 1);

        // The marks go with time.
        let mut reaper = world.reaper();
        let marks = || {
            world
                .cluster
                .leases()
                .iter()
                .filter(|l| l.metadata.name.as_ref().is_some_and(|n| n.starts_with("podbay-closed-")))
                .count()
        };
        // In mode session its caller has made one of its own.
        assert_eq!(marks(), if mode == "session" { 3 } else { 2 });
        let began = Instant::now();
        while marks() > 0 {
            assert!(began.elapsed() < 12 * world.duration(), "the marks stay");
            reaper.round().await;
            world.beat(9, "a", &[2], true).await.expect("renewed");
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        assert!(
            began.elapsed() >= 10 * world.duration(),
            "they stay as long as handles may be used: {:?}",
            began.elapsed()
        );
        assert_eq!(told(&world, 9, &[1, 2]).await, []);
    }
}

#[tokio::test(start_paused = true)]
async fn words_for_the_user_hold_no_deletion_up() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    world.cluster.faults(Call::CreateLease, usize::MAX, Fault::Fail(unavailable()));
    let id = podbay::ConnectionId::from_bytes(1u128.to_be_bytes());
    assert_eq!(world.connections.terminate(id, "x").await, Ok(1));
    // Without a mark a handle would start the next pod: that is a failure.
    let world = World::new("session");
    world.open(1, 9, "a").await.expect("opened");
    world.cluster.faults(Call::CreateLease, usize::MAX, Fault::Fail(unavailable()));
    let refusal = world.connections.terminate(id, "x").await.expect_err("refused");
    assert!(matches!(refusal.reason(), Reason::KubernetesUnavailable | Reason::PodStopTimeout), "{refusal:?}");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_an_operator_ends_says_so() {
    let world = World::new("connection");
    world.cluster.on_create(|_| Vec::new());
    let (sender, mut events) = mpsc::channel(64);
    let connections = world.connections.clone();
    let opening = tokio::spawn(async move { connections.open(World::request(1, 9, "a"), sender).await });
    while world.cluster.pods().is_empty() {
        events.recv().await.expect("an event");
    }
    let id = podbay::ConnectionId::from_bytes(1u128.to_be_bytes());
    world.connections.terminate(id, "no").await.expect("ended");
    let refusal = opening.await.expect("joined").expect_err("refused");
    assert_eq!(
        (refusal.reason(), refusal.message.as_str()),
        (Reason::Terminated, "an operator ended this connection: no")
    );
}

#[tokio::test(start_paused = true)]
async fn metadata_is_shown_on_pods_where_the_configuration_says_so() {
    let expose = "connection, exposeAuthMetadataAsEnv: {team: TEAM}, exposeAuthMetadataAsLabels: {team: team},
        exposeAuthMetadataAsAnnotations: {mail: mail}";
    let world = World::new(expose);
    let mut request = World::request(1, 1, "a");
    request.facts.metadata = [("team", "red"), ("mail", "a@b")]
        .map(|(key, value)| (key.to_owned(), podbay_runtime::webhook::Entry::new(value.to_owned(), false)))
        .into();
    let (sender, _events) = mpsc::channel(64);
    world.connections.open(request, sender).await.expect("opened");
    let pods = world.cluster.pods();
    let pod = pods.first().expect("a pod");
    assert_eq!(pod.metadata.labels.as_ref().expect("labels")["team"], "red");
    assert_eq!(pod.metadata.annotations.as_ref().expect("annotations")["mail"], "a@b");
    let variables = pod.spec.as_ref().and_then(|spec| spec.containers[0].env.as_ref()).expect("variables");
    assert!(variables.iter().any(|variable| variable.name == "TEAM" && variable.value.as_deref() == Some("red")));
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_agent_is_not_in_the_image_is_told_what_to_do_and_deleted() {
    for mode in [
        "mode: connection, metadata: {namespace: ns}",
        "mode: persistent, createMissingPods: true, metadata: {namespace: ns, name: p}",
    ] {
        let world = World::configured(mode);
        let path = "/usr/bin/containerssh-agent";
        let words = format!("exec: \"{path}\": stat {path}: no such file or directory: unknown");
        world.cluster.on_create(move |_| {
            vec![script::becomes(Duration::from_secs(1), script::waiting("shell", "RunContainerError", &words))]
        });
        let refusal = world.open(1, 9, "a").await.expect_err("no agent");
        assert_eq!(refusal.reason(), Reason::AgentMissing, "{refusal:?}");
        for todo in [path, "add it to the image", "disableAgent", "agentInjection"] {
            assert!(refusal.message.contains(todo), "{refusal:?}");
        }
        world.settled().await;
        assert!(world.cluster.pods().is_empty(), "{mode}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_command_that_is_not_the_agent_fails_in_its_own_words() {
    let world = World::configured("idleCommand: [/bin/nosuch], metadata: {namespace: ns}");
    let words = "exec: \"/bin/nosuch\": stat /bin/nosuch: no such file or directory: unknown";
    world.cluster.on_create(move |_| {
        vec![script::becomes(Duration::from_secs(1), script::waiting("shell", "RunContainerError", words))]
    });
    let refusal = world.open(1, 9, "a").await.expect_err("no such program");
    assert_eq!(refusal.reason(), Reason::ContainerFailed, "{refusal:?}");
    assert!(refusal.message.contains("/bin/nosuch"), "{refusal:?}");
}
