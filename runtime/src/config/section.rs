//! A map of a configuration, read key by key.

use super::{
    convert::FromNode,
    describe::{Kind, Note, Shown},
    mistake::Sink,
    node::{Node, Value},
    strict::Reading,
};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
};

/// A map of a configuration file, or the absence of one. Keys that were never asked for are mistakes, reported when
/// the section is dropped.
#[derive(Debug)]
pub struct Section {
    node: Option<Rc<Node>>,
    at: (u64, u64),
    path: String,
    known: BTreeSet<String>,
    any_case: bool,
    /// Unknown keys are warned of.
    lenient: bool,
    /// The file's names of keys that are read under others.
    names: Rc<[(&'static str, String)]>,
    /// It is none of the file's: what is read of it is not noted.
    hidden: bool,
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
        Self {
            node,
            at,
            path,
            known: BTreeSet::new(),
            any_case: false,
            lenient: false,
            names: Rc::new([]),
            hidden: false,
            sink,
        }
    }

    /// From here down, unknown keys are warned of and no mistakes.
    #[must_use]
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// Reads a file that the configuration names: a change of it is then one of the configuration.
    ///
    /// # Errors
    /// As reading files does.
    pub fn file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let read = fs::read(path);
        self.sink.noted.note(path, read.as_deref().ok());
        read
    }

    /// The same for text.
    ///
    /// # Errors
    /// As reading files does, or where it is no UTF-8.
    pub fn text_file(&self, path: &Path) -> io::Result<String> {
        String::from_utf8(self.file(path)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is no UTF-8"))
    }

    /// Notes files that something else reads: [`Self::file`].
    pub fn names_files<'a>(&self, paths: impl IntoIterator<Item = &'a PathBuf>) {
        for path in paths {
            drop(self.file(path).map(zeroize::Zeroizing::new));
        }
    }

    /// Whether there is no file, and the reader is only asked what it would read: everything is absent, and whatever can be
    /// asked for should be.
    pub fn describing(&self) -> bool {
        self.sink.describing
    }

    pub(super) fn at(&self) -> (u64, u64) {
        self.at
    }

    /// A key's position and its value, where that is there.
    pub(super) fn entry(&self, key: &str) -> Option<((u64, u64), Rc<Node>)> {
        Some((self.key_position(key)?, self.find(key)?))
    }

