//! Create, update and patch.

use super::{Api, Body, Query, json_answer, route::Objects, warn};
use crate::{
    kinds::{self, Kind},
    kubelet::{new_uid, now},
    patch,
    status::{ApiError, Mistake},
    store::{Key, text},
    validate,
};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use k8s_openapi::api::core::v1::Pod;
use rand::RngExt as _;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use std::sync::Arc;

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

/// The name of the object in a body, or how it will begin; empty if there is none. For faults.
pub(super) fn name_in(body: &[u8]) -> String {
    let object: Value = serde_json::from_slice(body).unwrap_or_default();
    [text(&object, "/metadata/name"), text(&object, "/metadata/generateName")]
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or_default()
        .to_owned()
}

pub(super) fn is_dry_run(query: &Query) -> Result<bool, ApiError> {
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

fn json_body(request: &Request<Bytes>) -> Result<Value, ApiError> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("application/json");
    if kind.contains("protobuf") || kind.contains("cbor") || kind.contains("yaml") {
        return Err(ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json (not {kind})"
        )));
    }
    serde_json::from_slice(request.body())
        .map_err(|error| ApiError::bad_request(format!("couldn't parse the body: {error}")))
}

pub(super) fn metadata(object: &mut Value) -> Result<&mut Map<String, Value>, ApiError> {
    let object = object.as_object_mut().ok_or_else(|| ApiError::bad_request("not an object"))?;
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    metadata.as_object_mut().ok_or_else(|| ApiError::bad_request("metadata is not an object"))
}

fn ok(object: &Value) -> Response<Body> {
    json_answer(StatusCode::OK, object)
}

impl Api {
    pub(super) fn key(objects: &Objects, name: &str) -> Key {
        Key::new(objects.kind, objects.namespace.as_deref().unwrap_or_default(), name)
    }

    pub(super) fn create(
        self: &Arc<Self>,
        objects: &Objects,
        query: &Query,
        request: &Request<Bytes>,
    ) -> Result<Response<Body>, ApiError> {
        let kind = objects.kind;
        let (dry_run, unknown) = (is_dry_run(query)?, Unknown::asked(query)?);
        let read = kinds::read(kind, &json_body(request)?)?;
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

    pub(super) fn update(
        &self,
        objects: &Objects,
        name: &str,
        query: &Query,
        request: &Request<Bytes>,
    ) -> Result<Response<Body>, ApiError> {
        let sent = json_body(request)?;
        if ![name, ""].contains(&text(&sent, "/metadata/name")) {
            return Err(ApiError::bad_request("the name of the object does not match the name on the URL"));
        }
        self.change(objects, name, query, |_| Ok(sent))
    }

    pub(super) fn patch(
        &self,
        objects: &Objects,
        name: &str,
        query: &Query,
        request: &Request<Bytes>,
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
        let patch: Value = serde_json::from_slice(request.body())
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
}
