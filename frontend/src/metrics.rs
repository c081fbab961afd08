//! What the frontend counts. Names get Prometheus' `_total` from the registry; the prefix is `podbay_frontend_`.

use crate::containerssh::Equivalents;
use podbay_runtime::webhook::{CallMetrics, Service};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::{fmt, time::Duration};
use tonic::Code;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ConnectionState {
    /// Not logged in.
    Unauthenticated,
    /// Logged in.
    LoggedIn,
}

/// Why a peer or request was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Turned {
    /// Too many connections in all.
    TooManyConnections,
    /// Too many from this address.
    TooManyFromAddress,
    /// Too many that have not logged in.
    TooManyStartups,
    /// From an address with too many failed logins.
    Penalty,
    /// No SSH, or broken SSH.
    Garbage,
    /// No login in time.
    LoginGrace,
    /// Too many sessions on one connection.
    TooManySessions,
    /// A channel of a kind that is not supported.
    ChannelType,
    /// A request on a channel or of the connection that is not supported or comes at the wrong time.
    Request,
    /// Input that nobody read filled the connection's share.
    Cap,
}

/// A way to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Method {
    /// Public key.
    PublicKey,
    /// Password.
    Password,
    /// A certificate of a trusted CA.
    Certificate,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// It worked.
    Success,
    /// It did not.
    Failure,
    /// Nobody could say: a webhook is out of order.
    Unavailable,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Direction {
    /// Client to program.
    Input,
    /// Program to client.
    Output,
}

