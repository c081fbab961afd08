//! The reaper: finds owners that are dead, and deletes what they left. Any number of replicas may run one.

use super::{
    idle::Idle,
    lease::{EXPIRED, Leases, holder},
    observe::{Item, Observations},
};
use crate::{
    cluster::{ClusterError, PodRef},
    config::Namespaces,
    identity::{self, Marks, OWNER},
    lifecycle::{Lifecycle, reference},
    persistent,
};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use podbay::OwnerId;
use podbay_runtime::codes;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// Deletions and takings under way at once.
const AT_ONCE: usize = 16;

/// A taken lease without pods is kept so many durations, so that its owner, should it come back, learns its fate.
const KEEP: u32 = 10;

/// The sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sign {
    /// The lease, at this resourceVersion.
    Lease(String),
    /// There is none.
    Missing,
}

/// Watches leases and pods of one cluster.
#[derive(Debug)]
pub struct Reaper {
    lifecycle: Lifecycle,
    leases: Leases,
    /// Where pods are.
    namespaces: Vec<String>,
    born: Instant,
    owners: Observations<OwnerId, Sign>,
    taken: Observations<String, String>,
    slots: Arc<Semaphore>,
    deleting: JoinSet<String>,
    deleted: watch::Sender<u64>,
    busy: HashSet<String>,
    /// Pods that outlive connections.
    idle: Idle,
    idle_timeout: Option<Duration>,
}

/// What a look found.
struct Found {
    leases: Vec<Lease>,
    pods: Vec<(Marks, PodRef)>,
    /// Those that outlive connections.
    staying: Vec<Pod>,
    started: Duration,
    ended: Duration,
}

impl Reaper {
    /// For pods in `namespace`.
    pub fn new(lifecycle: Lifecycle, leases: Leases, namespace: impl Into<String>) -> Self {
        // Longer than this between looks, and this process, its machine or the API stood still. Less goes unnoticed: should all
        // stand still with us for one more poll after each poll, an owner's renewals (3 polls) come after 6, and 9 are a duration.
        let max_gap = leases.ownership().poll() * 2;
        Self {
            lifecycle,
            leases,
            namespaces: vec![namespace.into()],
            born: Instant::now(),
            owners: Observations::new(max_gap),
            taken: Observations::new(max_gap),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            deleting: JoinSet::new(),
            deleted: watch::Sender::new(0),
            busy: HashSet::new(),
            idle: Idle::default(),
            idle_timeout: None,
        }
    }

    /// For pods in these.
    #[must_use]
    pub fn everywhere(mut self, namespaces: &Namespaces) -> Self {
        self.namespaces = namespaces.places().to_vec();
        self
    }

    /// Deletes pods that outlive connections (mode `persistent`) when they had none for so long; `None` = never.
    #[must_use]
    pub fn idle_timeout(self, idle_timeout: Option<Duration>) -> Self {
        Self { idle_timeout, ..self }
    }

    /// How many pods it has deleted; for metrics.
    pub fn deleted(&self) -> watch::Receiver<u64> {
        self.deleted.subscribe()
    }

