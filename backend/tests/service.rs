//! The gRPC services over the in-memory cluster, through mTLS: callers and their rights, two replicas, garbage, draining.

use futures::FutureExt as _;
use podbay::{
    MAX_CREDIT, refusal_of,
    v1::{
        self, Reason, connection_service_client::ConnectionServiceClient, exit::End, open,
        open_connection_response::Event, run_session_request::Frame, run_session_response::Frame as Back,
        session_service_client::SessionServiceClient,
    },
};
use podbay_backend::{Config, metrics::Equivalents, run_on};
use podbay_backend_core::{
    cluster::{Input, Output, StreamEnd},
    fake::{FakeCluster, Program},
};
use podbay_runtime::{config::Document, shutdown::Shutdown};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

const PATIENCE: Duration = Duration::from_secs(30);
const ALICE: &str = "alice";

/// A CA, its certificates as files, and one fake cluster for all replicas.
struct World {
    dir: tempfile::TempDir,
    ca: String,
    identities: Vec<(&'static str, Identity)>,
    cluster: FakeCluster,
}

struct Replica {
    address: SocketAddr,
    admin: SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), podbay_backend::RunError>>,
}

/// Writes a new CA with the server's certificate and key; gives the CA and what its clients show.
fn credentials(dir: &std::path::Path) -> (String, Vec<(&'static str, Identity)>) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca_params = CertificateParams::default();
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = ca_params.self_signed(&ca_key).expect("a CA").pem();
    let issuer = Issuer::new(ca_params, &ca_key);
    let leaf = |dns: &str| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![dns.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, dns);
        (params.signed_by(&key, &issuer).expect("a certificate").pem(), key.serialize_pem())
    };
    let (cert, key) = leaf("localhost");
    for (name, text) in [("ca.pem", &ca), ("cert.pem", &cert), ("key.pem", &key)] {
        std::fs::write(dir.join(name), text).expect("written");
    }
    let identities = ["frontend.podbay", "ci.podbay", "admin.podbay", "stranger.podbay"].map(|name| {
        let (cert, key) = leaf(name);
        (name, Identity::from_pem(cert, key))
    });
    (ca, identities.into())
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (ca, identities) = credentials(dir.path());
        let cluster = FakeCluster::new();
        cluster.on_stream(|program| echo(program).boxed());
        Self { dir, ca, identities, cluster }
    }

    fn config(&self, mode: &str) -> Config {
        let dir = self.dir.path().display();
        let key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
        let text = format!(
            "
kubernetes: {{pod: {{disableAgent: true, mode: {mode}, metadata: {{namespace: ns}}}}, timeouts: {{commandStart: 2s}}}}
grpc:
  tls: {{certFile: {dir}/cert.pem, keyFile: {dir}/key.pem, clientCAFile: {dir}/ca.pem, reloadInterval: 100ms}}
  drainTimeout: 1s
  maxConnections: 20
  handleKeys: [{{id: one, key: '{key}'}}]
  callers:
  - {{name: 'dns:frontend.podbay', service: frontend, users: ['*']}}
  - {{name: 'dns:ci.podbay', service: ci, users: [{ALICE}]}}
  - {{name: 'cn:admin.podbay', service: admin, operator: true}}
"
        );
        let document = Document::parse("test", &text).expect("YAML");
        Config::from_document(document).unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }

    async fn replica(&self) -> Replica {
        self.replica_of("connection").await
    }

    async fn replica_of(&self, mode: &str) -> Replica {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let admin = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (address, admin_address) = (listener.local_addr().expect("bound"), admin.local_addr().expect("bound"));
        let shutdown = Shutdown::new();
        let mut registry = Registry::default();
        let containerssh = Equivalents::new(&mut registry, false);
        let run = run_on(
            Arc::new(self.cluster.clone()),
            self.config(mode),
            None,
            (registry, containerssh),
            listener,
            Some(admin),
            shutdown.clone(),
        );
        Replica { address, admin: admin_address, task: tokio::spawn(Box::pin(run)), shutdown }
    }

    async fn channel(&self, replica: &Replica, name: Option<&str>) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca)).domain_name("localhost");
        if let Some(name) = name {
            let identity = self.identities.iter().find(|(n, _)| *n == name).expect("an identity").1.clone();
            tls = tls.identity(identity);
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", replica.address)).expect("a URL");
        endpoint.tls_config(tls).expect("TLS").connect().await
    }

    async fn client(&self, replica: &Replica, name: &str) -> Client {
        let channel = self.channel(replica, Some(name)).await.expect("connects");
        Client {
            connections: ConnectionServiceClient::new(channel.clone()),
            sessions: SessionServiceClient::new(channel.clone()),
            health: HealthClient::new(channel),
        }
    }
}

