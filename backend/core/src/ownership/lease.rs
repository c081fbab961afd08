//! Leases: made at an owner's first use, renewed through any replica, taken by a reaper, checked by session starts.

use super::mark;
use crate::{
    cluster::{Cluster, ClusterError},
    config::Ownership,
    failure,
    identity::{CALLER, MANAGED_BY, OWNER, PODBAY},
    lifecycle::Backoff,
};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use podbay::{
    ConnectionId, OwnerId,
    v1::{Reason, Refusal},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::{Instant, sleep};

/// `holderIdentity` of a lease that a reaper took.
pub const EXPIRED: &str = "podbay.dev/expired";

/// The name of an owner's lease.
pub fn lease_name(owner: OwnerId) -> String {
    format!("podbay-owner-{owner}")
}

/// The leases of one cluster. Clones share everything.
#[derive(Debug, Clone)]
pub struct Leases {
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) ownership: Ownership,
}

impl Leases {
    /// Leases in `ownership.namespace`.
    pub fn new(cluster: Arc<dyn Cluster>, ownership: Ownership) -> Self {
        Self { cluster, ownership }
    }

    /// The settings.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Renews the owner's lease, or makes it at its first use; with retries until the deadline.
    ///
    /// # Errors
    /// `OWNER_EXPIRED` where a reaper took it, `CALLER_NOT_ALLOWED` where it is another caller's, `KUBERNETES_UNAVAILABLE`.
    pub async fn renew(&self, owner: OwnerId, caller: &str, deadline: Instant) -> Result<(), Refusal> {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.renew_once(owner, caller).await {
                Ok(()) => return Ok(()),
                Err(Renewal::Refused(refusal)) => return Err(refusal),
                Err(Renewal::Failed(error)) => error,
            };
            let wait = backoff.next(None);
            if Instant::now() + wait >= deadline {
                return Err(unavailable("renewed", &error));
            }
            sleep(wait).await;
        }
    }

    async fn renew_once(&self, owner: OwnerId, caller: &str) -> Result<(), Renewal> {
        let name = lease_name(owner);
        match self.cluster.get_lease(&self.ownership.namespace, &name).await {
            Ok(mut lease) => {
                check(&lease, owner, caller).map_err(Renewal::Refused)?;
                let spec = lease.spec.get_or_insert_default();
                spec.renew_time = Some(now());
                // Never shorter than what the owner was told before.
                let seconds = self.seconds().max(spec.lease_duration_seconds.unwrap_or(0));
                spec.lease_duration_seconds = Some(seconds);
                self.cluster.replace_lease(&lease).await?;
            }
            Err(ClusterError::NotFound { .. }) => {
                let lease = self.lease(name, owner, caller, &owner.to_string());
                self.cluster.create_lease(&lease).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Deletes the owner's lease: it ends by itself. One that is gone, or another caller's, is left.
    pub async fn leave(&self, owner: OwnerId, caller: &str) -> Result<(), Refusal> {
        for _ in 0..3 {
            let lease = match self.cluster.get_lease(&self.ownership.namespace, &lease_name(owner)).await {
                Ok(lease) => lease,
                Err(ClusterError::NotFound { .. }) => return Ok(()),
                Err(error) => return Err(unavailable("read", &error)),
            };
            check(&lease, owner, caller)?;
            match self.cluster.delete_lease(&lease).await {
                Ok(()) | Err(ClusterError::NotFound { .. }) => return Ok(()),
                Err(ClusterError::Conflict { .. }) => {}
                Err(error) => return Err(unavailable("deleted", &error)),
            }
        }
        Ok(()) // being renewed all the time: the reaper has it when that ends
    }

    /// Whether a handle of this connection may start another pod (mode `session`): its owner lives, and it was not closed.
    ///
    /// # Errors
    /// `OWNER_EXPIRED`, `TERMINATED`, `CALLER_NOT_ALLOWED`, `KUBERNETES_UNAVAILABLE`.
    pub async fn admit(&self, owner: OwnerId, connection: ConnectionId, caller: &str) -> Result<(), Refusal> {
        let names = [lease_name(owner), mark::name(connection, Some(caller)), mark::name(connection, None)];
        let [lease, closed, terminated] =
            names.each_ref().map(|name| self.cluster.get_lease(&self.ownership.namespace, name));
        let (lease, closed, terminated) = futures::join!(lease, closed, terminated);
        // An operator's says more.
        for mark in [terminated, closed] {
            match mark {
                Err(ClusterError::NotFound { .. }) => {}
                Ok(mark) => return Err(mark::refusal(&mark)),
                Err(error) => return Err(unavailable("read", &error)),
            }
        }
        match lease {
            Ok(lease) => check(&lease, owner, caller),
            Err(ClusterError::NotFound { .. }) => Err(expired()),
            Err(error) => Err(unavailable("read", &error)),
        }
    }

    /// The lease as its reaper would take it.
    pub(super) fn taken(&self, owner: OwnerId, found: Option<&Lease>) -> Lease {
        let Some(found) = found else {
            return self.lease(lease_name(owner), owner, "", EXPIRED);
        };
        let mut lease = found.clone();
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(EXPIRED.into());
        spec.renew_time = Some(now());
        lease
    }

    fn lease(&self, name: String, owner: OwnerId, caller: &str, holder: &str) -> Lease {
        let mut lease = self.bare(name, holder);
        lease.metadata.labels.get_or_insert_default().insert(OWNER.into(), owner.to_string());
        lease.metadata.annotations = Some(BTreeMap::from([(CALLER.to_owned(), caller.to_owned())]));
        lease
    }

    pub(super) fn bare(&self, name: String, holder: &str) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(self.ownership.namespace.clone()),
                labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), PODBAY.to_owned())])),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(self.seconds()),
                acquire_time: Some(now()),
                renew_time: Some(now()),
                ..LeaseSpec::default()
            }),
        }
    }

    fn seconds(&self) -> i32 {
        let seconds = self.ownership.lease_duration.as_secs_f64().ceil();
        (seconds as u64).try_into().unwrap_or(i32::MAX)
    }
}

enum Renewal {
    Refused(Refusal),
    Failed(ClusterError),
}

impl From<ClusterError> for Renewal {
    fn from(error: ClusterError) -> Self {
        Self::Failed(error)
    }
}

/// For people who look at leases; no decision reads it.
fn now() -> MicroTime {
    MicroTime(jiff::Timestamp::now())
}

pub(super) fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn check(lease: &Lease, owner: OwnerId, caller: &str) -> Result<(), Refusal> {
    if holder(lease) == EXPIRED {
        return Err(expired());
    }
    let theirs = lease.metadata.annotations.as_ref().and_then(|notes| notes.get(CALLER));
    if theirs.map(String::as_str) != Some(caller) || holder(lease) != owner.to_string() {
        return Err(Refusal::new(Reason::CallerNotAllowed, "this owner id belongs to another caller"));
    }
    Ok(())
}

fn expired() -> Refusal {
    let text = "the owner was not heard of for too long and its pods were deleted; start anew with a new owner id";
    Refusal::new(Reason::OwnerExpired, text)
}

pub(super) fn unavailable(what: &str, error: &ClusterError) -> Refusal {
    let reason = match error {
        ClusterError::Forbidden { .. } | ClusterError::Unauthorized { .. } => Reason::BackendNotAllowed,
        ClusterError::NotFound { .. } => Reason::NamespaceMissing,
        _ => Reason::KubernetesUnavailable,
    };
    Refusal::new(reason, format!("the lease can't be {what}: {}", failure::short(&error.to_string())))
}
