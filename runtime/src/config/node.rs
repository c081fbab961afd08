//! A document as a tree of values with positions.

use super::{
    describe::{Kind, Note, Shown},
    mistake::{Mistake, Mistakes, Sink},
    section::Section,
    source,
};
use crate::files::Seen;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use serde_yaml::Spanned;
use std::{borrow::Cow, cell::RefCell, fmt, path::Path, rc::Rc};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    pub(super) value: Value,
    /// Line and column, from 1.
    pub(super) at: (u64, u64),
    /// Where what an alias stands for is; else the same.
    defined: (u64, u64),
    /// A number or truth value as the file spells it (`1.20`, `True`), where that shows.
    spelled: Option<Box<str>>,
}

/// What a node holds. Scalars are resolved by YAML 1.2's core schema.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Rc<Node>>),
    /// Keys with their own positions, in the order of the file.
    Map(Vec<(String, (u64, u64), Rc<Node>)>),
}

impl Value {
    /// What to call it in a message.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

impl Node {
    /// A value at a place.
    pub(super) const fn new(value: Value, at: (u64, u64)) -> Self {
        Self { value, at, defined: at, spelled: None }
    }

    /// The text of a scalar, also of a number or a truth value: as the file spells it, for `1.20` may be a password.
    pub(super) fn scalar(&self) -> Option<Cow<'_, str>> {
        match (&self.value, &self.spelled) {
            (Value::Text(text), _) => Some(Cow::Borrowed(text)),
            (_, Some(spelled)) => Some(Cow::Borrowed(spelled)),
            (Value::Bool(value), None) => Some(Cow::Owned(value.to_string())),
            (Value::Int(value), None) => Some(Cow::Owned(value.to_string())),
            (Value::Float(value), None) => Some(Cow::Owned(value.to_string())),
            (Value::Null | Value::List(_) | Value::Map(_), None) => None,
        }
    }

    /// The truth value, also by YAML 1.1's words.
    pub(super) fn truth(&self) -> Option<bool> {
        let is = |words: [&str; 4], text: &str| words.iter().any(|word| word.eq_ignore_ascii_case(text));
        match &self.value {
            Value::Bool(value) => Some(*value),
            Value::Text(text) if is(["y", "yes", "on", "true"], text) => Some(true),
            Value::Text(text) if is(["n", "no", "off", "false"], text) => Some(false),
            _ => None,
        }
    }

    /// Notes how numbers and truth values are spelled.
    fn spell(&mut self, lines: &[&str]) {
        match &mut self.value {
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                let place = |n: u64| usize::try_from(n).ok()?.checked_sub(1);
                let line = place(self.defined.0).and_then(|line| lines.get(line));
                let from = place(self.defined.1).zip(line).map(|(column, line)| line.chars().skip(column));
                let word: String = from
                    .into_iter()
                    .flatten()
                    .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_'))
                    .collect();
                // A place that is not the scalar's own (an anchor, a tag) begins otherwise.
                self.spelled = self.is_spelled(&word).then(|| word.into());
            }
            Value::List(items) => items.iter_mut().filter_map(Rc::get_mut).for_each(|item| item.spell(lines)),
            Value::Map(entries) => {
                entries.iter_mut().filter_map(|(_, _, item)| Rc::get_mut(item)).for_each(|item| item.spell(lines));
            }
            Value::Null | Value::Text(_) => {}
        }
    }

    fn is_spelled(&self, word: &str) -> bool {
        match &self.value {
            Value::Bool(value) => word.eq_ignore_ascii_case(&value.to_string()),
            Value::Int(_) | Value::Float(_) => {
                word.trim_start_matches(['+', '-', '.']).starts_with(|c: char| c.is_ascii_digit())
            }
            _ => false,
        }
    }

    /// The same as JSON.
    pub(super) fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
                (Ok(value), _) => value.into(),
                (_, Ok(value)) => value.into(),
                _ => (*value as f64).into(),
            },
            Value::Float(value) => match &self.spelled {
                // `1.20` must not come out as `1.2` where it is a label's value.
                Some(spelled) if **spelled != value.to_string() => Json::String(spelled.to_string()),
                _ => (*value).into(),
            },
            Value::Text(text) => Json::String(text.clone()),
            Value::List(items) => items.iter().map(|item| item.to_json()).collect(),
            Value::Map(entries) => entries.iter().map(|(key, _, value)| (key.clone(), value.to_json())).collect(),
        }
    }

    /// JSON that came from elsewhere: it has no lines.
    fn from_json(json: &Json) -> Self {
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Value::Int(value.into()),
                (_, Some(value)) => Value::Int(value.into()),
                _ => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(text.clone()),
            Json::Array(items) => Value::List(items.iter().map(|item| Rc::new(Self::from_json(item))).collect()),
            Json::Object(map) => {
                let entry = |(key, value): (&String, &Json)| (key.clone(), (0, 0), Rc::new(Self::from_json(value)));
                Value::Map(map.iter().map(entry).collect())
            }
        };
        Self::new(value, (0, 0))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Raw>::deserialize(deserializer)?;
        let at = (spanned.referenced.line(), spanned.referenced.column());
        Ok(Self { defined: (spanned.defined.line(), spanned.defined.column()), ..Self::new(spanned.value.0, at) })
    }
}

