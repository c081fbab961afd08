//! Sessions over the in-memory cluster, in virtual time: starts, both ways of data, answers, ends, and what each deadline undoes.

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId, MAX_CREDIT, OwnerId,
    v1::{
        self, Reason, Refusal, Stream, exit::End, open, run_session_request::Frame, run_session_response::Frame as Back,
    },
};
use podbay_backend_core::{
    cluster::{Cluster as _, ClusterError, Input, Output, PodRef, StreamEnd},
    config::{Ownership, Timeouts},
    fake::{Call, FakeCluster, Fault, Program, script},
    handle::{Contents, Target},
    identity::{Identity, User},
    lifecycle::Lifecycle,
    ownership::{Closing, Leases},
    policy::Most,
    session::{Opening, Report, Sessions, Stopping},
    template,
    wrapper::ZERO,
};
use podbay_runtime::config::Document;
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const NS: &str = "ns";
const PATIENCE: Duration = Duration::from_mins(10);

struct World {
    cluster: FakeCluster,
    lifecycle: Lifecycle,
    sessions: Sessions,
    contents: Contents,
    cut: CancellationToken,
}

impl World {
    fn with(target: impl FnOnce(&FakeCluster) -> Target) -> Self {
        let cluster = FakeCluster::new();
        let lifecycle = Lifecycle::new(Arc::new(cluster.clone()), Timeouts::default(), TaskTracker::new());
        let leases = Leases::new(Arc::new(cluster.clone()), Ownership::new(NS));
        let contents = Contents {
            connection: ConnectionId::from_bytes([1; 16]),
            owner: OwnerId::from_bytes([2; 16]),
            user: User::named("alice"),
            timeouts: Timeouts::default(),
            console: "shell".into(),
            shell: vec!["/bin/bash".into()],
            subsystems: [("sftp".to_owned(), "/sftp".to_owned())].into(),
            environment: [("A".to_owned(), "1".to_owned())].into(),
            agent: None,
            security: podbay_backend_core::policy::Security::default(),
            only_shells: false,
            stays: false,
            target: target(&cluster),
        };
        let sessions = Sessions::new(lifecycle.clone(), leases);
        Self { cluster, lifecycle, sessions, contents, cut: CancellationToken::new() }
    }

    /// A connection with its pod.
    async fn connection() -> Self {
        let mut world = Self::with(|_| Target::Pod {
            namespace: NS.into(),
            name: "pod".into(),
            uid: String::new(),
            image_id: "sha256:image".into(),
        });
        let pod = world.cluster.create_pod(&script::pod(NS, "pod")).await.expect("created");
        if let Target::Pod { uid, .. } = &mut world.contents.target {
            *uid = pod.metadata.uid.expect("a uid");
        }
        world
    }

    /// A connection whose programs have their own pods.
    async fn session_mode() -> Self {
        let text = "kubernetes: {pod: {disableAgent: true, mode: session, metadata: {namespace: ns}}}";
        let document = Document::parse("f", text).expect("YAML");
        let settings = podbay_backend_core::config::Settings::read(&mut document.root());
        document.finish().expect("no mistakes");
        let who = Identity {
            connection: ConnectionId::from_bytes([1; 16]),
            owner: OwnerId::from_bytes([2; 16]),
            caller: "frontend".into(),
            user: User::named("alice"),
            remote: None,
        };
        let base = template::base_pod(&settings.expect("settings").pod, &who, &std::collections::BTreeMap::new());
        let world = Self::with(|_| Target::Template(Box::new(base)));
        let leases = Leases::new(Arc::new(world.cluster.clone()), Ownership::new(NS));
        leases.renew(who.owner, &who.caller, Instant::now() + PATIENCE).await.expect("a lease");
        world
    }

    fn runs(&self, program: impl Fn(Running) -> BoxFuture<'static, StreamEnd> + Send + Sync + 'static) {
        self.cluster.on_stream(move |stream| program(Running { stream }));
    }

