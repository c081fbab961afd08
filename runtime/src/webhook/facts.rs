//! What is known about a user: metadata, environment, files. Requests and answers carry them in the same shape.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt};

/// The contract's bounds: entries, and bytes of names and values.
const MAX_METADATA: (usize, usize) = (64, 16 * 1024);
const MAX_ENVIRONMENT: (usize, usize) = (256, 64 * 1024);
/// Of files: entries, and bytes in all.
pub const MAX_FILES: (usize, usize) = (64, 256 * 1024);
/// Of a user's name.
const MAX_USER: usize = 256;

/// A value, and whether later webhooks are to be told. `Debug` never shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// The value.
    pub value: T,
    /// Not for webhooks.
    pub sensitive: bool,
}

impl<T> Entry<T> {
    /// A value.
    pub const fn new(value: T, sensitive: bool) -> Self {
        Self { value, sensitive }
    }
}

impl<T> fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// All that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Who the user is, where authentication said so; not empty.
    pub authenticated: Option<String>,
    /// About the user.
    pub metadata: BTreeMap<String, Entry<String>>,
    /// For all programs.
    pub environment: BTreeMap<String, Entry<String>>,
    /// By absolute path.
    pub files: BTreeMap<String, Entry<Vec<u8>>>,
}

/// Why an answer's facts can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// A bound.
    #[error("{0}: at most {1} entries and {2} bytes in all")]
    TooMuch(&'static str, usize, usize),
    /// A name or a value that has no meaning.
    #[error("{0}: {1}")]
    Wrong(&'static str, &'static str),
}

/// The same in an answer.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonEntry {
    #[serde(alias = "Value")]
    value: Option<String>,
    #[serde(alias = "Sensitive")]
    sensitive: Option<bool>,
}

type JsonMap = Option<BTreeMap<String, JsonEntry>>;

/// The part that all answers have in common; all keys may be absent or null.
#[derive(Default)]
pub struct Json {
    /// `authenticatedUsername`
    pub authenticated: Option<String>,
    metadata: JsonMap,
    environment: JsonMap,
    files: JsonMap,
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json(***)")
    }
}

/// Gives keys of an answer their names where they differ in case only, as Go's reader of JSON finds them.
pub fn as_named(object: &mut Map<String, Value>, names: &[&str]) {
    for name in names.iter().filter(|name| !object.contains_key(**name)).copied().collect::<Vec<_>>() {
        let found = object.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
        if let Some(value) = found.and_then(|key| object.remove(&key)) {
            object.insert(name.to_owned(), value);
        }
    }
}

/// The keys that [`Json::take`] knows.
const COMMON: [&str; 8] = [
    "username",
    "connectionId",
    "clientVersion",
    "remoteAddress",
    "authenticatedUsername",
    "metadata",
    "environment",
    "files",
];

impl Json {
    /// Takes the common keys out of an answer's object; what is left is the caller's own. The connection's own fields (`username`,
    /// `remoteAddress`, `connectionId`, `clientVersion`), which servers made with ContainerSSH's library repeat, are taken and forgotten.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn take(object: &mut Map<String, Value>) -> Result<Self, String> {
        fn one<T: serde::de::DeserializeOwned>(
            object: &mut Map<String, Value>,
            key: &str,
        ) -> Result<Option<T>, String> {
            let value = object.remove(key).unwrap_or_default();
            // serde's words could repeat a secret value.
            serde_json::from_value(value).map_err(|_| format!("{key} has not the right form"))
        }
        as_named(object, &COMMON);
        for key in ["username", "connectionId", "clientVersion"] {
            one::<String>(object, key)?;
        }
        let address: Option<String> = one(object, "remoteAddress")?;
        if address.is_some_and(|address| !address.is_empty() && address.parse::<std::net::SocketAddr>().is_err()) {
            return Err("remoteAddress is not ip:port".to_owned());
        }
        Ok(Self {
            authenticated: one(object, "authenticatedUsername")?,
            metadata: one(object, "metadata")?,
            environment: one(object, "environment")?,
            files: one(object, "files")?,
        })
    }

    /// Checked.
    ///
    /// # Errors
    /// What is wrong.
    pub fn into_facts(self) -> Result<Facts, FactsError> {
        let text = |map: JsonMap| {
            map.unwrap_or_default()
                .into_iter()
                .map(|(name, entry)| {
                    (name, Entry::new(entry.value.unwrap_or_default(), entry.sensitive.unwrap_or_default()))
                })
                .collect()
        };
        let file = |(path, entry): (String, JsonEntry)| {
            let bytes = STANDARD
                .decode(entry.value.unwrap_or_default())
                .map_err(|_| FactsError::Wrong("files", "a value is no base64"))?;
            Ok((path, Entry::new(bytes, entry.sensitive.unwrap_or_default())))
        };
        let facts = Facts {
            authenticated: self.authenticated.filter(|name| !name.is_empty()),
            metadata: text(self.metadata),
            environment: text(self.environment),
            files: self.files.unwrap_or_default().into_iter().map(file).collect::<Result<_, _>>()?,
        };
        facts.check()?;
        Ok(facts)
    }
}