struct Raw(Value);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor).map(Raw)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Node>()? {
            items.push(Rc::new(item));
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let at = (key.referenced.line(), key.referenced.column());
            entries.push((key.value, at, Rc::new(map.next_value::<Node>()?)));
        }
        Ok(Value::Map(entries))
    }
}

/// The files that a configuration was read of: its own, and those that it names. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Noted(Rc<RefCell<Seen>>);

impl Noted {
    pub(super) fn note(&self, file: &Path, contents: Option<&[u8]>) {
        self.0.borrow_mut().note(file, contents);
    }

    /// What they held. Complete once the configuration was interpreted.
    pub fn seen(&self) -> Seen {
        self.0.borrow().clone()
    }
}

/// A configuration file, read and not yet interpreted.
#[derive(Debug)]
pub struct Document {
    root: Rc<Node>,
    sink: Sink,
    /// It is JSON, in which ContainerSSH finds keys in any case.
    json: bool,
}

impl Document {
    /// Reads a file of at most 4 MiB.
    pub fn read(path: &Path) -> Result<Self, Mistakes> {
        Self::read_noting(path, &Noted::default())
    }

    /// The same; this file and those that the configuration names are noted.
    pub fn read_noting(path: &Path, noted: &Noted) -> Result<Self, Mistakes> {
        let text = source::read(path);
        noted.note(path, text.as_ref().ok().map(String::as_bytes));
        let mut document = Self::parse(&path.display().to_string(), &text?)?;
        document.sink.noted = noted.clone();
        Ok(document)
    }

    /// A file's text, within the same bound.
    ///
    /// # Errors
    /// One mistake: it can't be read, is too large, or no UTF-8.
    pub fn text_of(path: &Path) -> Result<String, Mistakes> {
        source::read(path)
    }

    /// Reads text; `name` stands in messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, Mistakes> {
        let text = source::without_mark(text);
        let mut root = if text.lines().all(|line| line.trim_start().starts_with('#') || line.trim().is_empty()) {
            Node::new(Value::Map(Vec::new()), (1, 1))
        } else {
            serde_yaml::from_str_with_options::<Node>(text, options()).map_err(|error| source::syntax(name, &error))?
        };
        root.spell(&text.lines().collect::<Vec<_>>());
        let json = Path::new(name).extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
        Ok(Self { root: Rc::new(root), sink: Sink::new(name), json })
    }

    /// What was no file: `name` stands in messages, and there are no lines.
    pub fn from_value(name: &str, value: &Json) -> Self {
        Self { root: Rc::new(Node::from_json(value)), sink: Sink::new(name), json: true }
    }

    /// A document that is not there: its sections note what readers ask for ([`Self::notes`]).
    pub fn describing() -> Self {
        let mut sink = Sink::new("");
        sink.describing = true;
        Self { root: Rc::new(Node::new(Value::Map(Vec::new()), (1, 1))), sink, json: false }
    }

    /// The whole document as it stands, secrets and all: to be written anew, never to be logged.
    pub fn value(&self) -> Shown {
        self.root.shown(&Kind::Any)
    }

    /// What was read, in the order of reading: each key once or more.
    pub fn notes(&self) -> Vec<Note> {
        self.sink.notes()
    }

    /// What is no mistake, and yet most likely not what is meant. Complete once the sections are dropped.
    pub fn warnings(&self) -> Vec<Mistake> {
        self.sink.warnings()
    }

    /// The whole document as a section.
    pub fn root(&self) -> Section {
        let root = Section::new(Some(Rc::clone(&self.root)), self.root.at, String::new(), self.sink.clone());
        if self.json { root.in_any_case() } else { root }
    }

    /// What was read from the document, or every mistake in it. A reader that gives nothing has recorded why; should one
    /// forget to, that is told as a mistake too: an empty list of mistakes is never an error.
    ///
    /// # Errors
    /// At least one mistake.
    pub fn finish_with<T>(self, read: Option<T>) -> Result<T, Mistakes> {
        let name = self.sink.file();
        self.finish()?;
        read.ok_or_else(|| {
            source::whole(&name, "no configuration came of it, and no part has said why: please report this".to_owned())
        })
    }

    /// Every mistake that the sections found, once they are dropped.
    pub fn finish(self) -> Result<(), Mistakes> {
        self.sink.finish()
    }
}

/// YAML 1.2's booleans only: `y`, `no` and `on` are text, as in every current Kubernetes tool, but where only a truth value can stand
/// ([`Node::truth`]).
fn options() -> serde_yaml::Options {
    serde_yaml::options! { strict_booleans: true, leading_zero_numbers_as_strings: true }
}
