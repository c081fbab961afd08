//! An event, taken apart.

use std::{error::Error, fmt};
use tracing::{
    Event, Level,
    field::{Field, Visit},
};

/// Longer values are cut: a line is for reading, and a syslog datagram holds 64 KiB at most.
const MAX_VALUE: usize = 4096;

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A text as such: its ends are shown.
    Text(String),
    /// What something shows of itself.
    Shown(String),
    /// A number or a truth value; it looks the same everywhere.
    Plain(serde_json::Value),
}

/// What an event says.
#[derive(Debug)]
pub(super) struct Record {
    pub level: Level,
    pub target: String,
    pub message: String,
    /// ContainerSSH's name for it, or one of ours in its manner.
    pub code: Option<String>,
    /// The others, in the order of the event.
    pub fields: Vec<(&'static str, Value)>,
}

impl Record {
    pub fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut record = Self {
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            message: String::new(),
            code: None,
            fields: Vec::new(),
        };
        event.record(&mut record);
        record
    }

    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::Text(text) | Value::Shown(text)) => self.message = text,
            ("code", Value::Text(text)) => self.code = Some(text),
            // Events of libraries that use the crate log.
            ("log.target", Value::Text(text)) => self.target = text,
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Shown(cut(format!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(cut(value.to_owned())));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.put(field, Value::Shown(cut(value.to_string())));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Plain(value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Plain(value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::Plain(value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Plain(value.into()));
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_VALUE {
        text.truncate(text.floor_char_boundary(MAX_VALUE));
        text.push('…');
    }
    text
}