impl Facts {
    /// Adds what a later answer says: it overwrites what has the same name.
    pub fn merge(&mut self, later: Self) {
        self.authenticated = later.authenticated.or(self.authenticated.take());
        self.metadata.extend(later.metadata);
        self.environment.extend(later.environment);
        self.files.extend(later.files);
    }

    /// Holds the facts against the contract's bounds.
    ///
    /// # Errors
    /// The first one that is broken.
    pub fn check(&self) -> Result<(), FactsError> {
        let text =
            |map: &BTreeMap<String, Entry<String>>| map.iter().map(|(k, v)| k.len() + v.value.len()).sum::<usize>();
        let files = self.files.iter().map(|(path, file)| path.len() + file.value.len()).sum();
        for (what, count, size, (most, bytes)) in [
            ("metadata", self.metadata.len(), text(&self.metadata), MAX_METADATA),
            ("environment", self.environment.len(), text(&self.environment), MAX_ENVIRONMENT),
            ("files", self.files.len(), files, MAX_FILES),
        ] {
            if count > most || size > bytes {
                return Err(FactsError::TooMuch(what, most, bytes));
            }
        }
        let nul =
            |map: &BTreeMap<String, Entry<String>>| map.iter().any(|(k, v)| k.contains('\0') || v.value.contains('\0'));
        if nul(&self.metadata) || nul(&self.environment) {
            return Err(FactsError::Wrong("metadata and environment", "hold no NUL"));
        }
        let name = |name: &String| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !self.environment.keys().all(name) {
            return Err(FactsError::Wrong("environment", "names match [A-Za-z_][A-Za-z0-9_]*"));
        }
        let path =
            |path: &String| path.starts_with('/') && !path.ends_with('/') && !path.contains('\0') && path.len() <= 4096;
        if !self.files.keys().all(path) {
            return Err(FactsError::Wrong("files", "names are absolute paths of files"));
        }
        if self
            .authenticated
            .as_ref()
            .is_some_and(|name| name.is_empty() || name.len() > MAX_USER || name.contains(char::is_control))
        {
            return Err(FactsError::Wrong("authenticatedUsername", "is 1 to 256 bytes without control characters"));
        }
        Ok(())
    }

    /// Puts them into a question's object. Sensitive entries stay out unless `sensitive`; an empty map is left out.
    pub fn put(&self, object: &mut Map<String, Value>, sensitive: bool) {
        if let Some(name) = &self.authenticated {
            object.insert("authenticatedUsername".to_owned(), json!(name));
        }
        let text = |value: &String| json!(value);
        let base64 = |value: &Vec<u8>| json!(STANDARD.encode(value));
        for (key, map) in [
            ("metadata", told(&self.metadata, sensitive, text)),
            ("environment", told(&self.environment, sensitive, text)),
            ("files", told(&self.files, sensitive, base64)),
        ] {
            if !map.is_empty() {
                object.insert(key.to_owned(), Value::Object(map));
            }
        }
    }
}

fn told<T>(map: &BTreeMap<String, Entry<T>>, sensitive: bool, write: impl Fn(&T) -> Value) -> Map<String, Value> {
    map.iter()
        .filter(|(_, entry)| sensitive || !entry.sensitive)
        .map(|(name, entry)| (name.clone(), json!({"value": write(&entry.value), "sensitive": entry.sensitive})))
        .collect()
}
