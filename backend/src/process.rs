//! The process: builds the parts, serves, and ends in order.

use crate::{
    config::Config,
    health::{tell_serving, watch_kubernetes},
    io::Peer,
    kubernetes::{ConnectError, KubeCluster},
    metrics::{Equivalents, KubernetesMetrics, ServiceMetrics},
    reload::{Fixed, Reloading},
    service::{Live, Service},
};
use futures::{Stream, StreamExt as _};
use podbay::{
    MAX_MESSAGE,
    v1::{connection_service_server::ConnectionServiceServer, session_service_server::SessionServiceServer},
};
use podbay_backend_core::{
    cluster::Cluster,
    config::{NameTemplate, Persistent, Settings},
    connections::Connections,
    handle::{KeyError, KeyRing},
    lifecycle::Lifecycle,
    ownership::{Agents, Leases, Reaper, Scope},
    session::{Sessions, Stopping},
};
use podbay_runtime::{
    admin::{self, Readiness},
    codes,
    reload::Source,
    shutdown::Shutdown,
    tls::{self, Followed, Refused, TlsError},
};
use prometheus_client::registry::Registry;
use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;

/// What a stream may have under way (docs of `hyper`: the default for a whole connection is only twice that).
const STREAM_WINDOW: u32 = 512 * 1024;
/// Streams per connection; frontends open two connections to each backend, and more where these are full.
const STREAMS: u32 = 128;
/// So that no unread stream takes window from the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS;
const MAX_FRAME: u32 = 64 * 1024;
const MAX_HEADERS: u32 = 16 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(20);
/// For the last frames of sessions that were cut, and for GOAWAY.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why the process can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The connection to Kubernetes is not configured right.
    #[error(transparent)]
    Kubernetes(#[from] ConnectError),
    /// The certificate files can't be used.
    #[error("grpc.tls: {0}")]
    Tls(#[from] TlsError),
    /// No random key could be made.
    #[error("grpc.handleKeys: {0}")]
    Keys(#[from] KeyError),
    /// The gRPC server failed.
    #[error("the gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// Reflection's descriptors can't be used.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The admin listener failed.
    #[error("the admin listener failed: {0}")]
    Admin(#[from] io::Error),
}

/// Runs a backend on bound listeners until `shutdown`, and then to its ordered end.
///
/// # Errors
/// Where it can't begin, or its server fails.
pub async fn run(
    config: Config,
    source: Option<Source>,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let mut registry = Registry::default();
    let containerssh = Equivalents::new(&mut registry, config.settings.kuberun.is_some());
    let metrics = KubernetesMetrics::new(&mut registry, containerssh.clone());
    let http = config.settings.timeouts.http;
    let cluster = Arc::new(KubeCluster::new(&config.settings.connection, http, metrics).await?);
    let on = On { cluster: Arc::clone(&cluster) as Arc<dyn Cluster>, kube: Some(cluster) };
    Box::pin(serve(on, config, source, (registry, containerssh), listener, admin, shutdown)).await
}

/// The cluster, and as what it can have new clients.
struct On {
    cluster: Arc<dyn Cluster>,
    kube: Option<Arc<KubeCluster>>,
}

/// The same on a given cluster.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    cluster: Arc<dyn Cluster>,
    config: Config,
    source: Option<Source>,
    metrics: (Registry, Equivalents),
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    Box::pin(serve(On { cluster, kube: None }, config, source, metrics, listener, admin, shutdown)).await
}

async fn serve(
    On { cluster, kube }: On,
    config: Config,
    source: Option<Source>,
    (mut registry, containerssh): (Registry, Equivalents),
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let fixed = Fixed::of(&config);
    let Config { settings, webhook, grpc, .. } = config;
    let tls = Followed::server(grpc.tls.cert, grpc.tls.key, Some(grpc.tls.client_ca))?;
    let keys = if let Some(keys) = grpc.keys {
        keys
    } else {
        tracing::warn!("no grpc.handleKeys: connections end with this process, and it must be the only replica");
        KeyRing::random()?
    };
    if let Some(kuberun) = settings.kuberun {
        kuberun.warn(None);
    }
    let metrics = ServiceMetrics::new(&mut registry, containerssh);
    let background = TaskTracker::new();
    let lifecycle = Lifecycle::new(Arc::clone(&cluster), settings.timeouts, background.clone());
    let leases = Leases::new(Arc::clone(&cluster), settings.ownership.clone());
    let namespace = settings.pod.namespace().to_owned();
    let namespaces = settings.namespaces.places().to_vec();
    let idle_timeout = settings.pod.persistent.as_ref().and_then(|which| which.idle_timeout);
    warn_of_shared(&settings);
    let sessions = Sessions::new(lifecycle.clone(), leases.clone());
    let agents = settings.pod.agent.clone().map(|path| {
        let (links, console) = (sessions.links().clone(), settings.pod.console.clone());
        Agents { links, path, console }
    });
    let connections = Connections::new(lifecycle.clone(), leases.clone(), Arc::new(settings), Arc::new(keys));
    let service = Service {
        connections: connections
            .with_webhook(webhook)
            .with_calls(metrics.config_calls().clone())
            .with_links(sessions.links().clone()),
        sessions,
        callers: grpc.callers,
        metrics: metrics.clone(),
        streams: TaskTracker::new(),
        stopping: Stopping::default(),
        draining: Arc::default(),
        drain_timeout: grpc.drain_timeout,
    };
    let live = Live::new(service.clone());

    let mut helpers = JoinSet::new();
    let stop = CancellationToken::new();
    let _stop_helpers = stop.clone().drop_guard();
    let (reporter, health) = tonic_health::server::health_reporter();
    tell_serving(&reporter, true).await;
    helpers.spawn(watch_kubernetes(reporter.clone(), Arc::clone(&cluster), stop.clone()));
    let scope = watch::Sender::new(Scope { lifecycle: lifecycle.clone(), namespaces, idle_timeout });
    let reaper = Reaper::new(lifecycle, leases, namespace).following(scope.subscribe()).asking(agents);
    helpers.spawn(count_reaped(reaper.deleted(), metrics.clone()));
    helpers.spawn(reaper.run(stop.clone()));
    let counted = metrics.clone();
    let reloaded = move |good| counted.reloaded(good);
    helpers.spawn(Arc::clone(&tls).follow(grpc.tls.reload_interval, stop.clone(), reloaded));
    if let Some(source) = source {
        let source = source.counted(&mut registry);
        let reloading = Reloading { fixed, live: live.clone(), scope, tls: Arc::clone(&tls), kube };
        helpers.spawn(source.follow(Arc::new(reloading), stop.clone()));
    }
    let readiness = Readiness::default();
    let mut admin_server = JoinSet::new();
    if let Some(listener) = admin {
        admin_server.spawn(admin::serve(listener, Arc::new(registry), readiness.clone(), stop.clone()));
    }

    // Peers that are there stay served while this replica drains; new ones are not accepted.
    let accepting = shutdown.soft.child_token();
    let peers = peers(listener, tls, grpc.max_connections, accepting, metrics);
    let goaway = CancellationToken::new();
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_frame_size(MAX_FRAME)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(ConnectionServiceServer::new(live.clone()))
        .add_service(
            SessionServiceServer::new(live.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .serve_with_incoming_shutdown(peers, goaway.clone().cancelled_owned());
    let mut server = std::pin::pin!(server);
    readiness.set(true);
    tracing::info!(code = codes::SERVICE_POOL_RUNNING, "the backend serves");

    let drained = async {
        shutdown.soft.cancelled().await;
        tracing::info!(code = codes::SERVICE_POOL_STOPPING, sessions = service.streams.len(), "draining");
        readiness.set(false);
        service.draining.store(true, Ordering::Release);
        tell_serving(&reporter, false).await;
        // Sessions of programs that outlive their streams go elsewhere; the others run on.
        service.stopping.moving.cancel();
        service.streams.close();
        if timeout(live.now().drain_timeout, service.streams.wait()).await.is_err() {
            tracing::warn!(sessions = service.streams.len(), "sessions are cut: grpc.drainTimeout is over");
        }
        service.stopping.cut.cancel();
        let _ = timeout(FAREWELL, service.streams.wait()).await;
        background.close();
        let pod_stop = live.now().connections.lifecycle().timeouts().pod_stop;
        if timeout(pod_stop, background.wait()).await.is_err() {
            tracing::warn!(left = background.len(), "deletions of pods are left to the reaper of another replica");
        }
        goaway.cancel();
        tokio::time::sleep(FAREWELL).await;
    };
    let failed_admin = async {
        match admin_server.join_next().await {
            Some(Ok(Err(error))) => error,
            // Not configured, or told to stop.
            Some(_) | None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        served = &mut server => served.map_err(RunError::from),
        () = drained => Ok(()),
        () = shutdown.hard.cancelled() => Ok(()),
        error = failed_admin => Err(RunError::Admin(error)),
    };
    service.stopping.cut.cancel();
    stop.cancel();
    helpers.shutdown().await;
    tracing::info!(code = codes::SERVICE_POOL_STOPPED, "the backend has ended");
    result
}

/// A pod of one name for all is what a configuration server may want, and else rarely what was meant.
pub(crate) fn warn_of_shared(settings: &Settings) {
    if let Some(Persistent { name: NameTemplate::Fixed(name), .. }) = &settings.pod.persistent {
        tracing::warn!(
            pod = name,
            "all users of this configuration get into one pod and see each other's files and processes; for one each, put \
             {{username}} into kubernetes.pod.metadata.name"
        );
    }
}

/// Ends with the reaper.
async fn count_reaped(mut deleted: watch::Receiver<u64>, metrics: ServiceMetrics) {
    let mut counted = 0;
    while deleted.changed().await.is_ok() {
        let now = *deleted.borrow_and_update();
        metrics.reaped(now.saturating_sub(counted));
        counted = now;
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(podbay::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Peers after their handshake, at most so many at once. What fails is cut, counted and logged.
fn peers(
    listener: TcpListener,
    tls: Arc<Followed<rustls::ServerConfig>>,
    most: usize,
    stop: CancellationToken,
    metrics: ServiceMetrics,
) -> impl Stream<Item = io::Result<Peer>> {
    let places = Arc::new(Semaphore::new(most));
    let counted = metrics.clone();
    let refused = move |who: Refused, error: &io::Error| match who {
        Refused::Accept => {
            counted.refused_peer("accept");
            tracing::warn!(%error, "accept failed");
        }
        Refused::Handshake(peer) => {
            counted.refused_peer("tls");
            tracing::info!(remote = %peer, %error, "a peer on the gRPC port is no client: no TLS handshake came about");
        }
        Refused::Garbage(peer) => {
            counted.refused_peer("garbage");
            tracing::warn!(remote = %peer, %error, "a peer on the gRPC port is no client: no HTTP/2 after its TLS handshake");
        }
    };
    // The stream must not end before the server does: its end would be the server's.
    let accepted = tls::incoming(listener, tls, tls::Limits::default(), stop, refused);
    accepted
        .filter_map(move |stream| {
            let peer = match (stream, Arc::clone(&places).try_acquire_owned()) {
                (Ok(stream), Ok(place)) => Some(Ok(Peer::new(stream, place))),
                (Ok(stream), Err(_)) => {
                    let remote = stream.get_ref().get_ref().0.peer_addr().ok();
                    tracing::warn!(?remote, most, "too many connections (grpc.maxConnections)");
                    metrics.refused_peer("limit");
                    None
                }
                (Err(_), _) => None,
            };
            std::future::ready(peer)
        })
        .chain(futures::stream::pending())
}
