//! An API, or a node, that is not there for a while.

use crate::world::*;

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
