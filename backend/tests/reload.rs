//! A configuration that changes while the backend runs: what new connections are opened with, who may call, and what becomes of
//! connections that were there before.

use futures::FutureExt as _;
use podbay::{
    MAX_CREDIT, refusal_of,
    v1::{
        self, Reason, connection_service_client::ConnectionServiceClient, open, open_connection_response::Event,
        run_session_request::Frame, run_session_response::Frame as Back, session_service_client::SessionServiceClient,
    },
};
use podbay_backend::{Config, metrics::Equivalents, run_on};
use podbay_backend_core::{
    cluster::{ClusterError, Output, StreamEnd},
    fake::{Call, FakeCluster, Fault, Program, script::ready},
};
use podbay_runtime::{
    config::{Document, Noted},
    reload::Source,
    shutdown::Shutdown,
};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

const PATIENCE: Duration = Duration::from_secs(30);

const KEY_ONE: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
const KEY_TWO: &str = "MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=";

/// The reaper looks once, and then not again: lists are the test's own.
const FILE: &str = "
kubernetes:
  pod:
    disableAgent: true
    mode: connection
    metadata: {namespace: ns}
    spec: {containers: [{name: shell, image: 'first'}]}
grpc:
  tls: {certFile: @DIR@/cert.pem, keyFile: @DIR@/key.pem, clientCAFile: @DIR@/ca.pem}
  drainTimeout: 1s
  handleKeys: [{id: one, key: 'KEY_ONE'}]
  callers:
  - {name: 'dns:frontend.podbay', service: frontend, users: ['*']}
ownership: {leaseDuration: 1h, backendWait: 1m}
";

struct World {
    dir: tempfile::TempDir,
    ca: String,
    identities: Vec<(&'static str, Identity)>,
    cluster: FakeCluster,
    address: SocketAddr,
    admin: SocketAddr,
    asked: Arc<Notify>,
    shutdown: Shutdown,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.hard.cancel();
    }
}

/// Writes a new CA with the server's certificate and key; gives the CA and what its clients show.
fn credentials(dir: &Path) -> (String, Vec<(&'static str, Identity)>) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca_params = CertificateParams::default();
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = ca_params.self_signed(&ca_key).expect("a CA").pem();
    let issuer = Issuer::new(ca_params, &ca_key);
    let leaf = |dns: &str| {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![dns.to_owned()]).expect("a name");
        (params.signed_by(&key, &issuer).expect("a certificate").pem(), key.serialize_pem())
    };
    let (cert, key) = leaf("localhost");
    for (name, text) in [("ca.pem", &ca), ("cert.pem", &cert), ("key.pem", &key)] {
        std::fs::write(dir.join(name), text).expect("written");
    }
    let identities = ["frontend.podbay", "ci.podbay"].map(|name| {
        let (cert, key) = leaf(name);
        (name, Identity::from_pem(cert, key))
    });
    (ca, identities.into())
}

/// Plays the wrapper, and ends.
async fn ends(program: Program) -> StreamEnd {
    let command = program.request.command.clone().unwrap_or_default();
    let mark = format!("{}.", command.get(4).map(String::as_str).unwrap_or_default());
    let _ = program.output.send(Output::Stdout(mark.into())).await;
    StreamEnd::ExitCode(0)
}

fn write(dir: &Path, text: &str) {
    let text = text.replace("@DIR@", &dir.display().to_string());
    let text = text.replace("KEY_ONE", KEY_ONE).replace("KEY_TWO", KEY_TWO);
    std::fs::write(dir.join("new.yaml"), text).expect("written");
    std::fs::rename(dir.join("new.yaml"), dir.join("podbay.yaml")).expect("renamed");
}

