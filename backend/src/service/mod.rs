//! The gRPC services: who calls, what they may, and core's answers in gRPC's words.

mod connection;
mod live;
mod session;

pub(crate) use live::Live;

use crate::{
    callers::{Caller, Callers},
    metrics::ServiceMetrics,
};
use podbay::v1::{Reason, Refusal};
use podbay_backend_core::{
    connections::Connections,
    session::{Sessions, Stopping},
};
use podbay_runtime::tls;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tonic::{Request, Status};

/// What both services share.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub connections: Connections,
    pub sessions: Sessions,
    pub callers: Callers,
    pub metrics: ServiceMetrics,
    /// Owns the streams' tasks: sessions and starts of connections.
    pub streams: TaskTracker,
    /// Moves sessions to other replicas, and ends them.
    pub stopping: Stopping,
    pub draining: Arc<AtomicBool>,
    /// How long sessions may go on after the first SIGTERM.
    pub drain_timeout: std::time::Duration,
}

impl Service {
    /// Who calls: no certificate, or one that no rule names, is nobody.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Refusal> {
        let names = request.peer_certs().map(|certificates| tls::peer_names(&certificates)).unwrap_or_default();
        self.callers.identify(&names)
    }

    /// New work goes to other replicas while this one drains.
    fn takes_new(&self) -> Result<(), Refusal> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Refusal::new(Reason::Draining, "this server is shutting down: try again"));
        }
        Ok(())
    }

    /// Counts a unary call, and gives its answer in gRPC's words.
    async fn counted<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<tonic::Response<T>, Status> {
        let started = Instant::now();
        let result = call.await.map_err(|refusal| status(&refusal));
        let code = result.as_ref().err().map_or(tonic::Code::Ok, Status::code);
        self.metrics.call(method, code, started.elapsed());
        result.map(tonic::Response::new)
    }

    /// Refuses a stream before it began.
    fn refused(&self, method: &'static str, refusal: &Refusal) -> Status {
        let status = status(refusal);
        self.metrics.call(method, status.code(), std::time::Duration::ZERO);
        status
    }
}

fn status(refusal: &Refusal) -> Status {
    tracing::debug!(reason = refusal.reason().as_str_name(), why = refusal.message, "refused");
    refusal.clone().into_status()
}
