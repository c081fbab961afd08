//! The admin listener: `/metrics` (OpenMetrics text), `/healthz` (the process lives), `/readyz` (it takes work).

use axum::{Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::net::TcpListener;
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
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// ContainerSSH's `metrics`: one path, by any method; everything else is 404.
pub async fn serve_metrics(
    listener: TcpListener,
    path: &str,
    registry: Arc<Registry>,
    stop: CancellationToken,
) -> io::Result<()> {
    let shared = Shared { registry, readiness: Readiness::default() };
    let path = path.to_owned();
    let answer = move |State(shared): State<Shared>, uri: axum::http::Uri| async move {
        if uri.path() == path {
            metrics(State(shared)).await.into_response()
        } else {
            StatusCode::NOT_FOUND.into_response()
        }
    };
    let router = Router::new().fallback(answer).with_state(shared);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// ContainerSSH's `health`: every path and method answers `ok`, or 503 `not ok` while the process takes no work. The body is JSON
/// text unless the client asks for text.
pub async fn serve_health(listener: TcpListener, readiness: Readiness, stop: CancellationToken) -> io::Result<()> {
    let answer = |State(readiness): State<Readiness>, headers: axum::http::HeaderMap| async move {
        let (status, word) =
            if readiness.get() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ok") };
        let wants = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let text = wants.split(',').next().is_some_and(|first| first.trim().starts_with("text/"));
        let kind = if text { "text/plain; charset=utf-8" } else { "application/json" };
        (status, [(header::CONTENT_TYPE, kind)], if text { word.to_owned() } else { format!("\"{word}\"") })
    };
    let router = Router::new().fallback(answer).with_state(readiness);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
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
            tokio::spawn(serve_metrics_owned(metrics, Arc::new(registry), stop.clone())),
            tokio::spawn(serve_health(health, readiness.clone(), stop.clone())),
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

    async fn serve_metrics_owned(
        listener: TcpListener,
        registry: Arc<Registry>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        serve_metrics(listener, "/m", registry, stop).await
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
}
