//! A map of a configuration, read key by key.

use super::{
    convert::FromNode,
    mistake::Sink,
    node::{Node, Value},
    strict::Reading,
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeSet, rc::Rc};

/// A map of a configuration file, or the absence of one. Keys that were never asked for are mistakes, reported when
/// the section is dropped.
#[derive(Debug)]
pub struct Section {
    node: Option<Rc<Node>>,
    at: (u64, u64),
    path: String,
    known: BTreeSet<String>,
    any_case: bool,
    sink: Sink,
}

impl Section {
    pub(super) fn new(node: Option<Rc<Node>>, at: (u64, u64), path: String, sink: Sink) -> Self {
        let node = match node {
            Some(node) if matches!(node.value, Value::Null) => None,
            Some(node) if !matches!(node.value, Value::Map(_)) => {
                sink.add(node.at, &path, format!("expected a map, found {}", node.value.kind()));
                None
            }
            node => node,
        };
        Self { node, at, path, known: BTreeSet::new(), any_case: false, sink }
    }

    /// From here down, keys are found in any case: `restartpolicy` is `restartPolicy`, as Go's JSON readers have it. Maps with
    /// keys of the user's own (labels) stay as they are.
    #[must_use]
    pub fn in_any_case(mut self) -> Self {
        self.any_case = true;
        let entries = self.entries();
        for (i, (key, at, _)) in entries.iter().enumerate() {
            if let Some((before, ..)) = entries.iter().take(i).find(|(before, ..)| before.eq_ignore_ascii_case(key)) {
                let message = format!("is given twice: {before} and {key} are the same");
                self.sink.add(*at, &self.below(key), message);
            }
        }
        self
    }

    /// What stands behind a key, as it was written. Does not count as reading it.
    pub fn value(&self, key: &str) -> Option<serde_json::Value> {
        self.find(key).map(|node| node.to_json())
    }

    /// Whether the key is there with a map behind it. Does not count as reading it.
    pub fn is_map(&self, key: &str) -> bool {
        self.find(key).is_some_and(|node| matches!(node.value, Value::Map(_)))
    }

    /// The dotted path of this section; empty = the whole document.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the key is there with a value. Does not count as reading it.
    pub fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// A sub-map; an absent one reads as empty.
    #[must_use]
    pub fn section(&mut self, key: &str) -> Self {
        self.known.insert(key.to_owned());
        let node = self.find(key);
        let at = node.as_ref().map_or(self.at, |node| node.at);
        self.child(node, at, self.below(key))
    }

    fn child(&self, node: Option<Rc<Node>>, at: (u64, u64), path: String) -> Self {
        let child = Self::new(node, at, path, self.sink.clone());
        if self.any_case { child.in_any_case() } else { child }
    }

    /// A list of maps; an absent one reads as empty.
    pub fn list(&mut self, key: &str) -> Vec<Self> {
        self.known.insert(key.to_owned());
        let Some(node) = self.find(key) else { return Vec::new() };
        let Value::List(items) = &node.value else {
            self.sink.add(node.at, &self.below(key), format!("expected a list, found {}", node.value.kind()));
            return Vec::new();
        };
        let path = self.below(key);
        items
            .iter()
            .enumerate()
            .map(|(i, item)| self.child(Some(Rc::clone(item)), item.at, format!("{path}[{i}]")))
            .collect()
    }

    /// A value; `None` where it is absent or wrong (then a mistake is recorded).
    pub fn get<T: FromNode>(&mut self, key: &str) -> Option<T> {
        self.known.insert(key.to_owned());
        let node = self.find(key)?;
        match T::from_node(&node) {
            Ok(value) => Some(value),
            Err(problems) => {
                for (at, step, message) in problems {
                    self.sink.add(at, &format!("{}{step}", self.below(key)), message);
                }
                None
            }
        }
    }

    /// A value, or a default where it is absent or wrong.
    pub fn or<T: FromNode>(&mut self, key: &str, default: T) -> T {
        self.get(key).unwrap_or(default)
    }

    /// A value that must be there.
    pub fn required<T: FromNode>(&mut self, key: &str) -> Option<T> {
        if !self.has(key) {
            self.known.insert(key.to_owned());
            self.sink.add(self.at, &self.below(key), "is missing");
            return None;
        }
        self.get(key)
    }

    /// A value of a type with its own serde form (Kubernetes objects), strictly: a key that the type does not know is a
    /// mistake, also where its value is empty.
    pub fn serde<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        self.known.insert(key.to_owned());
        let node = self.find(key)?;
        let (value, problems) = Reading::new(self.any_case).read(&node);
        for (at, step, message) in problems {
            self.sink.add(at, &format!("{}{step}", self.below(key)), message);
        }
        value
    }

    /// A key that belongs to another program.
    pub fn ignore(&mut self, key: &str) {
        self.known.insert(key.to_owned());
    }

    /// A key that is known but not built; a mistake where it is present.
    pub fn refuse(&mut self, key: &str, why: &str) {
        self.known.insert(key.to_owned());
        if let Some(at) = self.key_position(key) {
            self.sink.add(at, &self.below(key), format!("is not supported: {why}"));
        }
    }

    /// Records a mistake at the key's value, or at the section where it is absent.
    pub fn mistake(&self, key: &str, message: impl Into<String>) {
        let at = self.find(key).map_or(self.at, |node| node.at);
        self.sink.add(at, &self.below(key), message);
    }

    /// Records a mistake at a value further down, or at the last that is there on the way to it: for what shows only when
    /// the sections were read.
    pub fn mistake_at(&self, keys: &[&str], message: impl Into<String>) {
        let (mut at, mut node) = (self.at, self.node.clone());
        for key in keys {
            node = node.and_then(|node| match &node.value {
                Value::Map(entries) => {
                    entries.iter().find(|(name, ..)| name == key).map(|(_, _, below)| Rc::clone(below))
                }
                _ => None,
            });
            at = node.as_ref().map_or(at, |node| node.at);
        }
        self.sink.add(at, &self.below(&keys.join(".")), message);
    }

    fn below(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn entries(&self) -> &[(String, (u64, u64), Rc<Node>)] {
        match self.node.as_deref() {
            Some(Node { value: Value::Map(entries), .. }) => entries,
            _ => &[],
        }
    }

    /// An explicit null counts as absent, as in Go's readers.
    fn find(&self, key: &str) -> Option<Rc<Node>> {
        let (_, _, node) = self.entries().iter().find(|(name, ..)| self.same(name, key))?;
        (!matches!(node.value, Value::Null)).then(|| Rc::clone(node))
    }

    fn key_position(&self, key: &str) -> Option<(u64, u64)> {
        self.entries().iter().find(|(name, ..)| self.same(name, key)).map(|(_, at, _)| *at)
    }

    fn same(&self, one: &str, other: &str) -> bool {
        one == other || (self.any_case && one.eq_ignore_ascii_case(other))
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        for (key, at, _) in self.entries() {
            if !self.known.iter().any(|known| self.same(known, key)) {
                let hint = suggest(key, self.known.iter().map(String::as_str));
                self.sink.add(*at, &self.below(key), format!("unknown key{hint}"));
            }
        }
    }
}

pub(super) fn suggest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = |name: &&str| strsim::damerau_levenshtein(&name.to_lowercase(), &key.to_lowercase());
    match known.map(|name| (near(&name), name)).min() {
        Some((distance, name)) if distance <= 1 + key.len() / 4 => format!("; did you mean {name}?"),
        _ => String::new(),
    }
}
