//! The frontend's deadlines towards the backend, in virtual time: each fires, and undoes what was begun.

mod scripted;

use podbay::{
    ConnectionId,
    v1::{self, open_connection_response::Event},
};
use podbay_frontend::{
    Metrics,
    backend::{Failure, Phase, login::Login, owner::Owner},
};
use prometheus_client::registry::Registry;
use scripted::{Opening, Scripted, broken, replica};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

fn accepted(seconds: i64) -> Event {
    let timeout = Some(prost_types::Duration { seconds, nanos: 0 });
    let timeouts = v1::Timeouts {
        pod_start: timeout,
        pod_stop: timeout,
        command_start: timeout,
        signal: timeout,
        window: timeout,
    };
    Event::Accepted(v1::Accepted {
        timeouts: Some(timeouts),
        policy: None,
        mode: v1::ExecutionMode::Connection.into(),
        backend_wait: None,
        heartbeat_interval: None,
        restricted: false,
    })
}

fn opened() -> Event {
    Event::Opened(v1::Opened { handle: b"handle"[..].into(), ..Default::default() })
}

/// A login under way.
struct World {
    backend: Scripted,
    owner: Arc<Owner>,
    phase: watch::Receiver<Phase>,
    gone: CancellationToken,
    ended: watch::Receiver<Option<Arc<str>>>,
    task: JoinHandle<()>,
    began: Instant,
}

impl World {
    fn new(
        openings: impl IntoIterator<Item = Opening>,
        closings: impl IntoIterator<Item = Result<u32, Failure>>,
    ) -> Self {
        let backend = Scripted::default();
        backend.state().openings.extend(openings);
        backend.state().closings.extend(closings);
        let (owner, phase) = (Owner::new(), watch::Sender::new(Phase::Asking));
        let (gone, ended) = (CancellationToken::new(), watch::Sender::new(None));
        let is_ended = ended.subscribe();
        let login = Login {
            id: ConnectionId::from_bytes([7; 16]),
            user: "alice".to_owned(),
            known: podbay_runtime::webhook::Facts::default(),
            restrictions: None,
            version: String::new(),
            port: 0,
            remote: "192.0.2.1".to_owned(),
            accept_timeout: Duration::from_secs(10),
            phase: phase.clone(),
            gone: gone.clone(),
            ended,
        };
        let receiver = phase.subscribe();
        let (calls, claims) = (backend.clone(), Arc::clone(&owner));
        let task = tokio::spawn(async move {
            login.run(&calls, &claims, &Metrics::new(&mut Registry::default())).await;
        });
        Self { backend, owner, phase: receiver, gone, ended: is_ended, task, began: Instant::now() }
    }

    /// Waits for the connection to fail. Returns why, and after how long.
    async fn failure(&mut self) -> (String, Duration) {
        let phase = self.phase.wait_for(|phase| matches!(phase, Phase::Failed(_))).await.expect("runs");
        let Phase::Failed(text) = &*phase else { panic!("not failed") };
        (text.to_string(), self.began.elapsed())
    }

    async fn ends(self) -> Scripted {
        self.gone.cancel();
        self.task.await.expect("no panic");
        self.backend
    }
}

#[tokio::test(start_paused = true)]
async fn accepting_has_a_deadline_and_what_may_have_begun_is_closed() {
    let mut world = World::new([Opening::Events(vec![])], [Ok(0)]);
    let (text, after) = world.failure().await;
    assert!(text.starts_with("no backend has answered in time"), "{text}");
    assert_eq!(after, Duration::from_secs(10));
    let backend = world.ends().await;
    let state = backend.state();
    assert_eq!((state.dropped, state.closed.len()), (1, 1), "the stream is dropped, the connection closed, once");
}

#[tokio::test(start_paused = true)]
async fn opening_has_the_announced_deadline_and_a_little() {
    let mut world = World::new([Opening::Events(vec![accepted(30)])], [Ok(1)]);
    let (text, after) = world.failure().await;
    assert!(text.contains("timeouts.podStart"), "{text}");
    assert_eq!(after, Duration::from_secs(32));
    let backend = world.ends().await;
    let state = backend.state();
    assert_eq!((state.dropped, state.closed.len()), (1, 1));
    assert_eq!(state.closed[0].1, Duration::from_secs(32), "podStop, fresh, and a little");
}

