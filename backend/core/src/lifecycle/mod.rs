//! A pod's start and end, under their deadlines.
//!
//! Whatever is begun is undone: a start that fails, runs out of time or is given up (its future dropped) deletes its pod
//! in a task that the [`Lifecycle`]'s tracker owns, under a fresh `podStop`. What even that can't reach (the process was
//! killed) is the reaper's.

mod backoff;
mod enter;
mod start;
mod stop;

pub use backoff::Backoff;
pub use enter::{EnterRequest, Entered, Release};
pub(crate) use start::image_id;
pub use start::{Kind, StartRequest, StartedPod};
pub(crate) use stop::reference;

use crate::{
    cluster::{Cluster, ClusterError, PodRef},
    config::Timeouts,
};
use podbay_runtime::codes;
use std::sync::Arc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

/// Starts and stops pods of one cluster. Clones share everything.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    cluster: Arc<dyn Cluster>,
    timeouts: Timeouts,
    tracker: TaskTracker,
}

impl Lifecycle {
    /// `tracker` owns the deletions that outlive their callers: close it and wait for it before the process ends.
    pub fn new(cluster: Arc<dyn Cluster>, timeouts: Timeouts, tracker: TaskTracker) -> Self {
        Self { cluster, timeouts, tracker }
    }

    /// The same by other bounds, for what begins from now on.
    #[must_use]
    pub fn with_timeouts(&self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self.clone() }
    }

    /// The cluster.
    pub fn cluster(&self) -> &Arc<dyn Cluster> {
        &self.cluster
    }

    /// The bounds.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Where tasks that outlive a caller belong.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Deletes a pod in the background, under a fresh `podStop`; the caller may go.
    pub fn undo(&self, pod: PodRef) {
        let this = self.clone();
        self.tracker.spawn(async move { this.stop_and_tell(&pod).await });
    }

    /// A guard that deletes this pod (as [`Self::undo`]) when it is dropped, unless it is kept.
    pub fn guard(&self, pod: PodRef) -> Undo {
        Undo { lifecycle: self.clone(), pod, mark: String::new(), what: Left::Pod }
    }

    /// [`Self::undo`] for a pod whose creation was not answered: it is looked for by name for as long as the request may still be
    /// under way, and deleted only if it carries this start's own mark: a later try of the same connection may have made
    /// another one meanwhile.
    fn undo_unanswered(&self, pod: PodRef, mark: String) {
        let this = self.clone();
        self.tracker.spawn(async move {
            let settled = Instant::now() + this.timeouts.http;
            let mut backoff = Backoff::default();
            // Looking has a bound of its own: while the API is down there is nothing to do here, and the reaper comes after.
            let found = timeout(this.timeouts.pod_stop + this.timeouts.http, async {
                loop {
                    match this.cluster.get_pod(&pod).await {
                        Ok(found) if start::mark_of(&found) == Some(mark.as_str()) => return stop::reference(&found),
                        Ok(_) => return None,
                        Err(ClusterError::NotFound { .. }) if Instant::now() >= settled => return None,
                        Err(_) => sleep(backoff.next(None)).await,
                    }
                }
            });
            if let Ok(Some(pod)) = found.await {
                this.stop_and_tell(&pod).await;
            }
        });
    }

    async fn stop_and_tell(&self, pod: &PodRef) {
        match self.stop(pod).await {
            Ok(()) => {
                let code = codes::KUBERNETES_POD_REMOVE_SUCCESSFUL;
                tracing::info!(target: "podbay::activity", code, pod = pod.name, "pod deleted");
            }
            Err(refusal) => {
                let code = codes::KUBERNETES_POD_REMOVE_FAILED;
                tracing::error!(code, pod = pod.name, reason = %refusal.message, "pod not deleted");
            }
        }
    }
}

/// A guard that undoes a start unless it is kept.
#[derive(Debug)]
pub struct Undo {
    lifecycle: Lifecycle,
    pod: PodRef,
    /// This start's own mark on the pods that it makes.
    mark: String,
    what: Left,
}

/// What a start may have left at the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Nothing, or nothing of ours.
    Nothing,
    /// Perhaps a pod: a create was not answered.
    Perhaps,
    /// The pod with the known uid.
    Pod,
}

impl Undo {
    /// The pod stays.
    pub fn keep(mut self) {
        self.what = Left::Nothing;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        match self.what {
            Left::Nothing => {}
            Left::Perhaps => {
                self.lifecycle.undo_unanswered(PodRef { uid: None, ..self.pod.clone() }, self.mark.clone());
            }
            Left::Pod => self.lifecycle.undo(self.pod.clone()),
        }
    }
}
