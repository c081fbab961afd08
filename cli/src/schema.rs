//! `podbay schema`: the configuration's JSON Schema, and the table of its keys. Both come of what the readers ask for.

use podbay_runtime::config::{Document, Kind, Note, Shown};
use serde_json::{Map, json};
use std::{collections::BTreeMap, process::ExitCode};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the table of all keys (Markdown) instead.
    #[arg(long)]
    keys: bool,
}

pub fn main(arguments: &Arguments) -> ExitCode {
    let notes = described();
    if arguments.keys {
        print!("{}", table(&notes));
    } else {
        println!("{:#}", schema(&notes));
    }
    ExitCode::SUCCESS
}

/// Who reads a section.
fn owner(path: &str) -> &'static str {
    match path.split(['.', '[']).next().unwrap_or_default() {
        "log" => "both",
        "listen" | "ssh" | "users" | "auth" | "authz" | "frontend" | "metrics" | "health" | "audit" | "geoip" => {
            "frontend"
        }
        _ => "backend",
    }
}

/// Keys of ContainerSSH by prefix, with its version that first had them; the longest prefix counts. Others, and those with an empty
/// version, are Podbay's.
const SINCE: [(&str, &str); 50] = [
    ("audit", "0.3"),
    ("auth", "0.3"),
    ("auth.authz", "0.5"),
    ("auth.gssapi", "0.5"),
    ("auth.keyboardInteractive", "0.5"),
    ("auth.password.", "0.5"),
    ("auth.publicKey", "0.5"),
    ("auth.trustedUserCAKeys", ""),
    ("backend", "0.3"),
    ("configserver", "0.3"),
    ("geoip", "0.3"),
    ("health", "0.5"),
    ("kuberun", "0.3, until 0.4"),
    ("kuberun.pod.agentPath", "0.4, until 0.4"),
    ("kuberun.pod.disableAgent", "0.4, until 0.4"),
    ("kuberun.pod.shellCommand", "0.4, until 0.4"),
    ("kubernetes.connection.bearerToken", "0.4"),
    ("kubernetes.connection.burst", "0.4"),
    ("kubernetes.connection.ca", "0.4"),
    ("kubernetes.connection.cert", "0.4"),
    ("kubernetes.connection.host", "0.4"),
    ("kubernetes.connection.key", "0.4"),
    ("kubernetes.connection.pa", "0.4"),
    ("kubernetes.connection.qps", "0.4"),
    ("kubernetes.connection.serverName", "0.4"),
    ("kubernetes.connection.username", "0.4"),
    ("kubernetes.pod.agentPath", "0.4"),
    ("kubernetes.pod.consoleContainerNumber", "0.4"),
    ("kubernetes.pod.createMissingPods", "0.6"),
    ("kubernetes.pod.disableAgent", "0.4"),
    ("kubernetes.pod.exposeAuthMetadata", "0.5"),
    ("kubernetes.pod.idleCommand", "0.4"),
    ("kubernetes.pod.metadata", "0.4"),
    ("kubernetes.pod.mode", "0.4"),
    ("kubernetes.pod.shellCommand", "0.4"),
    ("kubernetes.pod.spec", "0.4"),
    ("kubernetes.pod.subsystems", "0.4"),
    ("kubernetes.timeouts.commandStart", "0.4"),
    ("kubernetes.timeouts.http", "0.4"),
    ("kubernetes.timeouts.podSt", "0.4"),
    ("kubernetes.timeouts.signal", "0.4"),
    ("kubernetes.timeouts.window", "0.4"),
    ("listen", "0.3, deprecated in 0.4"),
    ("log", "0.3"),
    ("log.destination", "0.4"),
    ("log.file", "0.4"),
    ("log.syslog", "0.4"),
    ("metrics", "0.3"),
    ("security", "0.4"),
    ("ssh", "0.3"),
];

fn since(path: &str) -> String {
    let known = SINCE.iter().filter(|(prefix, _)| path.starts_with(prefix)).max_by_key(|(prefix, _)| prefix.len());
    let known = known.filter(|(_, version)| !version.is_empty());
    known.map_or_else(|| "Podbay 0.1".to_owned(), |(_, version)| format!("ContainerSSH {version}"))
}

/// Every key that either process asks for, each once, by path.
fn described() -> Vec<Note> {
    let document = Document::describing();
    drop(podbay_backend::Config::from_section(&mut document.root()));
    drop(podbay_frontend::Config::from_section(document.root()));
    let mut found: BTreeMap<String, Note> = BTreeMap::new();
    for note in document.notes() {
        let place = found.entry(note.path.clone()).or_insert_with(|| note.clone());
        // What a reader made of it in the end says most.
        if note.default.is_some() {
            place.default.clone_from(&note.default);
        }
        place.required |= note.required;
    }
    found.into_values().collect()
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Any => "any".into(),
        Kind::Text => "text".into(),
        Kind::TextOrNumber => "text or number".into(),
        Kind::Words(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Kind::Flag => "boolean".into(),
        Kind::Whole { .. } => "whole number".into(),
        Kind::Number => "number".into(),
        Kind::Duration => "duration".into(),
        Kind::Path => "path".into(),
        Kind::Address => "address".into(),
        Kind::Secret => "text (secret)".into(),
        Kind::List(below) => format!("list of {}", self::kind(below)),
        Kind::Map(below) => format!("map of {}", self::kind(below)),
        Kind::Object(name) => format!("Kubernetes {name}"),
        Kind::Refused(_) => "–".into(),
    }
}

