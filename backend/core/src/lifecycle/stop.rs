//! The end of pods.

use super::{Backoff, Lifecycle};
use crate::{
    cluster::{Cluster, ClusterError, PodChange, PodRef},
    failure,
    identity::{self, Marks},
    persistent,
};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId,
    v1::{Reason, Refusal},
};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Deletions under way at once, per call.
const AT_ONCE: usize = 8;

impl Lifecycle {
    /// Deletes a pod and sees it gone, within `podStop`: with its own grace period first, by force in the last quarter.
    /// A pod that isn't there is gone.
    ///
    /// Cancel safe: dropping it stops the effort; what was asked stays asked.
    pub async fn stop(&self, pod: &PodRef) -> Result<(), Refusal> {
        let budget = self.timeouts.pod_stop;
        let mut last = None;
        if timeout(budget * 3 / 4, gone(&*self.cluster, pod, None, &mut last)).await.is_ok() {
            return Ok(());
        }
        let force = Some(Duration::ZERO);
        if timeout(budget / 4, gone(&*self.cluster, pod, force, &mut last)).await.is_ok() {
            return Ok(());
        }
        let (reason, message) = failure::of_delete(last.as_ref());
        Err(Refusal::new(reason, message))
    }

    /// Deletes all pods that the selector finds and `which` wants, and sees them gone, within `podStop`. Gives how many.
    pub async fn stop_all(
        &self,
        namespace: &str,
        selector: &str,
        which: impl Fn(&Pod) -> bool,
    ) -> Result<u32, Refusal> {
        let deadline = Instant::now() + self.timeouts.pod_stop;
        let pods: Vec<_> = self
            .list(namespace, selector, deadline)
            .await?
            .iter()
            .filter(|pod| which(pod))
            .filter_map(reference)
            .collect();
        let count = pods.len() as u32;
        let results: Vec<_> = stream::iter(pods)
            .map(|pod| async move { self.stop(&pod).await })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        results.into_iter().collect::<Result<Vec<()>, _>>().map(|_| count)
    }

    /// Takes a connection's claim off the pod that it uses (mode `persistent`), where `theirs` takes the claim's caller.
    pub async fn release(
        &self,
        namespace: &str,
        connection: ConnectionId,
        theirs: impl Fn(&str) -> bool,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        for found in self.list_all(namespace, &identity::of_claim(connection), deadline).await? {
            let claims = persistent::claims(&found.metadata);
            let ours = claims.iter().any(|claim| claim.connection == connection && theirs(&claim.caller));
            let Some(pod) = reference(&found).filter(|_| ours) else { continue };
            let mut backoff = Backoff::default();
            loop {
                let patch = persistent::release_patch([connection]);
                let error = match self.cluster.patch_pod(&pod, patch).await {
                    Ok(_) | Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => break,
                    Err(error) => error,
                };
                let wait = backoff.next(retry_after(&error));
                if Instant::now() + wait >= deadline {
                    let text = format!("the pod can't be left: {}", failure::short(&error.to_string()));
                    return Err(Refusal::new(Reason::KubernetesUnavailable, text));
                }
                sleep(wait).await;
            }
        }
        Ok(())
    }

    /// Lists pods that belong to one connection each, with retries until the deadline.
    pub async fn list(&self, namespace: &str, selector: &str, deadline: Instant) -> Result<Vec<Pod>, Refusal> {
        let pods = self.list_all(namespace, selector, deadline).await?;
        Ok(pods.into_iter().filter(|pod| Marks::read(&pod.metadata).is_some()).collect())
    }

    /// Lists pods, with retries until the deadline.
    pub async fn list_all(&self, namespace: &str, selector: &str, deadline: Instant) -> Result<Vec<Pod>, Refusal> {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.cluster.list_pods(namespace, selector).await {
                Ok(pods) => return Ok(pods),
                Err(error) => error,
            };
            let wait = backoff.next(retry_after(&error));
            if Instant::now() + wait >= deadline {
                let text = format!("the pods can't be listed: {}", failure::short(&error.to_string()));
                return Err(Refusal::new(Reason::KubernetesUnavailable, text));
            }
            sleep(wait).await;
        }
    }
}

/// A pod's reference, with uid.
pub(crate) fn reference(pod: &Pod) -> Option<PodRef> {
    let meta = &pod.metadata;
    Some(PodRef { namespace: meta.namespace.clone()?, name: meta.name.clone()?, uid: meta.uid.clone() })
}

pub(super) fn retry_after(error: &ClusterError) -> Option<Duration> {
    match error {
        ClusterError::Unavailable { retry_after, .. } => *retry_after,
        _ => None,
    }
}

/// Asks for the deletion until it is accepted, then waits until the pod is gone. Has no bound of its own.
async fn gone(cluster: &dyn Cluster, pod: &PodRef, grace: Option<Duration>, last: &mut Option<ClusterError>) {
    let mut backoff = Backoff::default();
    loop {
        let error = match cluster.delete_pod(pod, grace).await {
            Ok(()) => break,
            // Another pod of that name (Conflict by the uid precondition) means that ours is gone.
            Err(ClusterError::NotFound { .. }) => return,
            Err(ClusterError::Conflict { .. }) if pod.uid.is_some() => return,
            Err(error) => error,
        };
        let wait = backoff.next(retry_after(&error));
        *last = Some(error);
        sleep(wait).await;
    }
    *last = None;
    loop {
        match cluster.watch_pod(pod).await {
            Ok(mut changes) => {
                while let Some(change) = changes.recv().await {
                    match change {
                        PodChange::Gone(_) => return,
                        PodChange::Now(_) | PodChange::Interrupted(_) => {}
                    }
                }
            }
            Err(ClusterError::NotFound { .. }) => return,
            Err(error) => *last = Some(error),
        }
        sleep(backoff.next(None)).await;
    }
}
