//! Into a pod that outlives connections (mode `persistent`): found, or made; claimed where it is ours; waited for.

use super::{
    Backoff, Left, Lifecycle, StartRequest, StartedPod,
    start::{Failure, Kind, Start, mark_of},
    stop::{reference, retry_after},
};
use crate::{
    cluster::{ClusterError, PodRef},
    config::Persistent,
    failure::{self, CreateFailure, short},
    identity::Identity,
    persistent::{self, Made},
    pod_security,
};
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId,
    v1::{self, Reason, Refusal, StartPhase},
};
use podbay_runtime::codes;
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};

/// A pod to enter.
#[derive(Debug, Clone)]
pub struct EnterRequest {
    /// As it is made where it is missing ([`crate::template::persistent_pod`]), with its name.
    pub pod: Pod,
    /// Which, and whether it is made.
    pub which: Persistent,
    /// Who.
    pub who: Identity,
    /// The console container: its name in a pod that we make, its place in one that others made.
    pub console: (String, usize),
    /// By when.
    pub deadline: Instant,
}

/// A pod that was entered.
#[derive(Debug)]
pub struct Entered {
    /// It runs.
    pub started: StartedPod,
    /// The console container's name in it.
    pub console: String,
    /// Releases it again unless it is kept.
    pub release: Release,
}

/// A guard that takes a claim back when it is dropped, unless it is kept.
#[derive(Debug)]
pub struct Release {
    lifecycle: Lifecycle,
    pod: PodRef,
    connection: ConnectionId,
    mark: String,
    what: Left,
}

impl Release {
    /// The claim stays.
    pub fn keep(mut self) {
        self.what = Left::Nothing;
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if self.what != Left::Nothing {
            let (lifecycle, pod, connection) = (self.lifecycle.clone(), self.pod.clone(), self.connection);
            let (mark, settled) = (std::mem::take(&mut self.mark), self.what == Left::Pod);
            self.lifecycle.tracker.spawn(async move { lifecycle.unclaim(&pod, connection, &mark, settled).await });
        }
    }
}

/// What a try of entering came to.
enum Try {
    In(Box<(StartedPod, String)>),
    /// Not now; after this pause.
    Again(Duration),
}

struct Enter<'a> {
    start: Start<'a>,
    request: EnterRequest,
    bare: PodRef,
    backoff: Backoff,
    release: Release,
}

impl Lifecycle {
    /// Finds the pod, or makes it where that is configured, and waits until it runs. One that is on its way out is waited
    /// for. Of several that make it at once, one does, and all use it.
    ///
    /// Cancel safe: dropped before it is done, or failed, or out of time, it takes its claim back (in the background); a pod
    /// that it made, or that never ran, and that nobody else claims is deleted.
    pub async fn enter(
        &self,
        request: EnterRequest,
        progress: &mpsc::Sender<v1::Progress>,
    ) -> Result<Entered, Refusal> {
        let bare = reference(&request.pod).ok_or_else(|| Refusal::new(Reason::Internal, "a pod without name"))?;
        let deadline = request.deadline;
        let (pod, console) = (request.pod.clone(), request.console.0.clone());
        let start = StartRequest { pod, console, kind: Kind::Connection, deadline };
        let start = Start::new(self, bare.clone(), start, progress);
        let release = Release {
            lifecycle: self.clone(),
            pod: bare.clone(),
            connection: request.who.connection,
            mark: mark_of(&start.request.pod).unwrap_or_default().to_owned(),
            what: Left::Nothing,
        };
        let mut enter = Enter { start, request, bare, backoff: Backoff::default(), release };
        match timeout_at(deadline, enter.run()).await {
            Ok(Ok((started, console))) => Ok(Entered { started, console, release: enter.release }),
            Ok(Err((reason, message))) => Err(Refusal::new(reason, message)),
            Err(_) => Err(enter.start.telling.out_of_time()),
        }
    }

    /// Takes a connection's claim back, within `podStop`. A pod without claims is deleted where its maker gave it up (its mark),
    /// or where it never ran: it would only stand there. `settled`: the pod is there, or gone; else it may still come.
    async fn unclaim(&self, pod: &PodRef, connection: ConnectionId, mark: &str, settled: bool) {
        let bare = PodRef { uid: None, ..pod.clone() };
        let until = Instant::now() + if settled { Duration::ZERO } else { self.timeouts.http };
        let mut backoff = Backoff::default();
        let work = async {
            loop {
                match self.cluster.get_pod(&bare).await {
                    Ok(found) => match self.unclaim_found(&found, connection, mark).await {
                        Ok(()) | Err(ClusterError::NotFound { .. }) => return,
                        Err(error) => tracing::debug!(pod = bare.name, %error, "a claim is not taken back yet"),
                    },
                    Err(ClusterError::NotFound { .. }) if Instant::now() >= until => return,
                    Err(_) => {}
                }
                sleep(backoff.next(None)).await;
            }
        };
        if timeout(self.timeouts.pod_stop + self.timeouts.http, work).await.is_err() {
            tracing::warn!(pod = bare.name, %connection, "a claim is not taken back; its owner's next heartbeats do");
        }
    }