/// How closing a connection at the backend went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Closing {
    /// Its pods are gone.
    Done,
    /// The backend refused.
    Failed,
    /// Not within podStop.
    TimedOut,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum SessionEnd {
    /// With an exit status.
    Status,
    /// With a signal.
    Signal,
    /// It never started, or how it ended is not known.
    Failed,
    /// The client went away.
    Abandoned,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: ConnectionState,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: Turned,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Auth {
    method: Method,
    result: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    direction: Direction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Closed {
    result: Closing,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reloaded {
    result: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    end: SessionEnd,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallMethod {
    method: &'static str,
}

/// All metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    connections: Family<State, Gauge>,
    auth: Family<Auth, Counter>,
    sessions: Gauge,
    session_ends: Family<Ended, Counter>,
    resumed: Counter,
    turned: Family<Why, Counter>,
    bytes: Family<Way, Counter>,
    queued: Gauge,
    stuck: Gauge,
    stray: Counter,
    keepalive_losses: Counter,
    accept_errors: Counter,
    calls: Family<Call, Counter>,
    durations: Family<CallMethod, Histogram, fn() -> Histogram>,
    closings: Family<Closed, Counter>,
    reloads: Family<Reloaded, Counter>,
    auth_calls: CallMetrics,
    containerssh: Equivalents,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 3.0, 11))
}

impl Metrics {
    /// Makes and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            connections: Family::default(),
            auth: Family::default(),
            sessions: Gauge::default(),
            session_ends: Family::default(),
            resumed: Counter::default(),
            turned: Family::default(),
            bytes: Family::default(),
            queued: Gauge::default(),
            stuck: Gauge::default(),
            stray: Counter::default(),
            keepalive_losses: Counter::default(),
            accept_errors: Counter::default(),
            calls: Family::default(),
            durations: Family::new_with_constructor(seconds),
            closings: Family::default(),
            reloads: Family::default(),
            auth_calls: CallMetrics::new(Service::Auth),
            containerssh: Equivalents::new(registry),
        };
        let m = metrics.clone();
        m.auth_calls.register(registry, "podbay_frontend_auth_webhook_duration");
        let registry = registry.sub_registry_with_prefix("podbay_frontend");
        registry.register("connections", "SSH connections by state", m.connections);
        registry.register("auth_attempts", "Attempts to log in by method and result", m.auth);
        registry.register("sessions", "Programs that start or run", m.sessions);
        registry.register("session_ends", "Ended programs by how they ended", m.session_ends);
        registry.register("sessions_resumed", "Sessions that went on over another stream", m.resumed);
        registry.register("refused", "Peers and requests turned away by reason", m.turned);
        registry.register_with_unit("data", "Session data by direction", Unit::Bytes, m.bytes);
        registry.register_with_unit("queued_input", "Input that programs have not taken", Unit::Bytes, m.queued);
        registry.register("stuck_channels", "Channels whose program does not read", m.stuck);
        registry.register("stray_grants", "Windows that a stuck channel got in another's place", m.stray);
        registry.register("keepalive_losses", "Connections that answered no keepalive", m.keepalive_losses);
        registry.register("accept_errors", "Failed accepts", m.accept_errors);
        registry.register("backend_calls", "Calls of the backend by method and code", m.calls);
        registry.register_with_unit("backend_call_duration", "Time to headers", Unit::Seconds, m.durations);
        let reloads = "Changes of the certificate files: success, or failure (then the old ones stay in use)";
        registry.register("tls_reloads", reloads, m.reloads);
        registry.register("closes", "Connections closed at the backend by result", m.closings);
        // Alerts see a first failure only where there was a 0 before.
        for result in [Outcome::Success, Outcome::Failure] {
            drop(metrics.reloads.get_or_create(&Reloaded { result }));
        }
        for result in [Closing::Done, Closing::Failed, Closing::TimedOut] {
            drop(metrics.closings.get_or_create(&Closed { result }));
        }
        metrics
    }

    /// A connection has come into a state.
    pub fn entered(&self, state: ConnectionState) {
        self.connections.get_or_create(&State { state }).inc();
        self.containerssh.entered();
        if state == ConnectionState::Unauthenticated {
            self.containerssh.accepted();
        }
    }

    /// A connection has left a state.
    pub fn left(&self, state: ConnectionState) {
        self.connections.get_or_create(&State { state }).dec();
        self.containerssh.left();
    }

    /// A connection can be used (somebody has logged in, and the backend has opened it), or won't be. Once for each.
    pub fn handshake(&self, success: bool) {
        self.containerssh.handshake(success);
    }

    /// Calls of the authentication webhook.
    pub fn auth_calls(&self) -> &CallMetrics {
        &self.auth_calls
    }

    /// Somebody who was proven to be a user may log in, or not. `retried`: it took more than one call to know.
    pub fn authorized(&self, success: bool, retried: bool) {
        self.containerssh.auth("authorization", success, retried);
    }

    /// An attempt to log in. `retried`: it took more than one call of a webhook.
    pub fn auth(&self, method: Method, result: Outcome, retried: bool) {
        self.auth.get_or_create(&Auth { method, result }).inc();
        // Another method of the contract's own would have no equivalent: there is none.
        let authtype = if method == Method::Password { "password" } else { "pubkey" };
        match result {
            Outcome::Success => self.containerssh.auth(authtype, true, retried),
            Outcome::Failure => self.containerssh.auth(authtype, false, retried),
            // That is no answer: the webhook's counters have it.
            Outcome::Unavailable => {}
        }
    }

    /// A program starts.
    pub fn session_began(&self) {
        self.sessions.inc();
    }

    /// A program has ended.
    pub fn session_ended(&self, end: SessionEnd) {
        self.sessions.dec();
        self.session_ends.get_or_create(&Ended { end }).inc();
    }

    /// A program goes on over another stream.
    pub fn session_resumed(&self) {
        self.resumed.inc();
    }

    /// Somebody was turned away.
    pub fn turned(&self, reason: Turned) {
        self.turned.get_or_create(&Why { reason }).inc();
    }

    /// The counter of one direction, to be kept by who counts often.
    pub fn bytes(&self, direction: Direction) -> Counter {
        self.bytes.get_or_create_owned(&Way { direction })
    }

    /// Input that waits, and channels that don't read, over all connections.
    pub fn input(&self, queued: usize, stuck: usize) {
        self.queued.set(i64::try_from(queued).unwrap_or(i64::MAX));
        self.stuck.set(i64::try_from(stuck).unwrap_or(i64::MAX));
    }

    /// A stuck channel got a window that was meant for another.
    pub fn stray(&self) {
        self.stray.inc();
    }

    /// A client answered no keepalive.
    pub fn keepalive_lost(&self) {
        self.keepalive_losses.inc();
    }

    /// An accept failed.
    pub fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    /// A call of the backend got its headers, or an error.
    pub fn called(&self, method: &'static str, code: Code, time: Duration) {
        self.calls.get_or_create(&Call { method, code: podbay::code_name(code) }).inc();
        self.durations.get_or_create(&CallMethod { method }).observe(time.as_secs_f64());
    }

    /// The certificate files have changed.
    pub fn reloaded(&self, good: bool) {
        let result = if good { Outcome::Success } else { Outcome::Failure };
        self.reloads.get_or_create(&Reloaded { result }).inc();
    }

    /// A connection was closed at the backend, or not.
    pub fn closed(&self, result: Closing) {
        self.closings.get_or_create(&Closed { result }).inc();
    }
}
