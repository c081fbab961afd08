//! What else may stand at the agent's path, and agents that misbehave.

use crate::world::*;

/// What stands at the agent's path, by how often it was executed.
async fn instead(
    what: impl Fn(usize, Program) -> futures::future::BoxFuture<'static, StreamEnd> + Send + Sync + 'static,
) -> (World, Arc<AtomicUsize>) {
    let times = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&times);
    let world = World::new(move |program| what(counts.fetch_add(1, Ordering::Relaxed), program)).await;
    (world, times)
}

async fn refused(world: &World) -> (Refusal, Duration) {
    let all = world.open(&shell(1)).all().await;
    (all.refusal.unwrap_or_else(|| panic!("not refused: {:?}", all.exit)), all.took)
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_hangs_is_named_when_the_time_is_over() {
    let (world, _) = instead(|_, _| std::future::pending().boxed()).await;
    let (refusal, took) = refused(&world).await;
    assert_eq!((refusal.reason(), took), (Reason::CommandStartTimeout, world.contents.timeouts.command_start));
    assert!(
        refusal.message.contains("commandStart") && refusal.message.contains("agent can't be reached"),
        "{refusal:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_floods_is_held_to_the_same_time() {
    let (world, _) = instead(|_, program| {
        async move {
            loop {
                for junk in [Output::Stderr(vec![b'x'; 32 * 1024].into()), Output::Stdout(vec![b'y'; 32 * 1024].into())]
                {
                    if program.output.send(junk).await.is_err() {
                        return StreamEnd::Success;
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        .boxed()
    })
    .await;
    let (refusal, took) = refused(&world).await;
    assert_eq!((refusal.reason(), took), (Reason::CommandStartTimeout, world.contents.timeouts.command_start));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_at_once_again_and_again_is_told_as_one_that_does_not_run() {
    let (world, times) = instead(|_, program| {
        async move {
            let _ = program.output.send(Output::Stderr("Segmentation fault\n".into())).await;
            StreamEnd::ExitCode(139)
        }
        .boxed()
    })
    .await;
    let (refusal, took) = refused(&world).await;
    assert_eq!(refusal.reason(), Reason::AgentMissing);
    assert!(refusal.message.contains("Segmentation fault") && refusal.message.contains(AGENT), "{refusal:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    let tries = times.load(Ordering::Relaxed);
    assert!((2..10).contains(&tries), "{tries}");
    // Nothing is concluded for the image: the next start tries anew.
    refused(&world).await;
    assert_eq!(times.load(Ordering::Relaxed), 2 * tries);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_break_the_protocol_cost_a_link_and_no_program() {
    let agent = Agent::new(1);
    let runs = agent.clone();
    // The second half of each exec's life is junk: of a frame, behind the true hello.
    let (world, times) = instead(move |n, program| {
        let (agent, output) = (runs.clone(), program.output.clone());
        let serve = agent.attach(program);
        async move {
            if n > 0 {
                return serve.await;
            }
            let junk = async {
                sleep(Duration::from_secs(1)).await;
                let _ = output.send(Output::Stdout(vec![0xff; 4096].into())).await;
                std::future::pending::<StreamEnd>().await
            };
            tokio::select! { end = serve => end, end = junk => end }
        }
        .boxed()
    })
    .await;
    let session = world.running(1).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(times.load(Ordering::Relaxed), 2, "another link");
    agent.says(0, "whole");
    agent.exits(0, Exit::Code(9));
    let all = session.all().await;
    assert_eq!((&all.exit, &all.stdout[..]), (&Some(End::Code(9)), &b"whole"[..]));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_falls_silent_costs_its_link_and_no_program() {
    let agent = Agent::new(1);
    let runs = agent.clone();
    let (world, times) = instead(move |n, program| {
        let (agent, serves) = (runs.clone(), n > 0);
        async move {
            let serve = agent.attach(program);
            if serves {
                return serve.await;
            }
            let _ = timeout(Duration::from_secs(2), serve).await;
            std::future::pending().await
        }
        .boxed()
    })
    .await;
    let session = world.running(1).await;
    // Pings every 5 s, 15 s of silence.
    sleep(Duration::from_secs(30)).await;
    assert_eq!(times.load(Ordering::Relaxed), 2, "another link");
    agent.exits(0, Exit::Code(9));
    assert_eq!(session.all().await.exit, Some(End::Code(9)));
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_died_takes_its_programs_along_and_that_is_said() {
    let (first, second) = (Agent::new(1), Agent::new(2));
    let (world, _) =
        instead(move |n, program| if n == 0 { first.attach(program) } else { second.attach(program) }).await;
    let sessions = [world.running(1).await, world.running(2).await];
    world.cluster.break_streams();
    for session in sessions {
        let all = session.all().await;
        assert_eq!(lost(&all).0, Reason::ProgramLost, "never a code");
    }
}

#[tokio::test(start_paused = true)]
async fn what_containerssh_agent_can_not_do_is_refused_by_name() {
    let world = World::new(|program| {
        async move {
            let _ = program.output.send(Output::Stderr("Error: unknown mode: attach".into())).await;
            StreamEnd::ExitCode(1)
        }
        .boxed()
    })
    .await;
    let session = SessionId::from_bytes([1; 16]);
    // Twice: by the first answer, and by what is known from it.
    for _ in 0..2 {
        let detached = world.sessions.detach(&world.contents, session, None).await.map(drop);
        let acked = world.sessions.ack_exit(&world.contents, session).await;
        let collected = world.sessions.collect_exit(&world.contents, session, Duration::ZERO).await.map(drop);
        for result in [detached, acked, collected] {
            let refusal = result.expect_err("impossible there");
            assert_eq!(refusal.reason(), Reason::Unimplemented, "{refusal:?}");
            assert!(refusal.message.contains("containerssh-agent"), "{refusal:?}");
        }
    }
}
