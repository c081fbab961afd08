//! Logs: levels and formats. (Metrics are each process's own; [`crate::admin`] serves them.)

use crate::config::Section;
use std::io::IsTerminal as _;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The `log` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or tracing directives such as `info,podbay_frontend=debug`.
    pub level: String,
    /// How lines look.
    pub format: Format,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::default() }
    }
}

impl Log {
    /// Reads the `log` section: `level`, with ContainerSSH's words too (`notice`, `warning`, `critical` …), and `format`:
    /// `text` or `json` (`ljson`).
    pub fn from_section(log: &mut Section) -> Self {
        let given = log.or("level", "info".to_owned());
        let level = match given.as_str() {
            "notice" => "info",
            "warning" => "warn",
            "critical" | "alert" | "emergency" => "error",
            other => other,
        };
        if EnvFilter::try_new(level).is_err() {
            log.mistake("level", "is none of error, warn, info, debug, trace");
        }
        let format = match log.get::<String>("format").as_deref() {
            None | Some("text") => Format::Text,
            Some("json" | "ljson") => Format::Json,
            Some(_) => {
                log.mistake("format", "is neither text nor json");
                Format::Text
            }
        };
        log.refuse("destination", "logs go to stderr; let the service manager or the cluster collect them");
        log.refuse("file", "logs go to stderr");
        log.refuse("syslog", "logs go to stderr");
        Self { level: level.to_owned(), format }
    }
}

/// Sends this process's log to stderr. `RUST_LOG` overrides the level. A second call does nothing.
pub fn init(log: &Log) {
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(&log.level))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let done = match log.format {
        Format::Text => registry.with(lines).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    drop(done);
}
