//! Programs in real shells, on real terminals, and in pods of their own: what arrives, and how their ends are told.

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn outputs_codes_and_environment() {
    let world = World::demo().await;
    let handle = world.connect(1).await.handle;
    let all = world.run(&handle, &exec("echo out; echo err >&2; exit 7"), b"").await;
    assert_eq!((all.text().as_str(), all.stderr.as_slice(), all.exit), ("out\n", &b"err\n"[..], Some(End::Code(7))));
    assert_eq!(all.warning, "");
    for (command, code) in [("true", 0), ("exit 1", 1), ("exit 255", 255), ("kill -9 $$", 137), ("/nonexistent", 127)] {
        assert_eq!(world.run(&handle, &exec(command), b"").await.exit, Some(End::Code(code)), "{command}");
    }
    let mut open = exec("echo \"$A\"; printf %s \"$BIG\" | wc -c");
    let hostile = "a'b\"c$(id)`id`\n\\é";
    open.environment = [("A".to_owned(), hostile.to_owned())].into();
    assert_eq!(world.run(&handle, &open, b"").await.text(), format!("{hostile}\n0\n"));
    open.environment.insert("BIG".into(), "y".repeat(60_000));
    assert_eq!(world.run(&handle, &open, b"").await.text(), format!("{hostile}\n60000\n"));
    let all = world.run(&handle, &argv(&["printf", "%s|", "a b", "$A", "*"]), b"").await;
    assert_eq!(all.text(), "a b|$A|*|");
    world.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_its_size_at_once_and_later_ones_too() {
    let world = World::demo().await;
    let handle = world.connect(1).await.handle;
    let all =
        world.run(&handle, &on_terminal(exec("stty size; echo $TERM; test -t 0 && echo tty"), 101, 33), b"").await;
    assert_eq!(all.text(), "33 101\r\nxterm-256color\r\ntty\r\n");
    let script = "trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut session = world.open(&handle, &on_terminal(exec(script), 80, 24));
    session.started().await;
    let mut seen = Vec::new();
    session.until(&mut seen, "ready\r\n").await;
    let size = Some(v1::WindowSize { columns: 132, rows: 50, ..v1::WindowSize::default() });
    session.send(Frame::Resize(v1::Resize { id: 1, size, deadline: None })).await;
    session.until(&mut seen, "50 132\r\n").await;
    drop(session);
    // The end of a client's input ends the program's, whether a line is begun or not, and cuts nothing.
    for cut in [false, true] {
        let fault = world.minicluster.faults().add(Fault::Real { what: Real::CriTtyEofCut, on: cut });
        for (typed, wanted) in [("x\n", "x\r\nx\r\nend\r\n"), ("", "end\r\n"), ("y", "yyend\r\n")] {
            let open = on_terminal(exec("cat; sleep 0.2; echo end; exit 3"), 80, 24);
            let all = world.run(&handle, &open, typed.as_bytes()).await;
            assert_eq!((all.text().as_str(), all.exit), (wanted, Some(End::Code(3))), "{cut} {typed:?}");
        }
        world.minicluster.faults().clear(fault);
    }
    // ^C ends the program, and its status is told.
    let mut session = world.open(&handle, &on_terminal(exec("echo ready; exec sleep 60"), 80, 24));
    session.started().await;
    let mut seen = Vec::new();
    session.until(&mut seen, "ready\r\n").await;
    let data = v1::Data { stream: Stream::Stdin.into(), offset: 0, data: "\u{3}".into() };
    session.send(Frame::Data(data)).await;
    assert_eq!(timeout(PATIENCE, session.rest()).await.expect("in time"), Some(End::Code(130)));
    world.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_shell_runs_what_it_has() {
    let pod = "idleCommand: [/bin/sleep, '1000'], spec: {containers: [{name: shell, image: 'podbay/noshell:1'}]}";
    let world = World::new(pod).await;
    let handle = world.connect(1).await.handle;
    let all = world.run(&handle, &argv(&["/bin/cat"]), b"hello").await;
    assert_eq!((all.text().as_str(), all.exit), ("hello", Some(End::Code(0))));
    assert!(all.warning.contains("no /bin/sh"), "{}", all.warning);
    let all = world.run(&handle, &argv(&["/bin/false"]), b"").await;
    assert_eq!(all.exit, Some(End::Code(1)));
    assert_eq!(world.run(&handle, &argv(&["/bin/nosuch"]), b"").await.lost(), Reason::CommandNotStarted);
    let refusal = world.run(&handle, &exec("echo hi"), b"").await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::CommandNotStarted);
    world.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_streams_and_gone_pods_are_told() {
    let world = World::demo().await;
    let opened = world.connect(1).await;
    for how in [Break::Cut, Break::NoStatus] {
        let mut session = world.open(&opened.handle, &exec("echo ready; sleep 60"));
        session.started().await;
        session.until(&mut Vec::new(), "ready").await;
        world.minicluster.faults().act(Action::BreakStreams { how }).await;
        let Some(End::Lost(refusal)) = session.rest().await else { panic!("not lost") };
        assert_eq!(refusal.reason(), Reason::StreamLost);
    }
    let mut session = world.open(&opened.handle, &exec("echo ready; sleep 60"));
    session.started().await;
    session.until(&mut Vec::new(), "ready").await;
    let pod = PodRef { namespace: opened.pod_namespace, name: opened.pod_name, uid: None };
    world.cluster.delete_pod(&pod, Some(Duration::ZERO)).await.expect("deleted");
    // A Status with 137, or none: never 0, and not for long.
    let end = timeout(PATIENCE, session.rest()).await.expect("in time");
    assert!(!matches!(end, None | Some(End::Code(0))), "{end:?}");
    world.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_with_pods_of_their_own_lose_no_output_and_leave_nothing() {
    let world = World::new("mode: session, spec: {containers: [{name: shell, image: 'podbay/demo:1'}]}").await;
    let handle = world.connect(1).await.handle;
    let all = world.run(&handle, &exec("echo first; echo $$ '$(HOME)' >&2; exit 4"), b"").await;
    assert_eq!((all.text().as_str(), all.exit.clone()), ("first\n", Some(End::Code(4))), "{all:?}");
    let stderr = String::from_utf8(all.stderr).expect("text");
    assert!(stderr.trim_end().ends_with(" $(HOME)") && stderr.starts_with(|c: char| c.is_ascii_digit()), "{stderr}");
    let all = world.run(&handle, &on_terminal(exec("stty size; echo $TERM"), 90, 20), b"").await;
    assert!(all.text().starts_with("20 90\r\nxterm"), "{all:?}");
    // A client that leaves takes the pod with it.
    let mut session = world.open(&handle, &exec("sleep 1000"));
    session.started().await;
    assert_eq!(world.minicluster.pods().iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count(), 1);
    drop(session);
    world.no_pods().await;
    world.end(1).await;
}

/// docs/compatibility.md, "The image's ENTRYPOINT and CMD".
#[tokio::test(flavor = "multi_thread")]
async fn an_images_entrypoint_runs_where_a_shell_is_the_images_own_command_and_nowhere_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let ran = dir.path().join("ran");
    // It tells that it ran on the way that can't be lost: what a bare program says before the attach can be.
    let script = format!("echo \"$0 $*\" >> {}; read line; echo \"read $line\"; exit 6", ran.display());
    let image = Image {
        entrypoint: ["/bin/sh", "-c", &script, "entrypoint"].map(str::to_owned).to_vec(),
        ..Image::host().with_cmd(["cmd", "of image"])
    };
    let shell = || with(open::Program::Shell(v1::Shell {}));
    let own = ("read echo sh; exit 5\n", 6);
    for (mode, pod, container, open, entrypoint, (stdout, code)) in [
        ("session", "shellCommand: []", "", shell(), Some("entrypoint cmd of image\n"), own),
        // `args` take CMD's place; a `command` of the container's own is dropped.
        ("session", "shellCommand: []", "args: [args]", shell(), Some("entrypoint args\n"), own),
        ("session", "shellCommand: []", "command: [/bin/sh]", shell(), Some("entrypoint cmd of image\n"), own),
        ("session", "shellCommand: [/bin/sh]", "", shell(), None, ("sh\n", 5)),
        ("session", "shellCommand: []", "", exec("echo exec; exit 4"), None, ("exec\n", 4)),
        ("connection", "shellCommand: [/bin/sh]", "", shell(), None, ("sh\n", 5)),
        ("connection", "shellCommand: [/bin/sh]", "", exec("echo exec; exit 4"), None, ("exec\n", 4)),
    ] {
        let case = format!("mode {mode}, {pod}, {container}");
        let spec = format!("{{containers: [{{name: shell, image: 'entry:1', {container}}}]}}");
        let pod = format!("mode: {mode}, {pod}, spec: {spec}");
        let world = World::with_images(&pod, [("entry:1", image.clone())]).await;
        let handle = world.connect(1).await.handle;
        let all = world.run(&handle, &open, b"echo sh; exit 5\n").await;
        assert_eq!((all.text().as_str(), all.exit.clone()), (stdout, Some(End::Code(code))), "{case}: {all:?}");
        assert_eq!(std::fs::read_to_string(&ran).ok().as_deref(), entrypoint, "{case}");
        let _ = std::fs::remove_file(&ran);
        world.end(1).await;
    }
}
