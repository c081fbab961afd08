//! Logs: levels and formats. (Metrics are each process's own; [`crate::admin`] serves them.)

use crate::config::Section;
use std::io::IsTerminal as _;
use tracing_subscriber::{
    EnvFilter, filter::LevelFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

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
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`, or tracing directives such as `info,podbay_frontend=debug`.
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
        if !has_levels(level) {
            log.mistake(
                "level",
                "is none of off, error, warn, info, debug, trace, nor directives that name one each, such as info,podbay_frontend=debug",
            );
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

/// Whether these are tracing's directives, each with a level. [`EnvFilter`] alone takes any word for the name of a target, of
/// which it then shows all, and of others nothing: a slip of the pen would silence the log.
fn has_levels(directives: &str) -> bool {
    let is_level = |text: &str| !text.is_empty() && text.parse::<LevelFilter>().is_ok();
    directives.split(',').all(|part| is_level(part) || part.rsplit_once('=').is_some_and(|(_, level)| is_level(level)))
        && EnvFilter::try_new(directives).is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    #[test]
    fn a_level_is_a_level_or_directives_that_name_one_each() {
        for good in [
            "off",
            "error",
            "warn",
            "info",
            "debug",
            "trace",
            "INFO",
            "notice",
            "warning",
            "critical",
            "info,podbay_frontend=debug",
            "podbay=debug",
            "info,podbay_backend::service=off",
            "warn,[session{user=x}]=debug",
        ] {
            let document = Document::parse("f.yaml", &format!("log: {{level: \"{good}\"}}")).expect("YAML");
            Log::from_section(&mut document.root().section("log"));
            assert!(document.finish().is_ok(), "{good}");
        }
        for bad in [
            "verbose",
            "info,verbose",
            "podbay=loud",
            "",
            "info,",
            "=",
            "podbay=",
            "podbay_frontend",
            "info, podbay=debug",
        ] {
            let document = Document::parse("f.yaml", &format!("log: {{level: \"{bad}\"}}")).expect("YAML");
            Log::from_section(&mut document.root().section("log"));
            let told = document.finish().expect_err(bad).to_string();
            assert!(told.starts_with("f.yaml:1:14: log.level: is none of off, error"), "{bad}: {told}");
        }
    }
}