/// Plays the wrapper, then copies stdin to stdout; ends with 7, says "err" on stderr.
async fn echo(mut program: Program) -> StreamEnd {
    let command = program.request.command.clone().unwrap_or_default();
    let mark = format!("{}.", command.get(4).map(String::as_str).unwrap_or_default());
    let _ = program.output.send(Output::Stdout(mark.into())).await;
    let _ = program.output.send(Output::Stderr("err".into())).await;
    while let Some(Input::Stdin(bytes)) = program.input.recv().await {
        let _ = program.output.send(Output::Stdout(bytes)).await;
    }
    StreamEnd::ExitCode(7)
}

struct Client {
    connections: ConnectionServiceClient<Channel>,
    sessions: SessionServiceClient<Channel>,
    health: HealthClient<Channel>,
}

fn id(n: u8) -> String {
    format!("{n:032x}")
}

fn connection(n: u8, user: &str) -> v1::OpenConnectionRequest {
    v1::OpenConnectionRequest {
        connection_id: id(n),
        owner_id: id(99),
        user: Some(v1::User { name: user.to_owned(), authenticated_name: String::new() }),
        ..v1::OpenConnectionRequest::default()
    }
}

fn shell(handle: &[u8]) -> v1::Open {
    v1::Open {
        handle: handle.to_vec().into(),
        session_id: id(7),
        program: Some(open::Program::Shell(v1::Shell {})),
        stdout_credit: MAX_CREDIT,
        stderr_credit: MAX_CREDIT,
        ..v1::Open::default()
    }
}

fn data(offset: u64, data: Vec<u8>) -> Frame {
    Frame::Data(v1::Data { stream: v1::Stream::Stdin.into(), offset, data: data.into() })
}

/// A session's stream as a client has it.
struct Session {
    to: mpsc::Sender<v1::RunSessionRequest>,
    from: Streaming<v1::RunSessionResponse>,
}

impl Session {
    async fn send(&self, frame: Frame) {
        self.to.send(v1::RunSessionRequest { frame: Some(frame) }).await.expect("the stream is there");
    }

    async fn next(&mut self) -> Result<Option<Back>, Status> {
        let message = timeout(PATIENCE, self.from.message()).await.expect("in time")?;
        Ok(message.map(|message| message.frame.expect("a frame")))
    }

    /// The refusal that ends it.
    async fn refusal(&mut self) -> (Code, Reason) {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(status) => return (status.code(), refusal_of(&status).reason()),
            }
        }
    }
}

impl Client {
    async fn open(&mut self, request: v1::OpenConnectionRequest) -> Result<v1::Opened, Status> {
        let mut stream = self.connections.open_connection(request).await?.into_inner();
        let mut accepted = false;
        loop {
            let message = timeout(PATIENCE, stream.message()).await.expect("in time")?;
            match message.and_then(|message| message.event).expect("no end before Opened") {
                Event::Accepted(news) => {
                    assert!(news.timeouts.is_some() && !accepted);
                    accepted = true;
                }
                Event::Progress(_) => {}
                Event::Opened(opened) => {
                    assert!(accepted);
                    assert!(stream.message().await?.is_none(), "OK after Opened");
                    return Ok(opened);
                }
            }
        }
    }

