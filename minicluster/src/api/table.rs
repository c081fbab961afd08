//! Pods as a `Table`, which `kubectl get` prints as it is: without it, only names and ages would be shown.

use crate::store::text;
use http::{HeaderMap, header::ACCEPT};
use serde_json::{Value, json};

/// Whether the client would rather have a table.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').next().is_some_and(|first| first.contains("as=Table") && first.contains("v=v1;"))
        || accept.split(',').next().is_some_and(|first| first.contains("as=Table") && first.ends_with("v=v1"))
}

pub(super) fn of_object(pod: &Value) -> Value {
    let metadata = json!({ "resourceVersion": text(pod, "/metadata/resourceVersion") });
    table(&metadata, &[row(pod)])
}

pub(super) fn of_list(list: &Value) -> Value {
    let rows: Vec<Value> = list.get("items").and_then(Value::as_array).into_iter().flatten().map(row).collect();
    table(&list.get("metadata").cloned().unwrap_or_else(|| json!({})), &rows)
}

fn table(metadata: &Value, rows: &[Value]) -> Value {
    let column = |name: &str, format: &str| json!({ "name": name, "type": "string", "format": format, "description": "", "priority": 0 });
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "rows": rows,
        "columnDefinitions": [
            column("Name", "name"), column("Ready", ""), column("Status", ""), column("Restarts", ""), column("Age", ""),
        ],
    })
}

fn row(pod: &Value) -> Value {
    let statuses = pod.pointer("/status/containerStatuses").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let ready = statuses.iter().filter(|status| status.get("ready") == Some(&Value::Bool(true))).count();
    let total = pod.pointer("/spec/containers").and_then(Value::as_array).map_or(0, Vec::len);
    let restarts: i64 = statuses.iter().filter_map(|status| status.get("restartCount")?.as_i64()).sum();
    json!({
        "cells": [
            text(pod, "/metadata/name"), format!("{ready}/{total}"), state(pod, statuses), restarts.to_string(), age(pod),
        ],
        "object": { "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": pod.get("metadata") },
    })
}

fn state(pod: &Value, statuses: &[Value]) -> String {
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        return "Terminating".into();
    }
    let reason = statuses.iter().find_map(|status| {
        let reason = [text(status, "/state/waiting/reason"), text(status, "/state/terminated/reason")];
        reason.into_iter().find(|reason| !reason.is_empty())
    });
    reason.unwrap_or_else(|| text(pod, "/status/phase")).to_owned()
}

fn age(pod: &Value) -> String {
    let Ok(created) = text(pod, "/metadata/creationTimestamp").parse::<jiff::Timestamp>() else { return String::new() };
    let seconds = jiff::Timestamp::now().duration_since(created).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}