    async fn unclaim_found(&self, found: &Pod, connection: ConnectionId, mark: &str) -> Result<(), ClusterError> {
        let Some(pod) = reference(found) else { return Ok(()) };
        let claimed = |pod: &Pod| persistent::claims(&pod.metadata);
        let mut now = found.clone();
        if claimed(found).iter().any(|claim| claim.connection == connection) {
            now = self.cluster.patch_pod(&pod, persistent::release_patch([connection])).await?;
        }
        let never_ran = phase(&now) == "Pending";
        let given_up = mark_of(&now) == Some(mark);
        let ours = persistent::is_ours(&now.metadata) && now.metadata.deletion_timestamp.is_none();
        if ours && claimed(&now).is_empty() && (given_up || never_ran) {
            self.cluster.delete_pod_unchanged(&now).await?;
            // Now that it goes whoever may want it, until it is gone.
            self.stop_and_tell(&pod).await;
        }
        Ok(())
    }
}

impl Enter<'_> {
    async fn run(&mut self) -> Result<(StartedPod, String), Failure> {
        loop {
            let next = match self.start.lifecycle.cluster.get_pod(&self.bare).await {
                Ok(found) => self.found(found).await?,
                Err(ClusterError::NotFound { .. }) if self.request.which.create_missing => self.make().await?,
                Err(ClusterError::NotFound { message }) => return Err(self.missing(&message)),
                Err(error) => self.later(&error)?,
            };
            match next {
                Try::In(entered) => return Ok(*entered),
                Try::Again(pause) => self.start.pause(pause).await,
            }
        }
    }

    fn missing(&self, message: &str) -> Failure {
        tracing::info!(code = codes::KUBERNETES_POD_NOT_FOUND, pod = self.bare.name, why = message, "a pod is missing");
        let PodRef { namespace, name, .. } = &self.bare;
        let text = format!(
            "there is no pod {name} in the namespace {namespace}: it has to be made first (or set \
             kubernetes.pod.createMissingPods)"
        );
        (Reason::NotFound, text)
    }

    /// The API does not answer as it should: told, and tried again, unless it never will.
    fn later(&mut self, error: &ClusterError) -> Result<Try, Failure> {
        match error {
            ClusterError::Forbidden { .. } | ClusterError::Unauthorized { .. } | ClusterError::Invalid { .. } => {
                tracing::warn!(pod = self.bare.name, %error, "a pod can't be entered");
                let text = format!("the backend may not use the pod: {}", short(&error.to_string()));
                Err((Reason::BackendNotAllowed, text))
            }
            ClusterError::NotFound { .. } | ClusterError::AlreadyExists | ClusterError::Conflict { .. } => {
                Ok(self.again())
            }
            ClusterError::Unavailable { .. } | ClusterError::Unreachable { .. } | ClusterError::Timeout(_) => {
                let text = format!("the Kubernetes API is not available: {}", short(&error.to_string()));
                self.start.telling.tell(StartPhase::Creating, Some(Reason::KubernetesUnavailable), &text);
                Ok(Try::Again(self.backoff.next(retry_after(error))))
            }
        }
    }

    fn again(&mut self) -> Try {
        Try::Again(self.backoff.next(None))
    }

    async fn found(&mut self, found: Pod) -> Result<Try, Failure> {
        let EnterRequest { which, who, .. } = &self.request;
        let made = match persistent::admit(&found.metadata, &which.name, who) {
            Ok(made) => made,
            Err(refusal) => {
                tracing::warn!(pod = self.bare.name, user = who.user.authenticated, "{}", refusal.message);
                return Err((refusal.reason(), refusal.message));
            }
        };
        if found.metadata.deletion_timestamp.is_some() {
            let text = format!("waiting for the pod {}, which is being deleted, to end", self.bare.name);
            self.start.telling.tell(StartPhase::Creating, None, &text);
            return Ok(self.again());
        }
        if matches!(phase(&found), "Succeeded" | "Failed") {
            return self.ended(&found, made).await;
        }
        let claims = persistent::claims(&found.metadata);
        let own = claims.iter().find(|claim| claim.connection == who.connection);
        let now = match (made, own) {
            (Made::ByOthers, _) => found,
            // By an earlier try of the same request.
            (Made::ByUs, Some(claim)) if claim.owner == who.owner && claim.caller == who.caller => {
                self.release.what = Left::Pod;
                found
            }
            (Made::ByUs, Some(_)) => {
                let text = "this connection id belongs to somebody else; take a new one";
                return Err((Reason::CallerNotAllowed, text.to_owned()));
            }
            (Made::ByUs, None) if claims.len() >= persistent::MAX_CLAIMS => {
                let text = format!("the pod {} has {} connections already", self.bare.name, persistent::MAX_CLAIMS);
                return Err((Reason::Limit, text));
            }
            (Made::ByUs, None) => {
                let Some(pod) = reference(&found) else { return Ok(self.again()) };
                self.release.what = Left::Perhaps;
                match self.start.lifecycle.cluster.patch_pod(&pod, persistent::claim_patch(who)).await {
                    Ok(now) => {
                        self.release.what = Left::Pod;
                        now
                    }
                    Err(error) => return self.later(&error),
                }
            }
        };
        // It may have been told to go before our claim was there.
        if now.metadata.deletion_timestamp.is_some() {
            return Ok(self.again());
        }
        self.wait(&now, made, Kind::Program).await
    }

    /// A pod that is over: ours is made anew.
    async fn ended(&mut self, found: &Pod, made: Made) -> Result<Try, Failure> {
        let phase = phase(found);
        match (made, reference(found)) {
            (Made::ByUs, Some(pod)) if self.request.which.create_missing => {
                tracing::info!(pod = pod.name, phase, "a pod has ended; making it anew");
                let text = format!("the pod {} has ended ({phase}); making it anew", pod.name);
                self.start.telling.tell(StartPhase::Creating, None, &text);
                match self.start.lifecycle.stop(&pod).await {
                    Ok(()) => Ok(Try::Again(Duration::ZERO)),
                    Err(refusal) => Err((refusal.reason(), refusal.message)),
                }
            }
            _ => Err((Reason::ContainerFailed, format!("the pod {} has ended ({phase})", self.bare.name))),
        }
    }

    async fn make(&mut self) -> Result<Try, Failure> {
        self.start.telling.tell(StartPhase::Creating, None, "creating the pod");
        // From here on the API may have the pod, with our claim, whatever becomes of the answer.
        let before = std::mem::replace(&mut self.release.what, Left::Perhaps);
        let error = match self.start.lifecycle.cluster.create_pod(&self.start.request.pod).await {
            Ok(made) => {
                self.release.what = Left::Pod;
                let code = codes::KUBERNETES_POD_CREATE;
                tracing::info!(target: "podbay::activity", code, pod = self.bare.name, "pod created");
                return self.wait(&made, Made::ByUs, Kind::Connection).await;
            }
            Err(error) => error,
        };
        if self.start.complies(&error) {
            self.release.what = before;
            return Ok(Try::Again(Duration::ZERO));
        }
        match failure::of_create(&error) {
            // Another was quicker: its pod is ours too.
            CreateFailure::Exists => {
                self.release.what = before;
                Ok(Try::Again(Duration::ZERO))
            }
            CreateFailure::Certain(reason, message) => {
                self.release.what = before;
                tracing::error!(code = codes::KUBERNETES_POD_CREATE_FAILED, pod = self.bare.name, %error, "pod refused");
                Err((reason, message + pod_security::hint(&self.start.request.pod, &error)))
            }
            CreateFailure::MayHeal { reason, message, retry_after, uncertain } => {
                if !uncertain {
                    self.release.what = before;
                }
                let code = codes::KUBERNETES_POD_CREATE_FAILED;
                tracing::debug!(code, pod = self.bare.name, %error, "pod not created yet");
                self.start.telling.tell(StartPhase::Creating, Some(reason), &message);
                Ok(Try::Again(self.backoff.next(retry_after)))
            }
        }
    }

    /// Until the pod runs. One that goes meanwhile is looked for anew.
    async fn wait(&mut self, pod: &Pod, made: Made, kind: Kind) -> Result<Try, Failure> {
        let console = self.console(pod, made)?;
        let Some(reference) = reference(pod) else { return Ok(self.again()) };
        self.start.undo.pod = reference;
        self.start.request.console.clone_from(&console);
        self.start.request.kind = kind;
        match self.start.wait().await {
            Ok(started) if started.ended => Ok(self.again()),
            Ok(started) => Ok(Try::In(Box::new((started, console)))),
            Err((Reason::PodGone, text)) => {
                tracing::info!(pod = self.bare.name, %text, "the pod went; looking for it anew");
                Ok(self.again())
            }
            Err(failure) => Err(failure),
        }
    }

    /// The console container: by its name, in a pod that others made by its place, as in ContainerSSH.
    fn console(&self, pod: &Pod, made: Made) -> Result<String, Failure> {
        let (name, place) = &self.request.console;
        match made {
            Made::ByUs => Ok(name.clone()),
            Made::ByOthers => {
                let found = pod.spec.as_ref().and_then(|spec| spec.containers.get(*place));
                let missing = || {
                    let text = format!("the pod {} has no container {place} (consoleContainerNumber)", self.bare.name);
                    (Reason::ContainerFailed, text)
                };
                found.map(|container| container.name.clone()).ok_or_else(missing)
            }
        }
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}
