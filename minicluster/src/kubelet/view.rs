//! What is known of a pod's containers, and the pod's status made of it.

use super::{ADDRESS, container::Live, log::Log};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};
use std::sync::Arc;

/// A container's state.
#[derive(Debug, Clone)]
pub(crate) enum State {
    Waiting { reason: String, message: Option<String> },
    Running { since: String, live: Arc<Live> },
    Terminated(Terminated),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terminated {
    pub code: i32,
    pub reason: &'static str,
    pub message: Option<String>,
    pub started: String,
    pub finished: String,
    pub id: String,
}

/// One container.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub name: String,
    pub image: String,
    pub state: State,
    pub last: Option<Terminated>,
    pub restarts: u32,
    /// Of the instance that runs or ran last, and of the one before it.
    pub log: Option<Arc<Log>>,
    pub previous_log: Option<Arc<Log>>,
}

impl View {
    pub fn new(container: &Container) -> Self {
        Self {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: State::Waiting { reason: "ContainerCreating".into(), message: None },
            last: None,
            restarts: 0,
            log: None,
            previous_log: None,
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    fn status(&self) -> Value {
        let (id, state) = match &self.state {
            State::Waiting { reason, message } => ("", waiting(reason, message.as_deref())),
            State::Running { since, live } => (live.id.as_str(), json!({ "running": { "startedAt": since } })),
            State::Terminated(ended) => (ended.id.as_str(), ended.state()),
        };
        json!({
            "name": self.name, "image": self.image, "imageID": format!("minicluster://{}", self.image),
            "containerID": id, "restartCount": self.restarts,
            "ready": self.is_running(), "started": self.is_running(),
            "state": state,
            "lastState": self.last.as_ref().map_or_else(|| json!({}), Terminated::state),
        })
    }
}

fn waiting(reason: &str, message: Option<&str>) -> Value {
    match message {
        None => json!({ "waiting": { "reason": reason } }),
        Some(message) => json!({ "waiting": { "reason": reason, "message": message } }),
    }
}

impl Terminated {
    fn state(&self) -> Value {
        let mut ended = json!({
            "exitCode": self.code, "reason": self.reason, "startedAt": self.started, "finishedAt": self.finished,
            "containerID": self.id,
        });
        if let (Value::Object(ended), Some(message)) = (&mut ended, &self.message) {
            ended.insert("message".into(), json!(message));
        }
        json!({ "terminated": ended })
    }
}

/// Where the pod is in its life, as far as its containers don't tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Course {
    /// Why no node was found; `None` once one was.
    pub unschedulable: Option<String>,
    /// When the kubelet took it.
    pub started: Option<String>,
    pub deadline_exceeded: bool,
    /// The kubelet's words for it.
    pub evicted: Option<String>,
    /// Nothing will be started again.
    pub over: bool,
}

/// The status to write, given the one that is there.
pub(crate) fn pod_status(pod: &Pod, course: &Course, views: &[View], before: Option<&Value>) -> Value {
    let phase = phase(pod, course, views);
    let ended = matches!(phase, "Succeeded" | "Failed");
    let mut conditions = Conditions { before, list: Vec::new() };
    match (&course.unschedulable, &course.started) {
        (Some(why), _) => conditions.push("PodScheduled", false, Some(("Unschedulable", why))),
        (None, None) => {}
        (None, Some(_)) => {
            let unready: Vec<_> =
                views.iter().filter(|view| !view.is_running()).map(|view| view.name.as_str()).collect();
            let ready = unready.is_empty() && !views.is_empty();
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            let why = match (ready, ended) {
                (true, _) => None,
                (false, true) if phase == "Succeeded" => Some(("PodCompleted", "")),
                (false, true) => Some(("PodFailed", "")),
                (false, false) => Some(("ContainersNotReady", message.as_str())),
            };
            let sandbox = views.iter().any(View::is_running);
            conditions.push("PodReadyToStartContainers", sandbox, None);
            conditions.push("Initialized", true, None);
            conditions.push("Ready", ready, why);
            conditions.push("ContainersReady", ready, why);
            conditions.push("PodScheduled", true, None);
        }
    }
    let mut status = json!({ "phase": phase, "qosClass": "BestEffort", "conditions": conditions.list });
    if let (Value::Object(status), Some(started)) = (&mut status, &course.started) {
        status.insert("startTime".into(), json!(started));
        status.insert("hostIP".into(), json!(ADDRESS));
        status.insert("hostIPs".into(), json!([{ "ip": ADDRESS }]));
        status.insert("podIP".into(), json!(ADDRESS));
        status.insert("podIPs".into(), json!([{ "ip": ADDRESS }]));
        // Like a kubelet, sorted by name: clients must not go by the position.
        let mut sorted: Vec<_> = views.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        status.insert("containerStatuses".into(), sorted.into_iter().map(View::status).collect());
        if course.deadline_exceeded {
            status.insert("reason".into(), json!("DeadlineExceeded"));
            let message = "Pod was active on the node longer than the specified deadline";
            status.insert("message".into(), json!(message));
        }
        // Like a kubelet, not before the containers have ended.
        if let Some(message) = course.evicted.as_ref().filter(|_| course.over) {
            status.insert("reason".into(), json!("Evicted"));
            status.insert("message".into(), json!(message));
        }
    }
    status
}

fn phase(pod: &Pod, course: &Course, views: &[View]) -> &'static str {
    match (course.over, course.deadline_exceeded, &course.evicted) {
        (true, true, _) | (true, _, Some(_)) => return "Failed",
        // The phase and its reason come together.
        (false, _, Some(_)) => return "Running",
        (true, false, None) | (false, _, None) => {}
    }
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let mut succeeded = 0;
    let mut failed = 0;
    for view in views {
        match &view.state {
            State::Waiting { .. } if view.last.is_none() => return "Pending",
            State::Running { .. } | State::Waiting { .. } => {}
            State::Terminated(ended) if ended.code == 0 => succeeded += 1,
            State::Terminated(_) => failed += 1,
        }
    }
    let all_ended = succeeded + failed == views.len() && !views.is_empty();
    let restarts = !course.over && (policy == "Always" || policy == "OnFailure" && failed > 0);
    match (views.is_empty(), all_ended && !restarts) {
        (true, _) => "Pending",
        (false, false) => "Running",
        (false, true) if failed > 0 => "Failed",
        (false, true) => "Succeeded",
    }
}

struct Conditions<'a> {
    before: Option<&'a Value>,
    list: Vec<Value>,
}

impl Conditions<'_> {
    /// Keeps the time of the last change of `status`.
    fn push(&mut self, kind: &str, status: bool, why: Option<(&str, &str)>) {
        let status = if status { "True" } else { "False" };
        let before = self.before.and_then(|before| before.get("conditions")).and_then(Value::as_array);
        let since = before
            .into_iter()
            .flatten()
            .find(|known| known.get("type") == Some(&json!(kind)) && known.get("status") == Some(&json!(status)))
            .and_then(|known| known.get("lastTransitionTime").cloned())
            .unwrap_or_else(|| super::now().into());
        let mut condition = json!({ "type": kind, "status": status, "lastTransitionTime": since });
        if let (Value::Object(condition), Some((reason, message))) = (&mut condition, why) {
            condition.insert("reason".into(), json!(reason));
            if !message.is_empty() {
                condition.insert("message".into(), json!(message));
            }
        }
        self.list.push(condition);
    }
}
