//! No live pod is ever reaped; a dead owner's are. All in virtual time; a stopped process is one whose calls stop.

mod world;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use podbay::v1::Reason;
use podbay_backend_core::{
    cluster::{Cluster as _, ClusterError, PodRef},
    fake::{Call, Fault},
    identity::KEPT_UNTIL,
    ownership::{EXPIRED, Reaper, lease_name},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use world::{World, unavailable};

const SECOND: Duration = Duration::from_secs(1);

impl World {
    /// Time passes: each 10 s a look of the reaper, each 30 s a heartbeat of owner 9; where they run.
    async fn pass(&self, time: Duration, mut reaper: Option<&mut Reaper>, beats: bool) {
        let end = Instant::now() + time;
        let mut n = 0;
        while Instant::now() < end {
            if beats && n % 3 == 0 {
                // Refused while the API is down: that is the point.
                let _ = self.beat(9, "a", &[1], true).await;
            }
            let next = Instant::now() + 10 * SECOND;
            if let Some(reaper) = reaper.as_deref_mut() {
                reaper.round().await;
            }
            tokio::time::sleep_until(next.min(end)).await;
            n += 1;
        }
    }

    fn pods(&self) -> usize {
        self.cluster.pods().len()
    }

    fn holder(&self) -> Option<String> {
        self.cluster.leases().first()?.spec.as_ref()?.holder_identity.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_owners_pods_are_gone_after_the_duration_and_pod_stop() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    let (reaper, stop) = (world.reaper(), CancellationToken::new());
    let running = tokio::spawn(reaper.run(stop.clone()));
    world.cluster.set_termination(None);
    let start = Instant::now();
    while world.pods() > 0 {
        sleep(SECOND).await;
        let bound = world.duration() + 2 * world.settings.ownership.poll() + world.settings.timeouts.pod_stop;
        assert!(start.elapsed() < bound, "not gone after {bound:?}");
    }
    assert!(start.elapsed() >= world.duration());
    assert_eq!(world.holder().as_deref(), Some(EXPIRED));
    let refusal = world.beat(9, "a", &[1], true).await.expect_err("refused");
    assert_eq!(refusal.reason(), Reason::OwnerExpired);
    let refusal = world.open(2, 9, "a").await.expect_err("refused");
    assert_eq!(refusal.reason(), Reason::OwnerExpired);
    // The lease that tells of it goes too, later.
    sleep(11 * world.duration()).await;
    assert!(world.cluster.leases().is_empty());
    stop.cancel();
    running.await.expect("ends when told");
}

#[tokio::test(start_paused = true)]
async fn a_living_owners_pods_stay() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    world.pass(20 * world.duration(), Some(&mut world.reaper()), true).await;
    assert_eq!(world.pods(), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_reaped_after_an_outage_of_the_api() {
    for error in [unavailable(), ClusterError::Timeout(15 * SECOND)] {
        let world = World::new("connection");
        world.open(1, 9, "a").await.expect("opened");
        let mut reaper = world.reaper();
        world.pass(80 * SECOND, Some(&mut reaper), true).await;
        world.cluster.down(error);
        world.pass(10 * world.duration(), Some(&mut reaper), true).await;
        world.cluster.up();
        // The reaper comes first.
        reaper.round().await;
        world.pass(3 * world.duration(), Some(&mut reaper), true).await;
        assert_eq!(world.pods(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_reaped_where_only_writes_fail_and_then_work_again() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    let mut reaper = world.reaper();
    world.cluster.faults(Call::ReplaceLease, usize::MAX, Fault::Fail(unavailable()));
    world.pass(10 * world.duration(), Some(&mut reaper), true).await;
    assert_eq!(world.pods(), 1, "who can't take the lease deletes nothing");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_reaped_by_a_reaper_that_stood_still_with_its_owners() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    let mut reaper = world.reaper();
    world.pass(80 * SECOND, Some(&mut reaper), true).await;
    // The machine is suspended: nobody runs, the cluster goes on.
    world.pass(10 * world.duration(), None, false).await;
    reaper.round().await;
    assert_eq!(world.pods(), 1);
    world.pass(3 * world.duration(), Some(&mut reaper), true).await;
    assert_eq!(world.pods(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_frontend_may_stand_still_for_less_than_the_duration() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    let mut reaper = world.reaper();
    for _ in 0..10 {
        world.pass(30 * SECOND, Some(&mut reaper), true).await;
        world.pass(50 * SECOND, Some(&mut reaper), false).await;
    }
    assert_eq!(world.pods(), 1);
}

#[tokio::test(start_paused = true)]
async fn clocks_mean_nothing() {
    for skew in [-3600, 3600] {
        let world = World::new("connection");
        world.cluster.set_clock_skew(skew);
        world.open(1, 9, "a").await.expect("opened");
        let mut reaper = world.reaper();
        // Whatever times stand in the lease.
        for hour in [-1i64, 1] {
            let mut lease =
                world.cluster.get_lease("ns", &lease_name(World::request(1, 9, "a").who.owner)).await.expect("a lease");
            let off = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + hour * 3600).expect("a time");
            if let Some(spec) = &mut lease.spec {
                spec.renew_time = Some(MicroTime(off));
            }
            world.cluster.replace_lease(&lease).await.expect("replaced");
            world.pass(80 * SECOND, Some(&mut reaper), false).await;
        }
        world.pass(3 * world.duration(), Some(&mut reaper), true).await;
        assert_eq!(world.pods(), 1);
        world.pass(world.duration() + 30 * SECOND, Some(&mut reaper), false).await;
        assert_eq!(world.pods(), 0, "and a dead owner is found all the same");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_lease_is_missing_gets_the_same_time() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    let lease = world.cluster.leases().remove(0);
    world.cluster.delete_lease(&lease).await.expect("deleted");
    let mut reaper = world.reaper();
    world.pass(80 * SECOND, Some(&mut reaper), false).await;
    assert_eq!(world.pods(), 1);
    // The owner lives: its heartbeat makes the lease anew.
    world.pass(3 * world.duration(), Some(&mut reaper), true).await;
    assert_eq!(world.pods(), 1);
    let lease = world.cluster.leases().remove(0);
    world.cluster.delete_lease(&lease).await.expect("deleted");
    world.pass(world.duration() + 30 * SECOND, Some(&mut reaper), false).await;
    assert_eq!((world.pods(), world.holder().as_deref()), (0, Some(EXPIRED)));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_in_the_last_moment_saves_all() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    let mut reaper = world.reaper();
    world.pass(90 * SECOND, Some(&mut reaper), false).await;
    // The take is slow; the owner renews first. The fake acts at once, so the renewal goes before it.
    world.beat(9, "a", &[1], true).await.expect("renewed");
    world.pass(80 * SECOND, Some(&mut reaper), false).await;
    assert_eq!(world.pods(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_reapers_and_lost_answers_agree() {
    let world = World::new("connection");
    world.open(1, 9, "a").await.expect("opened");
    world.open(2, 8, "a").await.expect("opened");
    let stop = CancellationToken::new();
    let running: Vec<_> = (0..2).map(|_| tokio::spawn(world.reaper().run(stop.clone()))).collect();
    world.cluster.faults(Call::ReplaceLease, 1, Fault::LoseAnswer(unavailable()));
    let end = Instant::now() + world.duration() + 60 * SECOND;
    while Instant::now() < end {
        world.beat(8, "a", &[2], true).await.ok();
        sleep(20 * SECOND).await;
    }
    assert_eq!(world.pods(), 1);
    stop.cancel();
    for running in running {
        running.await.expect("ends when told");
    }
}

#[tokio::test(start_paused = true)]
async fn foreign_pods_are_none_of_the_reapers_business() {
    let world = World::new("connection");
    let mut foreign = podbay_backend_core::fake::script::pod("ns", "foreign");
    foreign.metadata.labels = Some([("podbay.dev/owner".to_owned(), world::id(7))].into());
    world.cluster.create_pod(&foreign).await.expect("created");
    let mut damaged = podbay_backend_core::fake::script::pod("ns", "damaged");
    damaged.metadata.labels = Some([("app.kubernetes.io/managed-by".to_owned(), "podbay".to_owned())].into());
    world.cluster.create_pod(&damaged).await.expect("created");
    world.pass(5 * world.duration(), Some(&mut world.reaper()), false).await;
    assert_eq!(world.pods(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_reaper_finds_what_a_dead_backend_left() {
    let world = World::new("connection");
    // The backend died right after the create: the pod has no lease and nobody knows it.
    let request = World::request(1, 9, "a");
    let pod = podbay_backend_core::template::connection_pod(
        &world.settings.pod,
        &request.who,
        &std::collections::BTreeMap::new(),
    );
    world.cluster.create_pod(&pod).await.expect("created");
    world.pass(world.duration() + 30 * SECOND, Some(&mut world.reaper()), false).await;
    assert_eq!(world.pods(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_outlives_its_owner_until_its_time() {
    let kept_for = |seconds: i64| jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    let world = World::new("connection");
    for (connection, kept) in [(1, true), (2, false)] {
        let opened = world.open(connection, 9, "a").await.expect("opened");
        if kept {
            let pod = PodRef { namespace: opened.pod_namespace, name: opened.pod_name, uid: None };
            let now = world.cluster.get_pod(&pod).await.expect("there");
            let (version, until) = (now.metadata.resource_version.expect("a version"), kept_for(3600).to_string());
            let stale = world.cluster.annotate_pod(&pod, "0", KEPT_UNTIL, &until).await;
            assert!(matches!(stale, Err(ClusterError::Conflict { .. })), "{stale:?}");
            world.cluster.annotate_pod(&pod, &version, KEPT_UNTIL, &until).await.expect("marked");
        }
    }
    // Neither the owner's word, nor its silence, nor its leave.
    world.pass(3 * world.duration(), None, true).await;
    for _ in 0..2 {
        world.beat(9, "a", &[], true).await.expect("it lives");
        sleep(world.settings.timeouts.pod_start + world.settings.timeouts.pod_stop).await;
    }
    world.settled().await;
    let names = || world.cluster.pods().into_iter().filter_map(|pod| pod.metadata.name).collect::<Vec<_>>();
    assert_eq!(names().len(), 1, "the other one was swept");
    world.leave(9, "a").await.expect("leaves");
    let mut reaper = world.reaper();
    world.pass(3 * world.duration(), Some(&mut reaper), false).await;
    assert_eq!(names().len(), 1);
    // Its time is over: it is its dead owner's again.
    let pod = world.cluster.pods().remove(0);
    let reference =
        PodRef { namespace: pod.metadata.namespace.expect("one"), name: pod.metadata.name.expect("one"), uid: None };
    let version = pod.metadata.resource_version.expect("a version");
    world.cluster.annotate_pod(&reference, &version, KEPT_UNTIL, &kept_for(-1).to_string()).await.expect("marked");
    world.pass(2 * world.duration(), Some(&mut reaper), false).await;
    world.settled().await;
    assert!(names().is_empty());
}
