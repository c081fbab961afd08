//! `ownership`: how long an owner that says nothing keeps its pods.

use podbay_runtime::config::{FromNode as _, Section, format_duration};
use std::time::Duration;

/// Leases and the reaper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// How long a lease holds unrenewed.
    pub lease_duration: Duration,
    /// Where the leases are: the pods' namespace unless set.
    pub namespace: String,
    /// The longest that frontends let sessions wait for a backend; shorter than `lease_duration`.
    pub backend_wait: Duration,
    /// The longest that Detach keeps a session and its pod; at most [`MAX_KEEP`].
    pub max_keep: Duration,
}

/// No session is kept longer: podbay-agent keeps none longer either.
const MAX_KEEP: Duration = Duration::from_hours(7 * 24);

impl Ownership {
    /// With defaults: 90 s, 60 s of waiting for backends, and 24 h for what is detached.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self {
            lease_duration: Duration::from_secs(90),
            namespace: namespace.into(),
            backend_wait: Duration::from_mins(1),
            max_keep: Duration::from_hours(24),
        }
    }

    pub(super) fn read(section: &mut Section, pod_namespace: &str) -> Option<Self> {
        let default = Self::new(pod_namespace);
        let unset = |d: &Duration| !d.is_zero();
        let lease_duration = section.filled("leaseDuration", default.lease_duration);
        let wait = section.get("backendWait").filter(unset);
        // A shorter lease alone must not be a mistake: then the default wait shrinks with it.
        let backend_wait = wait.unwrap_or_else(|| default.backend_wait.min(lease_duration * 2 / 3));
        section.effective("backendWait", Duration::kind(), backend_wait.shown());
        let namespace: String = section.or("namespace", default.namespace);
        let max_keep = section.get("maxKeep").filter(unset).unwrap_or(default.max_keep);
        let mut good = true;
        if max_keep > MAX_KEEP {
            section.mistake("maxKeep", "is too long: sessions are kept for 168h (7 days) at most");
            good = false;
        }
        if lease_duration < Duration::from_secs(1) {
            section.mistake("leaseDuration", "is too short: owners could not renew in time; use at least 1s");
            good = false;
        }
        if backend_wait >= lease_duration {
            let text = format!(
                "must be shorter than ownership.leaseDuration ({}): sessions that wait for a backend would lose their pods",
                format_duration(lease_duration)
            );
            section.mistake("backendWait", text);
            good = false;
        }
        if namespace.is_empty() {
            section.mistake("namespace", "must not be empty");
            good = false;
        }
        good.then_some(Self { lease_duration, namespace, backend_wait, max_keep })
    }

    /// Owners renew this often: a third of the duration, so that one lost renewal harms nobody.
    pub fn heartbeat(&self) -> Duration {
        self.lease_duration / 3
    }

    /// The reaper looks this often: often enough that a dead owner is found soon after its duration.
    pub fn poll(&self) -> Duration {
        (self.lease_duration / 9).max(Duration::from_millis(100))
    }
}
