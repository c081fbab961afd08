//! The replicas of the backend, kept by name resolution and health watch, and the calls on them.

use super::{
    Answer, Backend, Choice, Failure, Frames, Replica, Requests,
    connector::{Security, never_sent, transport_broke},
    endpoint::{Endpoint, Health, Running},
};
use crate::metrics::Metrics;
use arc_swap::ArcSwap;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use podbay::v1::{
    self, connection_service_client::ConnectionServiceClient, session_service_client::SessionServiceClient,
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::lookup_host, sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use tracing::{debug, warn};

/// Where replicas are.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// `host:port`; a host may stand for many replicas (a headless Service).
    pub names: Vec<String>,
    /// How often names are resolved again.
    pub every: Duration,
    /// HTTP/2 connections to each replica.
    pub connections: usize,
}

type Endpoints = BTreeMap<Replica, Arc<Endpoint>>;

/// The backend over gRPC.
#[derive(Debug)]
pub struct Pool {
    addresses: Addresses,
    security: Security,
    endpoints: ArcSwap<Endpoints>,
    /// Replicas or their health have changed; for one that waits.
    changed: Arc<Notify>,
    metrics: Metrics,
}

impl Pool {
    /// A pool that knows no replica until [`resolve`](Self::resolve).
    pub fn new(addresses: Addresses, security: Security, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { addresses, security, endpoints: ArcSwap::default(), changed: Arc::default(), metrics })
    }

    /// Resolves the names once. Replicas that stay keep their connections; those that went finish what runs on them.
    pub async fn resolve(&self) {
        let mut found = Endpoints::new();
        let known = self.endpoints.load_full();
        let mut failed = false;
        for name in &self.addresses.names {
            let host = name.rsplit_once(':').map_or(name.as_str(), |(host, _)| host).trim_matches(['[', ']']);
            match lookup_host(name.as_str()).await {
                Ok(addresses) => {
                    for replica in addresses.map(Replica) {
                        let endpoint = known.get(&replica).cloned().unwrap_or_else(|| {
                            let connections = self.addresses.connections;
                            Endpoint::new(replica, host, &self.security, connections, &self.changed)
                        });
                        found.insert(replica, endpoint);
                    }
                }
                Err(error) => {
                    warn!(name, "can't resolve the backend's address: {error}");
                    failed = true;
                }
            }
        }
        // A name service in trouble takes no replica away.
        if failed {
            known.iter().for_each(|(replica, endpoint)| {
                found.entry(*replica).or_insert_with(|| Arc::clone(endpoint));
            });
        }
        if !found.keys().eq(known.keys()) {
            debug!(replicas = ?found.keys().collect::<Vec<_>>(), "backend replicas");
            self.endpoints.store(Arc::new(found));
            self.changed.notify_one();
        }
    }

    /// Resolves again and again until `stop`.
    pub async fn keep_resolving(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(self.addresses.every) => self.resolve().await,
            }
        }
    }

    /// Whether any replica says that it serves.
    pub fn is_serving(&self) -> bool {
        self.endpoints.load().values().any(|endpoint| endpoint.health() == Health::Serving)
    }

    /// Returns when [`is_serving`](Self::is_serving) may have changed since the last call. For one task at a time; cancel safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn pick(&self, choice: &Choice) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        let preferred = choice.prefer.filter(|replica| !choice.avoid.contains(replica));
        if let Some(endpoint) = preferred.and_then(|replica| endpoints.get(&replica))
            && endpoint.health() <= Health::Unknown
        {
            return Some(Arc::clone(endpoint));
        }
        // The best health there is.
        let allowed = || endpoints.values().filter(|endpoint| !choice.avoid.contains(&endpoint.replica));
        let best = allowed().map(|endpoint| endpoint.health()).min()?;
        let mut candidates: Vec<_> = allowed().filter(|endpoint| endpoint.health() == best).collect();
        // The less loaded of two random ones.
        let first = candidates.swap_remove(rand::random_range(0..candidates.len().max(1)));
        let second = candidates.get(rand::random_range(0..candidates.len().max(1))).copied();
        let less = second.filter(|second| second.load() < first.load()).unwrap_or(first);
        Some(Arc::clone(less))
    }

    fn begin(&self, choice: &Choice) -> Result<(Replica, Running), Failure> {
        let endpoint = self.pick(choice).ok_or(Failure::NoReplica)?;
        Ok((endpoint.replica, endpoint.begin()))
    }

    /// Counts a call. What a failure means for the replica is the health watch's business.
    fn done<T>(
        &self,
        method: &'static str,
        since: Instant,
        replica: Replica,
        result: Result<T, Status>,
    ) -> Result<T, Failure> {
        let result = result.map_err(|status| classify(replica, status));
        let code = result.as_ref().map_or_else(Failure::code, |_| tonic::Code::Ok);
        self.metrics.called(method, code, since.elapsed());
        result
    }
}

