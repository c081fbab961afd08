//! The whole backend below gRPC on the minicluster: kube client, TLS, WebSockets, the wrapper in real shells, real terminals.
//! (Needs the `podbay-minicluster` program: built with the workspace, or by `cargo build -p podbay-minicluster`.)

use podbay::{
    ConnectionId, MAX_CREDIT,
    v1::{
        self, Reason, Refusal, Stream, exit::End, open, run_session_request::Frame, run_session_response::Frame as Back,
    },
};
use podbay_backend::{
    kubernetes::KubeCluster,
    metrics::{Equivalents, KubernetesMetrics},
};
use podbay_backend_core::{
    cluster::{Cluster, ClusterError, PodChange, PodRef},
    config::Settings,
    connections::{Connections, OpenEvent, OpenRequest},
    handle::KeyRing,
    lifecycle::Lifecycle,
    ownership::Leases,
    session::{Opening, Sessions, Stopping},
    template,
};
use podbay_minicluster::{
    Action, Minicluster, Options,
    faults::{Break, Fault, Real},
    image::Image,
};
use podbay_runtime::config::Document;
use prometheus_client::registry::Registry;
use ring::digest::{SHA256, digest};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const PATIENCE: Duration = Duration::from_mins(1);
const CALLER: &str = "frontend";

struct World {
    minicluster: Minicluster,
    cluster: Arc<KubeCluster>,
    connections: Connections,
    sessions: Sessions,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new(pod: &str) -> Self {
        Self::with_images(pod, []).await
    }

    /// With further images.
    async fn with_images(pod: &str, images: impl IntoIterator<Item = (&str, Image)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let mut options = Options::new(listener);
        options.images.extend(images.into_iter().map(|(name, image)| (name.to_owned(), image)));
        let minicluster = Minicluster::start(options).await.expect("a minicluster");
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, minicluster.kubeconfig()).expect("written");
        let text = format!(
            "kubernetes: {{connection: {{kubeconfig: {}}}, pod: {{disableAgent: true, {pod}}}}}",
            kubeconfig.display()
        );
        let document = Document::parse("test", &text).expect("YAML");
        let settings = Settings::read(&mut document.root());
        document.finish().unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let settings = settings.expect("settings");
        let metrics = {
            let mut registry = Registry::default();
            let containerssh = Equivalents::new(&mut registry, false);
            KubernetesMetrics::new(&mut registry, containerssh)
        };
        let cluster = KubeCluster::new(&settings.connection, settings.timeouts.http, metrics).await.expect("a client");
        let cluster = Arc::new(cluster);
        let port: Arc<dyn Cluster> = cluster.clone();
        let lifecycle = Lifecycle::new(Arc::clone(&port), settings.timeouts, TaskTracker::new());
        let leases = Leases::new(port, settings.ownership.clone());
        let keys = Arc::new(KeyRing::random().expect("a key"));
        let connections = Connections::new(lifecycle.clone(), leases.clone(), Arc::new(settings), keys);
        Self { minicluster, cluster, connections, sessions: Sessions::new(lifecycle, leases), _dir: dir }
    }

    async fn demo() -> Self {
        Self::new("spec: {containers: [{name: shell, image: 'podbay/demo:1'}]}").await
    }

    async fn connect(&self, n: u8) -> v1::Opened {
        let message = v1::OpenConnectionRequest {
            connection_id: format!("{n:032x}"),
            owner_id: format!("{:032x}", 99),
            user: Some(v1::User { name: "alice".into(), authenticated_name: String::new() }),
            ..v1::OpenConnectionRequest::default()
        };
        let request = OpenRequest::parse(message, CALLER).expect("valid");
        let (sender, mut events) = mpsc::channel(64);
        timeout(PATIENCE, self.connections.open(request, sender)).await.expect("in time").expect("opened");
        loop {
            if let OpenEvent::Opened(opened) = events.recv().await.expect("Opened") {
                return opened;
            }
        }
    }

    fn open(&self, handle: &[u8], open: &v1::Open) -> Session {
        let contents = self.connections.keys().open(handle, CALLER).expect("a handle");
        let opening = Opening::parse(open, &contents).expect("valid");
        let (to, frames) = mpsc::channel::<Result<v1::RunSessionRequest, ()>>(16);
        let (sender, from) = mpsc::channel(8);
        let sessions = self.sessions.clone();
        tokio::spawn(async move {
            let client = ReceiverStream::new(frames);
            let cut = CancellationToken::new();
            Box::pin(sessions.run(&contents, CALLER, opening, client, sender, Stopping { cut, ..Stopping::default() }))
                .await
        });
        Session { to, from }
    }

    /// Runs it to its end.
    async fn run(&self, handle: &[u8], open: &v1::Open, stdin: &[u8]) -> All {
        timeout(PATIENCE, self.open(handle, open).all(stdin)).await.expect("in time")
    }

    async fn no_pods(&self) {
        let none = async {
            while !self.minicluster.pods().is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, none).await.expect("no pod is left");
    }

    /// Closes the connection and sees that nothing is left: pods, processes, tasks.
    async fn end(self, n: u8) {
        self.connections
            .close(ConnectionId::from_bytes(u128::from(n).to_be_bytes()), CALLER, false)
            .await
            .expect("closed");
        self.no_pods().await;
        let idle = async {
            while self.cluster.tasks() > 0 || !self.minicluster.processes().is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, idle).await.expect("no task and no process is left");
        self.minicluster.shutdown().await;
    }
}

