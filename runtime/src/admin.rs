//! The admin listener: `/metrics` (OpenMetrics text), `/healthz` (the process lives), `/readyz` (it takes work).

mod bounded;

use crate::tls::{self, Accepted, Followed};
use axum::{Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get};
use bounded::Bounded;
use prometheus_client::{encoding::text::encode, registry::Registry};
use rustls::ServerConfig;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// Whether the process takes work now. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says so.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// Asks.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Debug, Clone)]
struct Shared {
    registry: Arc<Registry>,
    readiness: Readiness,
}

/// Where clients come in.
#[derive(Debug)]
pub enum Door {
    /// HTTP.
    Plain(TcpListener),
    /// HTTPS; each handshake uses the certificates of its moment.
    Tls(TcpListener, Arc<Followed<ServerConfig>>),
}

impl Door {
    /// HTTPS where there is something to show.
    pub fn new(listener: TcpListener, tls: Option<Arc<Followed<ServerConfig>>>) -> Self {
        match tls {
            None => Self::Plain(listener),
            Some(tls) => Self::Tls(listener, tls),
        }
    }

    async fn serve(self, router: Router, stop: CancellationToken) -> io::Result<()> {
        match self {
            Self::Plain(listener) => {
                axum::serve(bounded(listener), router).with_graceful_shutdown(stop.cancelled_owned()).await
            }
            Self::Tls(listener, tls) => {
                let address = listener.local_addr()?;
                let refused = |who: tls::Refused, error: &io::Error| {
                    tracing::debug!(?who, %error, "a client of metrics or health did not get in");
                };
                let accepted = tls::incoming_web(listener, tls, tls::Limits::default(), stop.clone(), refused);
                let https = Https { accepted, address };
                axum::serve(bounded(https), router).with_graceful_shutdown(stop.cancelled_owned()).await
            }
        }
    }
}

/// Connections whose handshake is done.
struct Https {
    accepted: mpsc::Receiver<io::Result<Accepted>>,
    address: SocketAddr,
}

