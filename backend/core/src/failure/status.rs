//! What a starting pod's status and events mean.

use super::{
    Progress, Verdict,
    image::{self, Pulls},
    short,
};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Event, Pod, PodStatus};
use podbay::v1::{Reason, StartPhase};
use std::collections::BTreeMap;

/// Looks at one starting pod again and again; remembers what one look can't show: how many pulls have failed.
#[derive(Debug)]
pub struct Observer {
    console: String,
    /// A pod that runs one program: it may end, and is not asked to be Ready.
    program: bool,
    pulls: BTreeMap<String, Pulls>,
}

impl Observer {
    /// For a pod that stays (mode `connection`): it must run *and* be Ready; one that ends has failed.
    pub fn new(console: impl Into<String>) -> Self {
        Self { console: console.into(), program: false, pulls: BTreeMap::new() }
    }

    /// For a pod that runs one program (mode `session`): running is enough, an end of its own is [`Verdict::Ended`].
    pub fn for_program(console: impl Into<String>) -> Self {
        Self { program: true, ..Self::new(console) }
    }

    /// Judges what is seen now. `events` may be empty or old; they help to count pulls and to find words.
    pub fn see(&mut self, pod: &Pod, events: &[Event]) -> Verdict {
        if pod.metadata.deletion_timestamp.is_some() {
            return Verdict::Certain(Reason::PodGone, "the pod is being deleted by somebody else".into());
        }
        let empty = PodStatus::default();
        let status = pod.status.as_ref().unwrap_or(&empty);
        self.count_pulls(events);
        let phase = status.phase.as_deref().unwrap_or("Pending");
        if phase == "Failed" || phase == "Succeeded" {
            return self.ended(status, phase);
        }
        let inits = status.init_container_statuses.iter().flatten();
        let all = status.container_statuses.iter().flatten();
        let mut heals = None;
        for container in inits.chain(all.clone()) {
            match self.container(pod, container) {
                Some(certain @ Verdict::Certain(..)) => return certain,
                Some(other) => heals = heals.or(Some(other)),
                None => {}
            }
        }
        let running =
            all.clone().any(|c| c.name == self.console && c.state.as_ref().is_some_and(|s| s.running.is_some()));
        if running && (self.program || is(status, "Ready") == Some(true)) {
            return Verdict::Ready;
        }
        heals.unwrap_or_else(|| waiting(status, events, running))
    }

    /// A pod that is over.
    fn ended(&self, status: &PodStatus, phase: &str) -> Verdict {
        let console = status.container_statuses.iter().flatten().find(|c| c.name == self.console);
        let terminated = console.and_then(|c| c.state.as_ref()?.terminated.as_ref());
        let message = short(status.message.as_deref().unwrap_or_default());
        match status.reason.as_deref() {
            Some("Evicted") => return Verdict::Certain(Reason::PodGone, format!("the pod was evicted: {message}")),
            Some("DeadlineExceeded") => {
                return Verdict::Certain(Reason::PodGone, "the pod's active deadline is over".into());
            }
            // The kubelet refuses what the scheduler gave it.
            Some(
                reason @ ("NodeAffinity" | "UnexpectedAdmissionError" | "Preempting" | "NodeShutdown" | "Terminated"),
            ) => {
                return Verdict::Certain(
                    Reason::Unschedulable,
                    format!("the node refuses the pod: {reason} {message}"),
                );
            }
            Some(reason) if reason.starts_with("OutOf") => {
                return Verdict::Certain(
                    Reason::Unschedulable,
                    format!("the node refuses the pod: {reason} {message}"),
                );
            }
            _ => {}
        }
        match terminated {
            Some(end) if self.program && end.reason.as_deref() != Some("StartError") => Verdict::Ended,
            Some(end) => Verdict::Certain(Reason::ContainerFailed, over(&self.console, end)),
            None => {
                let inits = status.init_container_statuses.iter().flatten();
                let failed = inits
                    .filter_map(|c| Some((c, c.state.as_ref()?.terminated.as_ref()?)))
                    .find(|(_, end)| end.exit_code != 0);
                let text = match failed {
                    Some((container, end)) => over(&container.name, end),
                    None if message.is_empty() => format!("the pod ended ({phase}) before it was ready"),
                    None => format!("the pod ended ({phase}) before it was ready: {message}"),
                };
                Verdict::Certain(Reason::ContainerFailed, text)
            }
        }
    }