    pub(super) fn in_other_words(&self, node: Rc<Node>, names: Vec<(&'static str, String)>) -> Self {
        Self {
            node: Some(node),
            at: self.at,
            path: self.path.clone(),
            known: BTreeSet::new(),
            any_case: self.any_case,
            lenient: self.lenient,
            names: names.into(),
            hidden: false,
            sink: self.sink.clone(),
        }
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

    /// A text that is there. Does not count as reading it.
    pub fn text(&self, key: &str) -> Option<String> {
        match &self.find(key)?.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// A sub-map; an absent one reads as empty.
    #[must_use]
    pub fn section(&mut self, key: &str) -> Self {
        self.known.insert(key.to_owned());
        let node = self.find(key);
        let at = node.as_ref().map_or(self.at, |node| node.at);
        let mut child = self.child(node, at, self.below(key));
        child.hidden = !self.is_the_files(key);
        child
    }

    fn child(&self, node: Option<Rc<Node>>, at: (u64, u64), path: String) -> Self {
        let mut child = Self::new(node, at, path, self.sink.clone());
        child.lenient = self.lenient;
        child.hidden = self.hidden;
        if self.any_case { child.in_any_case() } else { child }
    }

    /// A list of maps; an absent one reads as empty.
    pub fn list(&mut self, key: &str) -> Vec<Self> {
        self.known.insert(key.to_owned());
        if self.describing() {
            return vec![self.child(None, self.at, format!("{}[]", self.below(key)))];
        }
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
        self.note(key, T::kind(), false, None);
        self.read(key)
    }

    /// What is read in other words is noted only where it is one of the file's keys.
    fn is_the_files(&self, key: &str) -> bool {
        !self.hidden && (self.names.is_empty() || self.names.iter().any(|(name, _)| *name == key))
    }

    fn note(&mut self, key: &str, kind: Kind, required: bool, default: Option<Shown>) {
        if !self.is_the_files(key) {
            return;
        }
        let given = self.find(key).map(|node| node.shown(&kind));
        self.sink.note(Note { path: self.below(key), kind, required, default, given });
    }

    fn read<T: FromNode>(&mut self, key: &str) -> Option<T> {
        self.known.insert(key.to_owned());
        let node = self.find(key)?;
        match T::from_node(&node) {
            Ok(value) => {
                if let Some(doubt) = value.doubt(&node) {
                    self.sink.warn(node.at, &self.below(key), doubt);
                }
                Some(value)
            }
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
        self.note(key, T::kind(), false, Some(default.shown()));
        self.read(key).unwrap_or(default)
    }

    /// A value, or a default where it is absent, wrong, or its type's zero (`0`, `0s`, empty text): ContainerSSH fills those.
    pub fn filled<T: FromNode + Default + PartialEq>(&mut self, key: &str, default: T) -> T {
        let zero = |value: &T| *value == T::default();
        let unset = self.find(key).and_then(|node| T::from_node(&node).ok()).is_some_and(|value| zero(&value));
        let given = self.find(key).filter(|_| !unset).map(|node| node.shown(&T::kind()));
        if self.is_the_files(key) {
            let (path, kind) = (self.below(key), T::kind());
            self.sink.note(Note { path, kind, required: false, default: Some(default.shown()), given });
        }
        self.read(key).filter(|value| !zero(value)).unwrap_or(default)
    }

    /// One of some words, each with its meaning; the default where it is absent, empty, or (a mistake) none of them.
    pub fn word<T: Copy>(&mut self, key: &str, words: &[(&'static str, T)], default: &'static str) -> Option<T> {
        let kind = Kind::Words(words.iter().map(|(word, _)| *word).collect());
        self.note(key, kind, false, Some(Shown::from(default)));
        let given = self.read::<String>(key).filter(|word| !word.is_empty()).unwrap_or_else(|| default.to_owned());
        let found = words.iter().find(|(word, _)| *word == given).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.mistake(key, format!("{given:?} is none of {}", known.join(", ")));
        }
        found
    }

    /// A list of words, or one text with `:` between them, as ContainerSSH writes lists of algorithms of TLS.
    pub fn words(&mut self, key: &str) -> Option<Vec<String>> {
        if self.find(key).is_some_and(|node| matches!(node.value, Value::Text(_))) {
            self.note(key, Kind::List(Box::new(Kind::Text)), false, None);
            return self.read::<String>(key).map(|text| text.split(':').map(str::to_owned).collect());
        }
        self.get(key)
    }

    /// What a key's value is in the end, where the reader made more of it than stood there.
    pub fn effective(&mut self, key: &str, kind: Kind, value: Shown) {
        if self.hidden || !self.names.is_empty() {
            // What is read in other words is shown in its own.
            return;
        }
        self.sink.note(Note { path: self.below(key), kind, required: false, default: Some(value), given: None });
    }

    /// A value that must be there.
    pub fn required<T: FromNode>(&mut self, key: &str) -> Option<T> {
        self.note(key, T::kind(), true, None);
        if !self.has(key) {
            self.known.insert(key.to_owned());
            self.sink.add(self.at, &self.below(key), "is missing");
            return None;
        }
        self.read(key)
    }

    /// A value of a type with its own serde form (Kubernetes objects), strictly: a key that the type does not know is a
    /// mistake, also where its value is empty.
    pub fn serde<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        self.known.insert(key.to_owned());
        let name = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default();
        self.note(key, Kind::Object(name), false, None);
        let node = self.find(key)?;
        let (value, problems, unknown) = Reading::new(self.any_case).read(&node);
        for (at, step, message) in problems {
            self.sink.add(at, &format!("{}{step}", self.below(key)), message);
        }
        for (at, step, message) in unknown {
            self.unknown(at, &format!("{}{step}", self.below(key)), message);
        }
        value
    }

    /// Done without a look at the rest: its unknown keys are another reader's to tell.
    pub fn leave(mut self) {
        self.node = None;
    }

    /// A key that belongs to another program.
    pub fn ignore(&mut self, key: &str) {
        self.known.insert(key.to_owned());
    }

    /// A key that is known but not built; a mistake where it is present.
    pub fn refuse(&mut self, key: &str, why: &str) {
        self.note(key, Kind::Refused(why.to_owned()), false, None);
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

    /// Warns of a key's value, or at the section where it is absent.
    pub fn warn(&self, key: &str, message: impl Into<String>) {
        let at = self.find(key).map_or(self.at, |node| node.at);
        self.sink.warn(at, &self.below(key), message);
    }

    /// Warns of a key itself; nothing where it is absent.
    pub fn warn_key(&self, key: &str, message: impl Into<String>) {
        if let Some(at) = self.key_position(key) {
            self.sink.warn(at, &self.below(key), message);
        }
    }

    fn unknown(&self, at: (u64, u64), path: &str, message: String) {
        if self.lenient {
            self.sink.warn(at, path, format!("{message} (kuberun ignores it)"));
        } else {
            self.sink.add(at, path, message);
        }
    }

    /// Records a mistake at a value further down, or at the last that is there on the way to it: for what shows only when
    /// the sections were read.
    pub fn mistake_at(&self, keys: &[&str], message: impl Into<String>) {
        self.sink.add(self.place(keys), &self.below(&keys.join(".")), message);
    }

    /// Warns of a value further down, or of the last that is there on the way to it.
    pub fn warn_at(&self, keys: &[&str], message: impl Into<String>) {
        self.sink.warn(self.place(keys), &self.below(&keys.join(".")), message);
    }

    fn place(&self, keys: &[&str]) -> (u64, u64) {
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
        at
    }

    fn below(&self, key: &str) -> String {
        let key = self.names.iter().find(|(name, _)| *name == key).map_or(key, |(_, given)| given);
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
                self.unknown(*at, &self.below(key), format!("unknown key{hint}"));
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
