//! Images with containerssh-agent, and such as lack it.

use crate::world::*;

/// A connection whose image carries containerssh-agent; the execs of it are told.
async fn with_agent() -> (World, mpsc::UnboundedReceiver<Vec<String>>) {
    let mut world = World::connection().await;
    world.contents.agent = Some(AGENT.to_owned());
    let (tell, told) = mpsc::unbounded_channel();
    let waiting = Arc::new(tokio::sync::Notify::new());
    world.runs(move |mut program| {
        let (tell, waiting) = (tell.clone(), Arc::clone(&waiting));
        async move {
            let argv = program.argv();
            if argv[1] == "attach" {
                return other_agent(&program).await;
            }
            let _ = tell.send(argv.clone());
            if argv[0] == AGENT {
                waiting.notify_one();
                program.say("\u{1}\0\0\0").await;
                return if argv.contains(&"USR1".to_owned()) { StreamEnd::ExitCode(3) } else { StreamEnd::Success };
            }
            program.wrapper().await;
            assert_eq!(argv[argv.len() - 6..][..4], [AGENT, "console", "--pid", "--"].map(str::to_owned), "{argv:?}");
            program.say("\u{a}\u{b}").await;
            program.say("\0\0out").await;
            waiting.notified().await;
            StreamEnd::ExitCode(143)
        }
        .boxed()
    });
    (world, told)
}

