//! Connections that an operator ended.

use crate::world::*;

const ENDED: &str = "an operator ended this connection: maintenance";

impl World {
    /// As an operator does.
    async fn terminated(&self) {
        let leases = Leases::new(Arc::new(self.cluster.clone()), Ownership::new(NS));
        let why = Closing::by_operator("maintenance").expect("a message");
        leases.revoke(self.contents.connection, &why, Instant::now() + PATIENCE).await.expect("marked");
        for pod in self.cluster.pods() {
            let pod = PodRef { namespace: NS.into(), name: pod.metadata.name.expect("a name"), uid: None };
            self.cluster.delete_pod(&pod, Some(Duration::ZERO)).await.expect("deleted");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_an_operator_ended_says_so() {
    // How its stream ends: it breaks with the pod, or tells how the kubelet ended the container.
    for end in [None, Some(StreamEnd::ExitCode(137)), Some(StreamEnd::ExitCode(143)), Some(StreamEnd::ExitCode(1))] {
        let world = World::connection().await;
        let (ends, told) = tokio::sync::watch::channel(());
        let how = end.clone();
        world.runs(move |mut program| {
            let (mut told, how) = (told.clone(), how.clone());
            async move {
                program.wrapper().await;
                match how {
                    None => std::future::pending().await,
                    Some(how) => {
                        told.changed().await.expect("told");
                        how
                    }
                }
            }
            .boxed()
        });
        let mut session = world.open(&shell());
        session.started().await;
        if end.is_none() {
            world.terminated().await;
        } else {
            let leases = Leases::new(Arc::new(world.cluster.clone()), Ownership::new(NS));
            let why = Closing::by_operator("maintenance").expect("a message");
            leases.revoke(world.contents.connection, &why, Instant::now() + PATIENCE).await.expect("marked");
            ends.send(()).expect("it waits");
        }
        let exit = session.all_after_start().await.exit;
        if end == Some(StreamEnd::ExitCode(1)) {
            assert_eq!(exit, Some(End::Code(1)), "the program's own end");
            continue;
        }
        let refusal = lost(exit);
        assert_eq!((refusal.reason(), refusal.message.as_str()), (Reason::Terminated, ENDED), "{end:?}");
        assert_eq!(refusal.connection_id, world.contents.connection.to_string());
        // And so does the next one.
        if end.is_none() {
            let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
            assert_eq!((refusal.reason(), refusal.message.as_str()), (Reason::Terminated, ENDED));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_session_mode_too() {
    let world = World::session_mode().await;
    world.runs_on("");
    let mut session = world.open(&exec("x"));
    session.started().await;
    world.terminated().await;
    let refusal = lost(session.all_after_start().await.exit);
    assert_eq!((refusal.reason(), refusal.message.as_str()), (Reason::Terminated, ENDED));
    let refusal = world.open(&exec("x")).all().await.refusal.expect("a refusal");
    assert_eq!((refusal.reason(), refusal.message.as_str()), (Reason::Terminated, ENDED));
    assert_eq!(world.cluster.count(Call::CreatePod), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_went_by_itself_is_no_operators_work() {
    let world = World::connection().await;
    world.runs_on("");
    let mut session = world.open(&shell());
    session.started().await;
    let pod = PodRef { namespace: NS.into(), name: "pod".into(), uid: None };
    // Whether it was an operator can't be asked.
    world
        .cluster
        .fault(Call::GetLease, Fault::Fail(ClusterError::Unavailable { message: "x".into(), retry_after: None }));
    world.cluster.delete_pod(&pod, Some(Duration::ZERO)).await.expect("deleted");
    assert_eq!(lost(session.all_after_start().await.exit).reason(), Reason::PodGone);
    assert_eq!(world.open(&shell()).all().await.refusal.expect("a refusal").reason(), Reason::PodGone);
}
