//! Logs: levels and formats. (Metrics are each process's own; [`crate::admin`] serves them.)

use crate::config::{Section, TextOrNumber};
use std::{io::IsTerminal as _, sync::OnceLock};
use tracing_subscriber::{
    EnvFilter, Registry, filter::LevelFilter, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
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
    /// Where they go.
    pub destination: Destination,
}

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Destination {
    /// The default.
    #[default]
    Stderr,
    /// As ContainerSSH's default.
    Stdout,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::default(), destination: Destination::default() }
    }
}

impl Log {
    /// Reads the `log` section: `level`, with ContainerSSH's words and numbers too (`notice`, `warning`, `crit`, 5 …), `format`:
    /// `text` or `json` (`ljson`), and `destination`: `stderr` or `stdout`.
    pub fn from_section(log: &mut Section) -> Self {
        let given = log.or("level", TextOrNumber("info".to_owned())).0;
        let level = match given.as_str() {
            "7" => "debug",
            "notice" | "5" | "6" => "info",
            "warning" | "4" => "warn",
            "critical" | "crit" | "alert" | "emergency" | "emerg" | "3" | "2" | "1" | "0" => "error",
            other => other,
        };
        if !has_levels(level) {
            log.mistake(
                "level",
                "is none of off, error, warn, info, debug, trace, nor directives that name one each, such as info,podbay_frontend=debug",
            );
        }
        let formats = [("text", Format::Text), ("json", Format::Json), ("ljson", Format::Json)];
        let format = log.word("format", &formats, "text").unwrap_or_default();
        let destinations = [
            ("stderr", Some(Destination::Stderr)),
            ("stdout", Some(Destination::Stdout)),
            ("file", None),
            ("syslog", None),
        ];
        let destination = log.word("destination", &destinations, "stderr").flatten().unwrap_or_default();
        // Without meaning, as in ContainerSSH, unless destination says so; they stand in files that it has dumped.
        log.get::<String>("file");
        let mut syslog = log.section("syslog");
        for key in ["destination", "facility", "tag"] {
            syslog.get::<String>(key);
        }
        syslog.or("pid", false);
        if log.text("destination").is_some_and(|word| word == "file" || word == "syslog") {
            log.mistake(
                "destination",
                "is not supported: logs go to stderr or stdout; let the service manager or the cluster collect them",
            );
        }
        Self { level: level.to_owned(), format, destination }
    }
}

/// Whether these are tracing's directives, each with a level. [`EnvFilter`] alone takes any word for the name of a target, of
/// which it then shows all, and of others nothing: a slip of the pen would silence the log.
fn has_levels(directives: &str) -> bool {
    let is_level = |text: &str| !text.is_empty() && text.parse::<LevelFilter>().is_ok();
    directives.split(',').all(|part| is_level(part) || part.rsplit_once('=').is_some_and(|(_, level)| is_level(level)))
        && EnvFilter::try_new(directives).is_ok()
}

/// Sends this process's log where it shall go. `RUST_LOG` overrides the level. A second call does nothing.
pub fn init(log: &Log) {
    let (filter, handle) = reload::Layer::new(filter(log));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer();
    let done = match (log.format, log.destination) {
        (Format::Text, Destination::Stderr) => {
            registry.with(lines.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal())).try_init()
        }
        (Format::Text, Destination::Stdout) => {
            registry.with(lines.with_ansi(std::io::stdout().is_terminal())).try_init()
        }
        (Format::Json, Destination::Stderr) => {
            registry.with(lines.json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
        (Format::Json, Destination::Stdout) => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    if done.is_ok() {
        drop(FILTER.set(handle));
    }
}

/// The filter of this process's log, where [`init`] has made one.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

fn filter(log: &Log) -> EnvFilter {
    EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(&log.level))
        .unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Changes the level of this process's log, unless `RUST_LOG` has set it. Format and destination stay.
pub fn set_level(log: &Log) {
    // Without a filter there is no log of ours to change.
    let _ = FILTER.get().map(|handle| handle.reload(filter(log)));
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
            "crit",
            "emerg",
            "5",
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
