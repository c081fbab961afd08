//! The fake keeps the port's promises: what the other tests lean on.

use futures::FutureExt as _;
use podbay_backend_core::{
    cluster::{Cluster as _, ClusterError, Input, Output, PodChange, PodRef, StreamEnd, StreamRequest},
    fake::{Call, FakeCluster, Fault, script},
};
use std::time::Duration;
use tokio::time::Instant;

fn pod_ref(uid: Option<String>) -> PodRef {
    PodRef { namespace: "ns".into(), name: "p".into(), uid }
}

#[tokio::test(start_paused = true)]
async fn a_watch_sees_the_script_and_the_end() {
    let cluster = FakeCluster::new();
    cluster.on_create(|pod| {
        vec![
            script::becomes(Duration::from_secs(1), script::unschedulable("0/1 nodes")),
            script::ready(Duration::from_secs(1), pod),
        ]
    });
    let made = cluster.create_pod(&script::pod("ns", "p")).await.expect("created");
    assert!(matches!(cluster.create_pod(&script::pod("ns", "p")).await, Err(ClusterError::AlreadyExists)));
    let mut watch = cluster.watch_pod(&pod_ref(made.metadata.uid.clone())).await.expect("a watch");
    for phase in ["Pending", "Pending", "Running"] {
        let Some(PodChange::Now(pod)) = watch.recv().await else { panic!("expected a pod") };
        assert_eq!(pod.status.and_then(|s| s.phase).as_deref(), Some(phase));
    }
    cluster.break_watches();
    assert!(matches!(watch.recv().await, Some(PodChange::Interrupted(_))));
    assert!(matches!(watch.recv().await, Some(PodChange::Now(_))));
    let wrong = pod_ref(Some("other".into()));
    assert!(matches!(cluster.delete_pod(&wrong, None).await, Err(ClusterError::Conflict { .. })));
    cluster.delete_pod(&pod_ref(made.metadata.uid), None).await.expect("deleted");
    let mut last = watch.recv().await;
    while let Some(PodChange::Now(pod)) = &last {
        assert!(pod.metadata.deletion_timestamp.is_some());
        last = watch.recv().await;
    }
    assert!(matches!(last, Some(PodChange::Gone(Some(_)))));
    assert!(watch.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ignores_term_stays_for_its_grace_unless_killed() {
    let cluster = FakeCluster::new();
    cluster.set_termination(None);
    let start = Instant::now();
    cluster.create_pod(&script::pod("ns", "p")).await.expect("created");
    cluster.delete_pod(&pod_ref(None), Some(Duration::from_secs(30))).await.expect("accepted");
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(cluster.pods().len(), 1);
    cluster.delete_pod(&pod_ref(None), Some(Duration::ZERO)).await.expect("killed");
    assert_eq!(cluster.pods().len(), 0);
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn faults_are_met_in_order_and_bounded() {
    let cluster = FakeCluster::new();
    cluster.fault(Call::CreatePod, Fault::Hang);
    cluster.fault(Call::CreatePod, Fault::LoseAnswer(ClusterError::Timeout(Duration::from_secs(15))));
    let start = Instant::now();
    for pods in [0, 1] {
        let result = cluster.create_pod(&script::pod("ns", "p")).await;
        assert!(matches!(result, Err(ClusterError::Timeout(_))), "{result:?}");
        assert_eq!(cluster.pods().len(), pods);
    }
    assert_eq!(start.elapsed(), Duration::from_secs(30));
    cluster.down(ClusterError::Unavailable { message: "down".into(), retry_after: None });
    assert!(cluster.ping().await.is_err());
    cluster.up();
    assert!(cluster.ping().await.is_ok());
    assert_eq!((cluster.count(Call::Ping), cluster.count(Call::CreatePod)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn leases_keep_their_resource_versions() {
    let cluster = FakeCluster::new();
    let mut lease = k8s_openapi::api::coordination::v1::Lease::default();
    lease.metadata.namespace = Some("ns".into());
    lease.metadata.name = Some("l".into());
    let first = cluster.create_lease(&lease).await.expect("created");
    let second = cluster.replace_lease(&first).await.expect("replaced");
    assert!(matches!(cluster.replace_lease(&first).await, Err(ClusterError::Conflict { .. })));
    assert!(matches!(cluster.delete_lease(&first).await, Err(ClusterError::Conflict { .. })));
    cluster.delete_lease(&second).await.expect("deleted");
    assert!(matches!(cluster.get_lease("ns", "l").await, Err(ClusterError::NotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_program_talks_and_ends_once_whatever_happens() {
    let cluster = FakeCluster::new();
    cluster.create_pod(&script::pod("ns", "p")).await.expect("created");
    cluster.on_stream(|mut program| {
        async move {
            while let Some(Input::Stdin(bytes)) = program.input.recv().await {
                let _ = program.output.send(Output::Stdout(bytes)).await;
            }
            StreamEnd::ExitCode(7)
        }
        .boxed()
    });
    let request = StreamRequest { container: "shell".into(), command: Some(vec![]), tty: false, stdin: true };
    let mut streams = cluster.stream(&pod_ref(None), &request).await.expect("running");
    streams.input.send(Input::Stdin("hi".into())).await.expect("taken");
    assert!(matches!(streams.output.recv().await, Some(Output::Stdout(bytes)) if bytes == "hi"));
    streams.input.send(Input::CloseStdin).await.expect("taken");
    assert!(matches!(streams.output.recv().await, Some(Output::End(StreamEnd::ExitCode(7)))));
    assert!(streams.output.recv().await.is_none());

    let mut streams = cluster.stream(&pod_ref(None), &request).await.expect("running");
    cluster.break_streams();
    assert!(matches!(streams.output.recv().await, Some(Output::End(StreamEnd::Lost(_)))));
    let mut streams = cluster.stream(&pod_ref(None), &request).await.expect("running");
    cluster.remove_pod("ns", "p");
    assert!(matches!(streams.output.recv().await, Some(Output::End(StreamEnd::Lost(_)))));
}
