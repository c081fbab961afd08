//! What the reaper does to pods in the background: deletions, and questions to their agents before. A few at once, and one for each
//! pod. Which pods, [`super::reaper`] decides.

use super::agents::{Agents, Programs};
use crate::{
    cluster::PodRef,
    identity::{KEPT_UNTIL, kept_until},
    lifecycle::{Lifecycle, reference},
    persistent,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use podbay_runtime::codes;
use std::{collections::HashSet, sync::Arc};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

/// The work under way; dropped with this.
#[derive(Debug)]
pub(super) struct Work {
    slots: Arc<Semaphore>,
    tasks: JoinSet<(String, Done)>,
    deleted: watch::Sender<u64>,
    /// The pods, by uid.
    busy: HashSet<String>,
}

/// What came of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Whatever,
    /// The pod's agent did not say whether programs run.
    Unanswered,
}

impl Work {
    /// For so many pods at once.
    pub fn new(at_once: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(at_once)),
            tasks: JoinSet::new(),
            deleted: watch::Sender::new(0),
            busy: HashSet::new(),
        }
    }

    /// How many pods were deleted.
    pub fn deleted(&self) -> watch::Receiver<u64> {
        self.deleted.subscribe()
    }

    /// Takes note of what is done. The uids of pods whose agent did not say whether programs run.
    pub fn take_unanswered(&mut self) -> Vec<String> {
        let mut unanswered = Vec::new();
        while let Some(done) = self.tasks.try_join_next() {
            if let Ok((uid, done)) = done {
                self.busy.remove(&uid);
                if done == Done::Unanswered {
                    unanswered.push(uid);
                }
            }
        }
        unanswered
    }

    /// The pod's uid, unless something is under way with it.
    fn begins(&mut self, pod: &PodRef) -> Option<String> {
        let uid = pod.uid.clone()?;
        self.busy.insert(uid.clone()).then_some(uid)
    }

    /// Deletes a pod in the background.
    pub fn delete(&mut self, lifecycle: &Lifecycle, pod: PodRef) {
        let Some(uid) = self.begins(&pod) else { return };
        let (lifecycle, slots, deleted) = (lifecycle.clone(), self.slots.clone(), self.deleted.clone());
        self.tasks.spawn(async move {
            let _slot = slots.acquire_owned().await;
            stop(&lifecycle, &pod, &deleted).await;
            (uid, Done::Whatever)
        });
    }

    /// Deletes a pod that nobody has used for long, in the background, unless its agent says that programs run.
    pub fn let_go(&mut self, lifecycle: &Lifecycle, agents: Option<&Agents>, pod: Pod, patience_is_over: bool) {
        let Some(reference) = reference(&pod) else { return };
        let Some(uid) = self.begins(&reference) else { return };
        let (lifecycle, agents) = (lifecycle.clone(), agents.cloned());
        let (slots, deleted) = (Arc::clone(&self.slots), self.deleted.clone());
        self.tasks.spawn(async move {
            let _slot = slots.acquire_owned().await;
            let bound = lifecycle.timeouts().http;
            let programs = match &agents {
                Some(agents) => agents.programs(&pod, &reference, bound).await,
                // Without agent nothing is kept; where it was turned off since, its time is waited for.
                None if kept_until(&pod.metadata).is_some_and(|until| until > Timestamp::now()) => Programs::Unknown,
                None => Programs::None,
            };
            let cluster = lifecycle.cluster();
            match programs {
                Programs::Run => {
                    // In use; its time begins anew, for every replica.
                    if let Err(error) = cluster.patch_pod(&reference, persistent::used_patch()).await {
                        tracing::info!(pod = reference.name, %error, "a pod with programs is not marked as used yet");
                    }
                    return (uid, Done::Whatever);
                }
                Programs::Unknown if !patience_is_over => return (uid, Done::Unanswered),
                Programs::Unknown | Programs::Over | Programs::None => {}
            }
            // As it was read: whoever claims it in this moment changes it, and wins.
            match cluster.delete_pod_unchanged(&pod).await {
                Ok(()) => {
                    tracing::info!(pod = reference.name, "nobody used a pod for long; deleting it");
                    stop(&lifecycle, &reference, &deleted).await;
                }
                Err(error) => tracing::info!(pod = reference.name, %error, "an idle pod is not deleted yet"),
            }
            (uid, Done::Whatever)
        });
    }

    /// Asks a kept pod whether there is anything left to keep, and ends its time where there is not.
    pub fn unkeep(&mut self, lifecycle: &Lifecycle, agents: &Agents, pod: Pod, reference: PodRef) {
        let Some(uid) = self.begins(&reference) else { return };
        let (lifecycle, agents, slots) = (lifecycle.clone(), agents.clone(), Arc::clone(&self.slots));
        self.tasks.spawn(async move {
            let _slot = slots.acquire_owned().await;
            if agents.programs(&pod, &reference, lifecycle.timeouts().http).await == Programs::None {
                // As it was read: whoever detaches a session in this moment marks it anew, and wins.
                let version = pod.metadata.resource_version.as_deref().unwrap_or_default();
                let over = Timestamp::now().to_string();
                match lifecycle.cluster().annotate_pod(&reference, version, KEPT_UNTIL, &over).await {
                    Ok(()) => tracing::info!(pod = reference.name, "nothing is kept in a pod any more"),
                    Err(error) => tracing::debug!(pod = reference.name, %error, "a pod's mark stays for now"),
                }
            }
            (uid, Done::Whatever)
        });
    }
}

async fn stop(lifecycle: &Lifecycle, pod: &PodRef, deleted: &watch::Sender<u64>) {
    match lifecycle.stop(pod).await {
        Ok(()) => {
            deleted.send_modify(|n| *n += 1);
            let code = codes::KUBERNETES_POD_REMOVE_SUCCESSFUL;
            tracing::info!(target: "podbay::activity", code, pod = pod.name, "pod deleted");
        }
        Err(refusal) => {
            let code = codes::KUBERNETES_POD_REMOVE_FAILED;
            tracing::error!(code, pod = pod.name, reason = %refusal.message, "pod not deleted yet");
        }
    }
}
