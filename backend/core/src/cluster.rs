//! The port to Kubernetes: what the backend asks of a cluster, in the backend's own words.
//!
//! The kube adapter (`backend/src/kubernetes`) and the in-memory fake ([`crate::fake`]) implement it. Nothing here
//! retries, waits for readiness or applies policy: that is the callers' business. Every unary call is bounded by
//! `timeouts.http` in the adapter; streams are not.

use async_trait::async_trait;
use bytes::Bytes;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Event, Pod},
};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A pod by name; `uid` where it must be that very pod and not a later one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, once known.
    pub uid: Option<String>,
}

/// Why a request to the cluster failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClusterError {
    /// 404: no such object (or no such namespace: the text of `message` tells).
    #[error("not found: {message}")]
    NotFound {
        /// The API's words.
        message: String,
    },
    /// 409 with reason AlreadyExists.
    #[error("already exists")]
    AlreadyExists,
    /// 409 with reason Conflict: a precondition (uid, resourceVersion) did not hold.
    #[error("conflict: {message}")]
    Conflict {
        /// The API's words.
        message: String,
    },
    /// 422: the object is not valid; and 400.
    #[error("invalid: {message}")]
    Invalid {
        /// The API's words.
        message: String,
    },
    /// 403: RBAC, quota, admission, Pod Security or a namespace that is being deleted. `message` tells which.
    #[error("forbidden: {message}")]
    Forbidden {
        /// The API's words.
        message: String,
    },
    /// 401: our own credentials are not accepted.
    #[error("not authenticated: {message}")]
    Unauthorized {
        /// The API's words.
        message: String,
    },
    /// 429, 500, 503, 504, a connection that broke, an answer that can't be read: may work later. The request may or
    /// may not have had its effect.
    #[error("unavailable: {message}")]
    Unavailable {
        /// What happened.
        message: String,
        /// The server's Retry-After.
        retry_after: Option<Duration>,
    },
    /// No connection to the API server came about (refused, no route, a TLS handshake that broke): the request was never sent,
    /// and has surely had no effect.
    #[error("can't be reached: {message}")]
    Unreachable {
        /// What happened.
        message: String,
    },
    /// No answer within `timeouts.http`. The request may or may not have had its effect.
    #[error("no answer from the Kubernetes API within {0:?}")]
    Timeout(Duration),
}

/// A change of a watched pod.
#[derive(Debug, Clone)]
pub enum PodChange {
    /// The pod as it is now. The first one comes at once, from a read.
    Now(Box<Pod>),
    /// The pod is gone, with its last known state.
    Gone(Option<Box<Pod>>),
    /// The watch broke and is being made again (with backoff); for the log and the user's patience.
    Interrupted(String),
}

/// A program to run in a container, or the container's own program to attach to.
#[derive(Debug, Clone)]
pub struct StreamRequest {
    /// The container.
    pub container: String,
    /// Exec: the argument vector. Attach: `None`.
    pub command: Option<Vec<String>>,
    /// A terminal: stdout and stderr are one stream.
    pub tty: bool,
    /// Whether stdin is wanted.
    pub stdin: bool,
}

/// What comes out of an exec or attach, in order.
#[derive(Debug, Clone)]
pub enum Output {
    /// Bytes of stdout (with a terminal: of both).
    Stdout(Bytes),
    /// Bytes of stderr.
    Stderr(Bytes),
    /// Last, exactly once. A receiver that ends without it means the adapter's task died: treat it as `Lost`.
    End(StreamEnd),
}

/// How an exec or attach ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEnd {
    /// A Status was read: Success.
    Success,
    /// A Status was read: NonZeroExitCode.
    ExitCode(u8),
    /// A Status was read: anything else. `message` has the API's words (for example "executable file not found").
    Failed {
        /// Status.reason.
        reason: String,
        /// Status.message.
        message: String,
    },
    /// The connection ended without a Status: what became of the program is not known.
    Lost(String),
}

/// Bytes and ends for a program's stdin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Bytes.
    Stdin(Bytes),
    /// No more bytes. With `v4.channel.k8s.io` this can't be told without losing output; the adapter says so in
    /// [`Streams::half_close`].
    CloseStdin,
}

