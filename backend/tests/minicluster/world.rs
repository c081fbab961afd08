//! A backend below gRPC over a minicluster, its connections, programs and their clients.
#![allow(unreachable_pub, missing_debug_implementations)]

pub use podbay::{
    ConnectionId, MAX_CREDIT,
    v1::{
        self, Reason, Refusal, Stream, exit::End, open, run_session_request::Frame, run_session_response::Frame as Back,
    },
};
pub use podbay_backend::{
    kubernetes::KubeCluster,
    metrics::{Equivalents, KubernetesMetrics},
};
pub use podbay_backend_core::{
    cluster::{Cluster, ClusterError, PodChange, PodRef},
    config::Settings,
    connections::{Connections, OpenEvent, OpenRequest},
    handle::KeyRing,
    lifecycle::Lifecycle,
    ownership::Leases,
    session::{Opening, Sessions, Stopping},
    template,
};
pub use podbay_minicluster::{
    Action, Minicluster, Options,
    faults::{Break, Fault, Real},
    image::Image,
};
pub use podbay_runtime::config::Document;
pub use prometheus_client::registry::Registry;
pub use std::{sync::Arc, time::Duration};
pub use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
pub use tokio_stream::wrappers::ReceiverStream;
pub use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub const PATIENCE: Duration = Duration::from_mins(1);
pub const CALLER: &str = "frontend";

pub struct World {
    pub minicluster: Minicluster,
    pub cluster: Arc<KubeCluster>,
    pub connections: Connections,
    pub sessions: Sessions,
    _dir: tempfile::TempDir,
}

impl World {
    pub async fn new(pod: &str) -> Self {
        Self::with_images(pod, []).await
    }

    /// With further images.
    pub async fn with_images(pod: &str, images: impl IntoIterator<Item = (&str, Image)>) -> Self {
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

    pub async fn demo() -> Self {
        Self::new("spec: {containers: [{name: shell, image: 'podbay/demo:1'}]}").await
    }

    pub async fn connect(&self, n: u8) -> v1::Opened {
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

    pub fn open(&self, handle: &[u8], open: &v1::Open) -> Session {
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
    pub async fn run(&self, handle: &[u8], open: &v1::Open, stdin: &[u8]) -> All {
        timeout(PATIENCE, self.open(handle, open).all(stdin)).await.expect("in time")
    }

    pub async fn no_pods(&self) {
        let none = async {
            while !self.minicluster.pods().is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, none).await.expect("no pod is left");
    }

    /// Closes the connection and sees that nothing is left: pods, processes, tasks.
    pub async fn end(self, n: u8) {
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

pub struct Session {
    to: mpsc::Sender<Result<v1::RunSessionRequest, ()>>,
    from: mpsc::Receiver<Result<v1::RunSessionResponse, Refusal>>,
}

#[derive(Debug, Default)]
pub struct All {
    pub warning: String,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Option<End>,
    pub refusal: Option<Refusal>,
}

impl All {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn lost(self) -> Reason {
        match self.exit {
            Some(End::Lost(refusal)) => refusal.reason(),
            other => panic!("not lost: {other:?}"),
        }
    }
}

impl Session {
    pub async fn send(&self, frame: Frame) {
        // It may have ended meanwhile.
        let _ = self.to.send(Ok(v1::RunSessionRequest { frame: Some(frame) })).await;
    }

    pub async fn next(&mut self) -> Option<Result<Back, Refusal>> {
        let item = timeout(PATIENCE, self.from.recv()).await.expect("in time")?;
        Some(item.map(|message| message.frame.expect("a frame")))
    }

    pub async fn started(&mut self) {
        loop {
            match self.next().await.expect("no end").expect("no refusal") {
                Back::Started(_) => return,
                Back::Progress(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads stdout until it holds this, granting credit.
    pub async fn until(&mut self, seen: &mut Vec<u8>, wanted: &str) {
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
    pub async fn all(mut self, stdin: &[u8]) -> All {
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

    /// Reads to the end.
    pub async fn rest(mut self) -> Option<End> {
        let mut end = None;
        while let Some(item) = self.next().await {
            if let Back::Exit(exit) = item.expect("no refusal") {
                end = exit.end;
            }
        }
        end
    }
}

pub fn with(program: open::Program) -> v1::Open {
    v1::Open {
        session_id: format!("{:032x}", rand::random::<u128>()),
        program: Some(program),
        stdout_credit: MAX_CREDIT,
        stderr_credit: MAX_CREDIT,
        ..v1::Open::default()
    }
}

pub fn exec(command: &str) -> v1::Open {
    with(open::Program::Exec(v1::Exec { command: command.into(), argv: Vec::new() }))
}

pub fn argv(argv: &[&str]) -> v1::Open {
    let argv = argv.iter().map(ToString::to_string).collect();
    with(open::Program::Exec(v1::Exec { command: String::new(), argv }))
}

pub fn on_terminal(open: v1::Open, columns: u32, rows: u32) -> v1::Open {
    let size = Some(v1::WindowSize { columns, rows, ..v1::WindowSize::default() });
    v1::Open { pty: Some(v1::Pty { term: "xterm-256color".into(), size, modes: Vec::new() }), ..open }
}
