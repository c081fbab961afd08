//! What a pod says of how its programs ended, read from the cluster: watched for, since the kubelet tells it late, and each time within
//! a bound.

use super::{deleted, is_final, killed, lost, may_be_the_pods, of_container, of_gone, of_pod, pod_gone};
use crate::{
    cluster::{Cluster, ClusterError, PodChange, PodRef, StreamEnd},
    lifecycle::Backoff,
};
use podbay::v1::{Exit, Reason, exit::End};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long an end that may be the pod's waits for the pod's status to say why: kubelets write it behind the containers' end.
pub(in crate::session) const EXPLAINED: Duration = Duration::from_secs(3);

/// The same for a program that ended while its container was being stopped: until that has ended, with all else in it.
pub(in crate::session) const STOPPED: Duration = Duration::from_secs(10);

/// What ended a program that looks as if it had ended with its pod. Waits for `patience`, since the pod's status comes behind. `None`:
/// nothing is known, or it was nothing of that kind.
///
/// Cancel safe.
pub(in crate::session) async fn explained(
    cluster: &dyn Cluster,
    pod: &PodRef,
    console: &str,
    patience: Duration,
) -> Option<Exit> {
    let look = async {
        let mut backoff = Backoff::default();
        loop {
            match cluster.watch_pod(pod).await {
                Ok(mut changes) => {
                    while let Some(change) = changes.recv().await {
                        match change {
                            PodChange::Now(pod) => {
                                let is_final = is_final(&pod);
                                let found = of_pod(&Ok(*pod), console);
                                if found.is_some() || is_final {
                                    return found;
                                }
                            }
                            PodChange::Gone(last) => {
                                let told = last.as_ref().and_then(|pod| pod_gone(pod).or_else(|| killed(pod, console)));
                                return Some(told.unwrap_or_else(|| deleted(last.as_deref())));
                            }
                            PodChange::Interrupted(_) => {}
                        }
                    }
                }
                Err(ClusterError::NotFound { .. }) => return Some(deleted(None)),
                Err(_) => {}
            }
            sleep(backoff.next(None)).await;
        }
    };
    timeout(patience, look).await.ok().flatten()
}

/// The end of a program whose stream broke, from what its pod looks like then or soon afterwards.
///
/// Cancel safe.
pub(in crate::session) async fn of_broken(cluster: &dyn Cluster, pod: &PodRef, console: &str, end: &StreamEnd) -> Exit {
    match explained(cluster, pod, console, EXPLAINED).await {
        Some(exit) => exit,
        None => of_gone(&cluster.get_pod(pod).await, console, end),
    }
}

/// Reads how a container's own program ended, within `bound` (`podStop`).
///
/// Cancel safe.
pub(in crate::session) async fn read_exit(cluster: &dyn Cluster, pod: &PodRef, console: &str, bound: Duration) -> Exit {
    let read = async {
        let mut backoff = Backoff::default();
        loop {
            if let Ok(mut changes) = cluster.watch_pod(pod).await {
                while let Some(change) = changes.recv().await {
                    match change {
                        PodChange::Now(now) => match of_container(&now, console) {
                            // Of an eviction the kubelet says so in the pod's last status only.
                            Some(exit)
                                if !is_final(&now)
                                    && matches!(exit.end, Some(End::Code(_)))
                                    && may_be_the_pods(&exit) =>
                            {
                                return explained(cluster, pod, console, EXPLAINED).await.unwrap_or(exit);
                            }
                            Some(exit) => return exit,
                            None => {}
                        },
                        PodChange::Gone(last) => {
                            let gone =
                                || lost(Reason::PodGone, "the pod was deleted, and with it how the program ended");
                            return last.and_then(|pod| of_container(&pod, console)).unwrap_or_else(gone);
                        }
                        PodChange::Interrupted(_) => {}
                    }
                }
            }
            sleep(backoff.next(None)).await;
        }
    };
    let late = |_| lost(Reason::StreamLost, "how the program ended could not be read in time (timeouts.podStop)");
    timeout(bound, read).await.unwrap_or_else(late)
}
