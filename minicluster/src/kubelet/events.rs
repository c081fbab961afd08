//! Events about pods, as the scheduler and the kubelet write them. The same event again counts up.

use super::{NODE, PodHandle};
use crate::{
    kinds::Kind,
    store::{Key, Store},
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
};

/// Events kept; the real ones are kept for an hour.
const KEEP: usize = 2048;

#[derive(Debug)]
pub(crate) struct Recorder {
    store: Arc<Store>,
    written: Mutex<VecDeque<Key>>,
}

/// Who writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Scheduler,
    Kubelet,
}

/// An event to write.
#[derive(Debug)]
pub(crate) struct Note<'a> {
    pub source: Source,
    pub warning: bool,
    pub reason: &'a str,
    pub message: &'a str,
    pub container: Option<&'a str>,
}

impl Recorder {
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, written: Mutex::default() }
    }

    pub fn write(&self, pod: &PodHandle, note: &Note<'_>) {
        let mut hasher = DefaultHasher::new();
        (&pod.uid, note.reason, note.message, note.container).hash(&mut hasher);
        let name = format!("{}.{:016x}", pod.name, hasher.finish());
        let key = Key::new(Kind::Event, &pod.namespace, &name);
        let now = super::now();
        let counted = self.store.update(&key, |event| {
            let mut event = event.clone();
            let count = event.get("count").and_then(Value::as_i64).unwrap_or(0);
            if let Value::Object(event) = &mut event {
                event.insert("count".into(), json!(count + 1));
                event.insert("lastTimestamp".into(), json!(now));
            }
            Ok(event)
        });
        if counted.is_err() {
            // Fails only if somebody was quicker with the same event: then it is there.
            let _ = self.store.create(key.clone(), event(pod, note, &name, &now));
            self.remember(key);
        }
    }

    fn remember(&self, key: Key) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.push_back(key);
        if written.len() > KEEP
            && let Some(oldest) = written.pop_front()
        {
            let _ = self.store.delete(&oldest, |_| Ok(()));
        }
    }
}

fn event(pod: &PodHandle, note: &Note<'_>, name: &str, now: &str) -> Value {
    let (component, host) = match note.source {
        Source::Scheduler => ("default-scheduler", None),
        Source::Kubelet => ("kubelet", Some(NODE)),
    };
    let mut object = json!({
        "kind": "Pod", "apiVersion": "v1", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
    });
    if let (Value::Object(object), Some(container)) = (&mut object, note.container) {
        object.insert("fieldPath".into(), format!("spec.containers{{{container}}}").into());
    }
    let mut source = json!({ "component": component });
    if let (Value::Object(source), Some(host)) = (&mut source, host) {
        source.insert("host".into(), host.into());
    }
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {
            "name": name, "namespace": pod.namespace, "uid": super::new_uid(), "creationTimestamp": now,
        },
        "involvedObject": object,
        "reason": note.reason, "message": note.message,
        "type": if note.warning { "Warning" } else { "Normal" },
        "count": 1, "firstTimestamp": now, "lastTimestamp": now,
        "source": source, "reportingComponent": component, "reportingInstance": host.unwrap_or_default(),
    })
}
