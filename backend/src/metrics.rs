//! What the backend counts, under names that dashboards rely on.

use podbay::v1::Reason;
use podbay_backend_core::cluster::ClusterError;
use podbay_runtime::webhook::{CallMetrics, Service};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
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
    containerssh: Equivalents,
}

/// What ContainerSSH's Kubernetes backend counts, under its names: tries to create a pod, waits for one, and streams of programs; and which of them
/// failed. Clones are one.
#[derive(Debug, Clone)]
pub struct Equivalents {
    backend: Backend,
    requests: Family<Backend, Counter>,
    errors: Family<Backend, Counter>,
}

impl Equivalents {
    /// Registers them. `kuberun`: it is ContainerSSH's old backend by name.
    pub fn new(registry: &mut Registry, kuberun: bool) -> Self {
        let backend = Backend { backend: if kuberun { "kuberun" } else { "kubernetes" } };
        let made = Self { backend, requests: Family::default(), errors: Family::default() };
        let unit = |unit: &str| Unit::Other(unit.to_owned());
        let help = "Pods to be created, waits for pods, and streams";
        registry.register_with_unit("containerssh_backend", help, unit("requests"), made.requests.clone());
        let help = "Those that failed";
        registry.register_with_unit("containerssh_backend", help, unit("errors"), made.errors.clone());
        // Alerts see a first failure only where there was a 0 before.
        for family in [&made.requests, &made.errors] {
            drop(family.get_or_create(&made.backend));
        }
        made
    }

    fn asked(&self, failed: bool) {
        self.requests.get_or_create(&self.backend).inc();
        if failed {
            self.errors.get_or_create(&self.backend).inc();
        }
    }

    /// A pod was waited for, or not even made.
    fn waited(&self, failed: Option<Reason>) {
        match failed {
            None => self.asked(false),
            Some(
                Reason::ImageUnavailable
                | Reason::Unschedulable
                | Reason::ContainerFailed
                | Reason::PodStartTimeout
                | Reason::PodGone,
            ) => self.asked(true),
            // Refused before a pod was waited for; a try to create it was counted as such.
            Some(_) => {}
        }
    }
}

/// ContainerSSH's label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    backend: &'static str,
}

impl KubernetesMetrics {
    /// Registers them.
    pub fn new(registry: &mut Registry, containerssh: Equivalents) -> Self {
        let metrics = Self {
            seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            errors: Family::default(),
            containerssh,
        };
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
        // The others are this backend's own, and their failures (an owner that has no lease yet) are nobody's concern.
        if matches!(verb, "create_pod" | "exec" | "attach") {
            self.containerssh.asked(error.is_some());
        }
        if let Some(error) = error {
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
    config_calls: CallMetrics,
    containerssh: Equivalents,
}

impl ServiceMetrics {
    /// Registers them.
    pub fn new(registry: &mut Registry, containerssh: Equivalents) -> Self {
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
            config_calls: CallMetrics::new(Service::Config),
            containerssh,
        };
        metrics.config_calls.register(registry, "podbay_config_webhook_duration");
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
        // Alerts see a first failure only where there was a 0 before.
        for kind in ["good", "bad"] {
            drop(metrics.reloads.get_or_create(&Kind { kind }));
        }
        for kind in ["ready", "failed"] {
            drop(metrics.pods.get_or_create(&Kind { kind }));
        }
        metrics
    }

    pub(crate) fn call(&self, method: &'static str, code: tonic::Code, took: Duration) {
        self.calls.get_or_create(&Call { method, code: podbay::code_name(code) }).inc();
        self.call_seconds.get_or_create(&Kind { kind: method }).observe(took.as_secs_f64());
    }

    /// A connection was opened, or why not.
    pub(crate) fn pod(&self, failed: Option<Reason>) {
        let kind = if failed.is_some() { "failed" } else { "ready" };
        self.pods.get_or_create(&Kind { kind }).inc();
        self.containerssh.waited(failed);
    }

    /// A session was refused, perhaps for its pod.
    pub(crate) fn session_refused(&self, why: Reason) {
        self.containerssh.waited(Some(why));
    }

    /// Calls of the config webhook.
    pub(crate) fn config_calls(&self) -> &CallMetrics {
        &self.config_calls
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
