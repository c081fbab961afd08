//! Faults on demand: what a test can make the cluster do wrong, and when.
//!
//! [`Fault`]s stay until they are cleared or used up; [`Action`]s happen once, at once. Both can be sent as JSON to
//! `POST /minicluster/faults` of a minicluster that is a process of its own (see [`Command`]).

use crate::status::ApiError;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Names an added fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultId(u64);

/// Which requests or pods a fault is for. What is `None` matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct On {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: Option<String>,
    /// `pods`, `pods/exec`, `pods/attach`, `pods/log`, `leases`, `events`, `namespaces`; `version` and so on for paths
    /// without objects.
    pub resource: Option<String>,
    /// The namespace.
    pub namespace: Option<String>,
    /// The object's name, or how it begins if this ends with `*`.
    pub name: Option<String>,
}

impl On {
    /// Everything.
    pub fn any() -> Self {
        Self::default()
    }

    /// A verb on a resource.
    pub fn request(verb: &str, resource: &str) -> Self {
        Self { verb: Some(verb.into()), resource: Some(resource.into()), ..Self::default() }
    }

    /// A pod by name.
    pub fn pod(name: &str) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    fn is(&self, target: &Target<'_>) -> bool {
        let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        let name = self.name.as_deref().is_none_or(|wanted| match wanted.strip_suffix('*') {
            Some(start) => target.name.starts_with(start),
            None => target.name == wanted,
        });
        let place = name && same(&self.namespace, target.namespace);
        match target.request {
            Some((verb, resource)) => place && same(&self.verb, verb) && same(&self.resource, resource),
            None => place,
        }
    }
}

/// Something that goes wrong until it is cleared. `on` says for which requests or pods; `times` how often (`None`: always).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "fault")]
#[allow(missing_docs, reason = "the fields are explained with their variants")]
pub enum Fault {
    /// The request waits before anything is done.
    Latency { on: On, millis: u64 },
    /// The request is refused. `{name}` in the message becomes the object's name.
    Error {
        on: On,
        code: u16,
        reason: String,
        message: String,
        #[serde(default)]
        retry_after_seconds: Option<u32>,
        /// How often; `None` = always.
        #[serde(default)]
        times: Option<u32>,
    },
    /// The connection is cut and nothing done.
    Cut {
        on: On,
        #[serde(default)]
        times: Option<u32>,
    },
    /// The request is done, then the connection is cut in place of an answer.
    LoseAnswer {
        on: On,
        #[serde(default)]
        times: Option<u32>,
    },
    /// The pod is scheduled and its containers stay in ContainerCreating.
    NeverStarts { on: On },
    /// The scheduler finds no node.
    Unschedulable { on: On, message: String },
    /// The image can't be pulled.
    Pull { image: String, failure: Pull },
    /// A deleted pod's processes end, and the object stays this much longer.
    SlowDelete { on: On, millis: u64 },
    /// Turns one of the real defects on or off.
    Real { what: Real, on: bool },
}

/// Why an image can't be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Pull {
    /// The registry doesn't have it.
    NotFound,
    /// The registry wants credentials.
    Unauthorized,
    /// The registry is not reachable.
    Unreachable,
}

/// Defects of real clusters, to be had or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Real {
    /// As soon as either output of an exec without terminal is closed, so is its stdin (containerd's CRI exec; measured).
    /// On by default.
    CriStdinCut,
    /// When the client ends stdin of an exec with a terminal, its output is cut, while the program runs on (containerd 1.6's
    /// source; not measured). Off by default: then ending stdin of a terminal does nothing.
    CriTtyEofCut,
}

impl Fault {
    /// A refusal by quota: 403.
    pub fn quota(on: On) -> Self {
        let message = "pods \"{name}\" is forbidden: exceeded quota: minicluster, requested: pods=1, used: pods=1, limited: pods=1";
        Self::error(on, 403, "Forbidden", message)
    }

    /// A refusal by an admission webhook: 403.
    pub fn admission(on: On, why: &str) -> Self {
        Self::error(
            on,
            403,
            "Forbidden",
            &format!("admission webhook \"minicluster.example.com\" denied the request: {why}"),
        )
    }