impl World {
    async fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (ca, identities) = credentials(dir.path());
        let cluster = FakeCluster::new();
        cluster.on_stream(|program| ends(program).boxed());
        write(dir.path(), text);
        let read = Source::read(&dir.path().join("podbay.yaml"), Config::from_document);
        let (config, source) = read.unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let (listener, admin_listener) = (bind().await, bind().await);
        let (address, admin) = (listener.local_addr().expect("bound"), admin_listener.local_addr().expect("bound"));
        let (asked, shutdown) = (Arc::<Notify>::default(), Shutdown::new());
        let source = source.every(Duration::ZERO).when(Arc::clone(&asked));
        let mut registry = Registry::default();
        let containerssh = Equivalents::new(&mut registry, false);
        let run = run_on(
            Arc::new(cluster.clone()),
            config,
            Some(source),
            (registry, containerssh),
            listener,
            Some(admin_listener),
            shutdown.clone(),
        );
        tokio::spawn(Box::pin(async move { run.await.expect("runs") }));
        let world = Self { dir, ca, identities, cluster, address, admin, asked, shutdown };
        eventually("the reaper's look", async || world.cluster.count(Call::ListPods) > 0).await;
        world
    }

    /// Puts another file there, and waits until it was read and ended so for the `times`th time.
    async fn reload(&self, text: &str, result: &str, times: u64) {
        write(self.dir.path(), text);
        self.asked.notify_one();
        let line = format!("podbay_config_reloads_total{{result=\"{result}\"}} {times}\n");
        eventually(&line, async || self.metrics().await.contains(&line)).await;
    }

    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.admin).await.expect("connects");
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("reads");
        text
    }

    async fn client(&self, name: &str) -> Client {
        let identity = self.identities.iter().find(|(n, _)| *n == name).expect("an identity").1.clone();
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca)).domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).expect("a URL");
        let channel: Channel =
            endpoint.tls_config(tls.identity(identity)).expect("TLS").connect().await.expect("connects");
        Client {
            connections: ConnectionServiceClient::new(channel.clone()),
            sessions: SessionServiceClient::new(channel),
            owner: id(if name == "frontend.podbay" { 98 } else { 99 }),
        }
    }

    /// Namespaces and images of the pods there are.
    fn pods(&self) -> Vec<(String, String)> {
        let mut pods: Vec<_> = self
            .cluster
            .pods()
            .into_iter()
            .map(|pod| {
                let image = pod.spec.and_then(|spec| spec.containers.first()?.image.clone());
                (pod.metadata.namespace.unwrap_or_default(), image.unwrap_or_default())
            })
            .collect();
        pods.sort();
        pods
    }
}

async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("binds")
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Client {
    connections: ConnectionServiceClient<Channel>,
    sessions: SessionServiceClient<Channel>,
    /// Its owner id.
    owner: String,
}

fn id(n: u8) -> String {
    format!("{n:032x}")
}

impl Client {
    /// Opens a connection; gives what it was accepted with and its handle.
    async fn open(&mut self, n: u8) -> Result<(v1::Accepted, v1::Opened), Status> {
        let request = v1::OpenConnectionRequest {
            connection_id: id(n),
            owner_id: self.owner.clone(),
            user: Some(v1::User { name: "alice".to_owned(), authenticated_name: String::new() }),
            ..v1::OpenConnectionRequest::default()
        };
        let mut stream = self.connections.open_connection(request).await?.into_inner();
        let mut accepted = None;
        loop {
            let message = timeout(PATIENCE, stream.message()).await.expect("in time")?;
            match message.and_then(|message| message.event).expect("no end before Opened") {
                Event::Accepted(news) => accepted = Some(news),
                Event::Progress(_) => {}
                Event::Opened(opened) => return Ok((accepted.expect("Accepted first"), opened)),
            }
        }
    }

    /// Starts a program in a connection; how that went.
    async fn run(&mut self, handle: &[u8], session: u8, command: &str) -> Result<(), Reason> {
        let open = v1::Open {
            handle: handle.to_vec().into(),
            session_id: id(session),
            program: Some(open::Program::Exec(v1::Exec { command: command.to_owned(), argv: Vec::new() })),
            stdout_credit: MAX_CREDIT,
            stderr_credit: MAX_CREDIT,
            ..v1::Open::default()
        };
        let (to, requests) = mpsc::channel(4);
        to.send(v1::RunSessionRequest { frame: Some(Frame::Open(open)) }).await.expect("there is room");
        let mut frames = self.sessions.run_session(ReceiverStream::new(requests)).await.expect("a stream").into_inner();
        let mut exited = false;
        loop {
            match timeout(PATIENCE, frames.message()).await.expect("in time") {
                Ok(Some(message)) => exited |= matches!(message.frame, Some(Back::Exit(_))),
                Ok(None) => {
                    assert!(exited, "no exit");
                    return Ok(());
                }
                Err(status) => return Err(refusal_of(&status).reason()),
            }
        }
    }

