//! A backend, or several, over one cluster, and its clients.
#![allow(unreachable_pub, missing_debug_implementations)]

pub use futures::FutureExt as _;
pub use podbay::{
    MAX_CREDIT, refusal_of,
    v1::{
        self, Reason, connection_service_client::ConnectionServiceClient, exit::End, open,
        open_connection_response::Event, run_session_request::Frame, run_session_response::Frame as Back,
        session_service_client::SessionServiceClient,
    },
};
pub use podbay_backend::{Config, metrics::Equivalents, run_on};
pub use podbay_backend_core::{
    cluster::{Input, Output, StreamEnd},
    fake::{FakeCluster, Program},
};
pub use podbay_runtime::{config::Document, shutdown::Shutdown};
pub use prometheus_client::registry::Registry;
pub use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
pub use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
pub use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
pub use tokio_stream::wrappers::ReceiverStream;
pub use tonic::{
    Code, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
pub use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const ALICE: &str = "alice";

/// A CA, its certificates as files, and one fake cluster for all replicas.
pub struct World {
    pub dir: tempfile::TempDir,
    pub ca: String,
    pub identities: Vec<(&'static str, Identity)>,
    pub cluster: FakeCluster,
}

pub struct Replica {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub shutdown: Shutdown,
    pub task: JoinHandle<Result<(), podbay_backend::RunError>>,
}

/// Writes a new CA with the server's certificate and key; gives the CA and what its clients show.
pub fn credentials(dir: &std::path::Path) -> (String, Vec<(&'static str, Identity)>) {
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
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (ca, identities) = credentials(dir.path());
        let cluster = FakeCluster::new();
        cluster.on_stream(|program| echo(program).boxed());
        Self { dir, ca, identities, cluster }
    }

    pub fn config(&self, mode: &str) -> Config {
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

    pub async fn replica(&self) -> Replica {
        self.replica_of("connection").await
    }

    pub async fn replica_of(&self, mode: &str) -> Replica {
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

    pub async fn channel(&self, replica: &Replica, name: Option<&str>) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca)).domain_name("localhost");
        if let Some(name) = name {
            let identity = self.identities.iter().find(|(n, _)| *n == name).expect("an identity").1.clone();
            tls = tls.identity(identity);
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", replica.address)).expect("a URL");
        endpoint.tls_config(tls).expect("TLS").connect().await
    }

    pub async fn client(&self, replica: &Replica, name: &str) -> Client {
        let channel = self.channel(replica, Some(name)).await.expect("connects");
        Client {
            connections: ConnectionServiceClient::new(channel.clone()),
            sessions: SessionServiceClient::new(channel.clone()),
            health: HealthClient::new(channel),
        }
    }
}

/// Plays the wrapper, then copies stdin to stdout; ends with 7, says "err" on stderr.
pub async fn echo(mut program: Program) -> StreamEnd {
    let command = program.request.command.clone().unwrap_or_default();
    let mark = format!("{}.", command.get(4).map(String::as_str).unwrap_or_default());
    let _ = program.output.send(Output::Stdout(mark.into())).await;
    let _ = program.output.send(Output::Stderr("err".into())).await;
    while let Some(Input::Stdin(bytes)) = program.input.recv().await {
        let _ = program.output.send(Output::Stdout(bytes)).await;
    }
    StreamEnd::ExitCode(7)
}

pub struct Client {
    pub connections: ConnectionServiceClient<Channel>,
    pub sessions: SessionServiceClient<Channel>,
    pub health: HealthClient<Channel>,
}

pub fn id(n: u8) -> String {
    format!("{n:032x}")
}

pub fn connection(n: u8, user: &str) -> v1::OpenConnectionRequest {
    v1::OpenConnectionRequest {
        connection_id: id(n),
        owner_id: id(99),
        user: Some(v1::User { name: user.to_owned(), authenticated_name: String::new() }),
        ..v1::OpenConnectionRequest::default()
    }
}

pub fn shell(handle: &[u8]) -> v1::Open {
    v1::Open {
        handle: handle.to_vec().into(),
        session_id: id(7),
        program: Some(open::Program::Shell(v1::Shell {})),
        stdout_credit: MAX_CREDIT,
        stderr_credit: MAX_CREDIT,
        ..v1::Open::default()
    }
}

pub fn data(offset: u64, data: Vec<u8>) -> Frame {
    Frame::Data(v1::Data { stream: v1::Stream::Stdin.into(), offset, data: data.into() })
}

/// A session's stream as a client has it.
pub struct Session {
    pub to: mpsc::Sender<v1::RunSessionRequest>,
    pub from: Streaming<v1::RunSessionResponse>,
}

impl Session {
    pub async fn send(&self, frame: Frame) {
        self.to.send(v1::RunSessionRequest { frame: Some(frame) }).await.expect("the stream is there");
    }

    pub async fn next(&mut self) -> Result<Option<Back>, Status> {
        let message = timeout(PATIENCE, self.from.message()).await.expect("in time")?;
        Ok(message.map(|message| message.frame.expect("a frame")))
    }

    /// The refusal that ends it.
    pub async fn refusal(&mut self) -> (Code, Reason) {
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
    pub async fn open(&mut self, request: v1::OpenConnectionRequest) -> Result<v1::Opened, Status> {
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

    pub async fn stream(&mut self) -> Result<Session, Status> {
        let (to, requests) = mpsc::channel(16);
        let from = self.sessions.run_session(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Session { to, from })
    }

    pub async fn session(&mut self, open: v1::Open) -> Result<Session, Status> {
        let session = self.stream().await?;
        session.send(Frame::Open(open)).await;
        Ok(session)
    }

    /// Runs a session that echoes this text.
    pub async fn echo(&mut self, handle: &[u8], text: &str) {
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

    pub async fn serving(&mut self, name: &str) -> Result<ServingStatus, Code> {
        let request = HealthCheckRequest { service: name.to_owned() };
        let answer = self.health.check(request).await.map_err(|status| status.code())?;
        Ok(answer.into_inner().status())
    }
}

pub fn reason(status: &Status) -> (Code, Reason) {
    (status.code(), refusal_of(status).reason())
}

pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn metrics(replica: &Replica) -> String {
    let mut stream = TcpStream::connect(replica.admin).await.expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("writes");
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.expect("in time").expect("text");
    text
}
