//! What the backend counts, under names that dashboards rely on.

use podbay_backend_core::cluster::ClusterError;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbError {
    verb: &'static str,
    error: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// From 1 ms to a minute and a half.
fn seconds() -> Histogram {
    Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 90.0])
}

/// Requests to the Kubernetes API.
#[derive(Debug, Clone)]
pub struct KubernetesMetrics {
    seconds: Histograms<Verb>,
    errors: Family<VerbError, Counter>,
    /// ContainerSSH's names for the same.
    containerssh: (Family<Backend, Counter>, Family<Backend, Counter>),
}

/// ContainerSSH's label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    backend: &'static str,
}

const KUBERNETES: Backend = Backend { backend: "kubernetes" };

impl KubernetesMetrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            errors: Family::default(),
            containerssh: Default::default(),
        };
        let (requests, errors) = metrics.containerssh.clone();
        registry.register("containerssh_backend_requests", "Requests to the Kubernetes API", requests);
        registry.register("containerssh_backend_errors", "Failed requests to the Kubernetes API", errors);
        registry.register(
            "podbay_kubernetes_request_seconds",
            "Time of requests to the Kubernetes API, until the answer or (exec, attach) the upgrade",
            metrics.seconds.clone(),
        );
        registry.register("podbay_kubernetes_errors", "Failed requests to the Kubernetes API", metrics.errors.clone());
        metrics
    }

    pub(crate) fn request(&self, verb: &'static str, took: Duration, error: Option<&ClusterError>) {
        self.seconds.get_or_create(&Verb { verb }).observe(took.as_secs_f64());
        self.containerssh.0.get_or_create(&KUBERNETES).inc();
        if let Some(error) = error {
            self.containerssh.1.get_or_create(&KUBERNETES).inc();
            let error = match error {
                ClusterError::NotFound { .. } => "not_found",
                ClusterError::AlreadyExists => "already_exists",
                ClusterError::Conflict { .. } => "conflict",
                ClusterError::Invalid { .. } => "invalid",
                ClusterError::Forbidden { .. } => "forbidden",
                ClusterError::Unauthorized { .. } => "unauthorized",
                ClusterError::Unavailable { .. } => "unavailable",
                ClusterError::Unreachable { .. } => "unreachable",
                ClusterError::Timeout(_) => "timeout",
            };
            self.errors.get_or_create(&VerbError { verb, error }).inc();
        }
    }
}

/// The gRPC side.
#[derive(Debug, Clone)]
pub struct ServiceMetrics {
    calls: Family<Call, Counter>,
    call_seconds: Histograms<Kind>,
    pods: Family<Kind, Counter>,
    start_seconds: Histogram,
    /// Sessions open now.
    pub(crate) sessions: Gauge,
    bytes: Family<Direction, Counter>,
    ends: Family<Kind, Counter>,
    reaped: Counter,
    garbage: Family<Kind, Counter>,
    reloads: Family<Kind, Counter>,
}

impl ServiceMetrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            pods: Family::default(),
            start_seconds: seconds(),
            sessions: Gauge::default(),
            bytes: Family::default(),
            ends: Family::default(),
            reaped: Counter::default(),
            garbage: Family::default(),
            reloads: Family::default(),
        };
        registry.register("podbay_calls", "Ended gRPC calls by method and code", metrics.calls.clone());
        registry.register(
            "podbay_call_seconds",
            "Time of gRPC calls by method; of streams (OpenConnection, RunSession) until their end",
            metrics.call_seconds.clone(),
        );
        registry.register("podbay_pods", "Pods by what became of their start", metrics.pods.clone());
        registry.register("podbay_start_seconds", "Time from OpenConnection to Opened", metrics.start_seconds.clone());
        registry.register("podbay_sessions", "Sessions open now", metrics.sessions.clone());
        registry.register("podbay_session_bytes", "Bytes of sessions", metrics.bytes.clone());
        registry.register("podbay_session_ends", "Ended sessions by how they ended", metrics.ends.clone());
        registry.register("podbay_reaped_pods", "Pods deleted because their owner was gone", metrics.reaped.clone());
        registry.register("podbay_refused_peers", "Peers that were cut off", metrics.garbage.clone());
        let reloads = "Changes of the certificate files: good, or bad (then the old ones stay in use)";
        registry.register("podbay_tls_reloads", reloads, metrics.reloads.clone());
        metrics
    }

    pub(crate) fn call(&self, method: &'static str, code: tonic::Code, took: Duration) {
        self.calls.get_or_create(&Call { method, code: podbay::code_name(code) }).inc();
        self.call_seconds.get_or_create(&Kind { kind: method }).observe(took.as_secs_f64());
    }

    pub(crate) fn pod(&self, outcome: &'static str) {
        self.pods.get_or_create(&Kind { kind: outcome }).inc();
    }

    pub(crate) fn started(&self, took: Duration) {
        self.start_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn bytes(&self, stdin: u64, stdout: u64, stderr: u64) {
        for (direction, count) in [("stdin", stdin), ("stdout", stdout), ("stderr", stderr)] {
            self.bytes.get_or_create(&Direction { direction }).inc_by(count);
        }
    }

    pub(crate) fn session_end(&self, kind: &'static str) {
        self.ends.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn reaped(&self, pods: u64) {
        self.reaped.inc_by(pods);
    }

    /// The certificate files have changed.
    pub(crate) fn reloaded(&self, good: bool) {
        self.reloads.get_or_create(&Kind { kind: if good { "good" } else { "bad" } }).inc();
    }

    /// A peer was cut: `tls` (no handshake came about), `garbage` (no HTTP/2 after it) or `limit`; or an `accept` failed.
    pub fn refused_peer(&self, kind: &'static str) {
        self.garbage.get_or_create(&Kind { kind }).inc();
    }
}
