//! Delete: pods with grace, namespaces with what is in them, and what belonged to a deleted lease.

use super::{Api, Body, Query, json_answer, route::Objects, write};
use crate::{
    kinds::Kind,
    kubelet::now,
    status::ApiError,
    store::{Key, text},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

fn ok(object: &Value) -> Response<Body> {
    json_answer(StatusCode::OK, object)
}

impl Api {
    pub(super) fn delete(
        self: &Arc<Self>,
        objects: &Objects,
        name: &str,
        query: &Query,
        request: &Request<Bytes>,
    ) -> Result<Response<Body>, ApiError> {
        let options = delete_options(query, request)?;
        let key = Self::key(objects, name);
        if write::is_dry_run(query)? || options.dry_run.iter().flatten().any(|all| all == "All") {
            let object = self.store.get(&key)?;
            check_preconditions(&key, &options, &object)?;
            return Ok(ok(&object));
        }
        let object = self.delete_one(&key, &options)?;
        Ok(ok(&match key.kind {
            Kind::Pod | Kind::Namespace => Value::clone(&object),
            Kind::Lease | Kind::Event => json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {
                    "name": name, "group": key.kind.group(), "kind": key.kind.plural(),
                    "uid": text(&object, "/metadata/uid"),
                },
            }),
        }))
    }

    pub(super) fn delete_all(
        self: &Arc<Self>,
        objects: &Objects,
        query: &Query,
        request: &Request<Bytes>,
    ) -> Result<Response<Body>, ApiError> {
        let options = delete_options(query, request)?;
        let selector = Self::selector(objects, query)?;
        let list = self.store.list(objects.kind, objects.namespace.as_deref());
        let mut deleted = Vec::new();
        for (key, _) in list.items.into_iter().filter(|(_, object)| selector.matches(object)) {
            match self.delete_one(&key, &options) {
                Ok(object) => deleted.push(Value::clone(&object)),
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ok(&json!({
            "kind": format!("{}List", objects.kind.kind()), "apiVersion": objects.kind.api_version(),
            "metadata": { "resourceVersion": list.version.to_string() }, "items": deleted,
        })))
    }

    fn delete_one(self: &Arc<Self>, key: &Key, options: &DeleteOptions) -> Result<Arc<Value>, ApiError> {
        match key.kind {
            Kind::Pod => self.delete_pod(key, options),
            Kind::Namespace => self.delete_namespace(key, options),
            Kind::Event => self.store.delete(key, |object| check_preconditions(key, options, object)),
            Kind::Lease => {
                let lease = self.store.delete(key, |object| check_preconditions(key, options, object))?;
                self.collect(&key.namespace, text(&lease, "/metadata/uid"));
                Ok(lease)
            }
        }
    }

    fn delete_pod(self: &Arc<Self>, key: &Key, options: &DeleteOptions) -> Result<Arc<Value>, ApiError> {
        let mut grace = 0;
        let mut uid = String::new();
        let slow = self.faults.slow_delete(&key.namespace, &key.name).is_some();
        let marked = self.store.update(key, |pod| {
            check_preconditions(key, options, pod)?;
            text(pod, "/metadata/uid").clone_into(&mut uid);
            let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
            grace = options.grace_period_seconds.or(own).unwrap_or(self.grace).max(0);
            // Nothing runs (yet, or any more): nothing to wait for.
            let ended = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
            if ended || text(pod, "/spec/nodeName").is_empty() {
                grace = 0;
            }
            let before = pod.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
            if before.is_some_and(|before| before <= grace) {
                return Ok(pod.clone());
            }
            let mut pod = pod.clone();
            let at = Timestamp::now().saturating_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
            let metadata = write::metadata(&mut pod)?;
            metadata.insert("deletionTimestamp".into(), at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into());
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
            Ok(pod)
        })?;
        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let runs = self.kubelet.delete(&uid, grace);
        if runs && (slow || !grace.is_zero()) {
            return Ok(marked);
        }
        // Without grace the object goes at once, whatever the processes do; the kubelet ends them.
        let same = |pod: &Value| text(pod, "/metadata/uid") == uid;
        let other = || ApiError::not_found(key.kind, &key.name);
        let gone = self.store.delete(key, |pod| same(pod).then_some(()).ok_or_else(other));
        Ok(gone.unwrap_or(marked))
    }

    fn delete_namespace(self: &Arc<Self>, key: &Key, options: &DeleteOptions) -> Result<Arc<Value>, ApiError> {
        if ["default", "kube-system"].contains(&key.name.as_str()) {
            return Err(ApiError::forbidden(Kind::Namespace, &key.name, "this namespace may not be deleted"));
        }
        let marked = self.store.update(key, |namespace| {
            check_preconditions(key, options, namespace)?;
            let mut namespace = namespace.clone();
            write::metadata(&mut namespace)?.entry("deletionTimestamp").or_insert_with(|| now().into());
            if let Value::Object(namespace) = &mut namespace {
                namespace.insert("status".into(), json!({ "phase": "Terminating" }));
            }
            Ok(namespace)
        })?;
        let (api, key) = (self.clone(), key.clone());
        let cut = self.admit().unwrap_or_default();
        self.tasks.spawn(async move { cut.run_until_cancelled(api.empty_namespace(&key)).await });
        Ok(marked)
    }

    async fn empty_namespace(self: &Arc<Self>, key: &Key) {
        let mut changed = self.store.subscribe();
        for kind in [Kind::Pod, Kind::Lease, Kind::Event] {
            loop {
                changed.mark_unchanged();
                let left = self.store.list(kind, Some(&key.name)).items;
                if left.is_empty() {
                    break;
                }
                for (key, object) in &left {
                    if object.pointer("/metadata/deletionTimestamp").is_none() {
                        let _ = self.delete_one(key, &DeleteOptions::default());
                    }
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        }
        let _ = self.store.delete(key, |_| Ok(()));
    }

    /// Deletes the pods that belonged to a lease and to nothing else that is there (garbage collection).
    fn collect(self: &Arc<Self>, namespace: &str, uid: &str) {
        let leases = self.store.list(Kind::Lease, Some(namespace)).items;
        let lives = |owner: &str| leases.iter().any(|(_, lease)| text(lease, "/metadata/uid") == owner);
        for (key, pod) in self.store.list(Kind::Pod, Some(namespace)).items {
            let owners =
                pod.pointer("/metadata/ownerReferences").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let owners: Vec<&str> = owners.iter().map(|owner| text(owner, "/uid")).collect();
            if owners.contains(&uid) && !owners.iter().any(|owner| lives(owner)) {
                let _ = self.delete_pod(&key, &DeleteOptions::default());
            }
        }
    }
}

fn delete_options(query: &Query, request: &Request<Bytes>) -> Result<DeleteOptions, ApiError> {
    let body = request.body();
    let mut options = if body.is_empty() {
        DeleteOptions::default()
    } else {
        serde_json::from_slice(body)
            .map_err(|error| ApiError::bad_request(format!("DeleteOptions can't be read: {error}")))?
    };
    if let Some(seconds) = query.number("gracePeriodSeconds")? {
        options.grace_period_seconds = i64::try_from(seconds).ok();
    }
    Ok(options)
}

fn check_preconditions(key: &Key, options: &DeleteOptions, object: &Value) -> Result<(), ApiError> {
    let Some(preconditions) = &options.preconditions else { return Ok(()) };
    let check = |wanted: &Option<String>, pointer: &str, what: &str, hint: &str| {
        let is = text(object, pointer);
        match wanted {
            Some(wanted) if wanted != is => Err(ApiError::conflict(
                key.kind,
                &key.name,
                &format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({is}). The object might have been {hint}"
                ),
            )),
            _ => Ok(()),
        }
    };
    check(&preconditions.uid, "/metadata/uid", "UID", "deleted and then recreated")?;
    check(&preconditions.resource_version, "/metadata/resourceVersion", "ResourceVersion", "modified")
}