    fn open(&self, open: &v1::Open) -> Session {
        let opening = Opening::parse(open, &self.contents).expect("a valid Open");
        let (client, frames) = mpsc::channel::<Result<v1::RunSessionRequest, ()>>(16);
        let (sender, from) = mpsc::channel(8);
        let (sessions, contents, cut) = (self.sessions.clone(), self.contents.clone(), self.cut.clone());
        let task = tokio::spawn(async move {
            Box::pin(sessions.run(
                &contents,
                "frontend",
                opening,
                ReceiverStream::new(frames),
                sender,
                Stopping { cut, ..Stopping::default() },
            ))
            .await
        });
        Session { client, from, task }
    }

    /// All that was begun in the background is over.
    async fn settled(&self) {
        self.lifecycle.tracker().close();
        timeout(PATIENCE, self.lifecycle.tracker().wait()).await.expect("the undoing ends");
    }
}

/// The program's side, behind the wrapper that it plays.
struct Running {
    stream: Program,
}

impl Running {
    /// Plays the wrapper's start: its argv must be ours; the mark comes with more output behind it.
    async fn wrapper(&mut self) {
        let argv = self.argv();
        assert_eq!(argv[..2], ["/bin/sh", "-c"]);
        let nonce = argv[4].clone();
        match argv[5].as_str() {
            "" => {}
            "r" => {
                self.say(&format!("{nonce}+")).await;
                self.preamble().await;
            }
            "q" => drop(self.preamble().await),
            other => panic!("{other}"),
        }
        self.say(&format!("{nonce}.")).await;
    }

    fn argv(&self) -> Vec<String> {
        self.stream.request.command.clone().expect("an exec")
    }

    /// As the container's own program, whose command stands in the pod.
    async fn attached(&mut self, pod: &Pod) {
        let command = pod.spec.as_ref().expect("a spec").containers[0].command.clone().expect("a command");
        self.stream.request.command = Some(command);
        self.wrapper().await;
    }

    async fn preamble(&mut self) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"\n.\n") && text != b".\n" {
            match self.stream.input.recv().await {
                Some(Input::Stdin(bytes)) => text.extend_from_slice(&bytes),
                other => panic!("{other:?} in the preamble"),
            }
        }
        String::from_utf8(text).expect("ASCII")
    }

    async fn say(&self, text: &str) {
        let _ = self.stream.output.send(Output::Stdout(text.to_owned().into())).await;
    }

    async fn complain(&self, text: &str) {
        let _ = self.stream.output.send(Output::Stderr(text.to_owned().into())).await;
    }

    /// Reads stdin to its end.
    async fn stdin(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(Input::Stdin(bytes)) = self.stream.input.recv().await {
            all.extend_from_slice(&bytes);
        }
        all
    }
}

fn shell() -> v1::Open {
    v1::Open {
        session_id: "ab".repeat(16),
        program: Some(open::Program::Shell(v1::Shell {})),
        stdout_credit: MAX_CREDIT,
        stderr_credit: MAX_CREDIT,
        ..v1::Open::default()
    }
}

fn exec(command: &str) -> v1::Open {
    v1::Open { program: Some(open::Program::Exec(v1::Exec { command: command.into(), argv: Vec::new() })), ..shell() }
}

fn argv(argv: &[&str]) -> v1::Open {
    let argv = argv.iter().map(ToString::to_string).collect();
    v1::Open { program: Some(open::Program::Exec(v1::Exec { command: String::new(), argv })), ..shell() }
}

fn on_terminal(open: v1::Open) -> v1::Open {
    let size = Some(v1::WindowSize { columns: 80, rows: 24, ..v1::WindowSize::default() });
    v1::Open { pty: Some(v1::Pty { term: "xterm".into(), size, modes: Vec::new() }), ..open }
}

/// The client's side.
struct Session {
    client: mpsc::Sender<Result<v1::RunSessionRequest, ()>>,
    from: mpsc::Receiver<Result<v1::RunSessionResponse, Refusal>>,
    task: JoinHandle<Report>,
}

/// What a client has read to the end.
#[derive(Debug, Default)]
struct All {
    started: Option<v1::Started>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    eofs: Vec<(Stream, u64)>,
    exit: Option<End>,
    refusal: Option<Refusal>,
}

