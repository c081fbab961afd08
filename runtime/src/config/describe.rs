//! What readers ask for: each key with its type and default. Of it come the schema, the table of keys, and the configuration
//! as it takes effect.

use super::node::{Node, Value};

/// A value as JSON has it.
pub type Shown = serde_json::Value;

/// What stands for a secret.
pub const MASK: &str = "***";

/// What may stand at a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Anything: the reader does not say.
    Any,
    /// Text.
    Text,
    /// Text, or a whole number.
    TextOrNumber,
    /// One of these.
    Words(Vec<&'static str>),
    /// `true` or `false`.
    Flag,
    /// A whole number in a range, both ends included.
    Whole {
        /// From here.
        least: i64,
        /// To here.
        most: u64,
    },
    /// A number.
    Number,
    /// Go's text, or whole nanoseconds.
    Duration,
    /// A file or directory.
    Path,
    /// IP address and port.
    Address,
    /// Text that is never shown.
    Secret,
    /// A list.
    List(Box<Kind>),
    /// A map with keys of the user's own.
    Map(Box<Kind>),
    /// A type of Kubernetes.
    Object(&'static str),
    /// Known, and refused with this text.
    Refused(String),
}

/// One key that a reader asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// Dotted; `[]` for the items of a list of maps.
    pub path: String,
    /// What may stand there.
    pub kind: Kind,
    /// It must be there.
    pub required: bool,
    /// What counts where nothing is given; `None` = nothing does.
    pub default: Option<Shown>,
    /// What is given; secrets masked.
    pub given: Option<Shown>,
}

/// What was read.
pub type Notes = Vec<Note>;

impl Node {
    /// For showing: as JSON, with texts masked where they are secret.
    pub(super) fn shown(&self, kind: &Kind) -> Shown {
        match (&self.value, kind) {
            (Value::Null, _) => Shown::Null,
            (_, Kind::Secret) => Shown::from(MASK),
            (Value::Bool(value), _) => Shown::from(*value),
            (Value::Int(value), Kind::Duration) => Shown::from(format!("{value}ns")),
            (Value::Int(value), _) => i64::try_from(*value).map_or_else(|_| Shown::from(*value as f64), Shown::from),
            (Value::Float(value), _) => Shown::from(*value),
            (Value::Text(text), _) => Shown::from(text.as_str()),
            (Value::List(items), Kind::List(below)) => items.iter().map(|item| item.shown(below)).collect(),
            (Value::List(items), _) => items.iter().map(|item| item.shown(kind)).collect(),
            (Value::Map(entries), kind) => {
                let below = if let Kind::Map(below) = kind { below } else { kind };
                // A variable of a container: it may be a secret.
                let variable =
                    matches!(kind, Kind::Object(_)) && entries.iter().any(|(key, ..)| key.eq_ignore_ascii_case("name"));
                let hide = |key: &str| variable && key.eq_ignore_ascii_case("value");
                entries
                    .iter()
                    .map(|(key, _, value)| {
                        let shown = if hide(key) { Shown::from(MASK) } else { value.shown(below) };
                        (key.clone(), shown)
                    })
                    .collect()
            }
        }
    }
}

/// The configuration as it takes effect: what is given or else the default, as a tree. Keys without either are left out.
pub fn nested(notes: &[Note]) -> Shown {
    let mut root = Shown::Object(serde_json::Map::new());
    for note in notes {
        if let Some(value) = note.given.as_ref().or(note.default.as_ref()) {
            let steps: Vec<&str> = note.path.split(['.', '[']).collect();
            put(&mut root, &steps, value);
        }
    }
    root
}

/// As YAML.
pub fn to_yaml(value: &Shown) -> String {
    serde_yaml::to_string(value).unwrap_or_default()
}

/// Steps are keys, and indexes with their closing bracket.
fn put(place: &mut Shown, steps: &[&str], value: &Shown) {
    let Some((step, rest)) = steps.split_first() else {
        *place = value.clone();
        return;
    };
    if let Some(index) = step.strip_suffix(']').and_then(|index| index.parse::<usize>().ok()) {
        if !place.is_array() {
            *place = Shown::Array(Vec::new());
        }
        if let Shown::Array(items) = place {
            while items.len() <= index {
                items.push(Shown::Null);
            }
            if let Some(item) = items.get_mut(index) {
                put(item, rest, value);
            }
        }
    } else {
        if !place.is_object() {
            *place = Shown::Object(serde_json::Map::new());
        }
        if let Shown::Object(map) = place {
            put(map.entry(*step).or_insert(Shown::Null), rest, value);
        }
    }
}