    async fn stream(&mut self) -> Result<Session, Status> {
        let (to, requests) = mpsc::channel(16);
        let from = self.sessions.run_session(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Session { to, from })
    }

    async fn session(&mut self, open: v1::Open) -> Result<Session, Status> {
        let session = self.stream().await?;
        session.send(Frame::Open(open)).await;
        Ok(session)
    }

    /// Runs a session that echoes this text.
    async fn echo(&mut self, handle: &[u8], text: &str) {
        let mut session = self.session(shell(handle)).await.expect("a stream");
        let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
        while let Some(frame) = session.next().await.expect("no refusal") {
            match frame {
                Back::Started(_) => {
                    session.send(data(0, text.into())).await;
                    let stream = v1::Stream::Stdin.into();
                    session.send(Frame::Eof(v1::Eof { stream, offset: text.len() as u64, id: 1 })).await;
                }
                Back::Data(data) if data.stream() == v1::Stream::Stderr => stderr.extend_from_slice(&data.data),
                Back::Data(data) => stdout.extend_from_slice(&data.data),
                Back::Exit(end) => exit = end.end,
                _ => {}
            }
        }
        assert_eq!((stdout.as_slice(), stderr.as_slice()), (text.as_bytes(), &b"err"[..]));
        assert_eq!(exit, Some(End::Code(7)));
    }

    async fn serving(&mut self, name: &str) -> Result<ServingStatus, Code> {
        let request = HealthCheckRequest { service: name.to_owned() };
        let answer = self.health.check(request).await.map_err(|status| status.code())?;
        Ok(answer.into_inner().status())
    }
}

fn reason(status: &Status) -> (Code, Reason) {
    (status.code(), refusal_of(status).reason())
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn open_run_and_close_on_any_replica() {
    let world = World::new();
    let (first, second) = (world.replica().await, world.replica().await);
    let mut client = world.client(&first, "frontend.podbay").await;
    let opened = client.open(connection(1, "bob")).await.expect("opened");
    assert_eq!(opened.pod_namespace, "ns");
    client.echo(&opened.handle, "one").await;
    // The replica that opened it is gone; the other serves the connection.
    first.task.abort();
    let mut client = world.client(&second, "frontend.podbay").await;
    client.echo(&opened.handle, "two").await;
    let beat = v1::HeartbeatRequest { owner_id: id(99), ..v1::HeartbeatRequest::default() };
    assert!(client.connections.heartbeat(beat).await.expect("a heartbeat").into_inner().interval.is_some());
    let close = v1::CloseConnectionRequest { connection_id: id(1), keep_detached: false };
    let closed = client.connections.close_connection(close.clone()).await.expect("closed").into_inner();
    assert_eq!((closed.pods_deleted, world.cluster.pods().len()), (1, 0));
    assert_eq!(client.connections.close_connection(close).await.expect("again").into_inner().pods_deleted, 0);
    let mut session = client.session(shell(&opened.handle)).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::FailedPrecondition, Reason::PodGone));
}

