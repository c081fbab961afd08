//! Create, update, patch and delete.

use super::{Api, Body, Query, body, json_answer, route::Objects, warn};
use crate::{
    kinds::{self, Kind},
    kubelet::{new_uid, now},
    patch,
    status::{ApiError, Mistake},
    store::{Key, text},
    validate,
};
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::DeleteOptions};
use rand::RngExt as _;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};

/// Fields of the metadata that only the server sets; an update keeps them.
const SERVERS: [&str; 5] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"];
/// Length of what `generateName` adds, and the letters that it uses.
const SUFFIX: usize = 5;
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// What `fieldValidation` asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Ignored,
    Warned,
    Refused,
}

impl Unknown {
    fn asked(query: &Query) -> Result<Self, ApiError> {
        match query.get("fieldValidation") {
            "Ignore" => Ok(Self::Ignored),
            "" | "Warn" => Ok(Self::Warned),
            "Strict" => Ok(Self::Refused),
            other => Err(ApiError::new(422, "Invalid", format!("fieldValidation: Unsupported value: {other:?}"))),
        }
    }

    /// The warnings to send, or the refusal.
    fn judge(self, kind: Kind, fields: &[String]) -> Result<Vec<String>, ApiError> {
        let named: Vec<String> = fields.iter().map(|field| format!("unknown field \"{field}\"")).collect();
        match self {
            Self::Refused if !named.is_empty() => Err(ApiError::bad_request(format!(
                "{0} in version \"v1\" cannot be handled as a {0}: strict decoding error: {1}",
                kind.kind(),
                named.join(", ")
            ))),
            Self::Warned => Ok(named),
            Self::Ignored | Self::Refused => Ok(Vec::new()),
        }
    }
}

fn is_dry_run(query: &Query) -> Result<bool, ApiError> {
    match query.get("dryRun") {
        "" => Ok(false),
        "All" => Ok(true),
        other => Err(ApiError::new(
            422,
            "Invalid",
            format!("dryRun: Unsupported value: {other:?}: supported values: \"All\""),
        )),
    }
}

async fn json_body(request: Request<Incoming>) -> Result<Value, ApiError> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("application/json");
    if kind.contains("protobuf") || kind.contains("cbor") || kind.contains("yaml") {
        return Err(ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json (not {kind})"
        )));
    }
    let body = body(request).await?;
    serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(format!("couldn't parse the body: {error}")))
}

fn metadata(object: &mut Value) -> Result<&mut Map<String, Value>, ApiError> {
    let object = object.as_object_mut().ok_or_else(|| ApiError::bad_request("not an object"))?;
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    metadata.as_object_mut().ok_or_else(|| ApiError::bad_request("metadata is not an object"))
}

fn ok(object: &Value) -> Response<Body> {
    json_answer(StatusCode::OK, object)
}

impl Api {
    fn key(objects: &Objects, name: &str) -> Key {
        Key::new(objects.kind, objects.namespace.as_deref().unwrap_or_default(), name)
    }

    pub(super) async fn create(
        self: &Arc<Self>,
        objects: &Objects,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let kind = objects.kind;
        let (dry_run, unknown) = (is_dry_run(query)?, Unknown::asked(query)?);
        let read = kinds::read(kind, &json_body(request).await?)?;
        let warnings = unknown.judge(kind, &read.unknown)?;
        let mut object = read.object;
        let namespace = match (&objects.namespace, kind.namespaced()) {
            (Some(namespace), true) => namespace.clone(),
            (None, false) => String::new(),
            _ => return Err(ApiError::method_not_allowed()),
        };
        let name = Self::prepare(kind, &namespace, &mut object)?;
        validate::set_defaults(kind, &mut object, self.grace);
        if kind == Kind::Pod
            && let Value::Object(pod) = &mut object
        {
            pod.insert("status".into(), json!({ "phase": "Pending", "qosClass": "BestEffort" }));
        }
        validate::check(kind, &object)?;
        if kind.namespaced() {
            self.check_namespace(kind, &namespace, &name)?;
        }
        let key = Key::new(kind, &namespace, &name);
        let created = if dry_run {
            match self.store.get(&key) {
                Ok(_) => return Err(ApiError::already_exists(kind, &name)),
                Err(_) => Arc::new(object),
            }
        } else {
            let created = self.store.create(key, object)?;
            if kind == Kind::Pod {
                let pod = Pod::deserialize(&*created).map_err(|error| ApiError::internal(&error.to_string()))?;
                self.kubelet.run(pod);
            }
            created
        };
        let mut response = json_answer(StatusCode::CREATED, &created);
        warn(&mut response, &warnings);
        Ok(response)
    }

