//! The reaper: finds owners that are dead, and deletes what they left. Any number of replicas may run one.

use super::{
    agents::Agents,
    idle::Idle,
    lease::{EXPIRED, Leases, holder},
    observe::{Item, Observations},
    work::Work,
};
use crate::{
    cluster::{ClusterError, PodRef},
    config::Namespaces,
    identity::{self, Marks, OWNER},
    lifecycle::{Lifecycle, reference},
    persistent,
};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use podbay::OwnerId;
use podbay_runtime::codes;
use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// Deletions and takings under way at once.
const AT_ONCE: usize = 16;

/// A taken lease without pods is kept so many durations, so that its owner, should it come back, learns its fate.
const KEEP: u32 = 10;

/// So many lease durations apart, kept pods are asked for what they keep.
const ASK_KEPT: u32 = 4;

/// The sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sign {
    /// The lease, at this resourceVersion.
    Lease(String),
    /// There is none.
    Missing,
}

/// What the configuration says about the reaper's work, and may say anew.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Deletes pods, by its bounds.
    pub lifecycle: Lifecycle,
    /// Where pods are.
    pub namespaces: Vec<String>,
    /// As [`Reaper::idle_timeout`].
    pub idle_timeout: Option<Duration>,
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
    work: Work,
    /// Pods that outlive connections.
    idle: Idle,
    idle_timeout: Option<Duration>,
    scope: Option<watch::Receiver<Scope>>,
    agents: Option<Agents>,
    /// When kept pods were last asked, by uid.
    asked: BTreeMap<String, Duration>,
}

/// What a look found.
struct Found {
    leases: Vec<Lease>,
    pods: Vec<(Marks, PodRef)>,
    /// Those that are kept for sessions that were detached: nobody's, until their time is over.
    kept: Vec<Pod>,
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
            work: Work::new(AT_ONCE),
            idle: Idle::default(),
            idle_timeout: None,
            scope: None,
            agents: None,
            asked: BTreeMap::new(),
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

    /// From each look on by what this says then.
    #[must_use]
    pub fn following(self, scope: watch::Receiver<Scope>) -> Self {
        Self { scope: Some(scope), ..self }
    }

    fn rescope(&mut self) {
        let Some(Scope { lifecycle, namespaces, idle_timeout }) =
            self.scope.as_mut().map(|scope| scope.borrow_and_update().clone())
        else {
            return;
        };
        (self.lifecycle, self.namespaces, self.idle_timeout) = (lifecycle, namespaces, idle_timeout);
    }

    /// Asks these before it deletes a pod that nobody claims.
    #[must_use]
    pub fn asking(self, agents: Option<Agents>) -> Self {
        Self { agents, ..self }
    }

    /// How many pods it has deleted; for metrics.
    pub fn deleted(&self) -> watch::Receiver<u64> {
        self.work.deleted()
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
        self.rescope();
        for uid in self.work.take_unanswered() {
            self.idle.unanswered(uid);
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
        let is_kept = |pod: &Pod| Marks::read(&pod.metadata).is_some_and(|marks| marks.is_kept());
        let (kept, pods): (Vec<_>, Vec<_>) = pods.into_iter().partition(is_kept);
        let pods = pods.iter().filter_map(mine).collect();
        Ok(Found { leases, pods, kept, staying, started, ended: self.born.elapsed() })
    }

    async fn judge(&mut self, found: Found) {
        let Found { leases, pods, kept, staying, started, ended } = found;
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
                self.work.delete(&self.lifecycle, pod);
            }
        }
        let is_live = |owner: &OwnerId| {
            by_owner.get(owner).is_some_and(|lease| holder(lease) != EXPIRED) && !taken.contains(owner)
        };
        self.look_after(&staying, is_live, ended).await;
        self.look_into(kept, ended);
        self.forget(&leases, &still, started, ended).await;
    }

    /// Takes dead claims off pods that outlive connections, and lets go of those that nobody has used for long.
    async fn look_after(&mut self, pods: &[Pod], is_live: impl Fn(&OwnerId) -> bool, now: Duration) {
        let bounds = (self.leases.ownership().lease_duration, self.idle_timeout);
        let verdicts = self.idle.look(pods, is_live, bounds, (now, Timestamp::now()));
        let (going, staying): (Vec<_>, Vec<_>) = verdicts.into_iter().partition(|(_, verdict)| verdict.delete);
        let going: Vec<_> = going.into_iter().map(|(pod, verdict)| (pod.clone(), verdict.patience_is_over)).collect();
        let staying: Vec<_> =
            staying.into_iter().filter_map(|(pod, verdict)| Some((reference(pod)?, verdict.release))).collect();
        let cluster = self.lifecycle.cluster();
        stream::iter(staying)
            .for_each_concurrent(AT_ONCE, |(pod, claims)| async move {
                if let Err(error) = cluster.patch_pod(&pod, persistent::release_patch(claims)).await {
                    tracing::warn!(pod = pod.name, %error, "dead claims are not taken off yet");
                }
            })
            .await;
        for (pod, patience_is_over) in going {
            self.work.let_go(&self.lifecycle, self.agents.as_ref(), pod, patience_is_over);
        }
    }

    /// Asks kept pods now and then whether there is anything left to keep, and ends their time where there is not: then they are their
    /// owner's again.
    fn look_into(&mut self, kept: Vec<Pod>, now: Duration) {
        let Some(agents) = self.agents.clone() else { return };
        let every = self.leases.ownership().lease_duration * ASK_KEPT;
        let asked = std::mem::take(&mut self.asked);
        for pod in kept {
            let Some(reference) = reference(&pod) else { continue };
            let Some(uid) = reference.uid.clone() else { continue };
            let last = asked.get(&uid).copied().unwrap_or(now);
            let due = now.saturating_sub(last) >= every;
            self.asked.insert(uid, if due { now } else { last });
            if !due || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            self.work.unkeep(&self.lifecycle, &agents, pod, reference);
        }
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
