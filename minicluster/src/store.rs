//! The object store: what etcd and the watch cache are to a real API server. Resource versions grow by one per change of
//! anything; a bounded history of changes serves watches and consistent pages, and what is older is Gone.

use crate::{kinds::Kind, status::ApiError};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Changes kept for watches.
const HISTORY: usize = 4096;
/// The first change's resource version comes after this one: no test should take one for a small constant.
const FIRST: u64 = 1000;

/// Names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub kind: Kind,
    /// Empty for kinds without.
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    fn in_scope(&self, kind: Kind, namespace: Option<&str>) -> bool {
        self.kind == kind && namespace.is_none_or(|namespace| self.namespace == namespace)
    }
}

/// One change of one object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub version: u64,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    /// `None`: deleted. `gone` then has its last state with the deletion's resource version.
    pub after: Option<Arc<Value>>,
    pub gone: Option<Arc<Value>>,
}

/// A consistent list.
#[derive(Debug)]
pub(crate) struct List {
    pub version: u64,
    /// In the order of (namespace, name).
    pub items: Vec<(Key, Arc<Value>)>,
}

#[derive(Debug)]
pub(crate) struct Store {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    version: u64,
    /// Changes up to this one are forgotten.
    floor: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
}

impl Store {
    pub fn new() -> Self {
        let state = State { version: FIRST, floor: FIRST, objects: BTreeMap::new(), history: VecDeque::new() };
        Self { state: Mutex::new(state), version: watch::Sender::new(FIRST) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the latest resource version.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub fn get(&self, key: &Key) -> Result<Arc<Value>, ApiError> {
        self.lock().objects.get(key).cloned().ok_or_else(|| ApiError::not_found(key.kind, &key.name))
    }

    pub fn create(&self, key: Key, object: Value) -> Result<Arc<Value>, ApiError> {
        let mut state = self.lock();
        if state.objects.contains_key(&key) {
            return Err(ApiError::already_exists(key.kind, &key.name));
        }
        let created = state.put(key, None, object);
        self.version.send_replace(state.version);
        Ok(created)
    }

    /// Changes an object as `change` says, atomically. A change that changes nothing makes no new version.
    pub fn update(
        &self,
        key: &Key,
        change: impl FnOnce(&Value) -> Result<Value, ApiError>,
    ) -> Result<Arc<Value>, ApiError> {
        let mut state = self.lock();
        let before = state.objects.get(key).cloned().ok_or_else(|| ApiError::not_found(key.kind, &key.name))?;
        let mut after = change(&before)?;
        set_version(&mut after, before.pointer("/metadata/resourceVersion").cloned().unwrap_or_default());
        if after == *before {
            return Ok(before);
        }
        let after = state.put(key.clone(), Some(before), after);
        self.version.send_replace(state.version);
        Ok(after)
    }

    /// Deletes an object if `check` agrees; its last state.
    pub fn delete(
        &self,
        key: &Key,
        check: impl FnOnce(&Value) -> Result<(), ApiError>,
    ) -> Result<Arc<Value>, ApiError> {
        let mut state = self.lock();
        let before = state.objects.get(key).cloned().ok_or_else(|| ApiError::not_found(key.kind, &key.name))?;
        check(&before)?;
        state.objects.remove(key);
        state.version += 1;
        let mut gone = Value::clone(&before);
        set_version(&mut gone, state.version.to_string().into());
        let gone = Arc::new(gone);
        let version = state.version;
        state.remember(Change {
            version,
            key: key.clone(),
            before: Some(before),
            after: None,
            gone: Some(gone.clone()),
        });
        self.version.send_replace(version);
        Ok(gone)
    }

    /// The list now.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> List {
        let state = self.lock();
        List { version: state.version, items: state.select(kind, namespace) }
    }

    /// The list as it was at a version; `Err` if that is forgotten.
    pub fn list_at(&self, kind: Kind, namespace: Option<&str>, version: u64) -> Result<List, ApiError> {
        let state = self.lock();
        if version < state.floor {
            return Err(ApiError::expired(format!(
                "The provided continue parameter is too old to display a consistent list result: {version} ({})",
                state.floor
            )));
        }
        let mut items: BTreeMap<_, _> = state.select(kind, namespace).into_iter().collect();
        for change in state.history.iter().rev().take_while(|change| change.version > version) {
            if change.key.in_scope(kind, namespace) {
                match &change.before {
                    Some(before) => items.insert(change.key.clone(), before.clone()),
                    None => items.remove(&change.key),
                };
            }
        }
        Ok(List { version, items: items.into_iter().collect() })
    }

    /// The changes after `version` and the version that they lead to; `Err` if some of them are forgotten.
    pub fn changes(&self, kind: Kind, namespace: Option<&str>, version: u64) -> Result<(u64, Vec<Change>), ApiError> {
        let state = self.lock();
        if version < state.floor {
            return Err(ApiError::expired(format!("too old resource version: {version} ({})", state.floor)));
        }
        let first = state.history.partition_point(|change| change.version <= version);
        let changes =
            state.history.range(first..).filter(|change| change.key.in_scope(kind, namespace)).cloned().collect();
        Ok((state.version.max(version), changes))
    }

    /// Forgets the history: every older resource version is expired from now on.
    pub fn expire(&self) {
        let mut state = self.lock();
        // One more version, so that watches which are up to date are too old as well.
        state.version += 1;
        state.floor = state.version;
        state.history.clear();
        self.version.send_replace(state.version);
    }
}

impl State {
    fn put(&mut self, key: Key, before: Option<Arc<Value>>, mut object: Value) -> Arc<Value> {
        self.version += 1;
        set_version(&mut object, self.version.to_string().into());
        let object = Arc::new(object);
        self.objects.insert(key.clone(), object.clone());
        let version = self.version;
        self.remember(Change { version, key, before, after: Some(object.clone()), gone: None });
        object
    }