    async fn close(&mut self, n: u8) -> u32 {
        let close = v1::CloseConnectionRequest { connection_id: id(n), keep_detached: false };
        self.connections.close_connection(close).await.expect("closed").into_inner().pods_deleted
    }
}

fn pod(namespace: &str, image: &str) -> (String, String) {
    (namespace.to_owned(), image.to_owned())
}

#[tokio::test]
async fn image_and_policy_are_those_of_the_moment_that_a_connection_was_opened() {
    let world = World::new(FILE).await;
    let mut client = world.client("frontend.podbay").await;
    let (accepted, old) = client.open(1).await.expect("opened");
    let changed = FILE.replace("'first'", "'second'") + "security: {command: {mode: filter, allow: [yes]}}\n";
    let changed = changed.replace("kubernetes:\n", "kubernetes:\n  timeouts: {podStart: 41s}\n");
    world.reload(&changed, "ok", 1).await;
    let (accepted_now, new) = client.open(2).await.expect("opened");
    assert_eq!(world.pods(), [pod("ns", "first"), pod("ns", "second")]);
    let seconds = |accepted: &v1::Accepted| accepted.timeouts.and_then(|all| all.pod_start).map(|d| d.seconds);
    assert_eq!((seconds(&accepted), seconds(&accepted_now)), (Some(60), Some(41)));
    assert_ne!(accepted.policy, accepted_now.policy);
    assert_eq!(client.run(&old.handle, 1, "no").await, Ok(()));
    assert_eq!(client.run(&new.handle, 2, "no").await, Err(Reason::Policy));
    assert_eq!(client.run(&new.handle, 3, "yes").await, Ok(()));
    assert_eq!((client.close(1).await, client.close(2).await), (1, 1));
}

#[tokio::test]
async fn a_connection_in_mode_session_starts_its_pods_as_it_began() {
    let world = World::new(&FILE.replace("mode: connection", "mode: session")).await;
    let mut client = world.client("frontend.podbay").await;
    let (_, old) = client.open(1).await.expect("opened");
    // The mode too: how connections are closed must not go by the last one.
    world.reload(&FILE.replace("'first'", "'second'"), "ok", 1).await;
    let images = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&images);
    world.cluster.on_create(move |pod| {
        let image = pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.clone());
        noted.lock().expect("a lock").extend(image);
        vec![ready(Duration::ZERO, pod)]
    });
    // The program is the pod's own there, which the fake plays none of; here it is about the pods.
    let _ = client.run(&old.handle, 1, "x").await;
    let (_, new) = client.open(2).await.expect("opened");
    assert_eq!(client.run(&new.handle, 2, "x").await, Ok(()));
    assert_eq!(*images.lock().expect("a lock"), ["first", "second"]);
    client.close(1).await;
    // It can start no pod behind the closing's back, though the file's mode needs no such care by now.
    assert_eq!(client.run(&old.handle, 3, "x").await, Err(Reason::Terminated));
    assert_eq!(images.lock().expect("a lock").len(), 2);
}

#[tokio::test]
async fn pods_of_an_earlier_namespace_are_still_found() {
    let world = World::new(FILE).await;
    let mut client = world.client("frontend.podbay").await;
    client.open(1).await.expect("opened");
    let elsewhere = FILE.replace("namespace: ns", "namespace: other");
    world.reload(&elsewhere, "ok", 1).await;
    client.open(2).await.expect("opened");
    assert_eq!(world.pods(), [pod("ns", "first"), pod("other", "first")]);
    let list = v1::ListConnectionsRequest::default();
    let listed = client.connections.list_connections(list).await.expect("listed").into_inner().connections;
    assert_eq!(listed.len(), 2);
    // Leases stay where they are: that the default follows the pods' namespace is told.
    assert!(world.metrics().await.contains("podbay_config_keys_waiting_for_restart 1\n"));
    assert!(world.cluster.leases().iter().all(|lease| lease.metadata.namespace.as_deref() == Some("ns")));
    assert_eq!((client.close(1).await, client.close(2).await), (1, 1));
    assert!(world.pods().is_empty());
}

