//! The new configuration's values.

use super::Plan;
use podbay_runtime::config::Shown;
use serde_json::{Map, json};

/// The five that kuberun's `timeout` stands for.
pub(super) const TIMEOUTS: [&str; 5] = ["podStart", "podStop", "commandStart", "signal", "window"];

pub(super) fn migrated(before: &Shown, plan: &Plan) -> Shown {
    let mut root = before.as_object().cloned().unwrap_or_default();
    let kuberun = root.remove("kuberun").unwrap_or_default();
    if !plan.used {
        return Shown::Object(root);
    }
    root.insert("backend".into(), "kubernetes".into());
    root.insert("kubernetes".into(), kubernetes(kuberun, plan));
    if plan.disable_command {
        let mut security = taken(&mut root, "security");
        for key in ["command", "subsystem"] {
            let mut item = taken(&mut security, key);
            item.insert("mode".into(), "disable".into());
            security.insert(key.into(), Shown::Object(item));
        }
        root.insert("security".into(), Shown::Object(security));
    }
    if let Some(listen) = &plan.listen {
        root.remove("listen");
        let mut ssh = taken(&mut root, "ssh");
        ssh.entry("listen").or_insert_with(|| listen.clone());
        root.insert("ssh".into(), Shown::Object(ssh));
    }
    Shown::Object(root)
}

fn kubernetes(mut kuberun: Shown, plan: &Plan) -> Shown {
    for path in &plan.ignored {
        let steps: Vec<&str> = path.split(['.', '[']).collect();
        remove(&mut kuberun, &steps);
    }
    let mut section = kuberun.as_object().cloned().unwrap_or_default();
    section.remove("timeout");
    if let Some(connection) = section.get_mut("connection").and_then(Shown::as_object_mut) {
        connection.remove("timeout");
        connection.remove("insecure");
        if connection.is_empty() {
            section.remove("connection");
        }
    }
    if plan.timeout.is_some() || plan.http.is_some() {
        let mut timeouts = Map::new();
        if let Some(timeout) = &plan.timeout {
            timeouts.extend(TIMEOUTS.map(|key| (key.to_owned(), timeout.clone())));
        }
        if let Some(http) = &plan.http {
            timeouts.insert("http".into(), http.clone());
        }
        section.insert("timeouts".into(), Shown::Object(timeouts));
    }
    let old = section.remove("pod").unwrap_or_default();
    let mut pod = Map::new();
    for (key, value) in old.as_object().into_iter().flatten() {
        match key.to_ascii_lowercase().as_str() {
            "disablecommand" | "disableagent" => {}
            "namespace" => drop(pod.insert("metadata".into(), json!({ "namespace": value }))),
            // Nothing is left where all of it was ignored.
            "podspec" if !plan.ignored.is_empty() && value.as_object().is_some_and(Map::is_empty) => {
                pod.insert("spec".into(), Shown::Null);
            }
            "podspec" => drop(pod.insert("spec".into(), value.clone())),
            _ => drop(pod.insert(key.clone(), value.clone())),
        }
    }
    pod.insert("mode".into(), "session".into());
    pod.insert("disableAgent".into(), (!plan.agent).into());
    if let Some(shell) = &plan.shell {
        pod.insert("shellCommand".into(), shell.clone().into());
    }
    section.insert("pod".into(), Shown::Object(pod));
    Shown::Object(section)
}

/// A map's map, taken out; an empty one where it is none.
fn taken(map: &mut Map<String, Shown>, key: &str) -> Map<String, Shown> {
    match map.remove(key) {
        Some(Shown::Object(below)) => below,
        Some(_) | None => Map::new(),
    }
}

fn remove(place: &mut Shown, steps: &[&str]) {
    let Some((step, rest)) = steps.split_first() else { return };
    if let Some(index) = step.strip_suffix(']').and_then(|index| index.parse::<usize>().ok()) {
        if let Some(item) = place.get_mut(index) {
            remove(item, rest);
        }
        return;
    }
    let Shown::Object(map) = place else { return };
    let Some(key) = map.keys().find(|key| key.eq_ignore_ascii_case(step)).cloned() else { return };
    if rest.is_empty() {
        map.remove(&key);
    } else if let Some(below) = map.get_mut(&key) {
        remove(below, rest);
    }
}
