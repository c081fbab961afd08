//! The objects.

use super::{OnCreate, OnStream, Program, faults::Faults, script};
use crate::cluster::{ClusterError, PodRef, StreamEnd};
use futures::FutureExt as _;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Event, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Namespace and name.
pub(super) type Key = (String, String);

pub(super) struct State {
    pub pods: BTreeMap<Key, Pod>,
    pub leases: BTreeMap<Key, Lease>,
    pub events: BTreeMap<String, Vec<Event>>,
    pub faults: Faults,
    pub down: Option<ClusterError>,
    pub interruptions: u64,
    pub on_create: Arc<OnCreate>,
    pub on_stream: Arc<OnStream>,
    pub termination: Option<Duration>,
    pub http: Duration,
    pub half_close: bool,
    pub skew: i64,
    version: u64,
    born: Instant,
}

impl State {
    pub fn new() -> Self {
        Self {
            pods: BTreeMap::new(),
            leases: BTreeMap::new(),
            events: BTreeMap::new(),
            faults: Faults::default(),
            down: None,
            interruptions: 0,
            on_create: Arc::new(|pod| vec![script::ready(Duration::from_millis(10), pod)]),
            on_stream: Arc::new(|_: Program| async { StreamEnd::Success }.boxed()),
            termination: Some(Duration::from_millis(10)),
            http: Duration::from_secs(15),
            half_close: true,
            skew: 0,
            version: 0,
            born: Instant::now(),
        }
    }

