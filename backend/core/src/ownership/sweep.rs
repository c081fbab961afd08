//! Pods that their owner doesn't know: what lost answers leave.

use crate::{
    cluster::PodRef,
    identity::Marks,
    lifecycle::{Lifecycle, reference},
};
use k8s_openapi::api::core::v1::Pod;
use podbay::{ConnectionId, OwnerId};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Owners that were not heard of for so long are forgotten.
const FORGET: Duration = Duration::from_hours(1);

/// When the owner was last heard of, and when each of its unknown pods (by uid) was first seen.
type Seen = (Instant, BTreeMap<String, Instant>);

/// When each owner's unknown pods were first seen, by this replica's clock: pod ages by the API server's clock are never
/// compared with ours. A pod is spared for `podStart` + `podStop`: its answer may still be under way.
#[derive(Debug)]
pub struct Sweep {
    spare: Duration,
    owners: Mutex<BTreeMap<OwnerId, Seen>>,
}

impl Sweep {
    /// Spares what was first seen less than `spare` ago.
    pub fn new(spare: Duration) -> Self {
        Self { spare, owners: Mutex::default() }
    }

    /// The owner has exactly these connections, and these are its pods: gives those to close.
    pub fn unknown(
        &self,
        owner: OwnerId,
        known: &HashSet<ConnectionId>,
        pods: &[Pod],
        caller: &str,
        now: Instant,
    ) -> Vec<PodRef> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, (heard, _)| now.saturating_duration_since(*heard) < FORGET);
        let (_, before) = owners.remove(&owner).unwrap_or((now, BTreeMap::new()));
        let mut seen = BTreeMap::new();
        let mut close = Vec::new();
        for pod in pods {
            let (Some(marks), Some(reference)) = (Marks::read(&pod.metadata), reference(pod)) else { continue };
            let Some(uid) = reference.uid.clone() else { continue };
            if marks.owner != owner || marks.caller != caller || known.contains(&marks.connection) || marks.is_kept() {
                continue;
            }
            let first = before.get(&uid).copied().unwrap_or(now);
            if now.saturating_duration_since(first) >= self.spare && pod.metadata.deletion_timestamp.is_none() {
                close.push(reference);
            }
            seen.insert(uid, first);
        }
        owners.insert(owner, (now, seen));
        close
    }

    /// Reads the owner's pods and closes the unknown ones in the background.
    pub async fn run(
        &self,
        lifecycle: &Lifecycle,
        namespace: &str,
        owner: OwnerId,
        known: &HashSet<ConnectionId>,
        caller: &str,
    ) {
        match lifecycle.cluster().list_pods(namespace, &crate::identity::of_owner(owner)).await {
            Ok(pods) => {
                for pod in self.unknown(owner, known, &pods, caller, Instant::now()) {
                    tracing::warn!(pod = pod.name, %owner, "closing a pod that its owner doesn't know");
                    lifecycle.undo(pod);
                }
            }
            Err(error) => tracing::warn!(%owner, %error, "the owner's pods can't be listed; next time"),
        }
    }
}
