//! The scheduler and the kubelet: one task per pod that brings it up, restarts it, stops it and writes its status.

pub(crate) mod container;
pub(crate) mod env;
mod events;
pub(crate) mod hub;
pub(crate) mod log;
mod pod;
mod pull;
mod termination;
pub(crate) mod view;

use crate::{
    faults::FaultTable,
    helper::tree,
    image::Image,
    kinds::Kind,
    store::{Key, Store, text},
    supervisor::Supervisor,
};
use container::Live;
use events::Recorder;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use view::{Course, State, View};

/// The one node's name, and the address that it and all pods have.
pub(crate) const NODE: &str = "minicluster";
pub(crate) const ADDRESS: &str = "127.0.0.1";

/// What the kubelet is told at its start.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The program that can be a supervisor.
    pub helper: PathBuf,
    /// Where pods have their directories.
    pub pods: PathBuf,
    pub images: BTreeMap<String, Image>,
    /// First pause between pulls of an image, and between restarts of a container; doubles up to `max_backoff`.
    pub backoff: Duration,
    pub max_backoff: Duration,
}

#[derive(Debug)]
pub(crate) struct Kubelet {
    pub store: Arc<Store>,
    pub faults: Arc<FaultTable>,
    settings: Settings,
    recorder: Recorder,
    /// By uid.
    pods: Mutex<HashMap<String, Arc<PodHandle>>>,
    /// Also those whose pod is gone already and which still have something to kill.
    supervisors: Mutex<Vec<Known>>,
    tasks: TaskTracker,
}

/// A supervisor that was started.
#[derive(Debug)]
struct Known {
    pod: String,
    pid: u32,
    gone: CancellationToken,
}

/// A pod that the kubelet runs.
#[derive(Debug)]
pub(crate) struct PodHandle {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    stop: watch::Sender<Stop>,
    state: Mutex<PodState>,
    /// The pod is gone; what still reads its output stops.
    removed: CancellationToken,
}

#[derive(Debug, Default)]
struct PodState {
    course: Course,
    views: Vec<View>,
}

/// Whether and how a pod is to stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stop {
    /// TERM was due when this was set; at this time everything is killed.
    pub kill_at: Option<Instant>,
    /// The object goes too.
    pub deleted: bool,
}

/// A process of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// `NAMESPACE/NAME`.
    pub pod: String,
    /// Whether it is the supervisor, and not a program of the pod.
    pub supervisor: bool,
}

/// A container's log, and whether there is such a container.
pub(crate) enum FoundLog {
    Log(Arc<log::Log>),
    NotStarted { reason: String },
    NoPrevious,
    NoContainer,
}

impl PodHandle {
    fn lock(&self) -> MutexGuard<'_, PodState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A running container.
    pub fn live(&self, container: &str) -> Option<Arc<Live>> {
        self.lock().views.iter().find(|view| view.name == container).and_then(|view| match &view.state {
            State::Running { live, .. } => Some(live.clone()),
            State::Waiting { .. } | State::Terminated(_) => None,
        })
    }

    pub fn log(&self, container: &str, previous: bool) -> FoundLog {
        let state = self.lock();
        let Some(view) = state.views.iter().find(|view| view.name == container) else { return FoundLog::NoContainer };
        match (previous, &view.log, &view.previous_log, &view.state) {
            (true, _, Some(log), _) | (false, Some(log), _, _) => FoundLog::Log(log.clone()),
            (true, _, None, _) => FoundLog::NoPrevious,
            (false, None, _, State::Waiting { reason, .. }) => FoundLog::NotStarted { reason: reason.clone() },
            (false, None, _, State::Running { .. } | State::Terminated(_)) => {
                FoundLog::NotStarted { reason: "ContainerCreating".into() }
            }
        }
    }

    fn change(&self, container: &str, change: impl FnOnce(&mut View)) {
        if let Some(view) = self.lock().views.iter_mut().find(|view| view.name == container) {
            change(view);
        }
    }
}