    /// The server's clock: starts on 2026-01-01, runs with tokio's, wrong by `skew`.
    pub fn now(&self) -> Time {
        const START: i64 = 1_767_225_600;
        let seconds = START + self.born.elapsed().as_secs() as i64 + self.skew;
        Time(jiff::Timestamp::from_second(seconds).unwrap_or_default())
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn stamp(&mut self, meta: &mut ObjectMeta) {
        let version = self.next_version();
        meta.resource_version = Some(version.to_string());
        if meta.uid.is_none() {
            meta.uid = Some(format!("uid-{version}"));
            meta.creation_timestamp = Some(self.now());
        }
    }

    pub fn create_pod(&mut self, pod: &Pod) -> Result<Pod, ClusterError> {
        let key = key(&pod.metadata)?;
        if self.pods.contains_key(&key) {
            return Err(ClusterError::AlreadyExists);
        }
        let mut pod = pod.clone();
        self.stamp(&mut pod.metadata);
        pod.status = Some(script::status("Pending"));
        self.pods.insert(key, pod.clone());
        Ok(pod)
    }

    /// The pod, and only that one if the reference has a uid.
    pub fn pod(&self, pod: &PodRef) -> Result<&Pod, ClusterError> {
        let not_found = || ClusterError::NotFound { message: format!("pods {:?} not found", pod.name) };
        let found = self.pods.get(&(pod.namespace.clone(), pod.name.clone())).ok_or_else(not_found)?;
        if pod.uid.is_some() && pod.uid != found.metadata.uid { Err(not_found()) } else { Ok(found) }
    }

    pub fn change_pod(&mut self, namespace: &str, name: &str, change: impl FnOnce(&mut Pod)) -> bool {
        let version = self.next_version();
        let Some(pod) = self.pods.get_mut(&(namespace.to_owned(), name.to_owned())) else { return false };
        change(pod);
        pod.metadata.resource_version = Some(version.to_string());
        true
    }

    /// Applies a merge patch of labels and annotations; nothing else of a pod is patched here.
    pub fn patch_pod(&mut self, pod: &PodRef, patch: &serde_json::Value) -> Result<Pod, ClusterError> {
        self.pod(pod)?;
        let merge = |map: &mut Option<BTreeMap<String, String>>, key: &str| {
            let changes = patch.pointer(&format!("/metadata/{key}")).and_then(serde_json::Value::as_object);
            for (key, value) in changes.into_iter().flatten() {
                match value.as_str() {
                    Some(value) => drop(map.get_or_insert_default().insert(key.clone(), value.to_owned())),
                    None => drop(map.get_or_insert_default().remove(key)),
                }
            }
        };
        self.change_pod(&pod.namespace, &pod.name, |pod| {
            merge(&mut pod.metadata.labels, "labels");
            merge(&mut pod.metadata.annotations, "annotations");
        });
        self.pod(pod).cloned()
    }

    /// Removes a pod, only that of this uid where one is given.
    pub fn remove_pod(&mut self, namespace: &str, name: &str, uid: Option<&str>) {
        let key = (namespace.to_owned(), name.to_owned());
        if self.pods.get(&key).is_some_and(|pod| uid.is_none() || pod.metadata.uid.as_deref() == uid) {
            self.pods.remove(&key);
        }
    }

    /// Marks the pod as being deleted; gives its uid and how long it still has.
    pub fn begin_delete(
        &mut self,
        pod: &PodRef,
        grace: Option<Duration>,
    ) -> Result<(Option<String>, Duration), ClusterError> {
        let bare = PodRef { uid: None, ..pod.clone() };
        let found = self.pod(&bare)?;
        let uid = found.metadata.uid.clone();
        if pod.uid.is_some() && pod.uid != uid {
            return Err(ClusterError::Conflict { message: "the UID in the precondition does not match".into() });
        }
        let own = found.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let grace = grace.unwrap_or(Duration::from_secs(own.unsigned_abs()));
        let now = self.now();
        self.change_pod(&pod.namespace, &pod.name, |pod| {
            pod.metadata.deletion_timestamp.get_or_insert(now);
        });
        Ok((uid, self.termination.map_or(grace, |takes| takes.min(grace))))
    }

    pub fn create_lease(&mut self, lease: &Lease) -> Result<Lease, ClusterError> {
        let key = key(&lease.metadata)?;
        if self.leases.contains_key(&key) {
            return Err(ClusterError::AlreadyExists);
        }
        let mut lease = lease.clone();
        self.stamp(&mut lease.metadata);
        self.leases.insert(key, lease.clone());
        Ok(lease)
    }

    pub fn lease(&self, namespace: &str, name: &str) -> Result<&Lease, ClusterError> {
        self.leases
            .get(&(namespace.to_owned(), name.to_owned()))
            .ok_or_else(|| ClusterError::NotFound { message: format!("leases {name:?} not found") })
    }

    pub fn replace_lease(&mut self, lease: &Lease) -> Result<Lease, ClusterError> {
        let key = key(&lease.metadata)?;
        self.same_version(lease)?;
        let mut lease = lease.clone();
        self.stamp(&mut lease.metadata);
        self.leases.insert(key, lease.clone());
        Ok(lease)
    }

    pub fn delete_lease(&mut self, lease: &Lease) -> Result<(), ClusterError> {
        let key = key(&lease.metadata)?;
        self.same_version(lease)?;
        self.leases.remove(&key);
        Ok(())
    }

    fn same_version(&self, lease: &Lease) -> Result<(), ClusterError> {
        let (namespace, name) = key(&lease.metadata)?;
        let found = self.lease(&namespace, &name)?;
        match &lease.metadata.resource_version {
            Some(version) if found.metadata.resource_version.as_ref() != Some(version) => {
                Err(ClusterError::Conflict { message: "the object has been modified".into() })
            }
            _ => Ok(()),
        }
    }
}

fn key(meta: &ObjectMeta) -> Result<Key, ClusterError> {
    match (&meta.namespace, &meta.name) {
        (Some(namespace), Some(name)) => Ok((namespace.clone(), name.clone())),
        _ => Err(ClusterError::Invalid { message: "name and namespace are required".into() }),
    }
}

/// Whether an object has all labels of a `key=value,…` or bare `key` selector.
pub(super) fn selects(selector: &str, meta: &ObjectMeta) -> bool {
    selector.split(',').filter(|term| !term.is_empty()).all(|term| {
        let labels = meta.labels.as_ref();
        match term.split_once('=') {
            Some((key, value)) => labels.and_then(|l| l.get(key)).is_some_and(|found| found == value),
            None => labels.is_some_and(|l| l.contains_key(term)),
        }
    })
}