    /// What one container's state says; `None` = nothing against it.
    fn container(&mut self, pod: &Pod, container: &ContainerStatus) -> Option<Verdict> {
        let state = container.state.as_ref()?;
        let is_console = container.name == self.console;
        if let Some(end) = &state.terminated {
            if end.exit_code == 0 && !is_console {
                return None; // an init container that is done, a helper that is
            }
            return Some(crashed(container, end, is_console));
        }
        let waits = state.waiting.as_ref()?;
        let message = waits.message.as_deref().unwrap_or_default();
        let image = image_of(pod, &container.name);
        let reason = waits.reason.as_deref().unwrap_or_default();
        match reason {
            "InvalidImageName" => Some(Verdict::Certain(
                Reason::ImageUnavailable,
                format!("the image name {image:?} is not valid: {}", short(message)),
            )),
            "ErrImageNeverPull" => Some(Verdict::Certain(
                Reason::ImageUnavailable,
                format!("the image {image} is not on the node and may not be pulled (imagePullPolicy: Never)"),
            )),
            "ImagePullBackOff" => {
                self.pulls.entry(container.name.clone()).or_default().back_off(message);
                Some(self.pull(&container.name, image))
            }
            "ErrImagePull" | "RegistryUnavailable" | "ImageInspectError" | "SignatureValidationFailed" => {
                self.pulls.entry(container.name.clone()).or_default().failure(message);
                Some(self.pull(&container.name, image))
            }
            // The kubelet's words; no try will find another user in the image.
            "CreateContainerConfigError" if message.contains("runAsNonRoot") || message.contains("non-root policy") => {
                Some(Verdict::Certain(
                    Reason::ContainerFailed,
                    format!(
                        "the image {image} runs as root, or as a user without a number, and the pod must not: \
                         kubernetes.pod.spec.securityContext.runAsUser says as whom ({})",
                        short(message)
                    ),
                ))
            }
            "CreateContainerConfigError" | "CreateContainerError" => Some(Verdict::MayHeal(
                Reason::ContainerFailed,
                Progress {
                    phase: StartPhase::Starting,
                    message: format!("the container {} can't be made: {}", container.name, short(message)),
                },
            )),
            // The runtime was asked to start it and could not: a command that is not there stays not there.
            "RunContainerError" => Some(Verdict::Certain(
                Reason::ContainerFailed,
                format!("the container {} can't be started: {}", container.name, short(message)),
            )),
            "CrashLoopBackOff" => {
                let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
                let text = last.map_or_else(
                    || format!("the container {} keeps ending: {}", container.name, short(message)),
                    |end| over(&container.name, end),
                );
                Some(if is_console {
                    Verdict::Certain(Reason::ContainerFailed, text)
                } else {
                    Verdict::MayHeal(Reason::ContainerFailed, Progress { phase: StartPhase::Starting, message: text })
                })
            }
            _ => None,
        }
    }

    fn pull(&self, container: &str, image: &str) -> Verdict {
        let pulls = self.pulls.get(container).cloned().unwrap_or_default();
        let words = if pulls.message.is_empty() { String::new() } else { format!(": {}", short(&pulls.message)) };
        let message = format!("the image {image} can't be pulled{words}");
        if pulls.count() >= 2 && image::definite(&pulls.message) {
            Verdict::Certain(Reason::ImageUnavailable, message)
        } else {
            Verdict::MayHeal(Reason::ImageUnavailable, Progress { phase: StartPhase::Pulling, message })
        }
    }

