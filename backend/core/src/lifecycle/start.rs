//! The start of a pod.

use super::{Backoff, Left, Lifecycle, Undo, stop::reference};
use crate::{
    cluster::{ClusterError, PodChange, PodRef},
    failure::{self, CreateFailure, Observer, Progress, Verdict},
    identity::Marks,
    pod_security,
};
use k8s_openapi::api::core::v1::{Event, Pod};
use podbay::v1::{self, Reason, Refusal, StartPhase};
use podbay_runtime::codes;
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

/// The contract: a cause that may heal is told every 5 s.
const REMIND: Duration = Duration::from_secs(5);
/// Events are read first after this time: a quick start needs none.
const EVENTS_AFTER: Duration = Duration::from_secs(1);
/// And then so often.
const EVENTS_EVERY: Duration = Duration::from_secs(3);

/// Annotation: which try of a start made the pod.
const TRY: &str = "podbay.dev/try";

/// The mark of the start that made this pod.
pub(super) fn mark_of(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(TRY).map(String::as_str)
}

/// What the pod is for, and so what 'started' means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It stays: started when it is Ready; an end is a failure.
    Connection,
    /// It runs one program: started when that runs, or has run already.
    Program,
}

/// A pod to start.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// Named and marked by [`crate::template`].
    pub pod: Pod,
    /// The console container.
    pub console: String,
    /// What for.
    pub kind: Kind,
    /// By when: `podStart` from the moment it was promised (in session mode: with `commandStart`).
    pub deadline: Instant,
}

/// A pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedPod {
    /// With uid.
    pub pod: PodRef,
    /// What the console container runs, as the runtime names it; the key for what is known of an image.
    pub image_id: String,
    /// It was there already, from an earlier try of the same request.
    pub adopted: bool,
    /// Its program has ended already ([`Kind::Program`] only).
    pub ended: bool,
}

impl Lifecycle {
    /// Creates the pod and waits until it runs. Progress goes to `progress`, and is dropped while that is full: news, not
    /// data. A pod of the same name, connection, owner, caller and session is adopted; any other is refused.
    ///
    /// Cancel safe: dropped before it is done, or failed, or out of time, it deletes what it made (in the background).
    pub async fn start(
        &self,
        request: StartRequest,
        progress: &mpsc::Sender<v1::Progress>,
    ) -> Result<StartedPod, Refusal> {
        let pod = reference(&request.pod).ok_or_else(|| Refusal::new(Reason::Internal, "a pod without name"))?;
        let deadline = request.deadline;
        let mut start = Start::new(self, pod, request, progress);
        match timeout_at(deadline, start.run()).await {
            Ok(Ok(started)) => {
                start.undo.keep();
                Ok(started)
            }
            Ok(Err((reason, message))) => Err(Refusal::new(reason, message)),
            Err(_) => Err(start.telling.out_of_time()),
        }
    }
}

pub(super) type Failure = (Reason, String);

pub(super) struct Start<'a> {
    pub(super) lifecycle: &'a Lifecycle,
    pub(super) request: StartRequest,
    pub(super) undo: Undo,
    pub(super) telling: Telling<'a>,
    adopted: bool,
}

impl<'a> Start<'a> {
    /// With a mark of its own on the pod.
    pub(super) fn new(
        lifecycle: &'a Lifecycle,
        pod: PodRef,
        mut request: StartRequest,
        progress: &'a mpsc::Sender<v1::Progress>,
    ) -> Self {
        let mark = hex::encode(rand::random::<[u8; 8]>());
        request.pod.metadata.annotations.get_or_insert_default().insert(TRY.into(), mark.clone());
        Self {
            undo: Undo { lifecycle: lifecycle.clone(), pod, mark, what: Left::Nothing },
            lifecycle,
            request,
            telling: Telling { progress, since: Instant::now(), last: None, told: None },
            adopted: false,
        }
    }