#[tokio::test]
async fn a_namespace_in_which_nothing_may_be_looked_for_is_refused() {
    let world = World::new(FILE).await;
    let mut client = world.client("frontend.podbay").await;
    let forbidden = ClusterError::Forbidden { message: "no".to_owned() };
    world.cluster.fault(Call::ListPods, Fault::Fail(forbidden));
    let elsewhere = FILE.replace("namespace: ns", "namespace: other").replace("'first'", "'second'");
    world.reload(&elsewhere, "refused", 1).await;
    client.open(1).await.expect("opened");
    assert_eq!(world.pods(), [pod("ns", "first")]);
    // Once it is allowed, the same file is good.
    world.reload(&elsewhere, "ok", 1).await;
    client.open(2).await.expect("opened");
    assert_eq!(world.pods(), [pod("ns", "first"), pod("other", "second")]);
}

#[tokio::test]
async fn callers_and_handle_keys_change_without_a_restart() {
    let world = World::new(FILE).await;
    let (mut frontend, mut ci) = (world.client("frontend.podbay").await, world.client("ci.podbay").await);
    let (_, opened) = frontend.open(1).await.expect("opened");
    let reason = |status: &Status| refusal_of(status).reason();
    assert_eq!(reason(&ci.open(2).await.expect_err("not known")), Reason::CallerUnknown);
    let rotated = FILE.replace("[{id: one, key: 'KEY_ONE'}]", "[{id: two, key: 'KEY_TWO'}, {id: one, key: 'KEY_ONE'}]");
    let both = rotated.replace("  callers:\n", "  callers:\n  - {name: 'dns:ci.podbay', service: ci, users: ['*']}\n");
    world.reload(&both, "ok", 1).await;
    ci.open(2).await.expect("known by now");
    assert_eq!(frontend.run(&opened.handle, 1, "x").await, Ok(()), "an old key opens");
    let beat = v1::HeartbeatRequest {
        owner_id: frontend.owner.clone(),
        handles: vec![opened.handle.clone()],
        ..v1::HeartbeatRequest::default()
    };
    let renewed = frontend.connections.heartbeat(beat).await.expect("a heartbeat").into_inner().handles;
    assert!(!renewed[0].is_empty(), "sealed anew");
    // The first caller is out.
    let only = both.replace("  - {name: 'dns:frontend.podbay', service: frontend, users: ['*']}\n", "");
    world.reload(&only, "ok", 2).await;
    assert_eq!(reason(&frontend.open(3).await.expect_err("not known")), Reason::CallerUnknown);
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_counted() {
    let world = World::new(FILE).await;
    let mut client = world.client("frontend.podbay").await;
    for (n, bad) in [FILE.replace("image:", "imgae:"), "grpc: [".to_owned(), FILE.replace("/cert.pem", "/nosuch")]
        .iter()
        .enumerate()
    {
        let n = u8::try_from(n).expect("few") + 1;
        world.reload(bad, "refused", n.into()).await;
        client.open(n).await.expect("opened");
    }
    assert!(world.metrics().await.contains("podbay_config_last_reload_successful 0\n"));
    assert!(world.pods().iter().all(|(_, image)| image == "first"));
    world.reload(FILE, "unchanged", 1).await;
    assert!(world.metrics().await.contains("podbay_config_last_reload_successful 1\n"));
}

#[test]
fn files_that_a_configuration_names_are_followed() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(credentials(dir.path()));
    for name in ["web-ca", "api-cert"] {
        std::fs::copy(dir.path().join("cert.pem"), dir.path().join(name)).expect("copies");
    }
    std::fs::copy(dir.path().join("key.pem"), dir.path().join("api-key")).expect("copies");
    std::fs::write(dir.path().join("handle"), KEY_ONE).expect("writes");
    let text = FILE
        .replace("key: 'KEY_ONE'", "file: @DIR@/handle")
        .replace("kubernetes:\n", "kubernetes:\n  connection: {certFile: @DIR@/api-cert, keyFile: @DIR@/api-key}\n")
        + "configserver: {url: 'https://h', cacert: @DIR@/web-ca}\n";
    write(dir.path(), &text);
    let noted = Noted::default();
    let document = Document::read_noting(&dir.path().join("podbay.yaml"), &noted).expect("YAML");
    Config::from_document(document).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let seen = noted.seen();
    let mut files: Vec<_> = seen.files().collect();
    files.sort_unstable();
    let names = ["api-cert", "api-key", "ca.pem", "cert.pem", "handle", "key.pem", "podbay.yaml", "web-ca"];
    assert_eq!(files, names.map(|name| dir.path().join(name)));
    assert_eq!(seen, seen.again());
}