fn classify(replica: Replica, status: Status) -> Failure {
    if never_sent(&status) {
        Failure::NotSent(replica, status)
    } else if transport_broke(&status) {
        Failure::Broken(replica, status)
    } else {
        Failure::Answered(replica, status)
    }
}

fn frames<T: Send + 'static>(replica: Replica, running: Running, stream: tonic::Streaming<T>) -> Frames<T> {
    stream
        .map(move |item| {
            let _counted = &running;
            item.map_err(|status| classify(replica, status))
        })
        .boxed()
}

impl Backend for Pool {
    fn open_connection(
        &self,
        choice: Choice,
        request: v1::OpenConnectionRequest,
    ) -> BoxFuture<'_, Answer<Frames<v1::OpenConnectionResponse>>> {
        async move {
            let since = Instant::now();
            let (replica, running) = self.begin(&choice)?;
            let called = ConnectionServiceClient::new(running.channel()).open_connection(request).await;
            let stream = self.done("OpenConnection", since, replica, called)?.into_inner();
            Ok((replica, frames(replica, running, stream)))
        }
        .boxed()
    }

    fn close_connection(
        &self,
        choice: Choice,
        request: v1::CloseConnectionRequest,
        deadline: Duration,
    ) -> BoxFuture<'_, Answer<v1::CloseConnectionResponse>> {
        async move {
            let since = Instant::now();
            let (replica, running) = self.begin(&choice)?;
            let mut request = Request::new(request);
            request.set_timeout(deadline);
            let called = ConnectionServiceClient::new(running.channel()).close_connection(request).await;
            Ok((replica, self.done("CloseConnection", since, replica, called)?.into_inner()))
        }
        .boxed()
    }

    fn heartbeat(
        &self,
        choice: Choice,
        request: v1::HeartbeatRequest,
        deadline: Duration,
    ) -> BoxFuture<'_, Answer<v1::HeartbeatResponse>> {
        async move {
            let since = Instant::now();
            let (replica, running) = self.begin(&choice)?;
            let mut request = Request::new(request);
            request.set_timeout(deadline);
            let called = ConnectionServiceClient::new(running.channel()).heartbeat(request).await;
            Ok((replica, self.done("Heartbeat", since, replica, called)?.into_inner()))
        }
        .boxed()
    }

    fn ack_exit(
        &self,
        choice: Choice,
        request: v1::AckExitRequest,
        deadline: Duration,
    ) -> BoxFuture<'_, Answer<v1::AckExitResponse>> {
        async move {
            let since = Instant::now();
            let (replica, running) = self.begin(&choice)?;
            let mut request = Request::new(request);
            request.set_timeout(deadline);
            let called = SessionServiceClient::new(running.channel()).ack_exit(request).await;
            Ok((replica, self.done("AckExit", since, replica, called)?.into_inner()))
        }
        .boxed()
    }

    fn run_session(&self, choice: Choice, requests: Requests) -> BoxFuture<'_, Answer<Frames<v1::RunSessionResponse>>> {
        async move {
            let since = Instant::now();
            let (replica, running) = self.begin(&choice)?;
            let mut client = SessionServiceClient::new(running.channel())
                .max_decoding_message_size(podbay::MAX_MESSAGE)
                .max_encoding_message_size(podbay::MAX_MESSAGE);
            let stream = self.done("RunSession", since, replica, client.run_session(requests).await)?.into_inner();
            Ok((replica, frames(replica, running, stream)))
        }
        .boxed()
    }
}