    async fn run(&mut self) -> Result<StartedPod, Failure> {
        loop {
            self.create().await?;
            match self.wait().await {
                Ok(started) => return Ok(started),
                // An earlier try of the same request is just being undone: its pod is not ours to fail with.
                Err((Reason::PodGone, text)) if self.adopted => {
                    tracing::info!(pod = self.undo.pod.name, %text, "the adopted pod went; starting anew");
                    sleep(Backoff::default().next(None)).await;
                    self.undo.what = Left::Nothing;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Until the pod is there, or it is certain that it won't be.
    async fn create(&mut self) -> Result<(), Failure> {
        let mut backoff = Backoff::default();
        self.telling.tell(StartPhase::Creating, None, "creating the pod");
        loop {
            // From here on the API may have the pod, whatever becomes of the answer.
            let before = std::mem::replace(&mut self.undo.what, Left::Perhaps);
            let wait = match self.lifecycle.cluster.create_pod(&self.request.pod).await {
                Ok(made) => {
                    self.mine(&made, false);
                    let code = codes::KUBERNETES_POD_CREATE;
                    tracing::info!(target: "podbay::activity", code, pod = self.undo.pod.name, "pod created");
                    return Ok(());
                }
                Err(error) if self.complies(&error) => {
                    self.undo.what = before;
                    continue;
                }
                Err(error) => match failure::of_create(&error) {
                    CreateFailure::Exists => {
                        if self.adopt(before).await? {
                            return Ok(());
                        }
                        backoff.next(None)
                    }
                    CreateFailure::Certain(reason, message) => {
                        self.undo.what = before;
                        let code = codes::KUBERNETES_POD_CREATE_FAILED;
                        tracing::error!(code, pod = self.undo.pod.name, %error, "pod refused");
                        return Err((reason, message + pod_security::hint(&self.request.pod, &error)));
                    }
                    CreateFailure::MayHeal { reason, message, retry_after, uncertain } => {
                        if !uncertain {
                            self.undo.what = before;
                        }
                        let code = codes::KUBERNETES_POD_CREATE_FAILED;
                        tracing::debug!(code, pod = self.undo.pod.name, %error, "pod not created yet");
                        self.telling.tell(StartPhase::Creating, Some(reason), &message);
                        backoff.next(retry_after)
                    }
                },
            };
            self.pause(wait).await;
        }
    }

    /// Whether the pod, which was refused, is now one that its namespace may take.
    pub(super) fn complies(&mut self, error: &ClusterError) -> bool {
        let complies = pod_security::comply(&mut self.request.pod, error);
        if complies {
            let namespace = self.undo.pod.namespace.as_str();
            tracing::info!(
                namespace,
                "Pod Security asks for more than the pod has; it is made with it (kubernetes.pod.securityProfile: \
                 restricted does so at once)"
            );
        }
        complies
    }

    /// A wait in which the user is reminded of what stands in the way.
    pub(super) async fn pause(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        while Instant::now() < until {
            tokio::time::sleep_until(until.min(self.telling.next_reminder())).await;
            self.telling.remind();
        }
    }

    /// Takes the pod of an earlier try over, if it is one. `false`: it is on its way out, or gone already; try again.
    async fn adopt(&mut self, before: Left) -> Result<bool, Failure> {
        self.undo.what = before;
        let bare = PodRef { uid: None, ..self.undo.pod.clone() };
        let found = match self.lifecycle.cluster.get_pod(&bare).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(pod = bare.name, %error, "the pod in the way can't be read yet");
                return Ok(false);
            }
        };
        let (theirs, ours) = (Marks::read(&found.metadata), Marks::read(&self.request.pod.metadata));
        let same = match (&theirs, &ours) {
            (Some(a), Some(b)) => {
                (a.connection, a.owner, &a.caller, &a.user, a.session)
                    == (b.connection, b.owner, &b.caller, &b.user, b.session)
            }
            _ => false,
        };
        if !same {
            self.undo.what = Left::Nothing;
            tracing::warn!(pod = bare.name, "a pod of this name belongs to somebody else");
            return Err((
                Reason::CallerNotAllowed,
                "this connection id belongs to somebody else; take a new one".into(),
            ));
        }
        if found.metadata.deletion_timestamp.is_some() {
            self.telling.tell(StartPhase::Creating, None, "waiting for the pod of an earlier try to end");
            return Ok(false);
        }
        self.mine(&found, true);
        Ok(true)
    }

    fn mine(&mut self, pod: &Pod, adopted: bool) {
        self.undo.pod.uid.clone_from(&pod.metadata.uid);
        self.undo.what = Left::Pod;
        self.adopted = adopted;
    }

    /// Until the pod runs, or it is certain that it won't.
    pub(super) async fn wait(&mut self) -> Result<StartedPod, Failure> {
        let (sender, events) = watch::channel(Vec::new());
        let pod = self.undo.pod.clone();
        let lifecycle = self.lifecycle;
        tokio::select! {
            result = self.follow(events) => result,
            never = read_events(lifecycle, &pod, sender) => match never {},
        }
    }

    async fn follow(&mut self, mut events: watch::Receiver<Vec<Event>>) -> Result<StartedPod, Failure> {
        let mut observer = match self.request.kind {
            Kind::Connection => Observer::new(&self.request.console),
            Kind::Program => Observer::for_program(&self.request.console),
        };
        let pod = self.undo.pod.clone();
        let mut backoff = Backoff::default();
        loop {
            let mut changes = match self.lifecycle.cluster.watch_pod(&pod).await {
                Ok(changes) => changes,
                Err(ClusterError::NotFound { .. }) => return Err(gone()),
                Err(error) => {
                    self.telling.tell(
                        StartPhase::Starting,
                        Some(Reason::KubernetesUnavailable),
                        &format!("the Kubernetes API is not available: {}", failure::short(&error.to_string())),
                    );
                    self.pause(backoff.next(None)).await;
                    continue;
                }
            };
            let mut seen: Option<Box<Pod>> = None;
            loop {
                let reminder = self.telling.next_reminder();
                tokio::select! {
                    change = changes.recv() => match change {
                        Some(PodChange::Now(pod)) => seen = Some(pod),
                        Some(PodChange::Gone(_)) => return Err(gone()),
                        Some(PodChange::Interrupted(why)) => {
                            let text = format!("the Kubernetes API is not available: {}", failure::short(&why));
                            self.telling.tell(StartPhase::Starting, Some(Reason::KubernetesUnavailable), &text);
                            continue;
                        }
                        None => break,
                    },
                    Ok(()) = events.changed() => {}
                    () = tokio::time::sleep_until(reminder) => {
                        self.telling.remind();
                        continue;
                    }
                }
                let Some(pod) = &seen else { continue };
                if let Some(started) = self.judge(&mut observer, pod, &events.borrow_and_update())? {
                    return Ok(started);
                }
            }
            self.pause(backoff.next(None)).await;
        }
    }

    fn judge(&mut self, observer: &mut Observer, pod: &Pod, events: &[Event]) -> Result<Option<StartedPod>, Failure> {
        let started = |ended| StartedPod {
            pod: self.undo.pod.clone(),
            image_id: image_id(pod, &self.request.console),
            adopted: self.adopted,
            ended,
        };
        match observer.see(pod, events) {
            Verdict::Ready => Ok(Some(started(false))),
            Verdict::Ended => Ok(Some(started(true))),
            Verdict::Waiting(progress) => {
                self.telling.tell(progress.phase, None, &progress.message);
                Ok(None)
            }
            Verdict::MayHeal(reason, Progress { phase, message }) => {
                self.telling.tell(phase, Some(reason), &message);
                Ok(None)
            }
            Verdict::Certain(reason, message) => {
                let code = codes::KUBERNETES_POD_WAIT_FAILED;
                tracing::error!(code, pod = self.undo.pod.name, why = message, status = ?pod.status, "pod failed to start");
                Err((reason, message))
            }
        }
    }
}

fn gone() -> Failure {
    (Reason::PodGone, "the pod was deleted before it was ready".into())
}

pub(crate) fn image_id(pod: &Pod, console: &str) -> String {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.filter(|status| status.name == console).map(|status| status.image_id.clone()).next().unwrap_or_default()
}

/// Reads the pod's events now and then; errors leave the last ones standing.
async fn read_events(
    lifecycle: &Lifecycle,
    pod: &PodRef,
    sender: watch::Sender<Vec<Event>>,
) -> std::convert::Infallible {
    sleep(EVENTS_AFTER).await;
    loop {
        if let Ok(Ok(events)) = timeout(lifecycle.timeouts.http, lifecycle.cluster.pod_events(pod)).await {
            sender.send_replace(events);
        }
        sleep(EVENTS_EVERY).await;
    }
}

/// What the user was told.
pub(super) struct Telling<'a> {
    progress: &'a mpsc::Sender<v1::Progress>,
    since: Instant,
    last: Option<(StartPhase, Option<Reason>, String)>,
    told: Option<Instant>,
}

impl Telling<'_> {
    /// Tells it if it is new.
    pub(super) fn tell(&mut self, phase: StartPhase, heals: Option<Reason>, message: &str) {
        let new = (phase, heals, message.to_owned());
        if self.last.as_ref() != Some(&new) {
            self.last = Some(new);
            self.send();
        }
    }

