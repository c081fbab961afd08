//! [`Cluster`] by the kube crate: the only place that knows it.
//!
//! Two clients from one configuration: one for plain requests and watches, where every request has the deadline
//! `timeouts.http` of its own, and one for exec and attach, whose writes may wait for ever. No client retries.

mod connect;
mod error;
mod files;
mod frames;
mod limit;
mod proxy;
mod pump;
mod token;
mod watch;

pub use connect::ConnectError;
pub(crate) use files::{files, problems};

use crate::metrics::KubernetesMetrics;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use connect::Clients;
use error::cluster_error;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Event, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{AttachParams, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, Request},
};
use limit::Limit;
use podbay_backend_core::{
    cluster::{Cluster, ClusterError, PodChange, PodRef, StreamRequest, Streams},
    config::{Connection, EVERYWHERE},
};
use podbay_runtime::codes;
use serde::de::DeserializeOwned;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
use tokio_util::task::TaskTracker;

const PAGE: u32 = 500;

/// Tries to reach a pod by name only if it is still the one that is meant.
fn delete_params(pod: &PodRef, grace: Option<Duration>) -> DeleteParams {
    let grace_period_seconds = grace.map(|grace| u32::try_from(grace.as_secs()).unwrap_or(u32::MAX));
    let params = DeleteParams { grace_period_seconds, ..DeleteParams::default() };
    match &pod.uid {
        Some(uid) => params.preconditions(Preconditions { uid: Some(uid.clone()), resource_version: None }),
        None => params,
    }
}

/// A Kubernetes cluster. Its tasks (watches, exec streams) end when their consumers drop what they were given.
pub struct KubeCluster {
    ways: ArcSwap<Ways>,
    tasks: TaskTracker,
}

/// The clients of the moment. What is under way goes on with those that it began with.
struct Ways {
    unary: Unary,
    streams: Client,
    server: http::Uri,
}

impl fmt::Debug for KubeCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeCluster").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

/// Plain requests: limited, timed, counted.
#[derive(Clone)]
struct Unary {
    client: Client,
    http: Duration,
    limit: Arc<Limit>,
    metrics: KubernetesMetrics,
}

impl Unary {
    async fn run<T>(
        &self,
        verb: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ClusterError> {
        let started = tokio::time::Instant::now();
        let turn_and_request = async {
            let _turn = self.limit.turn().await;
            request.await
        };
        let result = match timeout(self.http, turn_and_request).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(cluster_error(&error)),
            Err(_) => Err(ClusterError::Timeout(self.http)),
        };
        self.metrics.request(verb, started.elapsed(), result.as_ref().err());
        result
    }
}

impl KubeCluster {
    /// Reads the connection's files and makes the clients; sends nothing yet.
    ///
    /// # Errors
    /// Where a file or the configuration can't be used.
    pub async fn new(
        connection: &Connection,
        http: Duration,
        metrics: KubernetesMetrics,
    ) -> Result<Self, ConnectError> {
        let Clients { unary, streams, server } = connect::clients(connection).await?;
        let rate = match connection {
            Connection::Explicit(explicit) => Some((explicit.qps, explicit.burst)),
            Connection::InCluster | Connection::Kubeconfig { .. } => None,
        };
        let unary = Unary { client: unary, http, limit: Arc::new(Limit::new(rate)), metrics };
        Ok(Self { ways: ArcSwap::from_pointee(Ways { unary, streams, server }), tasks: TaskTracker::new() })
    }

    fn ways(&self) -> Arc<Ways> {
        self.ways.load_full()
    }

    /// Reads the files of the same connection again, and makes new clients for requests from now on, with this bound. Says whether they are
    /// of the same server: where a kubeconfig names another one, the old clients stay, for pods are where they are.
    ///
    /// # Errors
    /// Where a file can't be used; nothing has changed then.
    pub async fn renew(&self, connection: &Connection, http: Duration) -> Result<bool, ConnectError> {
        let Clients { unary, streams, server } = connect::clients(connection).await?;
        let old = self.ways();
        let same = server == old.server;
        let (client, streams) = if same { (unary, streams) } else { (old.unary.client.clone(), old.streams.clone()) };
        let unary = Unary { client, http, limit: Arc::clone(&old.unary.limit), metrics: old.unary.metrics.clone() };
        self.ways.store(Arc::new(Ways { unary, streams, server: old.server.clone() }));
        Ok(same)
    }

