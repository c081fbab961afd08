//! What pods go through, and the statuses to make such scripts of.

use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Event,
        Pod, PodCondition, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::{fmt, sync::Arc, time::Duration};

/// One step of a pod's life, after the step before.
#[derive(Clone)]
pub struct Step {
    /// How long after the last step.
    pub after: Duration,
    /// What happens.
    pub what: What,
}

/// What happens to a pod.
#[derive(Clone)]
pub enum What {
    /// It changes.
    Change(Arc<dyn Fn(&mut Pod) + Send + Sync>),
    /// An event about it is recorded.
    Event(Box<Event>),
    /// It is removed.
    Gone,
}

impl fmt::Debug for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Change(_) => "Change",
            Self::Event(_) => "Event",
            Self::Gone => "Gone",
        })
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("after", &self.after).field("what", &self.what).finish()
    }
}

/// The pod changes.
pub fn change(after: Duration, change: impl Fn(&mut Pod) + Send + Sync + 'static) -> Step {
    Step { after, what: What::Change(Arc::new(change)) }
}

/// The pod gets this status.
pub fn becomes(after: Duration, status: PodStatus) -> Step {
    change(after, move |pod| pod.status = Some(status.clone()))
}

/// All containers of this pod run and are ready.
pub fn ready(after: Duration, pod: &Pod) -> Step {
    becomes(after, running(pod))
}

/// An event about the pod.
pub fn event(after: Duration, type_: &str, reason: &str, message: &str) -> Step {
    let event = Event {
        type_: Some(type_.into()),
        reason: Some(reason.into()),
        message: Some(message.into()),
        ..Event::default()
    };
    Step { after, what: What::Event(Box::new(event)) }
}

/// The pod is gone.
pub fn gone(after: Duration) -> Step {
    Step { after, what: What::Gone }
}

/// A status of just this phase.
pub fn status(phase: &str) -> PodStatus {
    PodStatus { phase: Some(phase.into()), ..PodStatus::default() }
}

/// Running and ready, all containers of the pod.
pub fn running(pod: &Pod) -> PodStatus {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default().iter();
    PodStatus {
        conditions: Some(vec![condition("PodScheduled", true, "", ""), condition("Ready", true, "", "")]),
        container_statuses: Some(
            containers.map(|c| ContainerStatus { ready: true, ..container(&c.name, state_running()) }).collect(),
        ),
        ..status("Running")
    }
}

/// No node takes the pod.
pub fn unschedulable(message: &str) -> PodStatus {
    PodStatus {
        conditions: Some(vec![condition("PodScheduled", false, "Unschedulable", message)]),
        ..status("Pending")
    }
}

/// One container waits.
pub fn waiting(container_name: &str, reason: &str, message: &str) -> PodStatus {
    let state = ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message: Some(message.into()) }),
        ..ContainerState::default()
    };
    PodStatus {
        conditions: Some(vec![condition("PodScheduled", true, "", "")]),
        container_statuses: Some(vec![container(container_name, state)]),
        ..status("Pending")
    }
}

/// One container has ended, and the pod with it.
pub fn ended(container_name: &str, reason: &str, code: i32) -> PodStatus {
    let state = ContainerState { terminated: Some(terminated(reason, code)), ..ContainerState::default() };
    PodStatus {
        container_statuses: Some(vec![container(container_name, state)]),
        ..status(if code == 0 { "Succeeded" } else { "Failed" })
    }
}

/// How a container ended.
pub fn terminated(reason: &str, exit_code: i32) -> ContainerStateTerminated {
    ContainerStateTerminated { reason: Some(reason.into()), exit_code, ..ContainerStateTerminated::default() }
}

/// A container's status.
pub fn container(name: &str, state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        name: name.into(),
        image_id: format!("sha256:{name}"),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

/// Running.
pub fn state_running() -> ContainerState {
    ContainerState { running: Some(ContainerStateRunning::default()), ..ContainerState::default() }
}

/// A condition.
pub fn condition(type_: &str, status: bool, reason: &str, message: &str) -> PodCondition {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    PodCondition {
        type_: type_.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: text(reason),
        message: text(message),
        ..PodCondition::default()
    }
}

/// A pod to play with: one container `shell`.
pub fn pod(namespace: &str, name: &str) -> Pod {
    use k8s_openapi::api::core::v1::{Container, PodSpec};
    Pod {
        metadata: ObjectMeta { namespace: Some(namespace.into()), name: Some(name.into()), ..ObjectMeta::default() },
        spec: Some(PodSpec {
            containers: vec![Container { name: "shell".into(), image: Some("image".into()), ..Container::default() }],
            ..PodSpec::default()
        }),
        status: None,
    }
}
