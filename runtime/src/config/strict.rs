//! Types with a serde form of their own (Kubernetes objects), read strictly from nodes.
//!
//! serde tells a reader which fields a type has. Here every key is held against them: one that is none of them is a
//! mistake, whatever its value, and with `any_case` one that differs in case only is taken for the field, as Go's
//! JSON reader does. Keys of maps (labels, limits) are the user's own and stay as they are.

use super::{
    convert::Problem,
    node::{Node, Value},
    section::suggest,
};
use serde::{
    Deserializer,
    de::{self, DeserializeOwned, IntoDeserializer as _, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use std::{cell::RefCell, collections::BTreeSet, fmt, rc::Rc, slice};

/// How to read, and what was found wrong.
#[derive(Debug)]
pub(super) struct Reading {
    any_case: bool,
    problems: RefCell<Vec<Problem>>,
    /// Keys that the type does not know.
    unknown: RefCell<Vec<Problem>>,
}

impl Reading {
    /// With `any_case`, fields are found in any case.
    pub(super) fn new(any_case: bool) -> Self {
        Self { any_case, problems: RefCell::default(), unknown: RefCell::default() }
    }

    /// The value, where there is one, everything that is wrong, and unknown keys; paths are those below the node.
    pub(super) fn read<T: DeserializeOwned>(self, node: &Node) -> (Option<T>, Vec<Problem>, Vec<Problem>) {
        let read = T::deserialize(Place { node, path: String::new(), reading: &self });
        let mut problems = self.problems.take();
        let unknown = self.unknown.take();
        match read {
            Ok(value) => (Some(value), problems, unknown),
            Err(Failed { at, path, message }) => {
                problems.push((at.unwrap_or(node.at), path, message));
                (None, problems, unknown)
            }
        }
    }

    fn add(&self, at: (u64, u64), path: &str, message: impl Into<String>) {
        self.problems.borrow_mut().push((at, path.to_owned(), message.into()));
    }

    /// The field that this key means.
    fn field(&self, fields: &'static [&'static str], key: &str) -> Option<&'static str> {
        let any_case = || fields.iter().find(|field| self.any_case && field.eq_ignore_ascii_case(key));
        fields.iter().find(|field| **field == key).or_else(any_case).copied()
    }
}

/// A value that can't be read as its type.
#[derive(Debug)]
struct Failed {
    /// The innermost value's place, once known.
    at: Option<(u64, u64)>,
    path: String,
    message: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}

impl de::Error for Failed {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { at: None, path: String::new(), message: message.to_string() }
    }
}

/// A node on its way to a type.
#[derive(Clone)]
struct Place<'a> {
    node: &'a Node,
    path: String,
    reading: &'a Reading,
}

impl Place<'_> {
    fn here<T>(&self, result: Result<T, Failed>) -> Result<T, Failed> {
        result.map_err(|failed| match failed.at {
            Some(_) => failed,
            None => Failed { at: Some(self.node.at), path: self.path.clone(), ..failed },
        })
    }

    fn map<'de, V: Visitor<'de>>(
        &self,
        entries: &[Entry],
        fields: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, Failed> {
        let rest = entries.iter();
        self.here(visitor.visit_map(Entries { place: self, rest, fields, seen: BTreeSet::new(), value: None }))
    }
}

impl<'de> Deserializer<'de> for Place<'_> {
    type Error = Failed;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        let read = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            // Beyond those it is a float, which no Kubernetes field takes silently.
            Value::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_i64(value),
                (_, Ok(value)) => visitor.visit_u64(value),
                _ => visitor.visit_f64(*value as f64),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items { place: &self, rest: items.iter().enumerate() }),
            Value::Map(entries) => return self.map(entries, None, visitor),
        };
        self.here(read)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match self.node.truth() {
            Some(value) => self.here(visitor.visit_bool(value)),
            None => self.deserialize_any(visitor),
        }
    }

    /// As Kubernetes' reader of YAML, which knows the field's type: the value of a label or a variable may be a bare number.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match self.node.scalar() {
            Some(text) => self.here(visitor.visit_str(&text)),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match &self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Failed> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failed> {
        match &self.node.value {
            Value::Map(entries) => self.map(entries, Some(fields), visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failed> {
        match &self.node.value {
            Value::Text(word) => self.here(visitor.visit_enum(word.as_str().into_deserializer())),
            other => self.here(Err(de::Error::custom(format!("expected a word, found {}", other.kind())))),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    place: &'a Place<'a>,
    rest: std::iter::Enumerate<slice::Iter<'a, Rc<Node>>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Failed;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Failed> {
        let Some((i, node)) = self.rest.next() else { return Ok(None) };
        let path = format!("{}[{i}]", self.place.path);
        seed.deserialize(Place { node, path, reading: self.place.reading }).map(Some)
    }
}

type Entry = (String, (u64, u64), Rc<Node>);

struct Entries<'a> {
    place: &'a Place<'a>,
    rest: slice::Iter<'a, Entry>,
    /// `None`: any keys.
    fields: Option<&'static [&'static str]>,
    seen: BTreeSet<&'static str>,
    value: Option<Place<'a>>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Failed;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failed> {
        let reading = self.place.reading;
        for (key, at, node) in self.rest.by_ref() {
            let path = format!("{}.{key}", self.place.path);
            let name = match self.fields {
                None => key.as_str(),
                Some(fields) => match reading.field(fields, key) {
                    None => {
                        let message = format!("unknown key{}", suggest(key, fields.iter().copied()));
                        reading.unknown.borrow_mut().push((*at, path, message));
                        continue;
                    }
                    Some(field) if !self.seen.insert(field) => {
                        reading.add(*at, &path, format!("is given twice: {field} and {key} are the same"));
                        continue;
                    }
                    Some(field) => field,
                },
            };
            self.value = Some(Place { node, path, reading });
            return seed.deserialize(name.into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Failed> {
        let value = self.value.take().ok_or_else(|| de::Error::custom("a value without its key"))?;
        seed.deserialize(value)
    }
}