    fn count_pulls(&mut self, events: &[Event]) {
        for event in events {
            let message = event.message.as_deref().unwrap_or_default();
            if event.reason.as_deref() != Some("Failed") || !message.starts_with("Failed to pull image") {
                continue;
            }
            let path = event.involved_object.field_path.as_deref().unwrap_or_default();
            let name = path.split_once('{').map_or(self.console.as_str(), |(_, rest)| rest.trim_end_matches('}'));
            let count = event.count.or(event.series.as_ref().and_then(|series| series.count)).unwrap_or(1);
            self.pulls.entry(name.to_owned()).or_default().events(count.unsigned_abs(), message);
        }
    }
}

/// A container that ended although the pod goes on.
fn crashed(container: &ContainerStatus, end: &ContainerStateTerminated, is_console: bool) -> Verdict {
    let text = over(&container.name, end);
    let never_starts = matches!(end.reason.as_deref(), Some("StartError" | "ContainerCannotRun"));
    if is_console && (never_starts || container.restart_count >= 1) {
        Verdict::Certain(Reason::ContainerFailed, text)
    } else {
        Verdict::MayHeal(Reason::ContainerFailed, Progress { phase: StartPhase::Starting, message: text })
    }
}

/// How a container ended, in a sentence.
fn over(name: &str, end: &ContainerStateTerminated) -> String {
    let words = end.message.as_deref().map(short).filter(|text| !text.is_empty());
    let words = words.map_or_else(String::new, |text| format!(": {text}"));
    match end.reason.as_deref() {
        Some("OOMKilled") => format!("the container {name} was killed: it needs more memory than its limit"),
        Some("StartError" | "ContainerCannotRun") => format!("the container {name} can't be started{words}"),
        _ => format!("the container {name} ended at once with exit code {}{words}", end.exit_code),
    }
}

fn waiting(status: &PodStatus, events: &[Event], running: bool) -> Verdict {
    let progress = |phase, message: &str| Progress { phase, message: message.into() };
    let scheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled");
    match scheduled {
        Some(condition) if condition.status == "False" => {
            let words = short(condition.message.as_deref().unwrap_or("no node can take the pod"));
            let message = format!("waiting for a node: {words}");
            let progress = Progress { phase: StartPhase::Scheduling, message };
            return match condition.reason.as_deref() {
                Some("SchedulingGated") => Verdict::Waiting(progress),
                _ => Verdict::MayHeal(Reason::Unschedulable, progress),
            };
        }
        None if status.container_statuses.iter().flatten().next().is_none() => {
            return Verdict::Waiting(progress(StartPhase::Scheduling, "waiting for a node"));
        }
        _ => {}
    }
    if running {
        return Verdict::Waiting(progress(StartPhase::Starting, "waiting until the pod is ready"));
    }
    let last = events.iter().rev().find_map(|event| match event.reason.as_deref() {
        Some("Pulling") => Some(Some(short(event.message.as_deref().unwrap_or("pulling the image")))),
        Some("Pulled" | "Created" | "Started") => Some(None),
        Some(reason @ ("FailedMount" | "FailedAttachVolume" | "FailedCreatePodSandBox")) => {
            Some(Some(format!("{reason}: {}", short(event.message.as_deref().unwrap_or_default()))))
        }
        _ => None,
    });
    match last.flatten() {
        Some(text) if text.starts_with("Failed") => Verdict::MayHeal(
            Reason::ContainerFailed,
            Progress { phase: StartPhase::Starting, message: format!("the pod can't be set up: {text}") },
        ),
        Some(text) => Verdict::Waiting(progress(StartPhase::Pulling, &text)),
        None => Verdict::Waiting(progress(StartPhase::Starting, "starting the container")),
    }
}

fn is(status: &PodStatus, condition: &str) -> Option<bool> {
    status.conditions.iter().flatten().find(|c| c.type_ == condition).map(|c| c.status == "True")
}

fn image_of<'a>(pod: &'a Pod, container: &str) -> &'a str {
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    all.into_iter().find(|c| c.name == container).and_then(|c| c.image.as_deref()).unwrap_or("?")
}