#[tokio::test]
async fn who_calls_and_for_whom() {
    let world = World::new();
    let replica = world.replica().await;
    // Without certificate the handshake fails, at the latest with the first call.
    let refused = match world.channel(&replica, None).await {
        Err(_) => true,
        Ok(channel) => ConnectionServiceClient::new(channel).open_connection(connection(1, "x")).await.is_err(),
    };
    assert!(refused);
    let mut stranger = world.client(&replica, "stranger.podbay").await;
    let status = stranger.open(connection(1, ALICE)).await.expect_err("unknown");
    assert_eq!(reason(&status), (Code::Unauthenticated, Reason::CallerUnknown));
    let status = stranger.stream().await.err().expect("unknown");
    assert_eq!(reason(&status), (Code::Unauthenticated, Reason::CallerUnknown));

    let mut ci = world.client(&replica, "ci.podbay").await;
    let status = ci.open(connection(1, "bob")).await.expect_err("not for bob");
    assert_eq!(reason(&status), (Code::PermissionDenied, Reason::CallerNotAllowed));
    let opened = ci.open(connection(1, ALICE)).await.expect("for alice");
    assert_eq!(world.cluster.pods().len(), 1);

    // Its handle is nobody else's, and neither is its connection.
    let mut frontend = world.client(&replica, "frontend.podbay").await;
    let mut session = frontend.session(shell(&opened.handle)).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::PermissionDenied, Reason::HandleInvalid));
    let mut changed = opened.handle.to_vec();
    *changed.last_mut().expect("not empty") ^= 1;
    let mut session = ci.session(shell(&changed)).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::PermissionDenied, Reason::HandleInvalid));
    let close = v1::CloseConnectionRequest { connection_id: id(1), keep_detached: false };
    assert_eq!(frontend.connections.close_connection(close).await.expect("ok").into_inner().pods_deleted, 0);
    let list = v1::ListConnectionsRequest::default();
    assert_eq!(
        frontend.connections.list_connections(list.clone()).await.expect("ok").into_inner().connections.len(),
        0
    );
    assert_eq!(ci.connections.list_connections(list.clone()).await.expect("ok").into_inner().connections.len(), 1);
    let terminate = v1::TerminateConnectionRequest { connection_id: id(1), message: "bye".into() };
    let status = ci.connections.terminate_connection(terminate.clone()).await.expect_err("no operator");
    assert_eq!(reason(&status), (Code::PermissionDenied, Reason::CallerNotAllowed));

    let mut admin = world.client(&replica, "admin.podbay").await;
    assert_eq!(admin.connections.list_connections(list).await.expect("ok").into_inner().connections.len(), 1);
    let status = admin.open(connection(2, "admin")).await.expect_err("for nobody");
    assert_eq!(status.code(), Code::PermissionDenied);
    let ended = admin.connections.terminate_connection(terminate).await.expect("an operator").into_inner();
    assert_eq!((ended.pods_deleted, world.cluster.pods().len()), (1, 0));
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_no_pod() {
    let world = World::new();
    let replica = world.replica().await;
    world.cluster.on_create(|_| Vec::new());
    let mut client = world.client(&replica, "frontend.podbay").await;
    let mut stream = client.connections.open_connection(connection(1, "bob")).await.expect("headers").into_inner();
    assert!(stream.message().await.expect("accepted").is_some());
    eventually("the pod", async || !world.cluster.pods().is_empty()).await;
    drop(stream);
    eventually("its deletion", async || world.cluster.pods().is_empty()).await;
}

