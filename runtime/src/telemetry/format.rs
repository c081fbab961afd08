//! How lines look. Whatever a value holds, one event is one line: users choose their names, and peers their errors.

use super::{
    Severity,
    record::{Record, Value},
};
use jiff::{Zoned, tz::TimeZone};
use serde_json::Value as Json;
use std::{collections::BTreeMap, fmt::Write as _};

/// What events without a code have, as in ContainerSSH.
pub(super) const NO_CODE: &str = "UNKNOWN_ERROR";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Ours, for people.
    #[default]
    Plain,
    /// Ours: one JSON object a line, its fields beside each other.
    Json,
    /// ContainerSSH's: one JSON object a line, fields under `details`.
    Ljson,
    /// ContainerSSH's, for people: `TIMESTAMP<TAB>LEVEL<TAB>MESSAGE (label=value …)`.
    Text,
}

/// Whether the receiver adds time and level itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// It does not.
    Whole,
    /// It does: syslog.
    Bare,
}

impl Format {
    /// The line, without its end. `colour` is for terminals, and `Plain` alone has it.
    pub(super) fn line(self, record: &Record, now: &Zoned, frame: Frame, colour: bool) -> String {
        let severity = Severity::of(record.level, record.code.as_deref());
        match (self, frame) {
            (Self::Plain, Frame::Whole) if colour => plain(record, Some(now), paint(record.level)),
            (Self::Plain, Frame::Whole) => plain(record, Some(now), ("", "")),
            (Self::Plain, Frame::Bare) => plain(record, None, ("", "")),
            (Self::Json, _) => json(record, now),
            (Self::Ljson, Frame::Whole) => {
                let head = [("timestamp", Json::from(local(now))), ("level", severity.word().into())];
                object(head.into_iter().chain(ljson(record)))
            }
            (Self::Ljson, Frame::Bare) => object(ljson(record).into_iter()),
            (Self::Text, Frame::Whole) => format!("{}\t{}\t{}", local(now), severity.word(), text(record)),
            (Self::Text, Frame::Bare) => text(record),
        }
    }
}

/// RFC 3339 in the local zone, to the second, as Go writes it.
fn local(now: &Zoned) -> String {
    let text = now.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    text.strip_suffix("+00:00").map_or(text.clone(), |utc| format!("{utc}Z"))
}

