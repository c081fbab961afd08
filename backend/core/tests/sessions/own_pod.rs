//! Programs with a pod of their own (mode `session`), and execs that are refused.

use crate::world::*;

#[tokio::test(start_paused = true)]
async fn a_program_with_its_own_pod_loses_no_output_and_leaves_no_pod() {
    let world = World::session_mode().await;
    playing_until(&world, "Error", 3, StreamEnd::Success, true);
    let mut session = world.open(&exec("x"));
    let all = session.all().await;
    assert_eq!((all.stdout.as_slice(), all.exit), (&b"first output"[..], Some(End::Code(3))));
    assert_eq!(session.report().await.kind, "exit");
    world.settled().await;
    gone(&world.cluster).await;
}

#[tokio::test(start_paused = true)]
async fn its_last_words_are_its_end_though_its_container_lingers() {
    let world = World::session_mode().await;
    let cluster = world.cluster.clone();
    world.runs(move |mut program| {
        let cluster = cluster.clone();
        async move {
            let pod = cluster.get_pod(&program.stream.pod).await.expect("the pod");
            program.attached(&pod).await;
            program.say("all").await;
            let words = format!("\x1e{}=4!", program.argv()[4]);
            program.complain(&words).await;
            program.say(&words).await;
            std::future::pending().await
        }
        .boxed()
    });
    let began = Instant::now();
    let all = world.open(&exec("x")).all().await;
    assert_eq!((all.stdout.as_slice(), all.exit), (&b"all"[..], Some(End::Code(4))));
    assert!(began.elapsed() < Duration::from_secs(1), "the client waited for {:?}", began.elapsed());
    world.settled().await;
    gone(&world.cluster).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_without_all_output_is_told_as_that() {
    let world = World::session_mode().await;
    playing(&world, "Error", 3, StreamEnd::Success);
    let all = world.open(&exec("x")).all().await;
    assert_eq!(all.stdout.as_slice(), b"first output");
    let refusal = lost(all.exit);
    assert_eq!(refusal.reason(), Reason::StreamLost);
    assert!(refusal.message.contains("status 3") && refusal.message.contains("output was lost"), "{refusal:?}");
    world.settled().await;
    gone(&world.cluster).await;
}

#[tokio::test(start_paused = true)]
async fn in_its_own_pod_memory_and_a_broken_stream_are_told() {
    let world = World::session_mode().await;
    playing(&world, "OOMKilled", 137, StreamEnd::Success);
    let all = world.open(&exec("x")).all().await;
    assert!(
        matches!(all.exit, Some(End::Signal(signal)) if signal.name == "KILL" && signal.message.contains("memory"))
    );
    // The stream broke, and with it perhaps output: the code in the status is not the whole truth.
    gone(&world.cluster).await;
    playing(&world, "Completed", 0, StreamEnd::Lost("x".into()));
    assert_eq!(lost(world.open(&exec("x")).all().await.exit).reason(), Reason::ProgramLost);
    world.settled().await;
    gone(&world.cluster).await;
}

#[tokio::test(start_paused = true)]
async fn pod_stop_bounds_the_reading_of_an_exit_code() {
    let world = World::session_mode().await;
    let cluster = world.cluster.clone();
    world.runs(move |mut program| {
        let cluster = cluster.clone();
        async move {
            let pod = cluster.get_pod(&program.stream.pod).await.expect("the pod");
            program.attached(&pod).await;
            StreamEnd::Success
        }
        .boxed()
    });
    let began = Instant::now();
    let refusal = lost(world.open(&exec("x")).all().await.exit);
    assert_eq!(refusal.reason(), Reason::StreamLost);
    assert!(refusal.message.contains("podStop"), "{}", refusal.message);
    assert_eq!(began.elapsed().as_secs(), 60);
    world.settled().await;
    gone(&world.cluster).await;
}

#[tokio::test(start_paused = true)]
async fn in_session_mode_one_budget_bounds_the_start_and_its_end_deletes_the_pod() {
    let world = World::session_mode().await;
    // Never ready.
    world.cluster.on_create(|_| Vec::new());
    let began = Instant::now();
    let refusal = world.open(&exec("x")).all().await.refusal.expect("a refusal");
    assert_eq!((refusal.reason(), began.elapsed().as_secs()), (Reason::PodStartTimeout, 120));
    gone(&world.cluster).await;
    // Ready, but the wrapper says nothing.
    world.cluster.on_create(|pod| vec![script::ready(Duration::from_millis(10), pod)]);
    world.runs(|_| std::future::pending().boxed());
    let began = Instant::now();
    let refusal = world.open(&exec("x")).all().await.refusal.expect("a refusal");
    assert_eq!((refusal.reason(), began.elapsed().as_secs()), (Reason::CommandStartTimeout, 120));
    world.settled().await;
    gone(&world.cluster).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_takes_the_programs_pod_with_it() {
    for phase in ["starting", "running"] {
        let world = World::session_mode().await;
        if phase == "starting" {
            world.cluster.on_create(|_| Vec::new());
        }
        world.runs_on("");
        let mut session = world.open(&exec("x"));
        if phase == "starting" {
            while world.cluster.pods().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } else {
            session.started().await;
        }
        let Session { from, task, .. } = session;
        drop(from);
        timeout(PATIENCE, task).await.expect("in time").expect("no panic");
        world.settled().await;
        gone(&world.cluster).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_without_shell_has_its_pod_made_again() {
    let world = World::session_mode().await;
    world.cluster.on_create(|pod| {
        let command = pod.spec.as_ref().and_then(|spec| spec.containers[0].command.clone()).unwrap_or_default();
        if command.first().map(String::as_str) == Some("/bin/sh") {
            let mut status = script::ended("shell", "StartError", 128);
            let terminated = status.container_statuses.as_mut().expect("one")[0].state.as_mut().expect("a state");
            terminated.terminated.as_mut().expect("ended").message =
                Some("exec: \"/bin/sh\": stat /bin/sh: no such file or directory: unknown".into());
            vec![script::becomes(Duration::from_millis(10), status)]
        } else {
            assert_eq!(command, ["/bin/bash"]);
            vec![script::ready(Duration::from_millis(10), pod)]
        }
    });
    let cluster = world.cluster.clone();
    world.runs(move |program| {
        let cluster = cluster.clone();
        async move {
            program.say("bare").await;
            container_ends(&cluster, &program.stream.pod, "Completed", 0);
            StreamEnd::Success
        }
        .boxed()
    });
    let all = world.open(&shell()).all().await;
    assert_eq!((all.stdout.as_slice(), all.exit), (&b"bare"[..], Some(End::Code(0))), "{:?}", all.refusal);
    assert!(all.started.expect("started").warning.contains("no /bin/sh"));
    world.settled().await;
    gone(&world.cluster).await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_connections_handle_starts_no_pod() {
    let world = World::session_mode().await;
    let leases = Leases::new(Arc::new(world.cluster.clone()), Ownership::new(NS));
    let until = Instant::now() + PATIENCE;
    leases.revoke(world.contents.connection, &Closing::ByCaller("frontend".into()), until).await.expect("revoked");
    let refusal = world.open(&exec("x")).all().await.refusal.expect("a refusal");
    assert_eq!((refusal.reason(), refusal.message.as_str()), (Reason::Terminated, "the connection was closed"));
    assert_eq!(world.cluster.count(Call::CreatePod), 0);
}

#[tokio::test(start_paused = true)]
async fn an_exec_that_the_api_refuses_is_told() {
    let world = World::connection().await;
    for (error, reason) in [
        (ClusterError::Forbidden { message: "no".into() }, Reason::BackendNotAllowed),
        (ClusterError::Invalid { message: "container not found".into() }, Reason::ContainerFailed),
        (ClusterError::Unavailable { message: "x".into(), retry_after: None }, Reason::KubernetesUnavailable),
    ] {
        world.cluster.fault(Call::Stream, Fault::Fail(error));
        assert_eq!(world.open(&shell()).all().await.refusal.expect("a refusal").reason(), reason);
    }
}