#[tokio::test]
async fn garbage_ends_its_own_stream_and_nothing_else() {
    let world = World::new();
    let replica = world.replica().await;
    let mut client = world.client(&replica, "frontend.podbay").await;
    let handle = client.open(connection(1, "bob")).await.expect("opened").handle;
    let mut bystander = client.session(shell(&handle)).await.expect("a stream");
    assert!(matches!(bystander.next().await, Ok(Some(Back::Started(_)))));

    let violation = (Code::InvalidArgument, Reason::ProtocolViolation);
    // No Open.
    let mut session = client.stream().await.expect("a stream");
    session.send(data(0, b"x".to_vec())).await;
    assert_eq!(session.refusal().await, violation);
    // An end without Open.
    let Session { to, from } = client.stream().await.expect("a stream");
    drop(to);
    let mut session = Session { to: mpsc::channel(1).0, from };
    assert_eq!(session.refusal().await, violation);
    // What breaks the rules after it began.
    let frames: [&dyn Fn(u64) -> Frame; 3] =
        [&|_| data(1, b"x".to_vec()), &|_| Frame::Open(v1::Open::default()), &|_| data(0, vec![0; 70_000])];
    for frame in frames {
        let mut session = client.session(shell(&handle)).await.expect("a stream");
        assert!(matches!(session.next().await, Ok(Some(Back::Started(_)))));
        session.send(frame(0)).await;
        assert_eq!(session.refusal().await, violation);
    }
    // Beyond the credit, with a program that reads nothing.
    world.cluster.on_stream(|program| {
        async move {
            let nonce = program.request.command.clone().unwrap_or_default().get(4).cloned().unwrap_or_default();
            let _ = program.output.send(Output::Stdout(format!("{nonce}.").into())).await;
            let _unread = program;
            std::future::pending().await
        }
        .boxed()
    });
    let mut session = client.session(shell(&handle)).await.expect("a stream");
    let Ok(Some(Back::Started(started))) = session.next().await else { panic!("not started") };
    // The in-memory stream takes 16 pieces; then nothing is taken, and no credit granted, any more.
    for offset in 0..16 {
        session.send(data(offset, b"x".to_vec())).await;
    }
    let mut offset = 16;
    while offset < started.stdin_credit {
        let len = (started.stdin_credit - offset).min(65536);
        session.send(data(offset, vec![0; len as usize])).await;
        offset += len;
    }
    session.send(data(offset, b"x".to_vec())).await;
    assert_eq!(session.refusal().await, violation);
    let mut open = shell(&handle);
    open.session_id = "not an id".into();
    let mut session = client.session(open).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::InvalidArgument, Reason::InvalidRequest));
    let mut open = shell(&handle);
    open.attempt = 2;
    let mut session = client.session(open).await.expect("a stream");
    assert_eq!(session.refusal().await, (Code::Unimplemented, Reason::Unimplemented));
    // A message that is too large is refused before it is read.
    let mut session = client.session(shell(&handle)).await.expect("a stream");
    assert!(matches!(session.next().await, Ok(Some(Back::Started(_)))));
    session.send(data(0, vec![0; 512 * 1024])).await;
    while let Ok(Some(_)) = session.next().await {}
    // Bytes that are no TLS.
    let mut garbage = TcpStream::connect(replica.address).await.expect("connects");
    garbage.write_all(b"SSH-2.0-OpenSSH_10.0\r\n").await.expect("writes");
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, garbage.read_to_end(&mut rest)).await.expect("it is cut");

    // Nobody else noticed.
    bystander.send(data(0, b"still here".to_vec())).await;
    let mut seen = Vec::new();
    while seen != b"still here" {
        match bystander.next().await.expect("no refusal").expect("no end") {
            Back::Data(data) if data.stream() == v1::Stream::Stdout => seen.extend_from_slice(&data.data),
            _ => {}
        }
    }
    let metrics = metrics(&replica).await;
    assert!(metrics.contains("podbay_refused_peers_total{kind=\"tls\"} 1"), "{metrics}");
    assert!(metrics.contains("podbay_calls_total{method=\"RunSession\",code=\"INVALID_ARGUMENT\"}"), "{metrics}");
}

async fn metrics(replica: &Replica) -> String {
    let mut stream = TcpStream::connect(replica.admin).await.expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("writes");
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.expect("in time").expect("text");
    text
}