    /// Completes a new object's metadata; its name.
    fn prepare(kind: Kind, namespace: &str, object: &mut Value) -> Result<String, ApiError> {
        let metadata = metadata(object)?;
        let field = |metadata: &Map<String, Value>, field: &str| {
            metadata.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let stated = field(metadata, "namespace");
        if !stated.is_empty() && stated != namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({stated} and {namespace})"
            )));
        }
        if !field(metadata, "resourceVersion").is_empty() {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let (mut name, base) = (field(metadata, "name"), field(metadata, "generateName"));
        if name.is_empty() && !base.is_empty() {
            let mut rng = rand::rng();
            let suffix = (0..SUFFIX).map(|_| {
                let index = rng.random_range(0..LETTERS.len());
                LETTERS.get(index).map_or('x', |&letter| char::from(letter))
            });
            // As the real one cuts: 63 characters in all.
            name = base.chars().take(63 - SUFFIX).chain(suffix).collect();
        }
        if name.is_empty() {
            let why = Mistake::required("metadata.name");
            let message = "name or generateName is required".to_owned();
            return Err(ApiError::invalid(kind, "", &[Mistake { message, ..why }]));
        }
        for field in SERVERS.into_iter().chain(["managedFields", "selfLink"]) {
            metadata.remove(field);
        }
        metadata.insert("name".into(), name.clone().into());
        metadata.insert("uid".into(), new_uid().into());
        metadata.insert("creationTimestamp".into(), now().into());
        if kind.namespaced() {
            metadata.insert("namespace".into(), namespace.into());
        }
        Ok(name)
    }

    fn check_namespace(&self, kind: Kind, namespace: &str, name: &str) -> Result<(), ApiError> {
        let found = self.store.get(&Key::new(Kind::Namespace, "", namespace))?;
        if text(&found, "/status/phase") == "Terminating" {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            return Err(ApiError::forbidden(kind, name, &why));
        }
        Ok(())
    }

    pub(super) async fn update(
        &self,
        objects: &Objects,
        name: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let sent = json_body(request).await?;
        if ![name, ""].contains(&text(&sent, "/metadata/name")) {
            return Err(ApiError::bad_request("the name of the object does not match the name on the URL"));
        }
        self.change(objects, name, query, |_| Ok(sent))
    }

    pub(super) async fn patch(
        &self,
        objects: &Objects,
        name: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let merges = match kind.as_str() {
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => true,
            "application/json-patch+json" => false,
            other => {
                return Err(ApiError::unsupported_media_type(format!(
                    "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json (not {other})"
                )));
            }
        };
        let body = body(request).await?;
        let patch: Value = serde_json::from_slice(&body)
            .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
        self.change(objects, name, query, |before| {
            let mut after = before.clone();
            if merges {
                patch::merge(&mut after, &patch);
            } else {
                patch::json_patch(&mut after, &patch)?;
            }
            Ok(after)
        })
    }

    /// An update: what `make` makes of the object becomes the object, as far as that is allowed.
    fn change(
        &self,
        objects: &Objects,
        name: &str,
        query: &Query,
        make: impl FnOnce(&Value) -> Result<Value, ApiError>,
    ) -> Result<Response<Body>, ApiError> {
        let kind = objects.kind;
        let (dry_run, unknown) = (is_dry_run(query)?, Unknown::asked(query)?);
        let mut warnings = Vec::new();
        let mut made = None;
        let result = self.store.update(&Self::key(objects, name), |before| {
            let read = kinds::read(kind, &make(before)?)?;
            warnings = unknown.judge(kind, &read.unknown)?;
            let after = self.admit_change(kind, name, before, read.object)?;
            if dry_run {
                made = Some(after);
                return Ok(before.clone());
            }
            Ok(after)
        })?;
        let mut response = ok(made.as_ref().unwrap_or(&result));
        warn(&mut response, &warnings);
        Ok(response)
    }

    fn admit_change(&self, kind: Kind, name: &str, before: &Value, mut after: Value) -> Result<Value, ApiError> {
        let version = text(&after, "/metadata/resourceVersion");
        if !version.is_empty() && version != text(before, "/metadata/resourceVersion") {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(ApiError::conflict(kind, name, why));
        }
        let uid = text(&after, "/metadata/uid");
        if !uid.is_empty() && uid != text(before, "/metadata/uid") {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                text(before, "/metadata/uid")
            );
            return Err(ApiError::conflict(kind, name, &why));
        }
        let kept = before.get("metadata").cloned().unwrap_or_default();
        let metadata = metadata(&mut after)?;
        metadata.remove("managedFields");
        for field in SERVERS.into_iter().chain(["name", "namespace", "generateName"]) {
            match kept.get(field) {
                Some(value) => metadata.insert(field.into(), value.clone()),
                None => metadata.remove(field),
            };
        }
        if let (true, Value::Object(after)) = (matches!(kind, Kind::Pod | Kind::Namespace), &mut after) {
            match before.get("status") {
                Some(status) => after.insert("status".into(), status.clone()),
                None => after.remove("status"),
            };
        }
        validate::set_defaults(kind, &mut after, self.grace);
        validate::check(kind, &after)?;
        if kind == Kind::Pod {
            validate::check_pod_update(before, &after)?;
        }
        Ok(after)
    }

    pub(super) async fn delete(
        self: &Arc<Self>,
        objects: &Objects,
        name: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let options = delete_options(query, request).await?;
        let key = Self::key(objects, name);
        if is_dry_run(query)? || options.dry_run.iter().flatten().any(|all| all == "All") {
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

    pub(super) async fn delete_all(
        self: &Arc<Self>,
        objects: &Objects,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let options = delete_options(query, request).await?;
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
            let metadata = metadata(&mut pod)?;
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
            metadata(&mut namespace)?.entry("deletionTimestamp").or_insert_with(|| now().into());
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

async fn delete_options(query: &Query, request: Request<Incoming>) -> Result<DeleteOptions, ApiError> {
    let body = body(request).await?;
    let mut options = if body.is_empty() {
        DeleteOptions::default()
    } else {
        serde_json::from_slice(&body)
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