impl axum::serve::Listener for Https {
    type Io = Accepted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Accepted, SocketAddr) {
        loop {
            match self.accepted.recv().await {
                Some(Ok(stream)) => {
                    let peer = stream.get_ref().get_ref().0.peer_addr().unwrap_or(self.address);
                    return (stream, peer);
                }
                Some(Err(_)) => {}
                // It is told to stop, as whoever waits here is.
                None => std::future::pending::<()>().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Serves until `stop`. There is no authentication: bind it where only the cluster's monitoring can reach it.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    readiness: Readiness,
    stop: CancellationToken,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Shared { registry, readiness });
    axum::serve(bounded(listener), router).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn bounded<L>(listener: L) -> Bounded<L> {
    Bounded::new(listener, bounded::MOST, bounded::LIFE)
}

/// ContainerSSH's `metrics`: one path, by any method; everything else is 404.
pub async fn serve_metrics(door: Door, path: &str, registry: Arc<Registry>, stop: CancellationToken) -> io::Result<()> {
    let shared = Shared { registry, readiness: Readiness::default() };
    let path = path.to_owned();
    let answer = move |State(shared): State<Shared>, uri: axum::http::Uri| async move {
        if uri.path() == path {
            metrics(State(shared)).await.into_response()
        } else {
            StatusCode::NOT_FOUND.into_response()
        }
    };
    door.serve(Router::new().fallback(answer).with_state(shared), stop).await
}

/// ContainerSSH's `health`: every path and method answers `ok`, or 503 `not ok` while the process takes no work. The body is JSON
/// text unless the client asks for text.
pub async fn serve_health(door: Door, readiness: Readiness, stop: CancellationToken) -> io::Result<()> {
    let answer = |State(readiness): State<Readiness>, headers: axum::http::HeaderMap| async move {
        let (status, word) =
            if readiness.get() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ok") };
        let wants = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let text = wants.split(',').next().is_some_and(|first| first.trim().starts_with("text/"));
        let kind = if text { "text/plain; charset=utf-8" } else { "application/json" };
        (status, [(header::CONTENT_TYPE, kind)], if text { word.to_owned() } else { format!("\"{word}\"") })
    };
    door.serve(Router::new().fallback(answer).with_state(readiness), stop).await
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &shared.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(shared): State<Shared>) -> impl IntoResponse {
    if shared.readiness.get() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        answer
    }

    #[tokio::test]
    async fn serves_as_containerssh_does() {
        let mut registry = Registry::default();
        registry.register("things", "Things seen", Counter::<u64>::default());
        let bind = || async { TcpListener::bind("127.0.0.1:0").await.expect("binds") };
        let (metrics, health, stop) = (bind().await, bind().await, CancellationToken::new());
        let (at, health_at) = (metrics.local_addr().expect("bound"), health.local_addr().expect("bound"));
        let readiness = Readiness::default();
        let servers = [
            tokio::spawn(serve_metrics_owned(Door::Plain(metrics), Arc::new(registry), stop.clone())),
            tokio::spawn(serve_health(Door::Plain(health), readiness.clone(), stop.clone())),
        ];
        assert!(fetch(at, "/m").await.contains("things_total 0"));
        assert!(fetch(at, "/metrics").await.starts_with("HTTP/1.1 404"));
        let told = fetch(health_at, "/any").await;
        assert!(told.starts_with("HTTP/1.1 503") && told.ends_with("\"not ok\""), "{told}");
        readiness.set(true);
        let told = fetch(health_at, "/ HTTP/1.1\r\nAccept: text/plain, */*\r\nX: ").await;
        assert!(told.starts_with("HTTP/1.1 200") && told.ends_with("\r\nok"), "{told}");
        stop.cancel();
        for server in servers {
            server.await.expect("ends").expect("serves");
        }
    }

    async fn serve_metrics_owned(door: Door, registry: Arc<Registry>, stop: CancellationToken) -> io::Result<()> {
        serve_metrics(door, "/m", registry, stop).await
    }

    #[tokio::test]
    async fn serves_metrics_health_and_readiness() {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        registry.register("things", "Things seen", counter.clone());
        counter.inc_by(3);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let server = tokio::spawn(serve(listener, Arc::new(registry), readiness.clone(), stop.clone()));
        assert!(fetch(address, "/metrics").await.contains("things_total 3"));
        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        readiness.set(true);
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        stop.cancel();
        server.await.expect("ends").expect("serves");
    }

    /// A certificate for localhost by a CA of its own; and the CA's.
    fn certificate(dir: &std::path::Path, name: &str) -> String {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let (ca_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).expect("a CA").pem();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, &ca_key)).expect("a certificate");
        std::fs::write(dir.join(format!("{name}.crt")), leaf.pem()).expect("written");
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("written");
        ca_pem
    }

    /// Asks over TLS, with a certificate or without.
    async fn fetch_tls(at: std::net::SocketAddr, ca: &str, identity: Option<(&str, &str)>) -> io::Result<String> {
        let pem = |text: &str| tls::PemText::read(text).expect("read").expect("not empty");
        let identity = identity.map(|(cert, key)| (pem(cert), pem(key)));
        let config = tls::web_client(
            Some(&pem(ca)),
            identity.as_ref().map(|(cert, key)| (cert, key)),
            false,
            &tls::Choice::default(),
        );
        let connector = tokio_rustls::TlsConnector::from(config.expect("a client"));
        let stream = tokio::net::TcpStream::connect(at).await?;
        let mut stream = connector.connect("localhost".try_into().expect("a name"), stream).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        if answer.is_empty() { read.and(Err(io::ErrorKind::UnexpectedEof.into())) } else { Ok(answer) }
    }

    #[tokio::test]
    async fn https_asks_for_certificates_and_shows_new_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let server_ca = certificate(dir.path(), "server");
        let client_ca = certificate(dir.path(), "client");
        let source = |text: String| tls::PemSource::parse(&text).expect("not empty");
        let web = tls::WebServer {
            cert: source(path("server.crt")),
            key: source(path("server.key")),
            client_ca: Some(source(client_ca.clone())),
            old: false,
            choice: tls::Choice::default(),
        };
        let followed = Followed::web_server(web).expect("a server");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (at, readiness, stop) =
            (listener.local_addr().expect("bound"), Readiness::default(), CancellationToken::new());
        readiness.set(true);
        let door = Door::new(listener, Some(Arc::clone(&followed)));
        let server = tokio::spawn(serve_health(door, readiness, stop.clone()));
        let (cert, key) = (path("client.crt"), path("client.key"));
        let identity = Some((cert.as_str(), key.as_str()));
        // Somebody who says nothing holds nobody up.
        let _silent = tokio::net::TcpStream::connect(at).await.expect("connects");
        let told = fetch_tls(at, &server_ca, identity).await.expect("an answer");
        assert!(told.starts_with("HTTP/1.1 200") && told.ends_with("\"ok\""), "{told}");
        fetch_tls(at, &server_ca, None).await.expect_err("no certificate");
        fetch_tls(at, &client_ca, identity).await.expect_err("another CA's server");
        // New files count for the next handshake.
        let new_ca = certificate(dir.path(), "server");
        assert!(matches!(followed.check(), tls::Checked::New));
        fetch_tls(at, &new_ca, identity).await.expect("an answer");
        fetch_tls(at, &server_ca, identity).await.expect_err("the old one is gone");
        stop.cancel();
        server.await.expect("ends").expect("serves");
    }
}
