//! Mode `persistent`, on the fake. All in virtual time.

mod agent;
mod world;

use agent::Agent;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use podbay::v1::{self, Reason};
use podbay_agent_wire::{
    client::ResumeFrom,
    id::Attempt,
    program::{Exit, Start},
};
use podbay_backend_core::{
    cluster::{Cluster as _, ClusterError, PodRef},
    connections::{ListRequest, OpenEvent},
    fake::{Call, Fault, script},
    handle::Contents,
    identity,
    link::{Links, Place},
    ownership::{Agents, Reaper},
    persistent,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use world::{World, id, unavailable};

/// Each user has a pod, which is made where it is missing.
const KEYED: &str = "disableAgent: true, mode: persistent, createMissingPods: true, persistentIdleTimeout: 10m, \
                     metadata: {namespace: ns, name: 'shell-{username}'}";
/// The same with an agent.
const WITH_AGENT: &str = "mode: persistent, createMissingPods: true, persistentIdleTimeout: 10m, \
                          metadata: {namespace: ns, name: 'shell-{username}'}";
/// One pod that is there.
const EXISTING: &str = "disableAgent: true, mode: persistent, metadata: {namespace: ns, name: workspace}";

fn claims(world: &World) -> usize {
    world.cluster.pods().iter().map(|pod| persistent::claims(&pod.metadata).len()).sum()
}

fn contents(world: &World, opened: &v1::Opened) -> Contents {
    world.connections.keys().open(&opened.handle, "a").expect("a handle")
}

async fn existing(world: &World, containers: &[&str]) -> Pod {
    let mut pod = script::pod("ns", "workspace");
    let spec = pod.spec.get_or_insert_default();
    spec.containers = containers
        .iter()
        .map(|name| k8s_openapi::api::core::v1::Container { name: (*name).to_owned(), ..Default::default() })
        .collect();
    world.cluster.create_pod(&pod).await.expect("created")
}

#[tokio::test(start_paused = true)]
async fn a_users_connections_share_a_pod_that_outlives_them() {
    let world = World::configured(KEYED);
    let first = world.open(1, 9, "a").await.expect("opened");
    let second = world.open(2, 8, "a").await.expect("opened");
    assert_eq!((first.pod_name.as_str(), &second.pod_name), ("shell-alice", &first.pod_name));
    assert_eq!(contents(&world, &first).pod(), contents(&world, &second).pod());
    let other = world.open_for("Bob", 3, 9, "a").await.expect("opened");
    assert!(other.pod_name.starts_with("shell-bob-"), "{}", other.pod_name);
    assert_eq!((world.cluster.pods().len(), world.cluster.count(Call::CreatePod)), (2, 2));

    let page = world.connections.list(&ListRequest::default()).await.expect("listed").connections;
    assert_eq!(page.iter().map(|one| one.connection_id.clone()).collect::<Vec<_>>(), [id(1), id(2), id(3)]);
    assert!(page.iter().all(|one| one.mode() == v1::ExecutionMode::Persistent && one.pods.len() == 1));
    assert_eq!(page[2].user.as_ref().map(|user| user.name.as_str()), Some("Bob"));

    let connection = contents(&world, &first).connection;
    assert_eq!(world.connections.close(connection, "b", false).await, Ok(0));
    assert_eq!(claims(&world), 3, "another service's claims stay");
    assert_eq!(world.connections.close(connection, "a", false).await, Ok(0), "no pod is deleted");
    assert_eq!((claims(&world), world.cluster.pods().len()), (2, 2));
    // The pod is there, but not for this handle any more.
    let leases = world.connections.leases();
    let admitted = leases.admit(contents(&world, &first).owner, connection, "a").await;
    assert_eq!(admitted.map_err(|refusal| refusal.reason()), Err(Reason::Terminated));
    // An owner that ends takes no pod with it.
    world.leave(8, "a").await.expect("left");
    assert_eq!(world.cluster.pods().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn of_many_that_make_the_pod_at_once_one_does_and_all_use_it() {
    let world = World::configured(KEYED);
    world.cluster.on_create(|pod| vec![script::ready(Duration::from_secs(5), pod)]);
    world.cluster.fault(Call::CreatePod, Fault::Slow(Duration::from_secs(1)));
    let opens = (1..=8).map(|n| world.open(n, 9, "a"));
    let opened = futures::future::join_all(opens).await;
    let uids: std::collections::HashSet<_> =
        opened.iter().map(|opened| contents(&world, opened.as_ref().expect("opened")).pod()).collect();
    assert_eq!((uids.len(), world.cluster.pods().len(), claims(&world)), (1, 1, 8));
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_into_anothers_pod() {
    let world = World::configured(KEYED);
    world.open_for("alice", 1, 9, "a").await.expect("opened");
    let before = world.cluster.pods();
    let refused = |refusal: Result<v1::Opened, podbay::v1::Refusal>| refusal.map_err(|refusal| refusal.reason());
    // Another service's alice.
    assert_eq!(refused(world.open_for("alice", 2, 8, "b").await), Err(Reason::CallerNotAllowed));
    // A pod of the right name that says that it is another's.
    world.cluster.change_pod("ns", "shell-alice", |pod| {
        pod.metadata.annotations.as_mut().expect("notes").insert(identity::USER.into(), "mallory".into());
    });
    assert_eq!(refused(world.open_for("alice", 3, 9, "a").await), Err(Reason::CallerNotAllowed));
    // Ours, and made for a connection.
    world.cluster.change_pod("ns", "shell-alice", |pod| {
        let labels = pod.metadata.labels.as_mut().expect("labels");
        labels.remove(identity::PERSISTENT);
    });
    assert_eq!(refused(world.open_for("alice", 4, 9, "a").await), Err(Reason::CallerNotAllowed));
    world.settled().await;
    assert_eq!(before.len(), world.cluster.pods().len());
    assert_eq!(world.cluster.count(Call::DeletePod), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_others_made_is_used_as_it_is() {
    let world = World::configured(&format!("{EXISTING}, consoleContainerNumber: 0"));
    let missing = world.open(1, 9, "a").await.expect_err("not there");
    assert_eq!(missing.reason(), Reason::NotFound);
    assert!(
        missing.message.contains("no pod workspace") && missing.message.contains("createMissingPods"),
        "{missing:?}"
    );
    existing(&world, &["main", "sidecar"]).await;
    // Running is enough: others decide what Ready means.
    sleep(Duration::from_secs(1)).await;
    world.cluster.change_pod("ns", "workspace", |pod| pod.status.as_mut().expect("status").conditions = None);
    let opened = world.open(2, 9, "a").await.expect("opened");
    assert_eq!(contents(&world, &opened).console, "main", "by its place");
    world.connections.close(contents(&world, &opened).connection, "a", false).await.expect("closed");
    world.settled().await;
    assert_eq!((world.cluster.count(Call::PatchPod), world.cluster.count(Call::DeletePod)), (0, 0));
    assert_eq!(world.cluster.pods().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_on_its_way_out_is_waited_for_and_one_that_ended_is_made_anew() {
    let world = World::configured(KEYED);
    world.open(1, 9, "a").await.expect("opened");
    world.cluster.set_termination(Some(Duration::from_secs(3)));
    let first = world.cluster.pods()[0].metadata.uid.clone();
    let pod = PodRef { namespace: "ns".into(), name: "shell-alice".into(), uid: first.clone() };
    world.cluster.delete_pod(&pod, None).await.expect("going");
    let start = Instant::now();
    world.open(2, 9, "a").await.expect("opened");
    assert!(start.elapsed() >= Duration::from_secs(3));
    let second = world.cluster.pods()[0].metadata.uid.clone();
    assert_ne!(first, second);
    // Evicted, say.
    world.cluster.change_pod("ns", "shell-alice", |pod| pod.status = Some(script::status("Failed")));
    world.open(3, 9, "a").await.expect("opened");
    assert_ne!(second, world.cluster.pods()[0].metadata.uid);
    assert_eq!((world.cluster.pods().len(), claims(&world)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_leaves_no_pod_but_one_that_others_use() {
    let world = World::configured(KEYED);
    // Given up, with a create that was done and not answered.
    world.cluster.on_create(|_| Vec::new());
    world.cluster.fault(Call::CreatePod, Fault::LoseAnswer(unavailable()));
    let refusal = world.open(1, 9, "a").await.expect_err("never ready");
    assert_eq!(refusal.reason(), Reason::PodStartTimeout);
    world.settled().await;
    assert!(world.cluster.pods().is_empty());

    // Its maker hangs up, and another waits for the same pod.
    world.cluster.on_create(|pod| vec![script::ready(Duration::from_secs(20), pod)]);
    let (sender, mut events) = mpsc::channel(64);
    let connections = world.connections.clone();
    let maker = tokio::spawn(async move { connections.open(World::request(2, 9, "a"), sender).await });
    while world.cluster.pods().is_empty() {
        events.recv().await.expect("an event");
    }
    let made = world.cluster.pods()[0].metadata.uid.clone();
    let (second, ()) = tokio::join!(world.open(3, 9, "a"), async {
        sleep(Duration::from_secs(5)).await;
        drop(events);
        maker.await.expect("joined").expect_err("given up");
    });
    second.expect("opened");
    world.settled().await;
    // The deletion runs behind the round.
    sleep(Duration::from_secs(1)).await;
    assert_eq!((claims(&world), world.cluster.pods()[0].metadata.uid.clone()), (1, made));
}

#[tokio::test(start_paused = true)]
async fn what_the_user_has_to_know_is_said() {
    let world = World::configured(KEYED);
    world.cluster.on_create(|_| {
        vec![script::becomes(Duration::from_secs(1), script::waiting("shell", "InvalidImageName", "bad"))]
    });
    assert_eq!(world.open(1, 9, "a").await.expect_err("bad image").reason(), Reason::ImageUnavailable);
    world.settled().await;
    assert!(world.cluster.pods().is_empty());

    world.cluster.on_create(|pod| vec![script::ready(Duration::from_secs(1), pod)]);
    world.open(2, 9, "a").await.expect("opened");
    let no = ClusterError::Forbidden { message: "cannot patch resource \"pods\"".into() };
    world.cluster.fault(Call::PatchPod, Fault::Fail(no));
    let refusal = world.open(3, 9, "a").await.expect_err("no right");
    assert_eq!(refusal.reason(), Reason::BackendNotAllowed);
    assert!(refusal.message.contains("patch"), "{refusal:?}");

    // An API that is away for a while is waited for.
    world.cluster.faults(Call::GetPod, 3, Fault::Fail(unavailable()));
    world.open(4, 9, "a").await.expect("opened");
}

#[tokio::test(start_paused = true)]
async fn the_reaper_takes_a_pod_when_nobody_used_it_for_the_configured_time() {
    let world = World::configured(KEYED);
    let poll = world.settings.ownership.poll();
    let mut reaper = world.reaper();
    let opened = world.open(1, 9, "a").await.expect("opened");
    let other = world.open(2, 8, "a").await.expect("opened");
    // In use for hours: owner 9 renews, owner 8 was killed.
    let mut at = Instant::now();
    for _ in 0..400 {
        world.beat(9, "a", &[1], false).await.expect("renewed");
        reaper.round().await;
        at += poll;
        tokio::time::sleep_until(at).await;
    }
    assert_eq!((world.cluster.pods().len(), claims(&world)), (1, 1), "the dead owner's claim is gone");
    drop(other);
    world.connections.close(contents(&world, &opened).connection, "a", false).await.expect("closed");
    let start = Instant::now();
    while !world.cluster.pods().is_empty() {
        reaper.round().await;
        at += poll;
        tokio::time::sleep_until(at).await;
        assert!(start.elapsed() < Duration::from_mins(11));
    }
    assert!(start.elapsed() >= Duration::from_mins(10), "{:?}", start.elapsed());
    assert_eq!(*reaper.deleted().borrow(), 1);
}

/// Rounds of the reaper for so long, or until there is no pod; gives how long that was.
async fn reaped(world: &World, reaper: &mut Reaper, bound: Duration) -> Duration {
    let start = Instant::now();
    while !world.cluster.pods().is_empty() && start.elapsed() < bound {
        reaper.round().await;
        sleep(world.settings.ownership.poll()).await;
    }
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_program_that_runs_is_use_though_nobody_claims_its_pod() {
    let world = World::configured(WITH_AGENT);
    let agent = Agent::new(1);
    let runs = agent.clone();
    world.cluster.on_stream(move |program| runs.attach(program));
    let links = Links::new(Arc::new(world.cluster.clone()));
    let agents = Agents { links: links.clone(), path: "/agent".into(), console: "shell".into() };
    let mut reaper = world.reaper().asking(Some(agents));
    let opened = world.open(1, 9, "a").await.expect("opened");
    let connection = contents(&world, &opened).connection;
    let pod = contents(&world, &opened).pod().expect("a pod");
    let place = Place { pod, container: "shell".into(), agent: "/agent".into(), image: "sha256:shell".into() };
    let mut program = links.program(&place);
    let session = id(5).parse().expect("an id");
    program.start(session, Attempt::new(1), Start::new(["x"]), ResumeFrom::default()).await.expect("a link");
    program.news.recv().await.expect("started");
    world.connections.close(connection, "a", false).await.expect("closed");
    assert_eq!(claims(&world), 0);
    let hour = Duration::from_hours(1);
    assert!(reaped(&world, &mut reaper, hour).await >= hour, "a program runs in it");
    agent.exits(0, Exit::Code(0));
    let took = reaped(&world, &mut reaper, hour).await;
    assert!(took < Duration::from_mins(21), "from the last look on, a whole time: {took:?}");

    // A restart of all backends does not begin the time anew, and one look is not enough.
    let opened = world.open(2, 9, "a").await.expect("opened");
    world.connections.close(contents(&world, &opened).connection, "a", false).await.expect("closed");
    let long_ago = (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(9)).to_string();
    world.cluster.change_pod("ns", "shell-alice", |pod| {
        pod.metadata.annotations.get_or_insert_default().insert(identity::LAST_USED.into(), long_ago);
    });
    let old = (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(11)).to_string();
    let mut reaper = world.reaper();
    let took = reaped(&world, &mut reaper, Duration::from_mins(5)).await;
    assert!(took >= Duration::from_mins(5), "its time is not over by either clock");
    world.cluster.change_pod("ns", "shell-alice", |pod| {
        pod.metadata.annotations.get_or_insert_default().insert(identity::LAST_USED.into(), old);
    });
    let mut reaper = world.reaper();
    let took = reaped(&world, &mut reaper, hour).await;
    assert!(took >= Duration::from_mins(1) && took < Duration::from_mins(2), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_silent_is_asked_thrice() {
    let world = World::configured(WITH_AGENT);
    world.cluster.on_stream(|_| std::future::pending().boxed());
    let agents =
        Agents { links: Links::new(Arc::new(world.cluster.clone())), path: "/agent".into(), console: "shell".into() };
    let mut reaper = world.reaper().asking(Some(agents));
    let opened = world.open(1, 9, "a").await.expect("opened");
    world.connections.close(contents(&world, &opened).connection, "a", false).await.expect("closed");
    let took = reaped(&world, &mut reaper, Duration::from_hours(1)).await;
    let asked = world.settings.timeouts.http * 3;
    let least = Duration::from_mins(10) + asked;
    assert!(took >= least && took < least + Duration::from_mins(2), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_claim_in_the_last_moment_wins_over_the_reaper() {
    let world = World::configured(KEYED);
    let mut reaper = world.reaper();
    let opened = world.open(1, 9, "a").await.expect("opened");
    world.connections.close(contents(&world, &opened).connection, "a", false).await.expect("closed");
    reaper.round().await;
    sleep(Duration::from_mins(11)).await;
    // Between the reaper's look and its deletion.
    world.cluster.fault(Call::ListPods, Fault::Slow(Duration::from_secs(5)));
    let ((), second) = tokio::join!(reaper.round(), async {
        sleep(Duration::from_secs(2)).await;
        world.open(2, 9, "a").await
    });
    second.expect("opened");
    world.settled().await;
    assert_eq!((world.cluster.pods().len(), claims(&world)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_its_owner_does_not_know_is_released() {
    let world = World::configured(KEYED);
    world.open(1, 9, "a").await.expect("opened");
    world.open(2, 9, "a").await.expect("its answer got lost");
    let spare = world.settings.timeouts.pod_start + world.settings.timeouts.pod_stop;
    for _ in 0..2 {
        world.beat(9, "a", &[1], true).await.expect("renewed");
        world.settled().await;
        assert_eq!(claims(&world), 2);
        sleep(spare / 2).await;
    }
    world.beat(9, "a", &[1], true).await.expect("renewed");
    world.settled().await;
    assert_eq!(claims(&world), 1);
}

#[tokio::test(start_paused = true)]
async fn progress_tells_what_is_waited_for() {
    let world = World::configured(KEYED);
    world.cluster.set_termination(Some(Duration::from_secs(3)));
    world.open(1, 9, "a").await.expect("opened");
    let pod = PodRef { namespace: "ns".into(), name: "shell-alice".into(), uid: None };
    world.cluster.delete_pod(&pod, None).await.expect("going");
    let (sender, mut events) = mpsc::channel(64);
    world.connections.open(World::request(2, 9, "a"), sender).await.expect("opened");
    let mut told = Vec::new();
    while let Some(event) = events.recv().await {
        if let OpenEvent::Progress(progress) = event {
            told.push(progress.message);
        }
    }
    assert!(told.iter().any(|line| line.contains("shell-alice, which is being deleted")), "{told:?}");
}
