//! Starts, outputs and codes, with the wrapper and without.

use crate::world::*;

#[tokio::test(start_paused = true)]
async fn a_program_runs_and_its_outputs_and_code_arrive() {
    let world = World::connection().await;
    world.runs(|mut program| {
        async move {
            let argv = program.argv();
            assert_eq!(argv[argv.len() - 4..], ["--", "/bin/sh", "-c", "cat; exit 7"]);
            assert!(argv.contains(&"A=1".to_owned()), "{argv:?}");
            program.complain("early").await;
            program.wrapper().await;
            let stdin = program.stdin().await;
            program.say(std::str::from_utf8(&stdin).expect("text")).await;
            StreamEnd::ExitCode(7)
        }
        .boxed()
    });
    let mut session = world.open(&exec("cat; exit 7"));
    let started = session.started().await;
    assert_eq!((started.durable, started.stdin_credit, started.warning.as_str()), (false, MAX_CREDIT, ""));
    assert_eq!(started.pod_name, "pod");
    let data = v1::Data { stream: Stream::Stdin.into(), offset: 0, data: "hello".into() };
    session.send(Frame::Data(data)).await;
    session.send(Frame::Eof(v1::Eof { stream: Stream::Stdin.into(), offset: 5, id: 1 })).await;
    let mut all = All { started: Some(started), ..All::default() };
    while let Some(item) = session.next().await {
        match item.expect("no refusal") {
            Back::Data(data) if data.stream() == Stream::Stderr => all.stderr.extend_from_slice(&data.data),
            Back::Data(data) => all.stdout.extend_from_slice(&data.data),
            Back::Ack(ack) => assert_eq!(ack.offset, 5),
            Back::Eof(eof) => all.eofs.push((eof.stream(), eof.offset)),
            Back::Exit(exit) => all.exit = exit.end,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((all.stdout.as_slice(), all.stderr.as_slice()), (&b"hello"[..], &b"early"[..]));
    assert_eq!(all.eofs, [(Stream::Stdout, 5), (Stream::Stderr, 5)]);
    assert_eq!(all.exit, Some(End::Code(7)));
    assert_eq!(session.report().await, Report { kind: "exit", refusal: None, bytes: [5, 5, 5] });
}

#[tokio::test(start_paused = true)]
async fn a_large_environment_goes_by_the_preamble_and_its_echo_stays_unseen() {
    let world = World::connection().await;
    world.runs(|mut program| {
        async move {
            let nonce = program.argv()[4].clone();
            assert!(!program.argv().iter().any(|argument| argument.contains("xxxx")), "nothing long in the URL");
            program.say(&format!("{nonce}+")).await;
            let preamble = program.preamble().await;
            assert!(preamble.contains("+BIG=xxxx") && preamble.contains("+/bin/bash\na\n"), "{preamble:.200}");
            program.say("^echo^").await;
            program.say(&nonce[..10]).await;
            program.say(&format!("{}.out", &nonce[10..])).await;
            StreamEnd::ExitCode(ZERO)
        }
        .boxed()
    });
    let mut open = shell();
    open.environment.insert("BIG".into(), "x".repeat(60_000));
    let all = world.open(&open).all().await;
    assert_eq!((all.stdout.as_slice(), all.exit), (&b"out"[..], Some(End::Code(0))));
}

#[tokio::test(start_paused = true)]
async fn a_success_that_the_wrapper_has_not_told_is_lost() {
    let world = World::connection().await;
    world.runs(|program| {
        async move {
            let nonce = program.argv()[4].clone();
            program.say(&format!("{nonce}.out")).await;
            // What an API server makes of a kubelet's death.
            StreamEnd::Success
        }
        .boxed()
    });
    let all = world.open(&shell()).all().await;
    assert_eq!(all.stdout, b"out");
    let Some(End::Lost(refusal)) = all.exit else { panic!("not lost: {:?}", all.exit) };
    assert_eq!(refusal.reason(), Reason::StreamLost);
}

#[tokio::test(start_paused = true)]
async fn what_the_wrapper_has_told_counts_however_the_stream_ends() {
    for end in [StreamEnd::Success, StreamEnd::Lost("reset".into()), StreamEnd::ExitCode(7)] {
        let world = World::connection().await;
        let how = end.clone();
        world.runs(move |program| {
            let how = how.clone();
            async move {
                let nonce = program.argv()[4].clone();
                program.say(&format!("{nonce}.out")).await;
                program.complain(&format!("err\u{1e}{nonce}=7;")).await;
                program.say(&format!("put\u{1e}{}", &nonce[..9])).await;
                program.say(&format!("{}=7;", &nonce[9..])).await;
                how
            }
            .boxed()
        });
        let all = world.open(&shell()).all().await;
        assert_eq!((all.stdout.as_slice(), all.stderr.as_slice()), (&b"output"[..], &b"err"[..]), "{end:?}");
        assert_eq!(all.exit, Some(End::Code(7)), "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_before_the_wrapper_spoke_is_a_broken_stream_and_not_an_image_without_shell() {
    let world = World::connection().await;
    world.runs(|_| std::future::ready(StreamEnd::Success).boxed());
    for calls in [1, 2] {
        let all = world.open(&exec("echo")).all().await;
        assert_eq!(all.refusal.expect("a refusal").reason(), Reason::StreamLost);
        assert_eq!(world.cluster.count(Call::Stream), calls, "nothing runs bare after it");
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_without_shell_runs_bare_with_a_warning_and_is_remembered() {
    let world = World::connection().await;
    world.runs(|program| {
        async move {
            let argv = program.argv();
            if argv[0] == "/bin/sh" {
                return StreamEnd::Failed {
                    reason: "InternalError".into(),
                    message: "exec: \"/bin/sh\": stat /bin/sh: no such file or directory: unknown".into(),
                };
            }
            assert_eq!(argv, ["/bin/bash"]);
            program.say("bare").await;
            StreamEnd::Success
        }
        .boxed()
    });
    let all = world.open(&shell()).all().await;
    assert_eq!((all.stdout.as_slice(), all.exit), (&b"bare"[..], Some(End::Code(0))));
    assert!(all.started.expect("started").warning.contains("no /bin/sh"));
    assert_eq!(world.cluster.count(Call::Stream), 2);
    world.open(&shell()).all().await;
    assert_eq!(world.cluster.count(Call::Stream), 3, "the second goes bare at once");
    let refusal = world.open(&exec("true")).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::CommandNotStarted);
    assert_eq!(world.cluster.count(Call::Stream), 3);
}
