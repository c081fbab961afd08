//! How the ends of programs are told.

use crate::world::*;

#[tokio::test(start_paused = true)]
async fn a_deleted_pods_programs_say_so() {
    let (world, agent) = World::with_agent().await;
    let (first, second) = (world.running(1).await, world.running(2).await);
    world.is_deleted();
    agent.stops();
    assert_eq!(agent.signals(), [(0, "HUP".to_owned()), (1, "HUP".to_owned())]);
    agent.says(1, "bye");
    agent.exits(0, killed("HUP"));
    agent.exits(1, Exit::Code(3));
    let (first, second) = (first.all().await, second.all().await);
    assert_eq!(lost(&first), (Reason::PodGone, "the pod was deleted"));
    // What ends by its own word is its own; the user learns why all the same.
    assert_eq!((&second.exit, &second.stdout[..]), (&Some(End::Code(3)), &b"bye"[..]));
    assert_eq!(second.notices, ["the pod was deleted"]);
    assert!(first.took < SOON && second.took < SOON);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_something_else_killed_is_that_signals() {
    let (world, agent) = World::with_agent().await;
    let session = world.running(1).await;
    agent.exits(0, killed("KILL"));
    let all = session.all().await;
    assert!(matches!(&all.exit, Some(End::Signal(signal)) if signal.name == "KILL" && signal.message.is_empty()));
    assert_eq!(all.took, Duration::ZERO, "nothing is waited for");
    // A container that is stopped for reasons that the pod does not tell (a probe, somebody in the pod).
    let session = world.running(2).await;
    agent.stops();
    agent.exits(1, killed("HUP"));
    let all = session.all().await;
    let told = matches!(&all.exit, Some(End::Signal(signal)) if signal.message == "the container was stopped");
    assert!(told && all.took < Duration::from_secs(11), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn what_took_the_container_away_is_told_when_the_kubelet_tells_it() {
    let evicted = PodStatus {
        reason: Some("Evicted".into()),
        message: Some("The node was low on resource: memory.".into()),
        ..script::status("Failed")
    };
    let cases: [(PodStatus, Reason, &str); 3] = [
        (evicted, Reason::PodGone, "the pod was evicted: The node was low on resource: memory."),
        (script::ended("shell", "Error", 137), Reason::ProgramLost, "the pod's container ended"),
        (script::ended("shell", "OOMKilled", 137), Reason::Unspecified, "out of memory"),
    ];
    for (status, reason, words) in cases {
        let (world, _agent) = World::with_agent().await;
        let sessions = [world.running(1).await, world.running(2).await];
        // The processes first; the status later.
        world.cluster.on_stream(|_| async { StreamEnd::Lost("the container is gone".into()) }.boxed());
        world.cluster.break_streams();
        sleep(Duration::from_millis(1500)).await;
        world.changes(|pod| pod.status = Some(status));
        for session in sessions {
            let all = session.all().await;
            match &all.exit {
                Some(End::Lost(refusal)) => {
                    assert_eq!(refusal.reason(), reason);
                    assert!(refusal.message.contains(words), "{refusal:?}");
                }
                Some(End::Signal(signal)) => assert!(reason == Reason::Unspecified && signal.message.contains(words)),
                other => panic!("{other:?}"),
            }
            assert!(all.took < Duration::from_secs(10), "{all:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_signal_to_a_program_that_just_ended_is_answered() {
    let (world, agent) = World::with_agent().await;
    let mut session = world.running(1).await;
    // Something in the background has its outputs still, so that the exit is not told yet.
    agent.exits_but_for_outputs(0, Exit::Code(2));
    session.send(Frame::Signal(v1::Signal { id: 1, name: "TERM".into(), deadline: None })).await;
    let answer = loop {
        match session.frame().await.expect("no refusal") {
            Back::Answer(answer) => break answer,
            Back::Exit(exit) => panic!("{exit:?}"),
            _ => {}
        }
    };
    assert_eq!((answer.id, answer.refusal.map(|refusal| refusal.reason())), (1, Some(Reason::SignalNotDelivered)));
    assert_eq!(agent.signals(), []);
    agent.closes_outputs(0);
    assert_eq!(session.all().await.exit, Some(End::Code(2)));
}