impl Session {
    async fn send(&self, frame: Frame) {
        timeout(PATIENCE, self.client.send(Ok(v1::RunSessionRequest { frame: Some(frame) })))
            .await
            .expect("the session reads always")
            .expect("it is there");
    }

    async fn next(&mut self) -> Option<Result<Back, Refusal>> {
        let item = timeout(PATIENCE, self.from.recv()).await.expect("in time")?;
        Some(item.map(|frame| frame.frame.expect("a frame")))
    }

    async fn frame(&mut self) -> Back {
        loop {
            match self.next().await.expect("a frame").expect("no refusal") {
                Back::Progress(_) => {}
                frame => return frame,
            }
        }
    }

    async fn started(&mut self) -> v1::Started {
        match self.frame().await {
            Back::Started(started) => started,
            other => panic!("{other:?} before Started"),
        }
    }

    /// Reads all, granting credit as it goes.
    async fn all(&mut self) -> All {
        let mut all = All::default();
        while let Some(item) = self.next().await {
            match item {
                Err(refusal) => all.refusal = Some(refusal),
                Ok(Back::Started(started)) => all.started = Some(started),
                Ok(Back::Data(data)) => {
                    assert!(all.started.is_some() && all.exit.is_none());
                    let out = if data.stream() == Stream::Stderr { &mut all.stderr } else { &mut all.stdout };
                    assert_eq!(data.offset, out.len() as u64);
                    out.extend_from_slice(&data.data);
                    let limit = out.len() as u64 + MAX_CREDIT;
                    // It may have ended meanwhile.
                    let frame = Frame::Credit(v1::Credit { stream: data.stream, limit });
                    let _ = self.client.send(Ok(v1::RunSessionRequest { frame: Some(frame) })).await;
                }
                Ok(Back::Eof(eof)) => all.eofs.push((eof.stream(), eof.offset)),
                Ok(Back::Exit(exit)) => all.exit = exit.end,
                Ok(_) => {}
            }
        }
        all
    }

    /// [`Self::all`], for one whose Started was read.
    async fn all_after_start(&mut self) -> All {
        let mut all = All::default();
        while let Some(item) = self.next().await {
            match item {
                Err(refusal) => all.refusal = Some(refusal),
                Ok(Back::Exit(exit)) => all.exit = exit.end,
                Ok(_) => {}
            }
        }
        all
    }

    async fn report(self) -> Report {
        drop(self.client);
        timeout(PATIENCE, self.task).await.expect("in time").expect("no panic")
    }
}

fn lost(end: Option<End>) -> Refusal {
    match end {
        Some(End::Lost(refusal)) => refusal,
        other => panic!("not lost: {other:?}"),
    }
}

async fn gone(cluster: &FakeCluster) {
    let none = async {
        while !cluster.pods().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, none).await.expect("no pod is left");
}

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