fn table(notes: &[Note]) -> String {
    let mut text = "# All keys\n\n\
        Made by `podbay schema --keys` of what the programs read; a test fails where this file is stale. What the keys mean: [configuration.md](configuration.md).\n\
        `[]` stands for each item of a list. *Since* is the release of ContainerSSH that first had a key of this name, or Podbay's own.\n\n\
        | key | type | default | owner | since |\n| --- | --- | --- | --- | --- |\n"
        .to_owned();
    for note in notes {
        let default = match (&note.kind, &note.default) {
            (Kind::Refused(why), _) => format!("refused: {}", why.replace('|', "\\|")),
            (_, Some(Shown::Null) | None) if note.required => "required".into(),
            (_, Some(Shown::Null) | None) => "none".into(),
            (Kind::Object(_), Some(value)) => format!("`{value}`"),
            (_, Some(Shown::String(value))) if value.is_empty() => "empty".into(),
            (_, Some(Shown::String(value))) => format!("`{value}`"),
            (_, Some(value)) => format!("`{value}`"),
        };
        let line = format!(
            "| `{}` | {} | {default} | {} | {} |\n",
            note.path,
            kind(&note.kind),
            owner(&note.path),
            since(&note.path)
        );
        text += &line;
    }
    text
}

/// Go's durations (a bare number is nanoseconds).
const DURATION: &str = r"^\+?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$";

fn type_of(kind: &Kind) -> Shown {
    match kind {
        Kind::Any => json!({}),
        Kind::Text | Kind::Path | Kind::Address | Kind::Secret => json!({ "type": ["string", "null"] }),
        Kind::TextOrNumber => json!({ "type": ["string", "integer", "null"] }),
        Kind::Words(words) => {
            let words: Vec<_> =
                words.iter().map(|word| Shown::from(*word)).chain([Shown::from(""), Shown::Null]).collect();
            json!({ "enum": words })
        }
        Kind::Flag => json!({ "type": ["boolean", "null"] }),
        Kind::Whole { least, most } => json!({ "type": ["integer", "null"], "minimum": least, "maximum": most }),
        Kind::Number => json!({ "type": ["number", "null"] }),
        Kind::Duration => json!({ "type": ["string", "integer", "null"], "pattern": DURATION, "minimum": 0 }),
        Kind::List(below) => json!({ "type": ["array", "null"], "items": type_of(below) }),
        Kind::Map(below) => json!({ "type": ["object", "null"], "additionalProperties": type_of(below) }),
        Kind::Object(name) => json!({ "type": ["object", "null"], "description": format!("Kubernetes {name}") }),
        Kind::Refused(why) => json!({ "not": {}, "description": format!("not supported: {why}") }),
    }
}

/// A place of the schema under construction.
#[derive(Debug, Default)]
struct Place {
    own: Option<Shown>,
    list: bool,
    below: BTreeMap<String, Place>,
}

impl Place {
    fn schema(self, path: &str) -> Shown {
        if let (Some(own), true) = (&self.own, self.below.is_empty()) {
            return own.clone();
        }
        let properties: Map<String, Shown> =
            self.below.into_iter().map(|(key, place)| (key.clone(), place.schema(&format!("{path}.{key}")))).collect();
        let mut object = json!({ "type": ["object", "null"], "properties": properties });
        // Kuberun ignores what it does not know.
        if !path.starts_with(".kuberun.pod")
            && let Shown::Object(object) = &mut object
        {
            object.insert("additionalProperties".into(), false.into());
        }
        let below = if self.list { json!({ "type": ["array", "null"], "items": object }) } else { object };
        // A key of two forms: auth.password is a boolean in ContainerSSH 0.4, and a map since.
        if let Some(own) = self.own { json!({ "anyOf": [own, below] }) } else { below }
    }
}

fn schema(notes: &[Note]) -> Shown {
    let mut root = Place::default();
    for note in notes {
        let mut place = &mut root;
        for step in note.path.split('.') {
            let (key, list) = step.strip_suffix("[]").map_or((step, false), |key| (key, true));
            place = place.below.entry(key.to_owned()).or_default();
            place.list |= list;
        }
        let mut own = type_of(&note.kind);
        if let (Shown::Object(own), Some(default)) =
            (&mut own, note.default.as_ref().filter(|default| !default.is_null()))
        {
            own.insert("default".into(), default.clone());
        }
        place.own = Some(own);
    }
    // Other backends' sections stand in files of ContainerSSH.
    for key in ["docker", "dockerrun", "sshproxy"] {
        root.below.entry(key.to_owned()).or_default().own = Some(json!({}));
    }
    let mut schema = root.schema("");
    if let Shown::Object(schema) = &mut schema {
        schema.insert("$schema".into(), "http://json-schema.org/draft-07/schema#".into());
        schema.insert("title".into(), "Podbay's configuration".into());
        let text = "Made by `podbay schema`. What it can't say (which keys go together, files, keys in other case below kubernetes.pod) says `podbay check`.";
        schema.insert("description".into(), text.into());
    }
    schema
}
