//! What the backend has made of a connection so far.

use super::Replica;
use arc_swap::ArcSwap;
use bytes::Bytes;
use podbay::v1;
use podbay_frontend_core::Policy;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The timeouts before the backend has told its own (ContainerSSH's defaults).
const DEFAULT: Duration = Duration::from_mins(1);

/// What Accepted told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Creating the pod and waiting for it.
    pub pod_start: Duration,
    /// Deleting it.
    pub pod_stop: Duration,
    /// From Open to Started.
    pub command_start: Duration,
    /// From a Signal to its answer.
    pub signal: Duration,
    /// From a Resize to its answer.
    pub window: Duration,
    /// One pod per program: a start includes the pod's.
    pub session_mode: bool,
    /// The subsystems there are; empty = the backend decides.
    pub subsystems: Vec<String>,
    /// How long sessions wait for a backend.
    pub backend_wait: Duration,
    /// The most sessions at once; 0 = no limit but our own.
    pub max_sessions: usize,
    /// Which requests the backend lets pass.
    pub policy: Policy,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            pod_start: DEFAULT,
            pod_stop: DEFAULT,
            command_start: DEFAULT,
            signal: DEFAULT,
            window: DEFAULT,
            session_mode: false,
            subsystems: Vec::new(),
            backend_wait: DEFAULT,
            max_sessions: 0,
            policy: Policy::default(),
        }
    }
}

impl From<v1::Accepted> for Terms {
    fn from(accepted: v1::Accepted) -> Self {
        let session_mode = accepted.mode() == v1::ExecutionMode::Session;
        let timeouts = accepted.timeouts.unwrap_or_default();
        let told = accepted.policy.unwrap_or_default();
        let or_default = |duration: Option<prost_types::Duration>| {
            duration.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero()).unwrap_or(DEFAULT)
        };
        Self {
            pod_start: or_default(timeouts.pod_start),
            pod_stop: or_default(timeouts.pod_stop),
            command_start: or_default(timeouts.command_start),
            signal: or_default(timeouts.signal),
            window: or_default(timeouts.window),
            session_mode,
            backend_wait: or_default(accepted.backend_wait),
            policy: Policy::from(&told),
            subsystems: told.subsystems,
            max_sessions: told.max_sessions as usize,
        }
    }
}

/// A connection that can be used.
#[derive(Debug)]
pub struct Opened {
    /// Goes into every session's Open. Heartbeats may replace it.
    pub handle: ArcSwap<Bytes>,
    /// Who opened it: its sessions go there first.
    pub replica: Replica,
    /// What was agreed.
    pub terms: Arc<Terms>,
    /// `namespace/name`; empty in session mode.
    pub pod: String,
}

/// A connection's way from login to a pod.
#[derive(Debug, Clone)]
pub enum Phase {
    /// The backend was asked, or is about to be.
    Asking,
    /// It has accepted; the pod starts.
    Starting {
        /// What was agreed.
        terms: Arc<Terms>,
        /// The last word on the start, and since when it starts.
        progress: Option<String>,
        /// Since when.
        since: Instant,
    },
    /// Programs can run.
    Open(Arc<Opened>),
    /// It can't be used, and never will be; the sentence is for the user.
    Failed(Arc<str>),
}

impl Phase {
    /// What was agreed, once it was.
    pub fn terms(&self) -> Option<&Arc<Terms>> {
        match self {
            Self::Asking | Self::Failed(_) => None,
            Self::Starting { terms, .. } => Some(terms),
            Self::Open(opened) => Some(&opened.terms),
        }
    }
}