    /// Tasks that run now: two per exec or attach, one per watch. For tests and the curious.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.ways().unary.client.clone(), namespace)
    }

    fn leases(&self, namespace: &str) -> Api<Lease> {
        Api::namespaced(self.ways().unary.client.clone(), namespace)
    }

    async fn list<K>(&self, verb: &'static str, api: &Api<K>, mut params: ListParams) -> Result<Vec<K>, ClusterError>
    where
        K: Clone + DeserializeOwned + fmt::Debug,
    {
        params.limit = Some(PAGE);
        let mut all = Vec::new();
        loop {
            let page = self.ways().unary.run(verb, api.list(&params)).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }
}

/// The namespace and name of an object of ours: both were set by whoever made it.
fn place(metadata: &ObjectMeta) -> Result<(&str, &str), ClusterError> {
    match (&metadata.namespace, &metadata.name) {
        (Some(namespace), Some(name)) => Ok((namespace, name)),
        _ => Err(ClusterError::Invalid { message: "the object has no namespace or no name".to_owned() }),
    }
}

#[async_trait]
impl Cluster for KubeCluster {
    async fn create_pod(&self, pod: &Pod) -> Result<Pod, ClusterError> {
        let (namespace, _) = place(&pod.metadata)?;
        self.ways().unary.run("create_pod", self.pods(namespace).create(&PostParams::default(), pod)).await
    }

    async fn try_pod(&self, pod: &Pod) -> Result<Pod, ClusterError> {
        let (namespace, _) = place(&pod.metadata)?;
        let params = PostParams { dry_run: true, ..PostParams::default() };
        self.ways().unary.run("try_pod", self.pods(namespace).create(&params, pod)).await
    }

    async fn get_pod(&self, pod: &PodRef) -> Result<Pod, ClusterError> {
        let found = self.ways().unary.run("get_pod", self.pods(&pod.namespace).get(&pod.name)).await?;
        match &pod.uid {
            Some(uid) if found.metadata.uid.as_ref() != Some(uid) => {
                Err(ClusterError::NotFound { message: format!("pod {} is another one by now", pod.name) })
            }
            _ => Ok(found),
        }
    }

    async fn list_pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>, ClusterError> {
        let api = match namespace {
            EVERYWHERE => Api::all(self.ways().unary.client.clone()),
            namespace => self.pods(namespace),
        };
        self.list("list_pods", &api, ListParams::default().labels(selector)).await
    }

    async fn annotate_pod(&self, pod: &PodRef, version: &str, key: &str, value: &str) -> Result<(), ClusterError> {
        let mut metadata = serde_json::json!({"resourceVersion": version, "annotations": {key: value}});
        if let Some(uid) = &pod.uid {
            metadata["uid"] = uid.as_str().into();
        }
        let patch = Patch::Merge(serde_json::json!({"metadata": metadata}));
        let pods = self.pods(&pod.namespace);
        self.ways().unary.run("annotate_pod", pods.patch(&pod.name, &PatchParams::default(), &patch)).await.map(drop)
    }

    async fn delete_pod(&self, pod: &PodRef, grace: Option<Duration>) -> Result<(), ClusterError> {
        let params = delete_params(pod, grace);
        self.ways().unary.run("delete_pod", self.pods(&pod.namespace).delete(&pod.name, &params)).await.map(drop)
    }

    async fn delete_pod_unchanged(&self, pod: &Pod) -> Result<(), ClusterError> {
        let (namespace, name) = place(&pod.metadata)?;
        let (uid, resource_version) = (pod.metadata.uid.clone(), pod.metadata.resource_version.clone());
        let params = DeleteParams::default().preconditions(Preconditions { resource_version, uid });
        self.ways().unary.run("delete_pod", self.pods(namespace).delete(name, &params)).await.map(drop)
    }

    async fn patch_pod(&self, pod: &PodRef, mut patch: serde_json::Value) -> Result<Pod, ClusterError> {
        // A uid can't be changed: with one in the patch the API refuses it for any other pod, as not valid.
        if let (Some(uid), Some(object)) = (&pod.uid, patch.as_object_mut()) {
            let metadata =
                object.entry("metadata").or_insert_with(|| serde_json::Value::Object(serde_json::Map::new()));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("uid".to_owned(), uid.as_str().into());
            }
        }
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let patched =
            self.ways().unary.run("patch_pod", self.pods(&pod.namespace).patch(&pod.name, &params, &patch)).await;
        patched.map_err(|error| match error {
            ClusterError::Invalid { message } if pod.uid.is_some() && message.contains("metadata.uid") => {
                ClusterError::Conflict { message }
            }
            error => error,
        })
    }

    async fn watch_pod(&self, pod: &PodRef) -> Result<mpsc::Receiver<PodChange>, ClusterError> {
        tracing::debug!(code = codes::KUBERNETES_POD_WAIT, pod = pod.name, "watching a pod");
        let (sender, receiver) = mpsc::channel(16);
        let api = self.pods(&pod.namespace);
        self.tasks.spawn(watch::follow(self.ways().unary.clone(), api, pod.clone(), sender));
        Ok(receiver)
    }

    async fn pod_events(&self, pod: &PodRef) -> Result<Vec<Event>, ClusterError> {
        let uid = pod.uid.as_ref().map_or_else(String::new, |uid| format!(",involvedObject.uid={uid}"));
        let fields = format!("involvedObject.kind=Pod,involvedObject.name={}{uid}", pod.name);
        let api: Api<Event> = Api::namespaced(self.ways().unary.client.clone(), &pod.namespace);
        let mut events = self.list("pod_events", &api, ListParams::default().fields(&fields)).await?;
        events.sort_by_key(|event| {
            let when = event.last_timestamp.as_ref().map(|time| time.0);
            when.or(event.event_time.as_ref().map(|time| time.0)).or(event.first_timestamp.as_ref().map(|time| time.0))
        });
        Ok(events)
    }

    async fn stream(&self, pod: &PodRef, request: &StreamRequest) -> Result<Streams, ClusterError> {
        let params = AttachParams {
            container: Some(request.container.clone()),
            stdin: request.stdin,
            stdout: true,
            stderr: !request.tty,
            tty: request.tty,
            ..AttachParams::default()
        };
        let paths = Request::new(format!("/api/v1/namespaces/{}/pods", pod.namespace));
        let http_request = match &request.command {
            Some(command) => paths.exec(&pod.name, command, &params),
            None => paths.attach(&pod.name, &params),
        };
        let http_request = http_request.map_err(|error| ClusterError::Invalid { message: error.to_string() })?;
        let ways = self.ways();
        let code = if request.command.is_some() { codes::KUBERNETES_EXEC } else { codes::KUBERNETES_POD_ATTACH };
        tracing::debug!(code, pod = pod.name, container = request.container, tty = request.tty, "asking for a stream");
        let started = tokio::time::Instant::now();
        let connected = ways.streams.connect(http_request).await.map_err(|error| cluster_error(&error));
        let verb = if request.command.is_some() { "exec" } else { "attach" };
        ways.unary.metrics.request(verb, started.elapsed(), connected.as_ref().err());
        let connection = connected?;
        let half_close = connection.supports_stream_close();
        // Nothing was read yet: kube only checked the answer's head.
        let raw = connection.into_stream().into_inner();
        let socket = WebSocketStream::from_raw_socket(raw, Role::Client, Some(pump::socket_config())).await;
        Ok(pump::run(socket, half_close, &self.tasks))
    }

    async fn list_leases(&self, namespace: &str, selector: &str) -> Result<Vec<Lease>, ClusterError> {
        self.list("list_leases", &self.leases(namespace), ListParams::default().labels(selector)).await
    }

    async fn get_lease(&self, namespace: &str, name: &str) -> Result<Lease, ClusterError> {
        self.ways().unary.run("get_lease", self.leases(namespace).get(name)).await
    }

    async fn create_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let (namespace, _) = place(&lease.metadata)?;
        self.ways().unary.run("create_lease", self.leases(namespace).create(&PostParams::default(), lease)).await
    }

    async fn replace_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let (namespace, name) = place(&lease.metadata)?;
        self.ways()
            .unary
            .run("replace_lease", self.leases(namespace).replace(name, &PostParams::default(), lease))
            .await
    }

    async fn delete_lease(&self, lease: &Lease) -> Result<(), ClusterError> {
        let (namespace, name) = place(&lease.metadata)?;
        let resource_version = lease.metadata.resource_version.clone();
        let mut params = DeleteParams::default();
        if resource_version.is_some() {
            params = params.preconditions(Preconditions { resource_version, uid: None });
        }
        self.ways().unary.run("delete_lease", self.leases(namespace).delete(name, &params)).await.map(drop)
    }

    async fn ping(&self) -> Result<(), ClusterError> {
        match self.ways().unary.run("ping", self.ways().unary.client.apiserver_version()).await {
            // It answers, if only to refuse; whether we may do our work is told by the work.
            Ok(_) | Err(ClusterError::NotFound { .. } | ClusterError::Forbidden { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
