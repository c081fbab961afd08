//! Answers that don't depend on objects: what `kubectl` asks to learn what there is.

use crate::{kinds::Kind, status::ApiError};
use serde_json::{Map, Value, json};

/// The version that the server says it is.
pub(crate) fn answer(path: &str, version: &str, address: &str) -> Result<Value, ApiError> {
    let group = "coordination.k8s.io";
    let group_version = json!({ "groupVersion": "coordination.k8s.io/v1", "version": "v1" });
    let api_group = json!({ "name": group, "versions": [group_version], "preferredVersion": group_version });
    Ok(match path {
        "" => json!({ "paths": ["/api", "/api/v1", "/apis", "/apis/coordination.k8s.io/v1", "/healthz", "/version"] }),
        "version" => {
            let mut numbers = version.trim_start_matches('v').split('.');
            json!({
                "major": numbers.next().unwrap_or_default(), "minor": numbers.next().unwrap_or_default(),
                "gitVersion": version, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
                "goVersion": "", "compiler": "", "platform": "linux/amd64",
            })
        }
        "api" => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": address }],
        }),
        "apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [api_group] }),
        "apis/coordination.k8s.io" => with(api_group, "APIGroup"),
        "api/v1" => resources("", "v1"),
        "apis/coordination.k8s.io/v1" => resources(group, "coordination.k8s.io/v1"),
        "openapi/v3" => json!({ "paths": {
            "api/v1": { "serverRelativeURL": "/openapi/v3/api/v1" },
            "apis/coordination.k8s.io/v1": { "serverRelativeURL": "/openapi/v3/apis/coordination.k8s.io/v1" },
        }}),
        "openapi/v3/api/v1" => openapi("", version),
        "openapi/v3/apis/coordination.k8s.io/v1" => openapi(group, version),
        _ => return Err(ApiError::no_such_path()),
    })
}

fn with(mut group: Value, kind: &str) -> Value {
    if let Value::Object(group) = &mut group {
        group.insert("kind".into(), kind.into());
        group.insert("apiVersion".into(), "v1".into());
    }
    group
}

fn resources(group: &str, group_version: &str) -> Value {
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let mut resources = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.group() == group) {
        let (short, all): (&[&str], &[&str]) = match kind {
            Kind::Namespace => (&["ns"], &[]),
            Kind::Pod => (&["po"], &["all"]),
            Kind::Event => (&["ev"], &[]),
            Kind::Lease => (&[], &[]),
        };
        resources.push(json!({
            "name": kind.plural(), "singularName": kind.kind().to_ascii_lowercase(), "namespaced": kind.namespaced(),
            "kind": kind.kind(), "verbs": verbs, "shortNames": short, "categories": all,
        }));
        if kind == Kind::Pod {
            for (sub, of, verbs) in [
                ("attach", "PodAttachOptions", &["create", "get"][..]),
                ("exec", "PodExecOptions", &["create", "get"][..]),
                ("log", "Pod", &["get"][..]),
            ] {
                resources.push(json!({
                    "name": format!("pods/{sub}"), "singularName": "", "namespaced": true, "kind": of, "verbs": verbs,
                }));
            }
        }
    }
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources })
}

/// Only what tells `kubectl` that the server validates fields itself.
fn openapi(group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.group() == group) {
        let base = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/v1") };
        let scope = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
        let path = format!("{base}{scope}/{}", kind.plural());
        let gvk = json!({ "group": group, "version": "v1", "kind": kind.kind() });
        let parameters = json!([
            { "name": "fieldValidation", "in": "query", "schema": { "type": "string" } },
            { "name": "dryRun", "in": "query", "schema": { "type": "string" } },
        ]);
        let operation = |action: &str| {
            json!({
                "parameters": parameters, "responses": {},
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
            })
        };
        paths.insert(path.clone(), json!({ "post": operation("post") }));
        paths.insert(format!("{path}/{{name}}"), json!({ "patch": operation("patch"), "put": operation("put") }));
    }
    json!({ "openapi": "3.0.0", "info": { "title": "Kubernetes", "version": version }, "paths": paths })
}