/// RFC 3339 in UTC, to the microsecond.
fn precise(now: &Zoned) -> String {
    now.with_time_zone(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn paint(level: tracing::Level) -> (&'static str, &'static str) {
    let colour = match level {
        tracing::Level::ERROR => "\x1b[31m",
        tracing::Level::WARN => "\x1b[33m",
        tracing::Level::INFO => "\x1b[32m",
        tracing::Level::DEBUG => "\x1b[34m",
        tracing::Level::TRACE => "\x1b[35m",
    };
    (colour, "\x1b[0m")
}

fn plain(record: &Record, now: Option<&Zoned>, (colour, reset): (&str, &str)) -> String {
    let mut line = now.map_or(String::new(), |now| format!("{} {colour}{:>5}{reset} ", precise(now), record.level));
    let _ = write!(line, "{}: {}", one_line(&record.target), one_line(&record.message));
    if let Some(code) = &record.code {
        let _ = write!(line, " code={}", one_line(code));
    }
    for (name, value) in &record.fields {
        let _ = match value {
            Value::Text(text) => write!(line, " {name}={}", quoted(text)),
            // It could be taken for more fields than one.
            Value::Shown(text) if text.contains(['=', '"']) => write!(line, " {name}={}", quoted(text)),
            Value::Shown(text) => write!(line, " {name}={}", one_line(text)),
            Value::Plain(value) => write!(line, " {name}={value}"),
        };
    }
    line
}

fn json(record: &Record, now: &Zoned) -> String {
    let head = [
        ("timestamp", Json::from(precise(now))),
        ("level", record.level.as_str().into()),
        ("message", record.message.as_str().into()),
    ];
    let code = record.code.as_deref().map(|code| ("code", Json::from(code)));
    let reserved = |name: &str| ["timestamp", "level", "message", "code", "target"].contains(&name);
    let fields = record.fields.iter().filter(|(name, _)| !reserved(name)).map(|(name, value)| (*name, value.json()));
    let target = [("target", Json::from(record.target.as_str()))];
    object(head.into_iter().chain(code).chain(fields).chain(target))
}

fn ljson(record: &Record) -> [(&'static str, Json); 3] {
    let code = record.code.as_deref().unwrap_or(NO_CODE);
    let details = labels(record).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    [("code", code.into()), ("message", record.message.as_str().into()), ("details", Json::Object(details))]
}

/// Labels are sorted, and quoted where they could be taken for more than one: ContainerSSH does neither. It also leaves out the code.
fn text(record: &Record) -> String {
    let code = record.code.as_deref().map(|code| ("code", Json::from(code)));
    let labels = labels(record).into_iter().chain(code).map(|(name, value)| match value {
        Json::String(text) if text.chars().all(is_bare) && !text.is_empty() => format!("{name}={text}"),
        Json::String(text) => format!("{name}={}", quoted(&text)),
        other => format!("{name}={other}"),
    });
    format!("{} ({})", one_line(&record.message), labels.collect::<Vec<_>>().join(" "))
}

fn is_bare(c: char) -> bool {
    c.is_ascii_graphic() && !['"', '\\', '(', ')', '='].contains(&c)
}

/// An event's fields under ContainerSSH's names.
fn labels(record: &Record) -> BTreeMap<&'static str, Json> {
    let mut labels = BTreeMap::from([("module", Json::from(module(&record.target)))]);
    for (name, value) in &record.fields {
        let name = match *name {
            "connection" => "connectionId",
            "remote" => "remoteAddr",
            "user" => "username",
            "authenticated" => "authenticatedUsername",
            "channel" => "channelId",
            "pod" => "podName",
            name => name,
        };
        let mut value = value.json();
        if name == "podName"
            && let Json::String(text) = &value
            && let Some((namespace, pod)) = text.clone().split_once('/')
        {
            labels.insert("namespace", namespace.into());
            value = pod.into();
        }
        labels.insert(name, value);
    }
    labels
}

/// ContainerSSH's names of its parts.
fn module(target: &str) -> &'static str {
    const MODULES: [(&str, &str); 8] = [
        ("podbay_frontend::auth", "auth"),
        ("podbay_frontend::backend", "backend"),
        ("podbay_frontend::ssh", "ssh"),
        ("podbay_frontend::session", "ssh"),
        ("podbay_frontend", "ssh"),
        ("podbay_runtime::admin", "service"),
        ("podbay_backend", "backend"),
        ("podbay::activity", "backend"),
    ];
    MODULES.iter().find(|(prefix, _)| target.starts_with(prefix)).map_or("core", |(_, module)| module)
}

impl Value {
    fn json(&self) -> Json {
        match self {
            Self::Text(text) | Self::Shown(text) => Json::from(text.as_str()),
            Self::Plain(value) => value.clone(),
        }
    }
}

/// In the order that is given; a key that came before wins, since readers keep one of two and differ in which.
fn object<'a>(entries: impl Iterator<Item = (&'a str, Json)>) -> String {
    let mut seen: Vec<&str> = Vec::new();
    let mut line = String::from("{");
    for (key, value) in entries {
        if seen.contains(&key) {
            continue;
        }
        let comma = if seen.is_empty() { "" } else { "," };
        let _ = write!(line, "{comma}{}:{value}", Json::from(key));
        seen.push(key);
    }
    line.push('}');
    // These can stand in JSON's texts as they are, but some readers of lines end them there, and terminals obey them.
    if !line.chars().any(breaks) {
        return line;
    }
    line.chars().fold(String::with_capacity(line.len()), |mut line, c| {
        if breaks(c) {
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
        line
    })
}

/// What ends a line somewhere, steers a terminal, or turns the direction of writing; all below U+10000.
fn breaks(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// With what would end the line, or steer a terminal, in escaped form. A backslash stays: this is for people.
fn one_line(text: &str) -> String {
    if !text.chars().any(breaks) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        match c {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if breaks(c) => drop(write!(line, "\\u{{{:x}}}", u32::from(c))),
            c => line.push(c),
        }
        line
    })
}

/// In quotes, so that its ends show.
fn quoted(text: &str) -> String {
    one_line(&format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}