    fn remember(&mut self, change: Change) {
        self.history.push_back(change);
        if self.history.len() > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.floor = oldest.version;
        }
    }

    fn select(&self, kind: Kind, namespace: Option<&str>) -> Vec<(Key, Arc<Value>)> {
        self.objects
            .range(Key::new(kind, namespace.unwrap_or_default(), "")..)
            .take_while(|(key, _)| key.in_scope(kind, namespace))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect()
    }
}

fn set_version(object: &mut Value, version: Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.insert("resourceVersion".into(), version);
    } else if let Value::Object(object) = object {
        object.insert("metadata".into(), json!({ "resourceVersion": version }));
    }
}

/// A text field by JSON pointer; empty if it isn't there.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(Kind::Lease, "default", name)
    }

    fn object(name: &str, n: u32) -> Value {
        json!({ "metadata": { "name": name }, "n": n })
    }

    #[test]
    fn versions_grow_and_a_change_of_nothing_makes_none() {
        let store = Store::new();
        let a = store.create(key("a"), object("a", 1)).expect("created");
        let same = store.update(&key("a"), |old| Ok(old.clone())).expect("updated");
        assert_eq!(a, same);
        let b = store.update(&key("a"), |_| Ok(object("a", 2))).expect("updated");
        assert!(text(&b, "/metadata/resourceVersion") > text(&a, "/metadata/resourceVersion"));
        assert_eq!(store.create(key("a"), object("a", 1)).expect_err("exists").reason, "AlreadyExists");
    }

    #[test]
    fn a_list_can_be_had_as_it_was() {
        let store = Store::new();
        store.create(key("a"), object("a", 1)).expect("created");
        store.create(key("b"), object("b", 1)).expect("created");
        let then = store.list(Kind::Lease, Some("default"));
        store.delete(&key("a"), |_| Ok(())).expect("deleted");
        store.update(&key("b"), |_| Ok(object("b", 2))).expect("updated");
        store.create(key("c"), object("c", 1)).expect("created");
        let again = store.list_at(Kind::Lease, Some("default"), then.version).expect("still known");
        assert_eq!(again.items, then.items);
        store.expire();
        assert_eq!(store.list_at(Kind::Lease, None, then.version).expect_err("expired").code, 410);
    }

    #[test]
    fn a_full_history_expires_its_oldest() {
        let store = Store::new();
        store.create(key("a"), object("a", 0)).expect("created");
        let (early, _) = store.changes(Kind::Lease, None, FIRST).expect("known");
        for n in 1..=u32::try_from(HISTORY).expect("small") + 1 {
            store.update(&key("a"), |_| Ok(object("a", n))).expect("updated");
        }
        assert_eq!(store.changes(Kind::Lease, None, early).expect_err("expired").code, 410);
        let (now, changes) = store.changes(Kind::Lease, None, early + 1).expect("just known");
        assert_eq!(changes.len(), HISTORY);
        assert!(store.changes(Kind::Lease, None, now).expect("known").1.is_empty());
    }
}
