//! Pods start and end within their deadlines, and what was begun is undone. All in virtual time.

use podbay::{
    ConnectionId, OwnerId,
    v1::{self, Reason, Refusal},
};
use podbay_backend_core::{
    cluster::{Cluster as _, ClusterError, PodRef},
    config::Timeouts,
    fake::{Call, FakeCluster, Fault, script},
    identity::{CALLER, CONNECTION, MANAGED_BY, OWNER, PODBAY, of_connection},
    lifecycle::{Kind, Lifecycle, StartRequest, StartedPod},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

const SECOND: Duration = Duration::from_secs(1);

struct World {
    cluster: FakeCluster,
    lifecycle: Lifecycle,
    tracker: TaskTracker,
    start: Instant,
}

fn world() -> World {
    let (cluster, tracker) = (FakeCluster::new(), TaskTracker::new());
    let lifecycle = Lifecycle::new(Arc::new(cluster.clone()), Timeouts::default(), tracker.clone());
    World { cluster, lifecycle, tracker, start: Instant::now() }
}

fn pod_of(caller: &str) -> k8s_openapi::api::core::v1::Pod {
    let mut pod = script::pod("ns", "p");
    let label = |key: &str, value: String| (key.to_owned(), value);
    pod.metadata.labels = Some(
        [
            label(MANAGED_BY, PODBAY.into()),
            label(CONNECTION, ConnectionId::from_bytes([1; 16]).to_string()),
            label(OWNER, OwnerId::from_bytes([2; 16]).to_string()),
        ]
        .into(),
    );
    pod.metadata.annotations = Some([label(CALLER, caller.into())].into());
    pod
}

fn request(caller: &str) -> StartRequest {
    StartRequest {
        pod: pod_of(caller),
        console: "shell".into(),
        kind: Kind::Connection,
        deadline: Instant::now() + Timeouts::default().pod_start,
    }
}

impl World {
    async fn starts(&self) -> (Result<StartedPod, Refusal>, Vec<String>) {
        let (sender, mut receiver) = mpsc::channel(64);
        let result = self.lifecycle.start(request("a"), &sender).await;
        drop(sender);
        let mut told = Vec::new();
        while let Some(v1::Progress { message, .. }) = receiver.recv().await {
            told.push(message);
        }
        (result, told)
    }

    /// All that was to be undone is undone; how long it took since the world began.
    async fn settled(&self) -> Duration {
        self.tracker.close();
        self.tracker.wait().await;
        self.start.elapsed()
    }
}

fn refused(result: Result<StartedPod, Refusal>) -> (Reason, String) {
    let refusal = result.expect_err("a refusal");
    (refusal.reason(), refusal.message)
}

fn unavailable() -> ClusterError {
    ClusterError::Unavailable { message: "connection reset".into(), retry_after: None }
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_and_stops() {
    let world = world();
    let (result, told) = world.starts().await;
    let started = result.expect("started");
    assert_eq!((started.adopted, started.ended, started.image_id.as_str()), (false, false, "sha256:shell"));
    assert_eq!(told[0], "creating the pod");
    assert!(world.start.elapsed() < SECOND);
    let selector = of_connection(ConnectionId::from_bytes([1; 16]));
    assert_eq!(world.lifecycle.stop_all("ns", &selector, |_| true).await, Ok(1));
    assert!(world.cluster.pods().is_empty());
    assert_eq!(world.lifecycle.stop_all("ns", &selector, |_| true).await, Ok(0), "idempotent");
}

#[tokio::test(start_paused = true)]
async fn pod_start_runs_out_names_the_cause_and_deletes_the_pod() {
    let world = world();
    let words = "0/1 nodes are available: 1 Insufficient cpu.";
    world.cluster.on_create(move |_| vec![script::becomes(SECOND, script::unschedulable(words))]);
    let (result, told) = world.starts().await;
    let (reason, message) = refused(result);
    assert_eq!(reason, Reason::Unschedulable);
    assert!(message.contains("1 Insufficient cpu."), "{message}");
    assert_eq!(world.start.elapsed(), Duration::from_mins(1));
    let reminders = told.iter().filter(|line| line.contains("Insufficient cpu")).count();
    assert!((11..=13).contains(&reminders), "a line each 5 s: {told:?}");
    assert!(world.settled().await < Duration::from_secs(61));
    assert!(world.cluster.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_silent_start_runs_out_as_pod_start_timeout() {
    let world = world();
    world.cluster.on_create(|_| Vec::new());
    assert_eq!(refused(world.starts().await.0).0, Reason::PodStartTimeout);
    assert_eq!(world.start.elapsed(), Duration::from_mins(1));
    world.settled().await;
    assert!(world.cluster.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_certain_is_told_at_once_and_the_pod_deleted() {
    let world = world();
    world.cluster.on_create(|_| vec![script::becomes(SECOND, script::waiting("shell", "ErrImageNeverPull", "x"))]);
    assert_eq!(refused(world.starts().await.0).0, Reason::ImageUnavailable);
    assert!(world.start.elapsed() < 2 * SECOND);
    world.settled().await;
    assert!(world.cluster.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_found_is_told_after_the_second_pull() {
    let world = world();
    world.cluster.on_create(|_| {
        let pull = || script::waiting("shell", "ErrImagePull", "failed to resolve reference \"x\": x: not found");
        let back_off = script::waiting("shell", "ImagePullBackOff", "Back-off pulling image \"x\"");
        vec![script::becomes(SECOND, pull()), script::becomes(SECOND, back_off), script::becomes(10 * SECOND, pull())]
    });
    let (reason, message) = refused(world.starts().await.0);
    assert_eq!((reason, world.start.elapsed().as_secs()), (Reason::ImageUnavailable, 12));
    assert!(message.ends_with("x: not found"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_create_is_told_at_once_and_a_quota_waits() {
    let world = world();
    let forbidden = |message: &str| Fault::Fail(ClusterError::Forbidden { message: message.into() });
    world
        .cluster
        .fault(Call::CreatePod, forbidden("pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\""));
    assert_eq!(refused(world.starts().await.0).0, Reason::AdmissionDenied);
    assert!(world.start.elapsed() < SECOND && world.cluster.count(Call::DeletePod) == 0);
    world.cluster.faults(Call::CreatePod, 3, forbidden("exceeded quota: x"));
    let (result, told) = world.starts().await;
    assert!(result.is_ok());
    assert!(told.iter().any(|line| line.contains("the quota for pods is used up")), "{told:?}");
    world.cluster.remove_pod("ns", "p");
    world.cluster.faults(Call::CreatePod, usize::MAX, forbidden("exceeded quota: x"));
    let now = Instant::now();
    assert_eq!(refused(world.starts().await.0).0, Reason::QuotaExceeded);
    assert_eq!(now.elapsed(), Duration::from_mins(1));
}

#[tokio::test(start_paused = true)]
async fn a_restricted_namespace_gets_what_it_asks_for_once() {
    let world = world();
    let refusal = || ClusterError::Forbidden {
        message: "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": seccompProfile".into(),
    };
    world.cluster.fault(Call::CreatePod, Fault::Fail(refusal()));
    world.starts().await.0.expect("started");
    assert!(world.start.elapsed() < SECOND);
    let pods = world.cluster.pods();
    let context = pods[0].spec.as_ref().and_then(|spec| spec.security_context.clone()).expect("a context");
    assert_eq!((context.run_as_non_root, context.run_as_user), (Some(true), None));
    world.cluster.remove_pod("ns", "p");
    world.cluster.faults(Call::CreatePod, 2, Fault::Fail(refusal()));
    let (reason, message) = refused(world.starts().await.0);
    assert_eq!((reason, world.cluster.count(Call::CreatePod)), (Reason::AdmissionDenied, 4));
    assert!(message.contains("kubernetes.pod.spec"), "{message}");
    assert!(world.cluster.pods().is_empty() && world.start.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_makes_one_pod() {
    let world = world();
    world.cluster.fault(Call::CreatePod, Fault::LoseAnswer(unavailable()));
    let started = world.starts().await.0.expect("started");
    assert!(started.adopted);
    assert_eq!(world.cluster.pods().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn http_bounds_each_request_and_pod_start_all_of_them() {
    let world = world();
    world.cluster.fault(Call::CreatePod, Fault::Hang);
    assert!(world.starts().await.0.is_ok());
    let took = world.start.elapsed();
    assert!(took >= Duration::from_secs(15) && took < Duration::from_secs(16), "one bound and a retry: {took:?}");
    world.cluster.remove_pod("ns", "p");
    world.cluster.faults(Call::CreatePod, usize::MAX, Fault::Hang);
    let now = Instant::now();
    let (reason, message) = refused(world.starts().await.0);
    assert_eq!(reason, Reason::KubernetesUnavailable);
    assert!(message.contains("does not answer within 15s"), "{message}");
    assert_eq!(now.elapsed(), Duration::from_mins(1));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured() {
    let world = world();
    let busy = ClusterError::Unavailable { message: "429".into(), retry_after: Some(Duration::from_secs(9)) };
    world.cluster.fault(Call::CreatePod, Fault::Fail(busy));
    assert!(world.starts().await.0.is_ok());
    assert_eq!(world.start.elapsed().as_secs(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_undoes_its_start() {
    let world = world();
    world.cluster.on_create(|_| Vec::new());
    let (sender, _receiver) = mpsc::channel(1);
    let gone = tokio::time::timeout(3 * SECOND, world.lifecycle.start(request("a"), &sender)).await;
    assert!(gone.is_err());
    assert!(world.settled().await < 4 * SECOND);
    assert!(world.cluster.pods().is_empty() && world.cluster.count(Call::CreatePod) == 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_before_the_answer_undoes_what_the_answer_would_have_told() {
    let world = world();
    world.cluster.fault(Call::CreatePod, Fault::Slow(10 * SECOND)); // acts at once
    let (sender, _receiver) = mpsc::channel(1);
    let gone = tokio::time::timeout(SECOND, world.lifecycle.start(request("a"), &sender)).await;
    assert!(gone.is_err() && world.cluster.pods().len() == 1);
    world.settled().await;
    assert!(world.cluster.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_undoing_of_one_try_spares_the_pod_of_the_next() {
    let world = world();
    world.cluster.fault(Call::CreatePod, Fault::Hang); // never acts
    let (sender, _receiver) = mpsc::channel(1);
    assert!(tokio::time::timeout(SECOND, world.lifecycle.start(request("a"), &sender)).await.is_err());
    assert!(world.starts().await.0.is_ok());
    world.settled().await;
    assert_eq!(world.cluster.pods().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_earlier_trys_pod_is_adopted_another_callers_is_not() {
    let world = world();
    assert!(world.starts().await.0.is_ok());
    let again = world.starts().await.0.expect("adopted");
    assert!(again.adopted);
    let (sender, _receiver) = mpsc::channel(1);
    let other = world.lifecycle.start(request("b"), &sender).await;
    assert_eq!(refused(other).0, Reason::CallerNotAllowed);
    world.settled().await;
    assert_eq!(world.cluster.pods().len(), 1, "the refused one deletes nothing");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_trys_pod_that_ends_is_waited_for_and_made_anew() {
    let world = world();
    let first = world.starts().await.0.expect("started");
    world.cluster.set_termination(None);
    world.cluster.delete_pod(&first.pod, Some(5 * SECOND)).await.expect("accepted");
    let second = world.starts().await.0.expect("started");
    assert_ne!(first.pod.uid, second.pod.uid);
    assert!(!second.adopted && world.start.elapsed() >= 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_deleted_meanwhile_is_gone() {
    let world = world();
    world.cluster.on_create(|_| vec![script::gone(SECOND)]);
    assert_eq!(refused(world.starts().await.0).0, Reason::PodGone);
}

#[tokio::test(start_paused = true)]
async fn a_stop_forces_a_pod_that_does_not_end() {
    let world = world();
    assert!(world.starts().await.0.is_ok());
    world.cluster.set_termination(None);
    world.cluster.change_pod("ns", "p", |pod| {
        if let Some(spec) = &mut pod.spec {
            spec.termination_grace_period_seconds = Some(3600);
        }
    });
    let now = Instant::now();
    let pod = PodRef { namespace: "ns".into(), name: "p".into(), uid: None };
    assert_eq!(world.lifecycle.stop(&pod).await, Ok(()));
    assert_eq!(now.elapsed(), Duration::from_secs(45), "three quarters of podStop");
    assert!(world.cluster.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn pod_stop_runs_out_where_the_api_is_down_and_is_never_expired_at_its_beginning() {
    let world = world();
    let started = world.starts().await.0.expect("started");
    world.cluster.down(unavailable());
    let now = Instant::now();
    let refusal = world.lifecycle.stop(&started.pod).await.expect_err("not gone");
    assert_eq!((refusal.reason(), now.elapsed()), (Reason::PodStopTimeout, Duration::from_mins(1)));
    world.cluster.up();
    // A start that used its whole time still has the whole of podStop for the undoing.
    world.cluster.remove_pod("ns", "p");
    world.cluster.on_create(|_| Vec::new());
    world.cluster.set_termination(Some(20 * SECOND));
    world.cluster.faults(Call::DeletePod, 3, Fault::Fail(unavailable()));
    let _ = refused(world.starts().await.0);
    world.settled().await;
    assert!(world.cluster.pods().is_empty());
}
