//! An in-memory [`Cluster`](crate::cluster::Cluster) for tests: pods go through scripted steps, calls fail on demand, streams are closures.
//!
//! All time is tokio's, so tests run with `tokio::time::pause`. What the real adapter promises holds here too: unary
//! calls are bounded by [`FakeCluster::set_http`], watches reconnect by themselves, `Output::End` comes exactly once.

mod calls;
mod faults;
pub mod script;
mod store;

pub use faults::{Call, Fault};
pub use script::Step;

use crate::cluster::{ClusterError, Input, Output, PodRef, StreamEnd, StreamRequest};
use futures::future::BoxFuture;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use store::State;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

/// What a program of an exec or attach sees.
#[derive(Debug)]
pub struct Program {
    /// The pod, with its uid.
    pub pod: PodRef,
    /// What was asked for.
    pub request: StreamRequest,
    /// Its output; `End` is sent by the fake, from what the closure returns.
    pub output: mpsc::Sender<Output>,
    /// Its input; ends when the client drops its end.
    pub input: mpsc::Receiver<Input>,
    /// The terminal's size.
    pub size: watch::Receiver<Option<(u16, u16)>>,
}

type OnCreate = dyn Fn(&Pod) -> Vec<Step> + Send + Sync;
type OnStream = dyn Fn(Program) -> BoxFuture<'static, StreamEnd> + Send + Sync;

/// The cluster; clones are the same one. Dropping the last clone ends all that it runs.
#[derive(Clone)]
pub struct FakeCluster {
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts changes of anything; watches wait for it.
    changed: watch::Sender<u64>,
    /// Counts breaks of all running streams.
    broken: watch::Sender<u64>,
}

#[derive(Default)]
struct Tasks(Mutex<JoinSet<()>>);

impl fmt::Debug for FakeCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeCluster").finish_non_exhaustive()
    }
}

impl Default for FakeCluster {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeCluster {
    /// An empty cluster in which every pod is ready 10 ms after its creation, ends 10 ms after its deletion, and every
    /// program succeeds at once without output.
    pub fn new() -> Self {
        let shared =
            Shared { state: Mutex::new(State::new()), changed: watch::Sender::new(0), broken: watch::Sender::new(0) };
        Self { shared: Arc::new(shared), tasks: Arc::default() }
    }

    /// What happens to pods created from now on. The closure must not call the fake.
    pub fn on_create(&self, script: impl Fn(&Pod) -> Vec<Step> + Send + Sync + 'static) {
        self.state().on_create = Arc::new(script);
    }

    /// What programs of execs and attaches started from now on do; what the closure returns is sent as `Output::End`.
    pub fn on_stream(&self, program: impl Fn(Program) -> BoxFuture<'static, StreamEnd> + Send + Sync + 'static) {
        self.state().on_stream = Arc::new(program);
    }

    /// How long pods take to end on TERM; `None` = until killed, that is for the whole grace period.
    pub fn set_termination(&self, takes: Option<Duration>) {
        self.state().termination = takes;
    }

    /// The bound of unary calls; 15 s at first.
    pub fn set_http(&self, http: Duration) {
        self.state().http = http;
    }

    /// Whether stdin can be ended apart; true at first.
    pub fn set_half_close(&self, half_close: bool) {
        self.state().half_close = half_close;
    }

    /// How wrong the API server's clock is, in seconds.
    pub fn set_clock_skew(&self, seconds: i64) {
        self.state().skew = seconds;
    }

    /// The next call of this kind meets this fault.
    pub fn fault(&self, call: Call, fault: Fault) {
        self.faults(call, 1, fault);
    }

    /// The next `times` calls of this kind meet this fault; after those already waiting.
    pub fn faults(&self, call: Call, times: usize, fault: Fault) {
        self.state().faults.add(call, times, fault);
    }

    /// Forgets all faults that wait.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// From now on the API does not answer: every call fails with this, streams break, watches see nothing.
    pub fn down(&self, error: ClusterError) {
        self.state().down = Some(error);
        self.break_streams();
        self.bump();
    }

    /// The API answers again.
    pub fn up(&self) {
        self.state().down = None;
        self.bump();
    }

    /// All running execs and attaches end with `Lost`.
    pub fn break_streams(&self) {
        self.shared.broken.send_modify(|n| *n += 1);
    }

    /// All watches break and are made again: each sends `Interrupted`, then what is.
    pub fn break_watches(&self) {
        self.state().interruptions += 1;
        self.bump();
    }

    /// How often this was called.
    pub fn count(&self, call: Call) -> usize {
        self.state().faults.count(call)
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Pod> {
        self.state().pods.values().cloned().collect()
    }

    /// All leases.
    pub fn leases(&self) -> Vec<Lease> {
        self.state().leases.values().cloned().collect()
    }

    /// Changes a pod as a controller would; `false` if there is none. Watches see it.
    pub fn change_pod(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Pod)) -> bool {
        let changed = self.state().change_pod(namespace, name, change);
        self.bump();
        changed
    }

    /// Removes a pod without further ado, as a node that was lost or an operator would.
    pub fn remove_pod(&self, namespace: &str, name: &str) {
        self.state().remove_pod(namespace, name, None);
        self.bump();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    fn bump(&self) {
        self.shared.bump();
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.changed.send_modify(|n| *n += 1);
    }
}