#[tokio::test]
async fn answers_come_in_under_a_second_while_neither_side_reads() {
    let world = World::new();
    let replica = world.replica().await;
    world.cluster.on_stream(|program| {
        async move {
            let nonce = program.request.command.clone().unwrap_or_default().get(4).cloned().unwrap_or_default();
            let _ = program.output.send(Output::Stdout(format!("{nonce}.").into())).await;
            // Writes for ever, reads nothing.
            while program.output.send(Output::Stdout(vec![b'x'; 32 * 1024].into())).await.is_ok() {}
            StreamEnd::Lost("unread".into())
        }
        .boxed()
    });
    let mut client = world.client(&replica, "frontend.podbay").await;
    let handle = client.open(connection(1, "bob")).await.expect("opened").handle;
    let size = Some(v1::WindowSize { columns: 80, rows: 24, ..v1::WindowSize::default() });
    let open = v1::Open { pty: Some(v1::Pty { term: "xterm".into(), size, modes: Vec::new() }), ..shell(&handle) };
    let mut session = client.session(open).await.expect("a stream");
    let Ok(Some(Back::Started(started))) = session.next().await else { panic!("not started") };
    let mut offset = 0;
    while offset < started.stdin_credit {
        session.send(data(offset, vec![b'i'; 32 * 1024])).await;
        offset += 32 * 1024;
    }
    // The client reads no output beyond its first credit, and is not read by the program: its requests are answered.
    let began = Instant::now();
    session.send(Frame::Signal(v1::Signal { id: 1, name: "INT".into(), deadline: None })).await;
    session.send(Frame::Resize(v1::Resize { id: 2, size, deadline: None })).await;
    let mut answers = Vec::new();
    let mut output = 0;
    while answers.len() < 2 {
        match session.next().await.expect("no refusal").expect("no end") {
            Back::Answer(answer) => answers.push((answer.id, answer.refusal.map(|refusal| refusal.reason()))),
            Back::Data(data) => output += data.data.len() as u64,
            _ => {}
        }
    }
    assert_eq!(answers, [(1, Some(Reason::SignalNotDelivered)), (2, None)]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(output <= MAX_CREDIT);
}

#[tokio::test]
async fn command_start_fires_through_the_whole_stack() {
    let world = World::new();
    let replica = world.replica().await;
    world.cluster.on_stream(|_| std::future::pending().boxed());
    let mut client = world.client(&replica, "frontend.podbay").await;
    let handle = client.open(connection(1, "bob")).await.expect("opened").handle;
    let began = Instant::now();
    let mut session = client.session(shell(&handle)).await.expect("headers come at once");
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(session.refusal().await, (Code::DeadlineExceeded, Reason::CommandStartTimeout));
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn a_handle_that_is_none_is_refused_and_health_tells_apart() {
    let world = World::new();
    let replica = world.replica().await;
    let mut client = world.client(&replica, "frontend.podbay").await;
    let status = client.sessions.detach(v1::DetachRequest::default()).await.expect_err("no handle");
    assert_eq!(reason(&status), (Code::PermissionDenied, Reason::HandleInvalid));
    for name in ["", "podbay.v1.ConnectionService", "podbay.v1.SessionService", "kubernetes"] {
        let mut client = world.client(&replica, "frontend.podbay").await;
        eventually(name, async || client.serving(name).await == Ok(ServingStatus::Serving)).await;
    }
    let error = podbay_backend_core::cluster::ClusterError::Unavailable { message: "x".into(), retry_after: None };
    world.cluster.down(error);
    eventually("the outage", async || client.serving("kubernetes").await == Ok(ServingStatus::NotServing)).await;
    assert_eq!(client.serving("").await, Ok(ServingStatus::Serving));
}

#[tokio::test]
async fn a_draining_replica_refuses_new_work_waits_and_then_cuts() {
    let world = World::new();
    let replica = world.replica().await;
    let mut client = world.client(&replica, "frontend.podbay").await;
    let handle = client.open(connection(1, "bob")).await.expect("opened").handle;
    let mut quick = client.session(shell(&handle)).await.expect("a stream");
    let mut stuck = client.session(shell(&handle)).await.expect("a stream");
    for session in [&mut quick, &mut stuck] {
        assert!(matches!(session.next().await, Ok(Some(Back::Started(_)))));
    }
    replica.shutdown.soft.cancel();
    eventually("NOT_SERVING", async || client.serving("").await == Ok(ServingStatus::NotServing)).await;
    let status = client.open(connection(2, "bob")).await.expect_err("draining");
    assert_eq!(reason(&status), (Code::Unavailable, Reason::Draining));
    // One that ends in time ends well; the other is cut with a reason.
    quick.send(Frame::Eof(v1::Eof { stream: v1::Stream::Stdin.into(), offset: 0, id: 1 })).await;
    let mut exit = None;
    while let Some(frame) = quick.next().await.expect("no refusal") {
        if let Back::Exit(end) = frame {
            exit = end.end;
        }
    }
    assert_eq!(exit, Some(End::Code(7)));
    assert_eq!(stuck.refusal().await, (Code::Unavailable, Reason::Draining));
    timeout(PATIENCE, replica.task).await.expect("it ends").expect("no panic").expect("well");
    assert_eq!(world.cluster.pods().len(), 1, "the connection lives on, for other replicas");
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let world = World::new();
    let replica = world.replica().await;
    let channel = world.channel(&replica, Some("frontend.podbay")).await.expect("connects");
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("answers")
        .into_inner();
    let answer = answers.message().await.expect("an answer").expect("one");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("no list") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for wanted in ["podbay.v1.ConnectionService", "podbay.v1.SessionService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == wanted), "{names:?}");
    }
}

#[tokio::test]
async fn garbage_inside_tls_is_cut_and_counted() {
    let world = World::new();
    let replica = world.replica().await;
    let dir = world.dir.path();
    // The server's own certificate will do as a client's: its CA signed it.
    let identity = (dir.join("cert.pem"), dir.join("key.pem"));
    let tls = podbay_runtime::tls::client(&dir.join("ca.pem"), Some((&identity.0, &identity.1))).expect("TLS");
    let stream = TcpStream::connect(replica.address).await.expect("connects");
    let name = "localhost".try_into().expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.expect("handshake");
    stream.write_all(b"SSH-2.0-lost\r\n").await.expect("writes");
    // Cut: by an end or an error, but not by silence.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it is cut");
    let metrics = metrics(&replica).await;
    assert!(metrics.contains("podbay_refused_peers_total{kind=\"garbage\"} 1"), "{metrics}");
    world.client(&replica, "frontend.podbay").await.open(connection(1, "bob")).await.expect("others are served");
}

#[tokio::test]
async fn new_certificates_are_taken_up_without_a_restart_and_bad_ones_are_not() {
    let mut world = World::new();
    let replica = world.replica().await;
    let mut before = world.client(&replica, "frontend.podbay").await;
    before.open(connection(1, "bob")).await.expect("opened");
    let reloads = async |kind: &str, wanted: u32| {
        let line = format!("podbay_tls_reloads_total{{kind=\"{kind}\"}} {wanted}");
        eventually(&line, async || metrics(&replica).await.contains(&line)).await;
    };
    // A file of nonsense: the old ones stay.
    let good = std::fs::read(world.dir.path().join("cert.pem")).expect("reads");
    std::fs::write(world.dir.path().join("cert.pem"), "nonsense").expect("writes");
    reloads("bad", 1).await;
    world.client(&replica, "frontend.podbay").await.open(connection(2, "bob")).await.expect("as before");
    std::fs::write(world.dir.path().join("cert.pem"), good).expect("writes");
    reloads("good", 1).await;
    // All new, and a CA of its own: whoever has the old credentials is a stranger, but for connections that are there.
    let next = tempfile::tempdir().expect("a directory");
    let (ca, identities) = credentials(next.path());
    for name in ["key.pem", "cert.pem", "ca.pem"] {
        std::fs::rename(next.path().join(name), world.dir.path().join(name)).expect("renames");
    }
    eventually("the old credentials are refused", async || {
        world.channel(&replica, Some("frontend.podbay")).await.is_err()
    })
    .await;
    before.open(connection(3, "bob")).await.expect("an old connection goes on");
    (world.ca, world.identities) = (ca, identities);
    world.client(&replica, "frontend.podbay").await.open(connection(4, "bob")).await.expect("the new ones work");
}