/// A running exec or attach. Dropping all of it closes the connection.
#[derive(Debug)]
pub struct Streams {
    /// What comes out; bounded: an unread receiver stops the program's output and nothing else.
    pub output: mpsc::Receiver<Output>,
    /// What goes in; bounded: `reserve` waits while the API server does not read. The writer takes resizes first.
    pub input: mpsc::Sender<Input>,
    /// The terminal's size as (columns, rows): the latest wins, delivered as soon as the connection takes it. `None` = leave it.
    pub size: watch::Sender<Option<(u16, u16)>>,
    /// Whether stdin can be ended apart (`v5.channel.k8s.io`).
    pub half_close: bool,
}

/// A Kubernetes cluster as the backend needs it. All futures are cancel-safe in the sense that dropping one leaves
/// nothing running on our side; whether the API acted is then not known.
#[async_trait]
pub trait Cluster: Send + Sync + std::fmt::Debug + 'static {
    /// Creates a pod (namespace and name are set in it).
    async fn create_pod(&self, pod: &Pod) -> Result<Pod, ClusterError>;
    /// Creates it with `dryRun=All`.
    async fn try_pod(&self, pod: &Pod) -> Result<Pod, ClusterError>;
    /// Reads a pod.
    async fn get_pod(&self, pod: &PodRef) -> Result<Pod, ClusterError>;
    /// Lists pods by label selector (`key=value,key2=value2`), all pages; an empty `namespace` stands for all.
    async fn list_pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>, ClusterError>;
    /// Sets an annotation of a pod that is still at this `resourceVersion`; `Conflict` otherwise.
    async fn annotate_pod(&self, pod: &PodRef, version: &str, key: &str, value: &str) -> Result<(), ClusterError>;
    /// Deletes a pod; with `pod.uid`, only that one (precondition). `grace` `None` = the pod's own grace period.
    async fn delete_pod(&self, pod: &PodRef, grace: Option<Duration>) -> Result<(), ClusterError>;
    /// Deletes this very pod, as it was read: `Conflict` where it has changed since (preconditions on uid and resourceVersion).
    async fn delete_pod_unchanged(&self, pod: &Pod) -> Result<(), ClusterError>;
    /// Applies a JSON merge patch; with `pod.uid`, to that one only (`Conflict` or `NotFound` otherwise). Gives the pod as it is then.
    async fn patch_pod(&self, pod: &PodRef, patch: serde_json::Value) -> Result<Pod, ClusterError>;
    /// Follows a pod until the receiver is dropped or `Gone` was sent. Reconnects by itself with jittered backoff.
    async fn watch_pod(&self, pod: &PodRef) -> Result<mpsc::Receiver<PodChange>, ClusterError>;
    /// The events of a pod, oldest first.
    async fn pod_events(&self, pod: &PodRef) -> Result<Vec<Event>, ClusterError>;
    /// Runs a program in a container, or attaches to the container's own. The caller bounds it with its own deadline.
    async fn stream(&self, pod: &PodRef, request: &StreamRequest) -> Result<Streams, ClusterError>;
    /// Lists leases by label selector.
    async fn list_leases(&self, namespace: &str, selector: &str) -> Result<Vec<Lease>, ClusterError>;
    /// Reads a lease.
    async fn get_lease(&self, namespace: &str, name: &str) -> Result<Lease, ClusterError>;
    /// Creates a lease.
    async fn create_lease(&self, lease: &Lease) -> Result<Lease, ClusterError>;
    /// Replaces a lease whose `metadata.resourceVersion` is the given one's; `Conflict` otherwise.
    async fn replace_lease(&self, lease: &Lease) -> Result<Lease, ClusterError>;
    /// Deletes a lease, with its resourceVersion as precondition where it has one.
    async fn delete_lease(&self, lease: &Lease) -> Result<(), ClusterError>;
    /// Whether the API answers (for the health name `kubernetes`).
    async fn ping(&self) -> Result<(), ClusterError>;
}