#[tokio::test(start_paused = true)]
async fn signals_and_resizes_are_answered_while_neither_side_reads() {
    let world = World::connection().await;
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            // Writes for ever, reads nothing.
            loop {
                program.say(&"x".repeat(32 * 1024)).await;
            }
        }
        .boxed()
    });
    let mut session = world.open(&on_terminal(v1::Open { stdout_credit: 0, ..shell() }));
    let started = session.started().await;
    // All the stdin that there is credit for; the program takes none of it.
    let mut offset = 0;
    while offset < started.stdin_credit {
        let data = v1::Data { stream: Stream::Stdin.into(), offset, data: vec![b'i'; 32 * 1024].into() };
        offset += 32 * 1024;
        session.send(Frame::Data(data)).await;
    }
    let began = Instant::now();
    session.send(Frame::Signal(v1::Signal { id: 1, name: "INT".into(), deadline: None })).await;
    let size = Some(v1::WindowSize { columns: 132, rows: 50, ..v1::WindowSize::default() });
    session.send(Frame::Resize(v1::Resize { id: 2, size, deadline: None })).await;
    let mut answers = Vec::new();
    while answers.len() < 2 {
        if let Back::Answer(answer) = session.frame().await {
            answers.push((answer.id, answer.refusal.map(|refusal| refusal.reason())));
        }
    }
    assert_eq!(answers, [(1, Some(Reason::SignalNotDelivered)), (2, None)]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_newest_size_reaches_the_program() {
    let world = World::connection().await;
    let (sizes, mut seen) = mpsc::channel(8);
    world.runs(move |mut program| {
        let sizes = sizes.clone();
        async move {
            let argv = program.argv();
            assert_eq!(argv[6..8], ["80", "24"]);
            assert!(argv.contains(&"TERM=xterm".to_owned()));
            assert!(program.stream.size.borrow().is_none(), "no resize before the mark");
            program.wrapper().await;
            while program.stream.size.changed().await.is_ok() {
                let size = *program.stream.size.borrow_and_update();
                sizes.send(size).await.expect("told");
            }
            StreamEnd::Success
        }
        .boxed()
    });
    let mut session = world.open(&on_terminal(shell()));
    session.started().await;
    assert_eq!(seen.recv().await, Some(Some((80, 24))));
    let size = Some(v1::WindowSize { columns: 100, rows: 30, ..v1::WindowSize::default() });
    session.send(Frame::Resize(v1::Resize { id: 1, size, deadline: None })).await;
    assert_eq!(timeout(PATIENCE, seen.recv()).await.expect("in time"), Some(Some((100, 30))));
}

#[tokio::test(start_paused = true)]
async fn command_start_fires_and_drops_the_stream() {
    let world = World::connection().await;
    let (dropped, mut drops) = mpsc::channel(1);
    world.runs(move |program| {
        let dropped = dropped.clone();
        async move {
            // Connected, but the wrapper never says that it runs.
            program.stream.output.closed().await;
            dropped.send(()).await.expect("told");
            StreamEnd::Success
        }
        .boxed()
    });
    let began = Instant::now();
    let mut session = world.open(&shell());
    session.send(Frame::Signal(v1::Signal { id: 1, name: "INT".into(), deadline: None })).await;
    assert!(matches!(session.frame().await, Back::Answer(_)), "answered while it starts");
    assert!(began.elapsed() < Duration::from_secs(1));
    let all = session.all().await;
    assert_eq!(all.refusal.expect("a refusal").reason(), Reason::CommandStartTimeout);
    assert_eq!(began.elapsed().as_secs(), 60);
    timeout(PATIENCE, async {
        tokio::select! { _ = drops.recv() => {}, () = tokio::time::sleep(PATIENCE / 2) => {} }
    })
    .await
    .expect("the stream is dropped");

    // The same where the API never answers the exec.
    world.cluster.fault(Call::Stream, Fault::Hang);
    let began = Instant::now();
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!((refusal.reason(), began.elapsed().as_secs()), (Reason::CommandStartTimeout, 60));
    assert_eq!(refusal.connection_id, "01".repeat(16));
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_told_and_a_gone_pod_too() {
    let world = World::connection().await;
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            program.say("some").await;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = world.open(&shell());
    session.started().await;
    assert!(matches!(session.frame().await, Back::Data(_)));
    world.cluster.break_streams();
    assert_eq!(lost(session.all().await.exit).reason(), Reason::StreamLost);
    assert_eq!(session.report().await.kind, "lost");

    let mut session = world.open(&shell());
    session.started().await;
    assert!(matches!(session.frame().await, Back::Data(_)));
    world.cluster.remove_pod(NS, "pod");
    let refusal = lost(session.all().await.exit);
    assert_eq!((refusal.reason(), refusal.connection_id), (Reason::PodGone, "01".repeat(16)));
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::PodGone);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_the_stream() {
    let world = World::connection().await;
    let (ended, mut end) = mpsc::channel::<()>(1);
    world.runs(move |mut program| {
        let ended = ended.clone();
        async move {
            program.wrapper().await;
            let _ended = ended;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = world.open(&shell());
    session.started().await;
    let Session { client, from, task } = session;
    drop(from);
    let report = timeout(PATIENCE, task).await.expect("in time").expect("no panic");
    assert_eq!(report.kind, "gone");
    drop(client);
    world.runs(|_| std::future::ready(StreamEnd::Success).boxed());
    assert_eq!(timeout(PATIENCE, end.recv()).await.expect("the program's stream is dropped"), None);
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_protocol_ends_the_session() {
    let world = World::connection().await;
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = world.open(&shell());
    session.started().await;
    let data = v1::Data { stream: Stream::Stdin.into(), offset: 9, data: "x".into() };
    session.send(Frame::Data(data)).await;
    assert_eq!(session.all().await.refusal.expect("a refusal").reason(), Reason::ProtocolViolation);
    // One that closes its side ends stdin; output beyond its credit can't be had then.
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            assert_eq!(program.stdin().await, b"");
            program.say(&"x".repeat(1000)).await;
            StreamEnd::Success
        }
        .boxed()
    });
    for (credit, wanted) in [(1000, None), (999, Some(Reason::ProtocolViolation))] {
        let mut session = world.open(&v1::Open { stdout_credit: credit, ..shell() });
        let (unused, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut session.client, unused));
        let all = session.all().await;
        assert_eq!((all.refusal.map(|refusal| refusal.reason()), all.stdout.len() as u64), (wanted, credit));
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_ends_says_so() {
    let world = World::connection().await;
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = world.open(&shell());
    session.started().await;
    world.cut.cancel();
    assert_eq!(session.all().await.refusal.expect("a refusal").reason(), Reason::Draining);
}

/// Ends the container of the session's pod as a kubelet would tell it.
fn container_ends(cluster: &FakeCluster, pod: &PodRef, reason: &'static str, code: i32) {
    let name = pod.name.clone();
    assert!(cluster.change_pod(NS, &name, move |pod| pod.status = Some(script::ended("shell", reason, code))));
}

fn playing(world: &World, reason: &'static str, code: i32, end: StreamEnd) {
    let cluster = world.cluster.clone();
    world.runs(move |mut program| {
        let (cluster, end) = (cluster.clone(), end.clone());
        async move {
            assert!(program.stream.request.command.is_none(), "an attach");
            let pod = cluster.get_pod(&program.stream.pod).await.expect("the pod");
            program.attached(&pod).await;
            program.say("first output").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            container_ends(&cluster, &program.stream.pod, reason, code);
            end
        }
        .boxed()
    });
}

#[tokio::test(start_paused = true)]
async fn a_program_with_its_own_pod_loses_no_output_and_leaves_no_pod() {
    let world = World::session_mode().await;
    playing(&world, "Error", 3, StreamEnd::Success);
    let mut session = world.open(&exec("x"));
    let all = session.all().await;
    assert_eq!((all.stdout.as_slice(), all.exit), (&b"first output"[..], Some(End::Code(3))));
    assert_eq!(session.report().await.kind, "exit");
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
        let cluster = world.cluster.clone();
        world.runs(move |mut program| {
            let cluster = cluster.clone();
            async move {
                let pod = cluster.get_pod(&program.stream.pod).await.expect("the pod");
                program.attached(&pod).await;
                std::future::pending().await
            }
            .boxed()
        });
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

const AGENT: &str = "/usr/bin/containerssh-agent";

/// What containerssh-agent says of a mode that it does not know.
async fn other_agent(program: &Running) -> StreamEnd {
    program.say("Usage: containerssh-agent MODE").await;
    program.complain("Error: unknown mode: attach").await;
    StreamEnd::ExitCode(1)
}

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
    let cluster = world.cluster.clone();
    world.runs(move |mut program| {
        let cluster = cluster.clone();
        async move {
            let pod = cluster.get_pod(&program.stream.pod).await.expect("the pod");
            program.attached(&pod).await;
            std::future::pending().await
        }
        .boxed()
    });
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
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            std::future::pending().await
        }
        .boxed()
    });
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

#[tokio::test(start_paused = true)]
async fn a_connection_has_no_more_sessions_at_once_than_the_policy_allows() {
    let mut world = World::connection().await;
    world.contents.security.most = NonZeroU32::new(2).map(Most::Sessions);
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            program.stdin().await;
            StreamEnd::ExitCode(ZERO)
        }
        .boxed()
    });
    let (mut first, mut second) = (world.open(&shell()), world.open(&exec("x")));
    first.started().await;
    second.started().await;
    let began = Instant::now();
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::Limit);
    assert!(refusal.message.contains("at most 2"), "{refusal:?}");
    assert!(began.elapsed() <= Duration::from_secs(1));
    assert_eq!(world.cluster.count(Call::Stream), 2, "it was not started");
    // Another connection has its own places.
    let mine = std::mem::replace(&mut world.contents.connection, ConnectionId::from_bytes([3; 16]));
    world.open(&shell()).started().await;
    world.contents.connection = mine;
    // One whose Exit was read makes room, and one that was given up.
    first.send(Frame::Eof(v1::Eof { stream: Stream::Stdin.into(), offset: 0, id: 1 })).await;
    assert_eq!(first.all_after_start().await.exit, Some(End::Code(0)));
    let mut third = world.open(&shell());
    third.started().await;
    drop(second);
    world.open(&shell()).started().await;
}