#[tokio::test(start_paused = true)]
async fn a_retry_keeps_the_first_deadline_and_the_same_id() {
    let breaks = || Opening::Breaks(vec![accepted(30)]);
    let mut world = World::new([breaks(), breaks(), Opening::Events(vec![])], [Ok(1)]);
    let (_, after) = world.failure().await;
    assert_eq!(after, Duration::from_secs(32));
    let backend = world.ends().await;
    let state = backend.state();
    assert_eq!(state.opened.len(), 3);
    assert!(state.opened.iter().all(|(_, id)| *id == state.opened[0].1));
    assert_eq!(state.opened[1].0.avoid, [replica(1)], "another replica");
}

#[tokio::test(start_paused = true)]
async fn closing_is_tried_until_podstop_is_over_and_no_longer() {
    let world = World::new([Opening::Events(vec![accepted(5), opened()])], [Err(broken(1)), Err(broken(2))]);
    let mut phase = world.phase.clone();
    phase.wait_for(|phase| matches!(phase, Phase::Open(_))).await.expect("opens");
    tokio::time::sleep(Duration::from_hours(1)).await;
    let before = Instant::now();
    let backend = world.ends().await;
    assert_eq!(before.elapsed(), Duration::from_secs(7));
    assert_eq!(backend.state().closed.len(), 3, "two that broke, one that hangs");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_while_the_pod_starts_has_it_undone() {
    let world = World::new([Opening::Events(vec![accepted(30)])], [Ok(1)]);
    let mut phase = world.phase.clone();
    phase.wait_for(|phase| matches!(phase, Phase::Starting { .. })).await.expect("starts");
    let backend = world.ends().await;
    let state = backend.state();
    assert_eq!((state.dropped, state.closed.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_not_closed() {
    let mut world = World::new([], []);
    let (text, after) = world.failure().await;
    assert!(text.starts_with("no backend can be reached"), "{text}");
    assert!(after > Duration::from_secs(9) && after <= Duration::from_secs(10), "{after:?}");
    let backend = world.ends().await;
    let state = backend.state();
    assert!(state.opened.len() > 10 && state.closed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_comes_in_time_is_found() {
    let nobody = || Opening::Fails(Failure::NoReplica);
    let world = World::new([nobody(), nobody(), Opening::Events(vec![accepted(5), opened()])], [Ok(1)]);
    let mut phase = world.phase.clone();
    phase.wait_for(|phase| matches!(phase, Phase::Open(_))).await.expect("opens");
    world.ends().await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final() {
    let refusal = v1::Refusal::new(v1::Reason::Policy, "not for you").into_status();
    let mut world = World::new([Opening::Fails(Failure::Answered(replica(1), refusal))], [Ok(0)]);
    let (text, after) = world.failure().await;
    assert!(text.starts_with("not for you [connection 0707"), "{text}");
    assert_eq!(after, Duration::ZERO);
    assert_eq!(world.ends().await.state().opened.len(), 1);
}

/// Beats of an owner whose backend says nothing in answers, or nothing at all: when, in milliseconds from the first claim.
async fn beats(interval: Option<Duration>, answers: bool) -> Vec<u128> {
    let Event::Accepted(mut first) = accepted(5) else { panic!("not Accepted") };
    first.heartbeat_interval = interval.and_then(|interval| interval.try_into().ok());
    let world = World::new([Opening::Events(vec![Event::Accepted(first), opened()])], [Ok(1)]);
    if answers {
        world.backend.state().beat_answers.extend((0..100).map(|_| Ok(v1::HeartbeatResponse::default())));
    }
    let stop = CancellationToken::new();
    let beating = tokio::spawn(Arc::clone(&world.owner).run(Arc::new(world.backend.clone()), stop.clone()));
    tokio::time::sleep(Duration::from_secs(7)).await;
    stop.cancel();
    beating.await.expect("ends");
    let began = world.began;
    let backend = world.ends().await;
    backend.state().beaten.iter().map(|at| at.duration_since(began).as_millis()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_lease_is_renewed_in_the_time_that_accepted_tells() {
    let every = Duration::from_millis(300);
    // A lease of 0.9 s: it never stands still for longer than a third of it, from the start on.
    let beats = beats(Some(every), true).await;
    assert_eq!(beats[..4], [250, 550, 850, 1150], "{beats:?}");
    assert_eq!(self::beats(Some(every / 2), true).await[..3], [150, 300, 450], "sooner than the first beat would be");
    assert_eq!(self::beats(None, true).await, [250, 5250], "soon, so that the answer tells");
}

#[tokio::test(start_paused = true)]
async fn a_shorter_interval_counts_at_once() {
    let (backend, owner, stop) = (Scripted::default(), Owner::new(), CancellationToken::new());
    backend.state().beat_answers.extend((0..100).map(|_| Ok(v1::HeartbeatResponse::default())));
    let began = Instant::now();
    let beating = tokio::spawn(Arc::clone(&owner).run(Arc::new(backend.clone()), stop.clone()));
    let claim = owner.claim(ConnectionId::from_bytes([7; 16]));
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Another connection's Accepted, from a replica whose leases are shorter.
    claim.told(Some(Duration::from_millis(500)));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stop.cancel();
    beating.await.expect("ends");
    let beats: Vec<_> = backend.state().beaten.iter().map(|at| at.duration_since(began).as_millis()).collect();
    assert_eq!(beats, [250, 1500, 2000]);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_fails_leaves_time_for_more_within_a_short_lease() {
    let beats = beats(Some(Duration::from_millis(300)), false).await;
    assert!(beats.windows(2).all(|pair| pair[1] - pair[0] <= 300), "{beats:?}");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_the_interval_renew_handles_and_notice_a_lost_lease() {
    let mut world = World::new([Opening::Events(vec![accepted(5), opened()])], [Ok(1)]);
    let mut phase = world.phase.clone();
    let opened = match &*phase.wait_for(|phase| matches!(phase, Phase::Open(_))).await.expect("opens") {
        Phase::Open(opened) => Arc::clone(opened),
        other => panic!("{other:?}"),
    };
    let answer = v1::HeartbeatResponse {
        interval: Some(prost_types::Duration { seconds: 20, nanos: 0 }),
        lease_duration: None,
        handles: vec![b"new handle"[..].into()],
        terminated: Vec::new(),
    };
    let expired = v1::Refusal::new(v1::Reason::OwnerExpired, "gone").into_status();
    world.backend.state().beat_answers.extend([Ok(answer), Err(Failure::Answered(replica(1), expired))]);
    let (first, stop, began) = (world.owner.id(), CancellationToken::new(), Instant::now());
    let beating = tokio::spawn(Arc::clone(&world.owner).run(Arc::new(world.backend.clone()), stop.clone()));
    world.ended.wait_for(Option::is_some).await.expect("ends");
    assert_eq!(began.elapsed(), Duration::from_millis(20_250), "soon, then what the backend said");
    assert_eq!(opened.handle.load().as_ref().as_ref(), b"new handle");
    assert!(matches!(&*phase.borrow_and_update(), Phase::Failed(_)), "no new session on it");
    assert_ne!(world.owner.id(), first);
    {
        let state = world.backend.state();
        assert_eq!(state.beats[0].connection_ids, [ConnectionId::from_bytes([7; 16]).to_string()]);
        assert!(state.beats[0].complete && state.beats[0].owner_id == first.to_string());
        assert_eq!(state.beats[1].handles, ["new handle"]);
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    {
        let state = world.backend.state();
        let last = state.beats.last().expect("beats");
        assert!(last.connection_ids.is_empty() && last.owner_id == world.owner.id().to_string(), "{last:?}");
    }
    stop.cancel();
    beating.await.expect("ends");
    world.ends().await;
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_names_a_connection_ends_it() {
    let mut world = World::new([Opening::Events(vec![accepted(5), opened()])], [Ok(0)]);
    let mut phase = world.phase.clone();
    phase.wait_for(|phase| matches!(phase, Phase::Open(_))).await.expect("opens");
    let named = |connection_id: String, message: &str| {
        let terminated = vec![v1::TerminatedConnection { connection_id, message: message.to_owned() }];
        Ok(v1::HeartbeatResponse { terminated, ..Default::default() })
    };
    let ours = ConnectionId::from_bytes([7; 16]).to_string();
    // Not ours, and no id at all; then ours, twice.
    world.backend.state().beat_answers.extend([
        named(ConnectionId::from_bytes([8; 16]).to_string(), "other"),
        named("x".to_owned(), "none"),
        named(ours.clone(), "maintenance"),
        named(ours, "again"),
    ]);
    let (stop, began) = (CancellationToken::new(), Instant::now());
    let beating = tokio::spawn(Arc::clone(&world.owner).run(Arc::new(world.backend.clone()), stop.clone()));
    let text = world.ended.wait_for(Option::is_some).await.expect("ends").clone();
    assert_eq!(text.as_deref(), Some("an operator ended this connection: maintenance"));
    assert_eq!(began.elapsed(), Duration::from_millis(10_250), "the third heartbeat: soon, and then every 5 s");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.ended.borrow().as_deref(), text.as_deref());
    assert!(matches!(&*phase.borrow_and_update(), Phase::Failed(_)), "no new session on it");
    stop.cancel();
    beating.await.expect("ends");
    assert_eq!(world.ends().await.state().closed.len(), 1, "closed as any other");
}