impl Kubelet {
    pub fn new(store: Arc<Store>, faults: Arc<FaultTable>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            recorder: Recorder::new(store.clone()),
            store,
            faults,
            settings,
            pods: Mutex::default(),
            supervisors: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<PodHandle>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a pod that was created in the store; not any more once everything ends.
    pub fn run(self: &Arc<Self>, pod: Pod) {
        let field = |field: &Option<String>| field.clone().unwrap_or_default();
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let handle = Arc::new(PodHandle {
            namespace: field(&pod.metadata.namespace),
            name: field(&pod.metadata.name),
            uid: field(&pod.metadata.uid),
            stop: watch::Sender::new(Stop::default()),
            state: Mutex::new(PodState {
                course: Course::default(),
                views: containers.iter().map(View::new).collect(),
            }),
            removed: CancellationToken::new(),
        });
        let mut pods = self.lock();
        // Under the lock: whoever closes looks at all pods after it.
        if !self.tasks.is_closed() {
            pods.insert(handle.uid.clone(), handle.clone());
            self.tasks.spawn(pod::run(self.clone(), handle, pod));
        }
    }

    pub fn pod(&self, uid: &str) -> Option<Arc<PodHandle>> {
        self.lock().get(uid).cloned()
    }

    /// Stops a pod and removes it. A second call can only make it quicker. False if it is not run here (any more).
    pub fn delete(&self, uid: &str, grace: Duration) -> bool {
        let Some(handle) = self.pod(uid) else { return false };
        let kill_at = Instant::now() + grace;
        handle.stop.send_modify(|stop| {
            stop.deleted = true;
            stop.kill_at = Some(stop.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
        });
        true
    }

    /// Kills a container's programs, for want of memory so to say. False if it does not run.
    pub async fn oom_kill(&self, namespace: &str, pod: &str, container: &str) -> bool {
        let key = Key::new(Kind::Pod, namespace, pod);
        let live = self.store.get(&key).ok().and_then(|pod| self.pod(text(&pod, "/metadata/uid"))?.live(container));
        match live {
            Some(live) => {
                live.oom_kill().await;
                true
            }
            None => false,
        }
    }

    /// Ends a pod as a node does that is short of something, with its grace period.
    pub fn evict(&self, namespace: &str, pod: &str, message: &str) -> bool {
        let key = Key::new(Kind::Pod, namespace, pod);
        let Ok(object) = self.store.get(&key) else { return false };
        let Some(handle) = self.pod(text(&object, "/metadata/uid")) else { return false };
        handle.lock().course.evicted = Some(message.to_owned());
        let seconds = object.pointer("/spec/terminationGracePeriodSeconds").and_then(serde_json::Value::as_u64);
        let kill_at = tokio::time::Instant::now() + Duration::from_secs(seconds.unwrap_or(30));
        handle.stop.send_modify(|stop| {
            stop.kill_at.get_or_insert(kill_at);
        });
        true
    }

    fn know(&self, handle: &PodHandle, supervisor: &Supervisor) {
        let mut supervisors = self.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
        supervisors.retain(|known| !known.gone.is_cancelled());
        let pod = format!("{}/{}", handle.namespace, handle.name);
        supervisors.push(Known { pod, pid: supervisor.pid(), gone: supervisor.gone_token() });
    }

    /// The processes that pods have, supervisors included.
    pub fn processes(&self) -> Vec<Process> {
        let supervisors = self.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut processes = Vec::new();
        for Known { pod, pid, .. } in supervisors.iter().filter(|known| !known.gone.is_cancelled()) {
            processes.push(Process { pid: *pid, pod: pod.clone(), supervisor: true });
            let below = tree::below(*pid).into_iter();
            processes.extend(below.map(|pid| Process { pid, pod: pod.clone(), supervisor: false }));
        }
        processes
    }

    /// Kills all pods, without waiting for it, and takes no more.
    pub fn delete_all_now(&self) {
        self.delete_all(Duration::ZERO);
    }

    fn delete_all(&self, grace: Duration) {
        let uids: Vec<String> = {
            let pods = self.lock();
            self.tasks.close();
            pods.keys().cloned().collect()
        };
        for uid in uids {
            self.delete(&uid, grace);
        }
    }

    /// Removes all pods and waits until their processes are gone.
    pub async fn shut_down(&self, grace: Duration) {
        self.delete_all(grace);
        self.tasks.wait().await;
    }

    /// Writes the pod's status as it is now, unless the object is gone.
    fn publish(&self, handle: &PodHandle, pod: &Pod) {
        let key = Key::new(Kind::Pod, &handle.namespace, &handle.name);
        let written = self.store.update(&key, |object| {
            let mut object = object.clone();
            if text(&object, "/metadata/uid") != handle.uid {
                return Ok(object);
            }
            // Read within the store's lock, so that a later state is never overwritten by an earlier one.
            let state = handle.lock();
            let status = view::pod_status(pod, &state.course, &state.views, object.get("status"));
            if let Value::Object(object) = &mut object {
                object.insert("status".into(), status);
                if state.course.started.is_some()
                    && let Some(Value::Object(spec)) = object.get_mut("spec")
                {
                    spec.insert("nodeName".into(), NODE.into());
                }
            }
            Ok(object)
        });
        if let Err(error) = written {
            tracing::debug!(pod = %handle.name, %error, "no status written");
        }
    }
}

/// Now, as the API writes times.
pub(crate) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A random (version 4) UUID.
pub(crate) fn new_uid() -> String {
    let random: u128 = rand::rng().random();
    let uuid = random & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{uuid:032x}");
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn uids_are_uuids() {
        let uid = super::new_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes().get(14), Some(&b'4'));
        assert!(matches!(uid.as_bytes().get(19), Some(b'8'..=b'9' | b'a'..=b'b')));
        assert_ne!(uid, super::new_uid());
    }
}