#[tokio::test(start_paused = true)]
async fn in_session_mode_the_pods_of_all_replicas_count() {
    let mut world = World::session_mode().await;
    world.contents.security.most = NonZeroU32::new(1).map(Most::Sessions);
    let cluster = world.cluster.clone();
    world.runs(move |mut program| {
        let cluster = cluster.clone();
        async move {
            let pod = cluster.get_pod(&program.stream.pod).await.expect("the pod");
            program.attached(&pod).await;
            std::future::pending().await
        }
        .boxed()
    });
    let mut first = world.open(&exec("x"));
    first.started().await;
    // Another replica: its own places are all free.
    let leases = Leases::new(Arc::new(world.cluster.clone()), Ownership::new(NS));
    let here = std::mem::replace(&mut world.sessions, Sessions::new(world.lifecycle.clone(), leases));
    let other = v1::Open { session_id: "cd".repeat(16), ..exec("x") };
    let refusal = world.open(&other).all().await.refusal.expect("a refusal");
    assert_eq!((refusal.reason(), world.cluster.count(Call::CreatePod)), (Reason::Limit, 1));
    // The same session, started again where the answer was lost, is no second one.
    let mut again = world.open(&exec("x"));
    again.started().await;
    // A pod that is on its way out is no session.
    let pod = world.cluster.pods().remove(0);
    world.cluster.set_termination(None);
    let pod = PodRef { namespace: NS.into(), name: pod.metadata.name.expect("a name"), uid: None };
    world.cluster.delete_pod(&pod, Some(Duration::from_mins(5))).await.expect("deleted");
    drop(again);
    world.open(&other).started().await;
    drop((here, first));
}