    /// Looks again and again until told to stop. Deletions under way are then dropped: another reaper, or the next start,
    /// finds what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let poll = self.leases.ownership().poll();
        loop {
            let next = Instant::now() + poll;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.round() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(next.saturating_duration_since(Instant::now())) => {}
            }
        }
    }

    /// One look, and what follows from it. Deletions run on after it.
    pub async fn round(&mut self) {
        while let Some(done) = self.deleting.try_join_next() {
            if let Ok(uid) = done {
                self.busy.remove(&uid);
            }
        }
        match self.look().await {
            Ok(found) => self.judge(found).await,
            Err(error) => {
                tracing::warn!(%error, "leases and pods can't be read; the observation of owners starts anew");
                self.owners.failed();
                self.taken.failed();
            }
        }
    }

    async fn look(&self) -> Result<Found, ClusterError> {
        let started = self.born.elapsed();
        let cluster = self.lifecycle.cluster();
        // Pods after leases: the lease of a new owner is there before its first pod, or appears at the next look.
        let leases = cluster.list_leases(&self.leases.ownership().namespace, &identity::all()).await?;
        let mut all = Vec::new();
        for namespace in &self.namespaces {
            all.extend(cluster.list_pods(namespace, &identity::all()).await?);
        }
        let (staying, pods): (Vec<_>, Vec<_>) = all.into_iter().partition(|pod| persistent::is_ours(&pod.metadata));
        // Kept pods are nobody's: their time, and then their owner's lease, ends them.
        let pods = pods.iter().filter_map(mine).filter(|(marks, _)| !marks.is_kept()).collect();
        Ok(Found { leases, pods, staying, started, ended: self.born.elapsed() })
    }

    async fn judge(&mut self, found: Found) {
        let Found { leases, pods, staying, started, ended } = found;
        let by_owner: BTreeMap<OwnerId, Lease> =
            leases.iter().filter_map(|lease| Some((owner_of(lease)?, lease.clone()))).collect();
        let duration = self.leases.ownership().lease_duration;

        let living = by_owner.iter().filter(|(_, lease)| holder(lease) != EXPIRED).map(|(owner, lease)| Item {
            key: *owner,
            version: Sign::Lease(version(lease)),
            duration: duration.max(duration_of(lease)),
        });
        let without: HashSet<OwnerId> =
            pods.iter().map(|(marks, _)| marks.owner).filter(|owner| !by_owner.contains_key(owner)).collect();
        let missing = without.into_iter().map(|key| Item { key, version: Sign::Missing, duration });
        let expired = self.owners.read(started, ended, living.chain(missing).collect::<Vec<_>>());

        let leases_of = &self.leases;
        let cluster = self.lifecycle.cluster();
        let taken: Vec<OwnerId> = stream::iter(expired)
            .map(|owner| {
                let found = by_owner.get(&owner);
                let lease = leases_of.taken(owner, found);
                async move {
                    let result = match found {
                        Some(_) => cluster.replace_lease(&lease).await,
                        None => cluster.create_lease(&lease).await,
                    };
                    match result {
                        Ok(_) => {
                            tracing::warn!(code = codes::OWNER_REAPED, %owner, "an owner was not heard of for too long; deleting its pods");
                            Some(owner)
                        }
                        // It moved in the last moment, or another reaper was quicker; or it is not known: the next look tells.
                        Err(error) => {
                            tracing::info!(%owner, %error, "an owner's lease was not taken");
                            None
                        }
                    }
                }
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(|owner| async move { owner })
            .collect()
            .await;

        let dead = |owner: &OwnerId| {
            taken.contains(owner) || by_owner.get(owner).is_some_and(|lease| holder(lease) == EXPIRED)
        };
        let mut still = HashSet::new();
        for (marks, pod) in pods {
            if dead(&marks.owner) {
                still.insert(marks.owner);
                self.delete(pod);
            }
        }
        let is_live = |owner: &OwnerId| {
            by_owner.get(owner).is_some_and(|lease| holder(lease) != EXPIRED) && !taken.contains(owner)
        };
        self.look_after(&staying, is_live, ended).await;
        self.forget(&leases, &still, started, ended).await;
    }

    /// Takes dead claims off pods that outlive connections, and deletes those that nobody has used for long.
    async fn look_after(&mut self, pods: &[Pod], is_live: impl Fn(&OwnerId) -> bool, now: Duration) {
        let bounds = (self.leases.ownership().lease_duration, self.idle_timeout);
        let verdicts = self.idle.look(pods, is_live, bounds, now);
        let verdicts: Vec<_> = verdicts.into_iter().map(|(pod, verdict)| (pod.clone(), verdict)).collect();
        let cluster = self.lifecycle.cluster();
        let going: Vec<PodRef> = stream::iter(verdicts)
            .map(|(pod, verdict)| async move {
                let reference = reference(&pod)?;
                if verdict.delete {
                    // As it was read: whoever claims it in this moment changes it, and wins.
                    match cluster.delete_pod_unchanged(&pod).await {
                        Ok(()) => {
                            tracing::info!(pod = reference.name, "nobody used a pod for long; deleting it");
                            return Some(reference);
                        }
                        Err(error) => tracing::info!(pod = reference.name, %error, "an idle pod is not deleted yet"),
                    }
                } else if let Err(error) =
                    cluster.patch_pod(&reference, persistent::release_patch(verdict.release)).await
                {
                    tracing::warn!(pod = reference.name, %error, "dead claims are not taken off yet");
                }
                None
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(|going| async move { going })
            .collect()
            .await;
        for pod in going {
            self.delete(pod);
        }
    }

    /// Deletes a pod in the background.
    fn delete(&mut self, pod: PodRef) {
        let Some(uid) = pod.uid.clone() else { return };
        if !self.busy.insert(uid.clone()) {
            return;
        }
        let (lifecycle, slots, deleted) = (self.lifecycle.clone(), self.slots.clone(), self.deleted.clone());
        self.deleting.spawn(async move {
            let _slot = slots.acquire_owned().await;
            match lifecycle.stop(&pod).await {
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
            uid
        });
    }

    /// Deletes leases that were taken (or say that a connection was closed) and have served their time.
    async fn forget(&mut self, leases: &[Lease], still: &HashSet<OwnerId>, started: Duration, ended: Duration) {
        let keep = self.leases.ownership().lease_duration * KEEP;
        let idle =
            |lease: &&Lease| holder(lease) == EXPIRED && owner_of(lease).is_none_or(|owner| !still.contains(&owner));
        let items = leases.iter().filter(idle).map(|lease| Item {
            key: lease.metadata.name.clone().unwrap_or_default(),
            version: version(lease),
            duration: keep,
        });
        let old: HashSet<String> = self.taken.read(started, ended, items.collect::<Vec<_>>()).into_iter().collect();
        let old = leases.iter().filter(|lease| lease.metadata.name.as_ref().is_some_and(|name| old.contains(name)));
        let cluster = self.lifecycle.cluster();
        stream::iter(old)
            .for_each_concurrent(AT_ONCE, |lease| async move {
                if let Err(error) = cluster.delete_lease(lease).await {
                    tracing::debug!(%error, "an old lease was not deleted");
                }
            })
            .await;
    }
}

fn mine(pod: &Pod) -> Option<(Marks, PodRef)> {
    let marks = Marks::read(&pod.metadata);
    if marks.is_none() {
        tracing::debug!(pod = pod.metadata.name, "labels of a pod of ours can't be read; leaving it");
    }
    Some((marks?, reference(pod)?))
}

fn owner_of(lease: &Lease) -> Option<OwnerId> {
    lease.metadata.labels.as_ref()?.get(OWNER)?.parse().ok()
}

fn version(lease: &Lease) -> String {
    lease.metadata.resource_version.clone().unwrap_or_default()
}

/// What the owner was told, should it be more than what we are configured for.
fn duration_of(lease: &Lease) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    // Not more than a day, whoever wrote it.
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(86_400))
}
