//! Sessions that are continued, detached and collected.

use crate::world::*;

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