fn unreachable() -> ClusterError {
    ClusterError::Unreachable { message: "connection refused".into() }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_can_not_be_reached_is_waited_for_and_told() {
    let world = World::connection().await;
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            StreamEnd::ExitCode(ZERO)
        }
        .boxed()
    });
    world.cluster.faults(Call::Stream, 6, Fault::Fail(unreachable()));
    let (mut session, began) = (world.open(&shell()), Instant::now());
    let mut told = Vec::new();
    loop {
        match session.next().await.expect("a frame").expect("no refusal") {
            Back::Progress(progress) => told.push((progress.message, began.elapsed())),
            Back::Started(_) => break,
            other => panic!("{other:?} before Started"),
        }
    }
    assert_eq!(world.cluster.count(Call::Stream), 7);
    assert!(told[0].0.contains("waiting for the Kubernetes API: can't be reached: connection refused"), "{told:?}");
    assert!(told.len() <= 2 && told[0].1 < Duration::from_secs(1), "at once, and then every 5 s: {told:?}");
    assert_eq!(session.all_after_start().await.exit, Some(End::Code(0)));
    // Not beyond commandStart, and then with the reason.
    world.cluster.faults(Call::Stream, usize::MAX, Fault::Fail(unreachable()));
    let began = Instant::now();
    let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
    assert_eq!(refusal.reason(), Reason::KubernetesUnavailable);
    assert!(refusal.message.contains("connection refused"), "{refusal:?}");
    assert!(
        began.elapsed() > Duration::from_secs(50) && began.elapsed() <= Duration::from_mins(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_arrived_is_never_repeated() {
    let world = World::connection().await;
    for error in [
        ClusterError::Unavailable { message: "connection reset".into(), retry_after: None },
        ClusterError::Timeout(Duration::from_secs(15)),
    ] {
        let before = world.cluster.count(Call::Stream);
        world.cluster.fault(Call::Stream, Fault::LoseAnswer(error));
        let refusal = world.open(&shell()).all().await.refusal.expect("a refusal");
        assert_eq!(refusal.reason(), Reason::KubernetesUnavailable);
        assert_eq!(world.cluster.count(Call::Stream), before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn in_session_mode_the_reads_before_the_pod_are_repeated() {
    let world = World::session_mode().await;
    let cluster = world.cluster.clone();
    world.runs(move |mut program| {
        let cluster = cluster.clone();
        async move {
            let pod = cluster.get_pod(&program.stream.pod).await.expect("the pod");
            program.attached(&pod).await;
            std::future::pending().await
        }
        .boxed()
    });
    world.cluster.faults(Call::GetLease, 4, Fault::Fail(unreachable()));
    world.cluster.faults(Call::CreatePod, 2, Fault::Fail(unreachable()));
    world.cluster.faults(Call::Stream, 2, Fault::Fail(unreachable()));
    let mut session = world.open(&exec("x"));
    session.started().await;
    assert_eq!((world.cluster.count(Call::CreatePod), world.cluster.count(Call::Stream)), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_warned_and_cut_when_its_time_is_over() {
    let mut world = World::connection().await;
    world.contents.security.max_session_time = Duration::from_secs(400);
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            program.say("busy").await;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = world.open(&shell());
    session.started().await;
    let began = Instant::now();
    let mut seen = Vec::new();
    let refusal = loop {
        let frame = session.frame().await;
        match frame {
            Back::Notice(notice) => seen.push((began.elapsed().as_secs(), notice.message)),
            Back::Exit(exit) => break lost(exit.end),
            Back::Data(_) | Back::Eof(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(seen, [(340, "this session ends in 1m: its time is over then".to_owned())]);
    assert_eq!((began.elapsed().as_secs(), refusal.reason()), (400, Reason::Policy));
    assert!(!refusal.connection_id.is_empty());
    let report = session.report().await;
    assert_eq!((report.kind, report.refusal.map(|refusal| refusal.reason())), ("lost", Some(Reason::Policy)));
}

#[tokio::test(start_paused = true)]
async fn bytes_of_either_direction_keep_a_session() {
    let mut world = World::connection().await;
    world.contents.security.idle_timeout = Duration::from_secs(100);
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            let _ = program.stream.input.recv().await;
            tokio::time::sleep(Duration::from_secs(90)).await;
            program.say("late").await;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = world.open(&shell());
    session.started().await;
    let began = Instant::now();
    tokio::time::sleep(Duration::from_mins(1)).await;
    session.send(Frame::Data(v1::Data { stream: Stream::Stdin.into(), offset: 0, data: "x".into() })).await;
    let refusal = lost(session.all_after_start().await.exit);
    assert_eq!((began.elapsed().as_secs(), refusal.reason()), (60 + 90 + 100, Reason::Policy));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_does_not_hold_a_cut_up() {
    let mut world = World::connection().await;
    world.contents.security.max_session_time = Duration::from_secs(10);
    world.runs(|mut program| {
        async move {
            program.wrapper().await;
            program.say("unread").await;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = world.open(&v1::Open { stdout_credit: 0, ..shell() });
    session.started().await;
    let began = Instant::now();
    let all = session.all_after_start().await;
    assert_eq!((all.exit, began.elapsed().as_secs()), (None, 15));
    assert_eq!(session.report().await.kind, "lost");
}