    /// An error, each time.
    pub fn error(on: On, code: u16, reason: &str, message: &str) -> Self {
        let (reason, message) = (reason.into(), message.into());
        Self::Error { on, code, reason, message, retry_after_seconds: None, times: None }
    }

    /// No node takes the pod.
    pub fn unschedulable(on: On) -> Self {
        let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
        Self::Unschedulable { on, message: message.into() }
    }
}

/// Something that happens once, at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "action")]
#[allow(missing_docs, reason = "the fields are explained with their variants")]
pub enum Action {
    /// All watches end, as they do when a server shuts down.
    DropWatches,
    /// All resource versions so far are expired (410), also for the watches that run.
    ExpireVersions,
    /// All exec and attach streams break.
    BreakStreams { how: Break },
    /// All connections are cut.
    CutConnections,
    /// All connections are cut, and new ones are closed at once, for that long.
    ApiDown { millis: u64 },
    /// A container's programs are killed and it is reported as OOMKilled.
    OomKill { namespace: String, pod: String, container: String },
    /// The kubelet ends a pod with its grace period, and it is reported as Evicted with this message.
    Evict { namespace: String, pod: String, message: String },
}

/// How exec and attach streams break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Break {
    /// The socket is cut: the API server died.
    Cut,
    /// The streams end and the WebSocket is closed in order, but no Status came: the kubelet or the runtime died.
    NoStatus,
    /// The same, with a Status "Success" although the program runs on: what the API server's v5 stream translator makes of a
    /// kubelet's death, by its source (an empty error stream is success to it).
    FalseSuccess,
}

/// The body of `POST /minicluster/faults`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// Answered with its id.
    Add(Fault),
    /// Answered with whether it was there.
    Clear(FaultId),
    /// Clears all of them.
    ClearAll,
    /// Does it.
    Do(Action),
}

/// What a fault is compared with.
struct Target<'a> {
    request: Option<(&'a str, &'a str)>,
    namespace: &'a str,
    name: &'a str,
}

/// What is to become of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Proceed,
    Refuse { error: ApiError, retry_after: Option<u32> },
    Cut,
    LoseAnswer,
}

/// The faults that are on.
#[derive(Debug)]
pub(crate) struct FaultTable {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    faults: BTreeMap<FaultId, Fault>,
}

impl FaultTable {
    pub fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for a fault to be over.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn add(&self, fault: Fault) -> FaultId {
        let mut state = self.lock();
        state.last += 1;
        let id = FaultId(state.last);
        state.faults.insert(id, fault);
        self.changed.send_replace(());
        id
    }

    pub fn clear(&self, id: FaultId) -> bool {
        let was = self.lock().faults.remove(&id).is_some();
        self.changed.send_replace(());
        was
    }

    pub fn clear_all(&self) {
        self.lock().faults.clear();
        self.changed.send_replace(());
    }

    /// What is to become of a request, and how long it waits before that. Counts.
    pub fn request(&self, verb: &str, resource: &str, namespace: &str, name: &str) -> (Duration, Fate) {
        let target = Target { request: Some((verb, resource)), namespace, name };
        let mut state = self.lock();
        let mut delay = Duration::ZERO;
        let mut fate = Fate::Proceed;
        state.faults.retain(|_, fault| match fault {
            Fault::Latency { on, millis } if on.is(&target) => {
                delay += Duration::from_millis(*millis);
                true
            }
            Fault::Error { on, code, reason, message, retry_after_seconds, times } if on.is(&target) => {
                if fate != Fate::Proceed {
                    return true;
                }
                let error = ApiError::new(*code, reason, message.replace("{name}", name));
                fate = Fate::Refuse { error, retry_after: *retry_after_seconds };
                use_up(times)
            }
            Fault::Cut { on, times } if on.is(&target) => {
                if fate != Fate::Proceed {
                    return true;
                }
                fate = Fate::Cut;
                use_up(times)
            }
            Fault::LoseAnswer { on, times } if on.is(&target) => {
                if fate != Fate::Proceed {
                    return true;
                }
                fate = Fate::LoseAnswer;
                use_up(times)
            }
            _ => true,
        });
        (delay, fate)
    }