struct Session {
    to: mpsc::Sender<Result<v1::RunSessionRequest, ()>>,
    from: mpsc::Receiver<Result<v1::RunSessionResponse, Refusal>>,
}

#[derive(Debug, Default)]
struct All {
    warning: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<End>,
    refusal: Option<Refusal>,
}

impl All {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn lost(self) -> Reason {
        match self.exit {
            Some(End::Lost(refusal)) => refusal.reason(),
            other => panic!("not lost: {other:?}"),
        }
    }
}

impl Session {
    async fn send(&self, frame: Frame) {
        // It may have ended meanwhile.
        let _ = self.to.send(Ok(v1::RunSessionRequest { frame: Some(frame) })).await;
    }

    async fn next(&mut self) -> Option<Result<Back, Refusal>> {
        let item = timeout(PATIENCE, self.from.recv()).await.expect("in time")?;
        Some(item.map(|message| message.frame.expect("a frame")))
    }

    async fn started(&mut self) {
        loop {
            match self.next().await.expect("no end").expect("no refusal") {
                Back::Started(_) => return,
                Back::Progress(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads stdout until it holds this, granting credit.
    async fn until(&mut self, seen: &mut Vec<u8>, wanted: &str) {
        while !String::from_utf8_lossy(seen).contains(wanted) {
            match self.next().await.expect("no end").expect("no refusal") {
                Back::Data(data) => {
                    seen.extend_from_slice(&data.data);
                    let limit = seen.len() as u64 + MAX_CREDIT;
                    self.send(Frame::Credit(v1::Credit { stream: data.stream, limit })).await;
                }
                Back::Exit(exit) => panic!("{exit:?} before {wanted:?} in {:?}", String::from_utf8_lossy(seen)),
                _ => {}
            }
        }
    }

    /// Gives stdin within the credit, reads everything.
    async fn all(mut self, stdin: &[u8]) -> All {
        let mut all = All::default();
        let (mut sent, mut limit, mut ended) = (0, 0, false);
        while let Some(item) = self.next().await {
            match item {
                Err(refusal) => all.refusal = Some(refusal),
                Ok(Back::Started(started)) => {
                    all.warning = started.warning;
                    limit = started.stdin_credit;
                }
                Ok(Back::Credit(credit)) => limit = credit.limit,
                Ok(Back::Data(data)) => {
                    let out = if data.stream() == Stream::Stderr { &mut all.stderr } else { &mut all.stdout };
                    assert_eq!(data.offset, out.len() as u64);
                    out.extend_from_slice(&data.data);
                    let limit = out.len() as u64 + MAX_CREDIT;
                    self.send(Frame::Credit(v1::Credit { stream: data.stream, limit })).await;
                }
                Ok(Back::Exit(exit)) => all.exit = exit.end,
                Ok(_) => {}
            }
            while sent < stdin.len() && (sent as u64) < limit {
                let end = stdin.len().min(limit as usize).min(sent + 32 * 1024);
                let data = stdin[sent..end].to_vec().into();
                self.send(Frame::Data(v1::Data { stream: Stream::Stdin.into(), offset: sent as u64, data })).await;
                sent = end;
            }
            if sent == stdin.len() && limit > 0 && !ended {
                ended = true;
                let stream = Stream::Stdin.into();
                self.send(Frame::Eof(v1::Eof { stream, offset: sent as u64, id: 1 })).await;
            }
        }
        all
    }
}

fn with(program: open::Program) -> v1::Open {
    v1::Open {
        session_id: format!("{:032x}", rand::random::<u128>()),
        program: Some(program),
        stdout_credit: MAX_CREDIT,
        stderr_credit: MAX_CREDIT,
        ..v1::Open::default()
    }
}

fn exec(command: &str) -> v1::Open {
    with(open::Program::Exec(v1::Exec { command: command.into(), argv: Vec::new() }))
}

fn argv(argv: &[&str]) -> v1::Open {
    let argv = argv.iter().map(ToString::to_string).collect();
    with(open::Program::Exec(v1::Exec { command: String::new(), argv }))
}

fn on_terminal(open: v1::Open, columns: u32, rows: u32) -> v1::Open {
    let size = Some(v1::WindowSize { columns, rows, ..v1::WindowSize::default() });
    v1::Open { pty: Some(v1::Pty { term: "xterm-256color".into(), size, modes: Vec::new() }), ..open }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

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
async fn transfers_are_whole_both_ways_though_the_runtime_cuts_bare_ones() {
    let world = World::demo().await;
    let handle = world.connect(1).await.handle;
    let data = bytes(16 * 1024 * 1024);
    let sum = hex(digest(&SHA256, &data).as_ref());
    // The program closes its stdout: a bare exec loses the rest of its stdin (the minicluster plays containerd's defect).
    let upload = world.run(&handle, &exec("cat >up && exec sha256sum up"), &data).await;
    assert_eq!((upload.text(), upload.exit), (format!("{sum}  up\n"), Some(End::Code(0))));
    let all = world.run(&handle, &exec("cat >up2 2>/dev/null"), &data).await;
    assert_eq!(all.exit, Some(End::Code(0)));
    let down = world.run(&handle, &exec("cat up2"), b"").await;
    assert_eq!((down.stdout.len(), down.stdout == data), (data.len(), true));
    // A filter that writes twice what it reads.
    let all = world.run(&handle, &exec("xxd -p -c 64 | tr -d '\\n'"), &data[..4 * 1024 * 1024]).await;
    if all.exit != Some(End::Code(127)) {
        assert_eq!(all.stdout.len(), 8 * 1024 * 1024, "{}", String::from_utf8_lossy(&all.stderr));
    }
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

impl Session {
    /// Reads to the end.
    async fn rest(mut self) -> Option<End> {
        let mut end = None;
        while let Some(item) = self.next().await {
            if let Back::Exit(exit) = item.expect("no refusal") {
                end = exit.end;
            }
        }
        end
    }
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
async fn a_watch_goes_on_through_drops_and_expired_versions() {
    let world = World::demo().await;
    let opened = world.connect(1).await;
    let pod = PodRef { namespace: opened.pod_namespace, name: opened.pod_name, uid: None };
    let mut changes = world.cluster.watch_pod(&pod).await.expect("a watch");
    let first = timeout(PATIENCE, changes.recv()).await.expect("in time");
    assert!(matches!(first, Some(PodChange::Now(_))), "{first:?}");
    for action in [Action::DropWatches, Action::ExpireVersions, Action::CutConnections, Action::ApiDown { millis: 500 }]
    {
        world.minicluster.faults().act(action).await;
    }
    world.cluster.ping().await.err();
    let until = Instant::now() + PATIENCE;
    while world.cluster.delete_pod(&pod, None).await.is_err() {
        assert!(Instant::now() < until, "the API comes back");
        sleep(Duration::from_millis(50)).await;
    }
    let gone = async {
        while let Some(change) = changes.recv().await {
            if matches!(change, PodChange::Gone(_)) {
                return;
            }
        }
        panic!("the watch ended without Gone");
    };
    timeout(PATIENCE, gone).await.expect("the end is seen");
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

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once_while_one_reads_nothing() {
    let world = World::demo().await;
    let handle = world.connect(1).await.handle;
    let mut stuck = world.open(&handle, &v1::Open { stdout_credit: 0, ..exec("yes") });
    stuck.started().await;
    let runs = (0..20).map(|i| {
        let (world, handle) = (&world, &handle);
        async move {
            let text =
                world.run(handle, &exec("cat; echo done"), format!("{i} ").repeat(10_000).as_bytes()).await.text();
            assert_eq!(text, format!("{i} ").repeat(10_000) + "done\n");
        }
    });
    futures::future::join_all(runs).await;
    drop(stuck);
    world.end(1).await;
}

/// Nagle's algorithm would hold the second key back until the first is acknowledged: 40 ms, each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_not_wait_for_the_acknowledgement_of_the_one_before() {
    let world = World::demo().await;
    let handle = world.connect(1).await.handle;
    let mut session = world.open(&handle, &exec("echo ready; while read line; do echo $line; done"));
    session.started().await;
    let mut seen = Vec::new();
    session.until(&mut seen, "ready\n").await;
    let (mut offset, mut quickest) = (0, PATIENCE);
    for line in 0..40 {
        let began = Instant::now();
        for key in [format!("{line}."), "\n".to_owned()] {
            let data = v1::Data { stream: Stream::Stdin.into(), offset, data: key.clone().into() };
            offset += key.len() as u64;
            session.send(Frame::Data(data)).await;
            // Two keys that are there at once would go out together.
            sleep(Duration::from_millis(2)).await;
        }
        session.until(&mut seen, &format!("{line}.\n")).await;
        // A connection's first packets are acknowledged at once.
        quickest = if line < 20 { PATIENCE } else { quickest.min(began.elapsed()) };
    }
    assert!(quickest < Duration::from_millis(30), "{quickest:?}");
    drop(session);
    world.end(1).await;
}

#[tokio::test]
async fn a_pod_with_the_agent_injected_is_one_that_the_api_takes() {
    let world = World::demo().await;
    for clash in
        ["", ", initContainers: [{name: podbay-agent, image: i}], volumes: [{name: podbay-agent, emptyDir: {}}]"]
    {
        let text = format!(
            "kubernetes: {{pod: {{agentInjection: {{enabled: true, image: 'example.org/podbay-agent:1'}}, spec: {{containers: \
             [{{name: shell, image: 'podbay/demo:1'}}]{clash}}}}}}}"
        );
        let document = Document::parse("test", &text).expect("YAML");
        let settings = Settings::read(&mut document.root());
        document.finish().unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let message = v1::OpenConnectionRequest {
            connection_id: "0".repeat(32),
            owner_id: "1".repeat(32),
            user: Some(v1::User { name: "alice".into(), authenticated_name: String::new() }),
            ..v1::OpenConnectionRequest::default()
        };
        let who = OpenRequest::parse(message, CALLER).expect("a request").who;
        let pod = template::connection_pod(&settings.expect("settings").pod, &who, &std::collections::BTreeMap::new());
        let made = world.cluster.try_pod(&pod).await.expect("the API takes it").spec.expect("a spec");
        let inits = made.init_containers.expect("init containers");
        assert_eq!(inits[0].image.as_deref(), Some("example.org/podbay-agent:1"));
        let mounts = made.containers[0].volume_mounts.clone().unwrap_or_default();
        assert!(mounts.iter().any(|mount| mount.read_only == Some(true)), "{mounts:?}");
    }
}

#[tokio::test]
async fn a_pod_is_patched_and_deleted_only_as_it_was_meant() {
    let world = World::demo().await;
    world.connect(1).await;
    let found = world.cluster.list_pods("default", "").await.expect("lists").remove(0);
    let meta = &found.metadata;
    let name = meta.name.clone().expect("a name");
    let pod = PodRef { namespace: "default".into(), name, uid: meta.uid.clone() };
    let note = |value: serde_json::Value| serde_json::json!({"metadata": {"annotations": {"a.example/x": value}}});
    let notes =
        |pod: k8s_openapi::api::core::v1::Pod| pod.metadata.annotations.expect("notes").get("a.example/x").cloned();
    let changed = world.cluster.patch_pod(&pod, note("1".into())).await.expect("patched");
    assert_eq!(notes(changed).as_deref(), Some("1"));
    let other = PodRef { uid: Some("another".into()), ..pod.clone() };
    let refused = world.cluster.patch_pod(&other, note("2".into())).await.expect_err("another pod");
    assert!(matches!(refused, ClusterError::Conflict { .. } | ClusterError::NotFound { .. }), "{refused:?}");
    let refused = world.cluster.delete_pod_unchanged(&found).await.expect_err("it has changed");
    assert!(matches!(refused, ClusterError::Conflict { .. }), "{refused:?}");
    let now = world.cluster.patch_pod(&pod, note(serde_json::Value::Null)).await.expect("patched");
    assert_eq!(notes(now), None);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = world.cluster.get_pod(&pod).await.expect("there");
        match world.cluster.delete_pod_unchanged(&now).await {
            Ok(()) => break,
            // Its status moved on.
            Err(ClusterError::Conflict { .. }) => assert!(Instant::now() < deadline),
            Err(error) => panic!("{error}"),
        }
    }
    world.minicluster.shutdown().await;
}
