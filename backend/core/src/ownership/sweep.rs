//! Pods that their owner doesn't know: what lost answers leave.

use crate::{
    cluster::PodRef,
    identity::Marks,
    lifecycle::{Lifecycle, reference},
    persistent,
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
    spare: Mutex<Duration>,
    owners: Mutex<BTreeMap<OwnerId, Seen>>,
    /// The same for unknown claims, by uid and connection.
    claimants: Mutex<BTreeMap<OwnerId, Seen>>,
}

impl Sweep {
    /// Spares what was first seen less than `spare` ago.
    pub fn new(spare: Duration) -> Self {
        Self { spare: Mutex::new(spare), owners: Mutex::default(), claimants: Mutex::default() }
    }

    /// Spares for so long at least: pods that began by shorter bounds and by longer ones are there at once.
    pub fn spare_at_least(&self, spare: Duration) {
        let mut now = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        *now = spare.max(*now);
    }

    fn spare(&self) -> Duration {
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner)
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
            if now.saturating_duration_since(first) >= self.spare() && pod.metadata.deletion_timestamp.is_none() {
                close.push(reference);
            }
            seen.insert(uid, first);
        }
        owners.insert(owner, (now, seen));
        close
    }

    /// The owner has exactly these connections: gives its claims on this pod that are of others, seen so long enough.
    fn unknown_claims(
        &self,
        owner: OwnerId,
        known: &HashSet<ConnectionId>,
        pods: &[Pod],
        now: Instant,
    ) -> Vec<(PodRef, Vec<ConnectionId>)> {
        let mut owners = self.claimants.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, (heard, _)| now.saturating_duration_since(*heard) < FORGET);
        let (_, before) = owners.remove(&owner).unwrap_or((now, BTreeMap::new()));
        let mut seen = BTreeMap::new();
        let mut release = Vec::new();
        for pod in pods {
            let Some(reference) = reference(pod) else { continue };
            let claims = persistent::claims(&pod.metadata).into_iter();
            let unknown = claims.filter(|claim| claim.owner == owner && !known.contains(&claim.connection));
            let mut old = Vec::new();
            for claim in unknown {
                let key = format!("{}/{}", reference.uid.as_deref().unwrap_or_default(), claim.connection);
                let first = before.get(&key).copied().unwrap_or(now);
                if now.saturating_duration_since(first) >= self.spare() {
                    old.push(claim.connection);
                }
                seen.insert(key, first);
            }
            if !old.is_empty() {
                release.push((reference, old));
            }
        }
        owners.insert(owner, (now, seen));
        release
    }

    /// Takes the owner's unknown claims off the pods that stay. What fails is done the next time.
    pub async fn claims(&self, lifecycle: &Lifecycle, namespace: &str, owner: OwnerId, known: &HashSet<ConnectionId>) {
        let pods = match lifecycle.cluster().list_pods(namespace, &crate::identity::of_persistent()).await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::warn!(%owner, %error, "the pods that stay can't be listed; next time");
                return;
            }
        };
        for (pod, connections) in self.unknown_claims(owner, known, &pods, Instant::now()) {
            tracing::warn!(pod = pod.name, %owner, count = connections.len(), "releasing claims that their owner doesn't know");
            if let Err(error) = lifecycle.cluster().patch_pod(&pod, persistent::release_patch(connections)).await {
                tracing::warn!(pod = pod.name, %error, "claims are not released; next time");
            }
        }
    }

    /// Reads the owner's pods and closes the unknown ones in the background.
    pub async fn run(
        &self,
        lifecycle: &Lifecycle,
        namespaces: &[String],
        owner: OwnerId,
        known: &HashSet<ConnectionId>,
        caller: &str,
    ) {
        let selector = crate::identity::of_owner(owner);
        let lists = namespaces.iter().map(|namespace| lifecycle.cluster().list_pods(namespace, &selector));
        match futures::future::try_join_all(lists).await {
            Ok(pods) => {
                for pod in self.unknown(owner, known, &pods.concat(), caller, Instant::now()) {
                    tracing::warn!(pod = pod.name, %owner, "closing a pod that its owner doesn't know");
                    lifecycle.undo(pod);
                }
            }
            Err(error) => tracing::warn!(%owner, %error, "the owner's pods can't be listed; next time"),
        }
    }
}