    /// When to say it again: every 5 s while a cause that may heal stands.
    fn next_reminder(&self) -> Instant {
        match (&self.last, self.told) {
            (Some((_, Some(_), _)), Some(told)) => told + REMIND,
            _ => Instant::now() + Duration::from_hours(1),
        }
    }

    fn remind(&mut self) {
        if self.next_reminder() <= Instant::now() {
            self.send();
        }
    }

    fn send(&mut self) {
        self.told = Some(Instant::now());
        if let Some((phase, _, message)) = &self.last {
            let elapsed = crate::config::duration_proto(self.since.elapsed());
            let progress = v1::Progress { phase: (*phase).into(), message: message.clone(), elapsed: Some(elapsed) };
            // A full channel drops news only; the next one says more.
            let _ = self.progress.try_send(progress);
        }
    }

    /// The deadline is over: the cause that stood in the way is the reason.
    pub(super) fn out_of_time(&self) -> Refusal {
        let waited = format!("(waited {} s)", self.since.elapsed().as_secs());
        match &self.last {
            Some((_, Some(reason), message)) => Refusal::new(*reason, format!("{message} {waited}")),
            Some((_, None, message)) => {
                Refusal::new(Reason::PodStartTimeout, format!("the pod did not start in time: {message} {waited}"))
            }
            None => Refusal::new(Reason::PodStartTimeout, format!("the pod did not start in time {waited}")),
        }
    }
}
