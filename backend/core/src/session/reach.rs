//! The API as a start meets it: an API server that restarts is waited for, as long as nothing can have begun twice.

use super::Sessions;
use crate::{
    cluster::{ClusterError, PodRef, StreamRequest, Streams},
    failure::short,
    handle::Contents,
    lifecycle::Backoff,
};
use podbay::v1::{self, Reason, Refusal, StartPhase};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

/// While a cause stands, its progress is told again after this (contract).
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// The API, for one start.
pub(super) struct Api<'a> {
    pub sessions: &'a Sessions,
    /// The start's.
    pub deadline: Instant,
    pub progress: &'a mpsc::Sender<v1::Progress>,
}

/// A wait for the API.
struct Wait<'a> {
    api: &'a Api<'a>,
    backoff: Backoff,
    began: Instant,
    told: Option<Instant>,
}

impl Api<'_> {
    fn wait(&self) -> Wait<'_> {
        Wait { api: self, backoff: Backoff::default(), began: Instant::now(), told: None }
    }

    /// Opens an exec or attach. One whose request was never sent is tried again until the deadline; any other failure is final:
    /// without an agent nobody knows whether the program runs.
    pub async fn open_stream(&self, pod: &PodRef, request: &StreamRequest) -> Result<Streams, Refusal> {
        let mut wait = self.wait();
        loop {
            let error = match self.sessions.lifecycle.cluster().stream(pod, request).await {
                Ok(streams) => return Ok(streams),
                Err(error) => error,
            };
            let refusal = refused(&error);
            if !matches!(error, ClusterError::Unreachable { .. }) || !wait.again(&error.to_string()).await {
                tracing::warn!(pod = pod.name, %error, "exec or attach refused");
                return Err(refusal);
            }
        }
    }

    /// Whether the connection may start a pod; reads, which may be repeated.
    pub async fn admit(&self, contents: &Contents, caller: &str) -> Result<(), Refusal> {
        let mut wait = self.wait();
        loop {
            let refusal = match self.sessions.leases.admit(contents.owner, contents.connection, caller).await {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            };
            if refusal.reason() != Reason::KubernetesUnavailable || !wait.again(&refusal.message).await {
                return Err(refusal);
            }
        }
    }
}

impl Wait<'_> {
    /// Tells the user and waits; false where the deadline leaves no time for another try.
    async fn again(&mut self, why: &str) -> bool {
        let pause = self.backoff.next(None);
        let now = Instant::now();
        if now + pause >= self.api.deadline {
            return false;
        }
        if self.told.is_none_or(|told| now.duration_since(told) >= TELL_AGAIN) {
            self.told = Some(now);
            let elapsed = prost_types::Duration::try_from(self.began.elapsed()).ok();
            let message = format!("waiting for the Kubernetes API: {}", short(why));
            // News: left out where some wait already.
            let _ = self.api.progress.try_send(v1::Progress { phase: StartPhase::Starting.into(), message, elapsed });
        }
        sleep(pause).await;
        true
    }
}

/// Why no stream could be opened.
fn refused(error: &ClusterError) -> Refusal {
    let words = short(&error.to_string());
    match error {
        ClusterError::NotFound { .. } => {
            Refusal::new(Reason::PodGone, "the pod of this connection is gone: log in again")
        }
        ClusterError::Invalid { .. } | ClusterError::Conflict { .. } | ClusterError::AlreadyExists => {
            Refusal::new(Reason::ContainerFailed, format!("the container takes no program: {words}"))
        }
        ClusterError::Forbidden { .. } | ClusterError::Unauthorized { .. } => {
            Refusal::new(Reason::BackendNotAllowed, format!("the backend may not start programs in the pod: {words}"))
        }
        ClusterError::Unreachable { .. } => {
            let text = format!("the program was not started: the Kubernetes API {words}");
            Refusal::new(Reason::KubernetesUnavailable, text)
        }
        ClusterError::Unavailable { .. } | ClusterError::Timeout(_) => {
            Refusal::new(Reason::KubernetesUnavailable, format!("the program can't be started: {words}"))
        }
    }
}
