//! One connection towards the backend: opened after login, closed when the client is gone.
//!
//! Runs in a task of its own that outlives the SSH connection, so that a pod is deleted also when the client vanished.

use super::{
    Backend, Failure, Tour,
    owner::{Claim, Owner},
    phase::{Opened, Phase, Terms},
};
use crate::metrics::{Closing, Metrics};
use arc_swap::ArcSwap;
use futures::StreamExt as _;
use podbay::{ConnectionId, v1};
use podbay_runtime::{
    codes,
    webhook::{Entry, Facts},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// Added to the backend's own deadlines, so that its answer, which says more, arrives first.
const GRACE: Duration = Duration::from_secs(2);

/// Between attempts when every replica was tried.
const PAUSE: Duration = Duration::from_millis(250);

/// What users are told when this process's lease was lost.
pub const OWNER_LOST: &str = "the backend took this server for dead and has deleted its pods; please log in again";

/// Who logged in, and what the login needs.
#[derive(Debug)]
pub struct Login {
    /// The connection's id.
    pub id: ConnectionId,
    /// As the client gave it.
    pub user: String,
    /// What authentication has learnt about it.
    pub known: Facts,
    /// What the user's own credentials restrict the connection to.
    pub restrictions: Option<v1::Restrictions>,
    /// The client's identification.
    pub version: String,
    /// The client's port.
    pub port: u16,
    /// The client's address.
    pub remote: String,
    /// The time in which the backend must accept.
    pub accept_timeout: Duration,
    /// Where the connection's channels look.
    pub phase: watch::Sender<Phase>,
    /// The client is gone.
    pub gone: CancellationToken,
    /// Set here when the connection is to end before its client ends it, with the text for the user.
    pub ended: watch::Sender<Option<Arc<str>>>,
}

/// Why a connection could not be opened.
#[derive(Debug)]
struct OpenError {
    refusal: v1::Refusal,
    /// What was agreed before.
    terms: Option<Arc<Terms>>,
    /// The backend may have begun something.
    begun: bool,
}

/// Where an opening stands, over all its attempts.
struct Opening {
    deadline: Instant,
    begun: bool,
    terms: Option<Arc<Terms>>,
    tour: Tour,
}

/// Why one attempt at opening ended.
enum Stopped {
    /// The call or its stream failed.
    Failed(Failure),
    /// The deadline of the moment passed.
    TooLate,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Login {
    /// Opens, waits for the client to go, closes. Never cancelled but by the process's end.
    pub async fn run(self, backend: &dyn Backend, owner: &Arc<Owner>, metrics: &Metrics) {
        let mut losses = owner.losses();
        let mut claim = owner.claim(self.id);
        let mut opening = Opening {
            deadline: Instant::now() + self.accept_timeout,
            begun: false,
            terms: None,
            tour: Tour::default(),
        };
        let opened = tokio::select! {
            opened = self.open(backend, &claim, &mut opening) => opened,
            () = self.gone.cancelled() => {
                metrics.handshake(false);
                info!(code = codes::SSH_HANDSHAKE_FAILED, connection = %self.id, user = self.user, remote = self.remote,
                    "the client went before the connection was open");
                return self.close(backend, metrics, &opening).await;
            }
        };
        match opened {
            Ok(opened) => {
                metrics.handshake(true);
                info!(target: "podbay::activity", code = codes::SSH_HANDSHAKE_SUCCESSFUL, connection = %self.id, user = self.user,
                    remote = self.remote, pod = opened.pod, "connection opened");
                let opened = Arc::new(opened);
                claim.opened(&opened);
                self.phase.send_replace(Phase::Open(opened));
            }
            Err(OpenError { refusal, terms, begun }) => {
                metrics.handshake(false);
                error!(code = codes::SSH_BACKEND_REJECTED_HANDSHAKE, connection = %self.id, user = self.user, remote = self.remote,
                    reason = refusal.reason().as_str_name(), "connection not opened: {}", refusal.message);
                info!(code = codes::SSH_HANDSHAKE_FAILED, connection = %self.id, user = self.user, remote = self.remote,
                    "the backend has refused the connection");
                opening.terms = terms;
                opening.begun = begun;
                if refusal.reason() == v1::Reason::OwnerExpired {
                    owner.expired(claim.owner_id());
                }
                let text = format!("{} [connection {}]", refusal.message, self.id);
                self.phase.send_replace(Phase::Failed(text.into()));
                // What was begun is undone now, not when the client has read why.
                self.close(backend, metrics, &opening).await;
                opening.begun = false;
            }
        }
        let owner_id = claim.owner_id();
        let lost = async {
            // A receiver that fell behind missed a loss: which one is not known, and there is hardly ever one.
            while losses.recv().await.is_ok_and(|lost| lost != owner_id) {}
        };
        let why: Option<Arc<str>> = tokio::select! {
            () = self.gone.cancelled() => None,
            () = lost => Some(OWNER_LOST.into()),
            text = claim.terminated() => Some(text),
        };
        if let Some(text) = why {
            info!(target: "podbay::activity", connection = %self.id, user = self.user, "connection ends: {text}");
            self.phase.send_replace(Phase::Failed(Arc::clone(&text)));
            self.ended.send_if_modified(|ended| ended.is_none() && ended.replace(text).is_none());
            self.gone.cancelled().await;
        }
        self.close(backend, metrics, &opening).await;
        info!(target: "podbay::activity", connection = %self.id, user = self.user, remote = self.remote,
            "connection closed");
    }

    async fn open(&self, backend: &dyn Backend, claim: &Claim, opening: &mut Opening) -> Result<Opened, OpenError> {
        loop {
            let failure = match self.attempt(backend, claim, opening).await {
                Ok(opened) => return Ok(opened),
                Err(Stopped::Failed(failure)) => failure,
                Err(Stopped::TooLate) => return Err(opening.error(opening.too_late())),
            };
            if !failure.may_retry() {
                return Err(opening.error(failure.refusal()));
            }
            debug!(connection = %self.id, "opening goes on elsewhere: {failure}");
            // Every replica was tried, or none is known: from the start, but not at once.
            if let Err(failure) = opening.tour.failed(failure) {
                if Instant::now() + PAUSE >= opening.deadline {
                    return Err(opening.error(failure.refusal()));
                }
                sleep(PAUSE).await;
            }
        }
    }

    /// One call, each wait bounded by the deadline of the moment: Accepted moves it. The stream is dropped on every way
    /// out, which asks for an unfinished start to be undone.
    async fn attempt(&self, backend: &dyn Backend, claim: &Claim, opening: &mut Opening) -> Result<Opened, Stopped> {
        let request = self.request(claim);
        // Until it is known that nothing was sent, something may have begun: also when time runs out meanwhile.
        let begun_before = std::mem::replace(&mut opening.begun, true);
        let call = backend.open_connection(opening.tour.choice.clone(), request);
        let called = timeout_at(opening.deadline, call).await.map_err(|_| Stopped::TooLate)?;
        if matches!(called, Err(Failure::NoReplica | Failure::NotSent(..))) {
            opening.begun = begun_before;
        }
        let (replica, mut events) = called?;
        while let Some(event) = timeout_at(opening.deadline, events.next()).await.map_err(|_| Stopped::TooLate)? {
            match event?.event {
                Some(v1::open_connection_response::Event::Accepted(accepted)) => {
                    if self.restrictions.is_some() && !accepted.restricted {
                        // An older replica: another one may be newer, and what was begun here is undone.
                        let text =
                            "the server that was asked can't keep your certificate's restrictions; try again later";
                        let refusal = v1::Refusal::new(v1::Reason::Draining, text);
                        return Err(Failure::Answered(replica, refusal.into_status()).into());
                    }
                    claim.told(accepted.heartbeat_interval.and_then(|d| Duration::try_from(d).ok()));
                    let terms = opening.accepted(accepted.into());
                    self.phase.send_replace(Phase::Starting { terms, progress: None, since: Instant::now() });
                }
                Some(v1::open_connection_response::Event::Progress(news)) => {
                    self.phase.send_if_modified(|phase| match phase {
                        Phase::Starting { progress, .. } => {
                            *progress = Some(news.message);
                            true
                        }
                        Phase::Asking | Phase::Open(_) | Phase::Failed(_) => false,
                    });
                }
                Some(v1::open_connection_response::Event::Opened(opened)) => {
                    let pod = match (opened.pod_namespace.as_str(), opened.pod_name.as_str()) {
                        (_, "") => String::new(),
                        (namespace, name) => format!("{namespace}/{name}"),
                    };
                    let terms = opening.terms.clone().unwrap_or_default();
                    return Ok(Opened { handle: ArcSwap::from_pointee(opened.handle), replica, terms, pod });
                }
                // A kind of event that this build does not know.
                None => {}
            }
        }
        Err(Failure::Broken(replica, tonic::Status::unavailable("the stream ended before Opened")).into())
    }

    fn request(&self, claim: &Claim) -> v1::OpenConnectionRequest {
        let Facts { authenticated, metadata, environment, files } = &self.known;
        let authenticated_name = authenticated.clone().filter(|name| *name != self.user).unwrap_or_default();
        v1::OpenConnectionRequest {
            connection_id: self.id.to_string(),
            owner_id: claim.owner_id().to_string(),
            user: Some(v1::User { name: self.user.clone(), authenticated_name }),
            remote_address: self.remote.clone(),
            metadata: values(metadata).collect(),
            environment: values(environment).collect(),
            files: values(files).map(|(path, bytes)| (path, bytes.into())).collect(),
            sensitive_metadata: sensitive(metadata),
            sensitive_environment: sensitive(environment),
            sensitive_files: sensitive(files),
            client_version: self.version.clone(),
            remote_port: self.port.into(),
            restrictions: self.restrictions.clone(),
        }
    }

    /// Closes what may be open, with a fresh deadline, over the replicas.
    async fn close(&self, backend: &dyn Backend, metrics: &Metrics, opening: &Opening) {
        if !opening.begun {
            return;
        }
        let pod_stop = opening.terms.as_ref().map_or_else(|| Terms::default().pod_stop, |terms| terms.pod_stop);
        let deadline = Instant::now() + pod_stop + GRACE;
        let mut tour = Tour::default();
        let closing = async {
            loop {
                let request = v1::CloseConnectionRequest { connection_id: self.id.to_string(), keep_detached: true };
                let left = deadline.saturating_duration_since(Instant::now());
                match backend.close_connection(tour.choice.clone(), request, left).await {
                    Ok((_, answer)) => return Ok(answer.pods_deleted),
                    Err(failure) if !failure.may_retry() => return Err(failure),
                    Err(failure) => {
                        debug!(connection = %self.id, "closing goes on elsewhere: {failure}");
                        if tour.failed(failure).is_err() {
                            sleep(PAUSE).await;
                        }
                    }
                }
            }
        };
        match timeout_at(deadline, closing).await {
            Ok(Ok(pods)) => {
                metrics.closed(Closing::Done);
                debug!(connection = %self.id, pods, "closed");
            }
            Ok(Err(failure)) => {
                metrics.closed(Closing::Failed);
                warn!(connection = %self.id, "not closed, the owner's next heartbeat tells: {failure}");
            }
            Err(_) => {
                metrics.closed(Closing::TimedOut);
                warn!(connection = %self.id, "not closed within podStop, the owner's next heartbeat tells");
            }
        }
    }
}

fn values<T: Clone>(map: &BTreeMap<String, Entry<T>>) -> impl Iterator<Item = (String, T)> {
    map.iter().map(|(name, entry)| (name.clone(), entry.value.clone()))
}

fn sensitive<T>(map: &BTreeMap<String, Entry<T>>) -> Vec<String> {
    map.iter().filter(|(_, entry)| entry.sensitive).map(|(name, _)| name.clone()).collect()
}

impl Opening {
    /// The pod's start is bounded from the first Accepted on, retries included.
    fn accepted(&mut self, terms: Terms) -> Arc<Terms> {
        let terms = Arc::new(terms);
        if self.terms.is_none() {
            self.deadline = Instant::now() + terms.pod_start + GRACE;
        }
        self.terms = Some(Arc::clone(&terms));
        terms
    }

    fn too_late(&self) -> v1::Refusal {
        match &self.terms {
            None => v1::Refusal::new(v1::Reason::StreamLost, "no backend has answered in time; try again later"),
            Some(_) => v1::Refusal::new(
                v1::Reason::PodStartTimeout,
                "the pod was not ready in time (timeouts.podStart), and the backend has not said why",
            ),
        }
    }

    fn error(&self, refusal: v1::Refusal) -> OpenError {
        OpenError { refusal, terms: self.terms.clone(), begun: self.begun }
    }
}
