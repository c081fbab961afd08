//! ContainerSSH's keys of `kubernetes.connection`, against a real API over TLS, and what can't work is told before anything
//! is sent.

mod support;

use k8s_openapi::serde_json::Value;
use podbay_backend::kubernetes::KubeCluster;
use podbay_backend_core::cluster::{Cluster as _, ClusterError};
use podbay_minicluster::{Minicluster, Options};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

#[tokio::test]
async fn an_api_server_that_is_not_there_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let cluster = support::cluster(&format!("host: \"http://{address}\"")).await;
    let error = cluster.ping().await.expect_err("nothing listens there");
    assert!(matches!(&error, ClusterError::Unreachable { message } if message.contains("refused")), "{error}");
    let error = cluster.stream(&support::pod(), &support::exec(&["x"], false)).await.expect_err("nothing listens");
    assert!(matches!(error, ClusterError::Unreachable { .. }), "{error}");
}

/// A cluster with TLS, and its credentials as files.
struct World {
    minicluster: Minicluster,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let minicluster = Minicluster::start(Options::new(listener)).await.expect("a minicluster");
        let world = Self { minicluster, dir: tempfile::tempdir().expect("a directory") };
        let kubeconfig: Value = k8s_openapi::serde_json::from_str(world.minicluster.kubeconfig()).expect("JSON");
        let user = &kubeconfig["users"][0]["user"];
        let pem = |key: &str| {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            String::from_utf8(STANDARD.decode(user[key].as_str().expect("text")).expect("base64")).expect("PEM")
        };
        world.write("ca", world.minicluster.ca_certificate());
        world.write("cert", &pem("client-certificate-data"));
        world.write("key", &pem("client-key-data"));
        world.write("token", &format!("{}\n", world.minicluster.bearer_token()));
        world.write("stale", "of yesterday");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("writes");
    }

    /// `{host}` and `{NAME}` become the address and the path of a file; `{=NAME}` its text.
    fn keys(&self, text: &str) -> String {
        let mut text = text.replace("{host}", &format!("\"{}\"", self.minicluster.address()));
        for name in ["ca", "cert", "key", "token", "stale", "client-cert", "client-key", "kubeconfig"] {
            // Not every test has all of them.
            let Ok(content) = std::fs::read_to_string(self.path(name)) else { continue };
            text = text.replace(&format!("{{{name}}}"), &format!("\"{}\"", self.path(name).display()));
            text = text.replace(&format!("{{={name}}}"), &Value::String(content.trim_end().to_owned()).to_string());
        }
        text
    }

    async fn cluster(&self, keys: &str) -> KubeCluster {
        support::cluster(&self.keys(keys)).await
    }
}

