//! A stand-in for the API server's exec and attach: a WebSocket server that plays one scripted program.

#![allow(dead_code, missing_debug_implementations, unreachable_pub)]

use futures::future::BoxFuture;
use podbay_backend::{
    kubernetes::{ConnectError, KubeCluster},
    metrics::{Equivalents, KubernetesMetrics},
};
use podbay_backend_core::{
    cluster::{PodRef, StreamRequest},
    config,
};
use podbay_runtime::config::Document;
use prometheus_client::registry::Registry;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::handshake::server::{Request, Response},
};

pub type Socket = WebSocketStream<TcpStream>;
type Play = dyn Fn(Socket, String) -> BoxFuture<'static, ()> + Send + Sync;

pub const PATIENCE: Duration = Duration::from_mins(1);

/// The server; dropping it ends all its connections.
pub struct StandIn {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl StandIn {
    /// Answers with this subprotocol; `play` gets the socket and the request's path with query.
    pub async fn start(
        protocol: &'static str,
        play: impl Fn(Socket, String) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let play: Arc<Play> = Arc::new(play);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                let play = Arc::clone(&play);
                connections.spawn(async move {
                    let mut path = String::new();
                    #[allow(clippy::result_large_err)]
                    let callback = |request: &Request, mut response: Response| {
                        path = request.uri().to_string();
                        let offered = request.headers()["sec-websocket-protocol"].to_str().expect("text");
                        assert!(offered.contains(protocol), "offered {offered}");
                        let chosen = protocol.parse().expect("a header");
                        response.headers_mut().insert("sec-websocket-protocol", chosen);
                        Ok(response)
                    };
                    let socket = accept_hdr_async(stream, callback).await.expect("upgrades");
                    play(socket, path).await;
                });
            }
        });
        Self { address, _tasks: tasks }
    }

    /// The adapter, connected to it by ContainerSSH's keys.
    pub async fn cluster(&self) -> KubeCluster {
        cluster(&format!("host: \"{}\"", self.address)).await
    }
}

/// The adapter for `kubernetes: {connection: {…}}`.
pub async fn cluster(connection: &str) -> KubeCluster {
    try_cluster(connection).await.expect("a client")
}

/// `kubernetes: {connection: {…}}` as it is read.
pub fn connection(connection: &str) -> config::Connection {
    settings(connection).connection
}

/// The same where it may not be possible.
pub async fn try_cluster(connection: &str) -> Result<KubeCluster, ConnectError> {
    let settings = settings(connection);
    let mut registry = Registry::default();
    let containerssh = Equivalents::new(&mut registry, false);
    let metrics = KubernetesMetrics::new(&mut registry, containerssh);
    KubeCluster::new(&settings.connection, settings.timeouts.http, metrics).await
}

fn settings(connection: &str) -> config::Settings {
    let text = format!("kubernetes: {{connection: {{{connection}}}, pod: {{disableAgent: true}}}}");
    let document = Document::parse("test", &text).expect("YAML");
    let settings = config::Settings::read(&mut document.root());
    document.finish().expect("no mistakes");
    settings.expect("settings")
}

pub fn pod() -> PodRef {
    PodRef { namespace: "ns".to_owned(), name: "pod".to_owned(), uid: None }
}

pub fn exec(command: &[&str], tty: bool) -> StreamRequest {
    StreamRequest {
        container: "shell".to_owned(),
        command: Some(command.iter().map(ToString::to_string).collect()),
        tty,
        stdin: true,
    }
}