#[tokio::test(start_paused = true)]
async fn containerssh_agent_tells_its_pid_and_takes_signals() {
    let (world, mut told) = with_agent().await;
    let mut session = world.open(&argv(&["/p", "x"]));
    let started = session.started().await;
    assert_eq!(
        (started.durable, started.agent_level(), started.warning.as_str()),
        (false, v1::AgentLevel::Containerssh, "")
    );
    told.recv().await.expect("the program");
    session.send(Frame::Signal(v1::Signal { id: 1, name: "WINCH".into(), deadline: None })).await;
    session.send(Frame::Signal(v1::Signal { id: 2, name: "TERM".into(), deadline: None })).await;
    let mut answers = Vec::new();
    let mut exit = None;
    while let Some(item) = session.next().await {
        match item.expect("no refusal") {
            Back::Answer(answer) => answers.push((answer.id, answer.refusal.map(|refusal| refusal.reason()))),
            Back::Data(data) => assert_eq!(data.data, &b"out"[..]),
            Back::Exit(told) => exit = told.end,
            _ => {}
        }
    }
    assert_eq!(answers, [(1, Some(Reason::SignalNotDelivered)), (2, None)]);
    assert_eq!(exit, Some(End::Code(143)));
    let signal = [AGENT, "console", "--pid", "--", AGENT, "signal", "--pid", "2826", "--signal", "TERM"];
    assert_eq!(told.recv().await.expect("the signal"), signal.map(str::to_owned));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_exist_refuses_its_signal() {
    let (world, mut told) = with_agent().await;
    let mut session = world.open(&argv(&["/p", "x"]));
    session.started().await;
    told.recv().await.expect("the program");
    session.send(Frame::Signal(v1::Signal { id: 1, name: "USR1".into(), deadline: None })).await;
    let refusal = loop {
        match session.frame().await {
            Back::Answer(answer) => break answer.refusal.expect("the agent said 3"),
            Back::Exit(exit) => panic!("{exit:?}"),
            _ => {}
        }
    };
    assert_eq!(refusal.reason(), Reason::SignalNotDelivered);
    assert!(refusal.message.contains("(3)"), "{refusal:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_has_its_program_killed_where_an_agent_can() {
    let (world, mut told) = with_agent().await;
    let mut session = world.open(&argv(&["/p", "x"]));
    session.started().await;
    told.recv().await.expect("the program");
    drop(session.from);
    drop(session.client);
    let signal = timeout(PATIENCE, told.recv()).await.expect("in time").expect("the signal");
    assert_eq!(signal.last().map(String::as_str), Some("KILL"));
    world.settled().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_without_the_agent_is_told_what_to_do() {
    let mut world = World::connection().await;
    world.contents.agent = Some(AGENT.to_owned());
    world.runs(|program| {
        async move {
            let message = format!("exec: \"{AGENT}\": stat {AGENT}: no such file or directory: unknown");
            let Some("attach") = program.argv().get(1).map(String::as_str) else { panic!("started all the same") };
            StreamEnd::Failed { reason: "InternalError".into(), message }
        }
        .boxed()
    });
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::AgentMissing);
    for todo in [AGENT, "add it to the image", "disableAgent", "agentInjection"] {
        assert!(refusal.message.contains(todo), "{refusal:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn in_session_mode_the_pod_of_an_image_without_the_agent_is_deleted() {
    let mut world = World::session_mode().await;
    world.contents.agent = Some(AGENT.to_owned());
    world.cluster.on_create(|_| {
        let words = format!("exec: \"{AGENT}\": stat {AGENT}: no such file or directory: unknown");
        vec![script::becomes(Duration::from_secs(1), script::waiting("shell", "RunContainerError", &words))]
    });
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::AgentMissing, "{refusal:?}");
    gone(&world.cluster).await;
}

/// Whether and how often the script that ends left programs was run.
fn left_programs_ended(world: &World) -> mpsc::UnboundedReceiver<Vec<String>> {
    let (tell, told) = mpsc::unbounded_channel();
    world.runs(move |mut program| {
        let tell = tell.clone();
        async move {
            if program.argv().get(3).map(String::as_str) == Some("podbay-end") {
                let _ = tell.send(program.argv());
                return StreamEnd::Success;
            }
            program.wrapper().await;
            program.stdin().await;
            std::future::pending().await
        }
        .boxed()
    });
    told
}

#[tokio::test(start_paused = true)]
async fn without_an_agent_a_program_that_is_left_is_ended_where_the_pod_stays() {
    for stays in [true, false] {
        let mut world = World::connection().await;
        world.contents.stays = stays;
        let leases = Leases::new(Arc::new(world.cluster.clone()), Ownership::new(NS));
        leases.renew(world.contents.owner, "frontend", Instant::now() + PATIENCE).await.expect("a lease");
        let mut told = left_programs_ended(&world);
        let mut session = world.open(&shell());
        session.started().await;
        drop(session);
        assert_eq!(timeout(Duration::from_secs(30), told.recv()).await.is_ok(), stays);
        // A stream that broke leaves it as well: nobody can come back to it.
        let mut session = world.open(&shell());
        session.started().await;
        world.cluster.break_streams();
        session.all_after_start().await;
        assert_eq!(timeout(Duration::from_secs(30), told.recv()).await.is_ok(), stays);
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_connections_handle_starts_no_program_in_a_pod_that_stays() {
    let mut world = World::connection().await;
    world.contents.stays = true;
    let leases = Leases::new(Arc::new(world.cluster.clone()), Ownership::new(NS));
    let deadline = Instant::now() + PATIENCE;
    leases.renew(world.contents.owner, "frontend", deadline).await.expect("a lease");
    let closed = Closing::ByCaller("frontend".to_owned());
    leases.revoke(world.contents.connection, &closed, deadline).await.expect("marked");
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::Terminated, "{refusal:?}");
    assert_eq!(world.cluster.count(Call::Stream), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_shell_the_agent_runs_bare_and_waits_in_its_own_pod() {
    for mode in ["connection", "session"] {
        let mut world = if mode == "session" { World::session_mode().await } else { World::connection().await };
        world.contents.agent = Some(AGENT.to_owned());
        let cluster = world.cluster.clone();
        world.runs(move |mut program| {
            let cluster = cluster.clone();
            async move {
                let own = || cluster.pods()[0].spec.as_ref()?.containers[0].command.clone();
                let argv = program.stream.request.command.clone().or_else(own).expect("a command");
                if argv[0] != AGENT {
                    let message = "exec: \"/bin/sh\": stat /bin/sh: no such file or directory".to_owned();
                    return StreamEnd::Failed { reason: "InternalError".into(), message };
                }
                if argv[1] == "attach" {
                    return other_agent(&program).await;
                }
                if argv.contains(&"--wait".to_owned()) {
                    assert_eq!(program.stream.input.recv().await, Some(Input::Stdin("\0".into())));
                } else {
                    assert!(argv.windows(2).any(|pair| pair == ["--env", "A=1"]), "{argv:?}");
                }
                program.say("\u{1}\0\0\0first").await;
                if argv.contains(&"--wait".to_owned()) {
                    // A container's own program ends with its container.
                    for pod in cluster.pods() {
                        let name = pod.metadata.name.unwrap_or_default();
                        container_ends(&cluster, &PodRef { namespace: NS.into(), name, uid: None }, "Completed", 0);
                    }
                }
                StreamEnd::Success
            }
            .boxed()
        });
        // The second one knows the image: in mode session the program is then its container's own.
        for _ in 0..2 {
            let all = world.open(&argv(&["/p"])).all().await;
            assert_eq!(
                (all.stdout.as_slice(), all.exit),
                (&b"first"[..], Some(End::Code(0))),
                "{mode} {:?}",
                all.refusal
            );
            assert!(all.started.expect("started").warning.contains("no /bin/sh"));
            if mode == "session" {
                gone(&world.cluster).await;
            }
        }
    }
}