/// Both clients are who they are taken for: requests, and execs (of a pod that there is not).
async fn works(cluster: &KubeCluster, keys: &str) {
    cluster.ping().await.unwrap_or_else(|error| panic!("{keys}: {error}"));
    let error = cluster.stream(&support::pod(), &support::exec(&["x"], false)).await.expect_err("no such pod");
    assert!(matches!(error, ClusterError::NotFound { .. }), "{keys}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_work_as_text_and_as_files() {
    let world = World::new().await;
    for keys in [
        "host: {host}, cacert: {=ca}, cert: {=cert}, key: {=key}",
        "host: {host}, cacertFile: {ca}, certFile: {cert}, keyFile: {key}",
        "host: {host}, cacertFile: {ca}, cert: {=cert}, keyFile: {key}",
        "host: {host}, cacertFile: {ca}, bearerToken: {=token}",
        "host: {host}, cacertFile: {ca}, bearerTokenFile: {token}",
        // Text wins over a file, but for the token, as in the stock Kubernetes client.
        "host: {host}, cacert: {=ca}, cacertFile: {stale}, bearerTokenFile: {token}",
        "host: {host}, cacertFile: {ca}, bearerToken: {=stale}, bearerTokenFile: {token}",
        // The name in the certificate, where the host's is another; and the limits.
        "host: {host}, serverName: kubernetes.default.svc, cacertFile: {ca}, bearerTokenFile: {token}, qps: 100, burst: 3",
    ] {
        works(&world.cluster(keys).await, keys).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_apart() {
    let world = World::new().await;
    for (keys, wanted) in [
        ("host: {host}, cacertFile: {ca}", "not authenticated"),
        ("host: {host}, cacertFile: {ca}, bearerToken: {=stale}", "not authenticated"),
        ("host: {host}, cacertFile: {ca}, username: u, password: p", "not authenticated"),
        // Another CA, another name.
        ("host: {host}, cacertFile: {cert}, bearerTokenFile: {token}", "certificate"),
        ("host: {host}, serverName: elsewhere.example, cacertFile: {ca}, bearerTokenFile: {token}", "certificate"),
    ] {
        let cluster = world.cluster(keys).await;
        let error = cluster.ping().await.expect_err(keys).to_string();
        assert!(error.contains(wanted), "{keys}: {error}");
        assert!(!error.contains(world.minicluster.bearer_token()), "{keys}: a secret: {error}");
    }
    let mut proxied: Value = k8s_openapi::serde_json::from_str(world.minicluster.kubeconfig()).expect("JSON");
    proxied["clusters"][0]["cluster"]["proxy-url"] = "http://user:secret@127.0.0.1:1".into();
    world.write("kubeconfig", &proxied.to_string());
    let error = support::try_cluster(&world.keys("kubeconfig: {kubeconfig}")).await.expect_err("a proxy").to_string();
    assert!(error.contains("has a proxy-url") && !error.contains("secret"), "{error}");
    // What can't work at all is told at the start, by the key's name.
    for (keys, wanted) in [
        ("host: {host}, cacertFile: /nowhere/ca", "cacertFile /nowhere/ca"),
        ("host: {host}, cacert: nonsense", "cacert holds no PEM"),
        ("host: {host}, cacertFile: {ca}, cert: nonsense, key: {=key}", ""),
        ("host: {host}, cacertFile: {ca}, certFile: /nowhere/c, keyFile: {key}", "/nowhere/c"),
        ("host: 'h h', cacertFile: {ca}", "host"),
    ] {
        let error = support::try_cluster(&world.keys(keys)).await.err().unwrap_or_else(|| panic!("{keys}"));
        assert!(error.to_string().contains(wanted), "{keys}: {error}");
    }
    world.write("stale", "  \n");
    let error =
        support::try_cluster(&world.keys("host: {host}, bearerTokenFile: {stale}")).await.expect_err("no token");
    assert!(error.to_string().contains("bearerTokenFile"), "{error}");
}

/// Counts what the reader of token files logs: that one can't be read. Only one test takes a file away.
struct Missed;

static MISSED: AtomicUsize = AtomicUsize::new(0);

impl Missed {
    fn count() -> usize {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| tracing::subscriber::set_global_default(Self).expect("the only one"));
        MISSED.load(Ordering::SeqCst)
    }
}

impl tracing::Subscriber for Missed {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().ends_with("kubernetes::token")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        MISSED.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_counts_without_a_restart() {
    let world = World::new().await;
    let cluster = world.cluster("host: {host}, cacertFile: {ca}, bearerTokenFile: {stale}").await;
    let error = cluster.ping().await.expect_err("yesterday's token");
    assert!(matches!(error, ClusterError::Unauthorized { .. }), "{error}");
    let becomes = async |works: bool| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while cluster.ping().await.is_ok() != works {
            assert!(Instant::now() < deadline, "the file is not read again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // As kubelets do it: another file takes its place.
    world.write("new", world.minicluster.bearer_token());
    std::fs::rename(world.path("new"), world.path("stale")).expect("renames");
    becomes(true).await;
    works(&cluster, "the new token").await;
    // A file that goes away changes nothing, once it was missed; a wrong one does.
    let before = Missed::count();
    std::fs::remove_file(world.path("stale")).expect("removes");
    let deadline = Instant::now() + Duration::from_secs(30);
    while Missed::count() == before {
        works(&cluster, "the last token").await;
        assert!(Instant::now() < deadline, "the file is not read again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    works(&cluster, "the last token").await;
    world.write("stale", "wrong");
    becomes(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_certificates_and_kubeconfigs_count_after_a_renewal_and_another_server_does_not() {
    let (world, other) = (World::new().await, World::new().await);
    // What another cluster's CA has signed, which is nobody here; in files that others replace, as cert-manager does.
    for (name, from) in [("client-cert", "cert"), ("client-key", "key")] {
        std::fs::copy(other.path(from), world.path(name)).expect("copies");
    }
    let keys = "host: {host}, cacertFile: {ca}, certFile: {client-cert}, keyFile: {client-key}";
    let (cluster, connection) = (world.cluster(keys).await, support::connection(&world.keys(keys)));
    cluster.ping().await.expect_err("a stranger's certificate");
    for (name, from) in [("client-cert", "cert"), ("client-key", "key")] {
        std::fs::copy(world.path(from), world.path("new")).expect("copies");
        std::fs::rename(world.path("new"), world.path(name)).expect("renames");
    }
    cluster.ping().await.expect_err("the files are not read yet");
    let http = Duration::from_secs(9);
    assert!(cluster.renew(&connection, http).await.expect("renewed"));
    works(&cluster, "the new certificate").await;
    // What can't be used changes nothing.
    world.write("client-key", "nonsense");
    cluster.renew(&connection, http).await.expect_err("no key");
    works(&cluster, "the last certificate").await;

    world.write("kubeconfig", world.minicluster.kubeconfig());
    let keys = "kubeconfig: {kubeconfig}";
    let (cluster, connection) = (world.cluster(keys).await, support::connection(&world.keys(keys)));
    assert!(cluster.renew(&connection, http).await.expect("renewed"));
    world.write("kubeconfig", other.minicluster.kubeconfig());
    assert!(!cluster.renew(&connection, http).await.expect("renewed"), "another server");
    works(&cluster, "where its pods are").await;
}

/// What a plain HTTP server is asked: the heads of its requests.
async fn heads_of(requests: usize, keys: impl Fn(std::net::SocketAddr) -> String) -> Vec<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a request"));
            }
            seen.lock().expect("a lock").push(String::from_utf8(head).expect("text").to_lowercase());
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
            let body = r#"{"major":"1","minor":"33","gitVersion":"v1.33.0","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#;
            let answer = format!("{answer}content-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.expect("answers");
        }
    });
    let cluster = support::cluster(&keys(address)).await;
    for _ in 0..requests {
        cluster.ping().await.expect("answers");
    }
    server.abort();
    heads.lock().expect("a lock").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_a_path_and_the_rate_are_used_as_they_are_given() {
    let keys = |address| format!("host: \"http://{address}\", path: /clusters/a/api, username: jack, password: secret");
    let head = heads_of(1, keys).await.remove(0);
    assert!(head.starts_with("get /clusters/a/"), "{head}");
    // base64 of jack:secret, in the lower case that heads are told in.
    assert!(head.contains("authorization: basic amfjazpzzwnyzxq="), "{head}");
    assert!(head.contains("user-agent: podbay/"), "{head}");
    let began = Instant::now();
    let keys = |address| format!("host: \"http://{address}\", qps: 4, burst: 2");
    assert_eq!(heads_of(4, keys).await.len(), 4);
    assert!(began.elapsed() >= Duration::from_millis(450), "two at once, two at 4 a second: {:?}", began.elapsed());
}