    fn pod<T>(&self, namespace: &str, name: &str, what: impl Fn(&Fault) -> Option<(&On, T)>) -> Option<T> {
        let target = Target { request: None, namespace, name };
        self.lock().faults.values().filter_map(what).find(|(on, _)| on.is(&target)).map(|(_, what)| what)
    }

    pub fn never_starts(&self, namespace: &str, name: &str) -> bool {
        self.pod(namespace, name, |fault| match fault {
            Fault::NeverStarts { on } => Some((on, ())),
            _ => None,
        })
        .is_some()
    }

    pub fn unschedulable(&self, namespace: &str, name: &str) -> Option<String> {
        self.pod(namespace, name, |fault| match fault {
            Fault::Unschedulable { on, message } => Some((on, message.clone())),
            _ => None,
        })
    }

    pub fn slow_delete(&self, namespace: &str, name: &str) -> Option<Duration> {
        self.pod(namespace, name, |fault| match fault {
            Fault::SlowDelete { on, millis } => Some((on, Duration::from_millis(*millis))),
            _ => None,
        })
    }

    pub fn pull(&self, wanted: &str) -> Option<Pull> {
        self.lock().faults.values().find_map(|fault| match fault {
            Fault::Pull { image, failure } if image == wanted => Some(*failure),
            _ => None,
        })
    }

    pub fn real(&self, wanted: Real) -> bool {
        let set = self.lock().faults.values().rev().find_map(|fault| match fault {
            Fault::Real { what, on } if *what == wanted => Some(*on),
            _ => None,
        });
        set.unwrap_or(match wanted {
            Real::CriStdinCut => true,
            Real::CriTtyEofCut => false,
        })
    }
}

/// Whether it can be used again.
fn use_up(times: &mut Option<u32>) -> bool {
    match times {
        None => true,
        Some(left) => {
            *left = left.saturating_sub(1);
            *left > 0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_used_up_and_a_latency_adds_to_it() {
        let table = FaultTable::new();
        let on = On { name: Some("a*".into()), ..On::request("create", "pods") };
        table.add(Fault::Latency { on: On::any(), millis: 5 });
        table.add(Fault::Error {
            on,
            code: 500,
            reason: "InternalError".into(),
            message: "no {name}".into(),
            retry_after_seconds: None,
            times: Some(1),
        });
        assert_eq!(table.request("create", "pods", "default", "b").1, Fate::Proceed);
        let (delay, fate) = table.request("create", "pods", "default", "ab");
        assert_eq!(delay, Duration::from_millis(5));
        assert!(matches!(fate, Fate::Refuse { error, .. } if error.message == "no ab"));
        assert_eq!(table.request("create", "pods", "default", "ab").1, Fate::Proceed);
    }

    #[test]
    fn real_defects_have_their_defaults() {
        let table = FaultTable::new();
        assert!(table.real(Real::CriStdinCut));
        let id = table.add(Fault::Real { what: Real::CriStdinCut, on: false });
        assert!(!table.real(Real::CriStdinCut));
        assert!(table.clear(id));
        assert!(table.real(Real::CriStdinCut));
    }

    #[test]
    fn commands_are_plain_json() {
        let command = r#"{"add": {"fault": "unschedulable", "on": {"name": "x"}, "message": "no"}}"#;
        let command: Command = serde_json::from_str(command).expect("parses");
        assert_eq!(command, Command::Add(Fault::Unschedulable { on: On::pod("x"), message: "no".into() }));
        let command: Command =
            serde_json::from_str(r#"{"do": {"action": "breakStreams", "how": "noStatus"}}"#).expect("parses");
        assert_eq!(command, Command::Do(Action::BreakStreams { how: Break::NoStatus }));
        assert_eq!(serde_json::from_str::<Command>(r#""clearAll""#).expect("parses"), Command::ClearAll);
    }
}
