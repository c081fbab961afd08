//! The `log` section as it is read.

use super::{Destination, Format, Log, Severity, Syslog};
use crate::config::{Section, TextOrNumber};
use std::path::PathBuf;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// ContainerSSH's default, a place that its image has.
const FILE: &str = "/var/log/containerssh/containerssh.log";

/// Which lines are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Level {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`, or tracing's directives such as `info,podbay_frontend=debug`.
    Directives(String),
    /// ContainerSSH's: what is as grave, or graver.
    Least(Severity),
}

impl Default for Level {
    fn default() -> Self {
        Self::Directives("info".to_owned())
    }
}

impl Level {
    /// `None`: neither tracing's nor ContainerSSH's.
    fn read(text: &str) -> Option<Self> {
        let least = match text {
            "7" => Severity::Debug,
            "info" | "6" => Severity::Info,
            "notice" | "5" => Severity::Notice,
            "warning" | "4" => Severity::Warning,
            "3" => Severity::Err,
            "crit" | "critical" | "2" => Severity::Crit,
            "alert" | "1" => Severity::Alert,
            "emerg" | "emergency" | "0" => Severity::Emerg,
            directives => return has_levels(directives).then(|| Self::Directives(directives.to_owned())),
        };
        Some(Self::Least(least))
    }

    /// For [`EnvFilter`]; it may let more through than [`Self::least`] does.
    pub(super) fn directives(&self) -> &str {
        match self {
            Self::Directives(directives) => directives,
            Self::Least(Severity::Debug) => "debug",
            Self::Least(Severity::Info | Severity::Notice) => "info",
            Self::Least(Severity::Warning) => "warn",
            Self::Least(Severity::Err | Severity::Crit | Severity::Alert | Severity::Emerg) => "error",
        }
    }

    /// The least grave that is written.
    pub(super) fn least(&self) -> Severity {
        match self {
            Self::Directives(_) => Severity::Debug,
            Self::Least(least) => *least,
        }
    }
}

impl Log {
    /// Reads the `log` section: `level`, in tracing's words or ContainerSSH's and its numbers (`notice`, `crit`, 5 …), `format`,
    /// `destination`, `file`, and `syslog`.
    pub fn from_section(log: &mut Section) -> Self {
        let given = log.or("level", TextOrNumber("info".to_owned())).0;
        let level = Level::read(&given);
        if level.is_none() {
            log.mistake(
                "level",
                "is none of off, error, warn, info, debug, trace, nor of ContainerSSH's notice, warning, crit, alert, emerg and 7 to 0, nor \
                 directives that name one of the first each, such as info,podbay_frontend=debug",
            );
        }
        let formats =
            [("plain", Format::Plain), ("json", Format::Json), ("ljson", Format::Ljson), ("text", Format::Text)];
        let format = log.word("format", &formats, "plain").unwrap_or_default();
        let words = [("stderr", 0), ("stdout", 1), ("file", 2), ("syslog", 3)];
        let destination = log.word("destination", &words, "stderr");
        // As in ContainerSSH, these have no meaning unless destination asks for them: they stand in files that it has dumped.
        let file = PathBuf::from(log.filled("file", FILE.to_owned()));
        let syslog = Syslog::from_section(&mut log.section("syslog"));
        let destination = match destination {
            Some(1) => Destination::Stdout,
            Some(2) => Destination::File(file),
            Some(3) => Destination::Syslog(syslog),
            Some(_) | None => Destination::Stderr,
        };
        if let Destination::File(file) = &destination
            && !log.describing()
            && !file.parent().is_some_and(|dir| dir.as_os_str().is_empty() || dir.is_dir())
        {
            log.mistake("file", format!("there is no directory for {}: make it first", file.display()));
        }
        Self { level: level.unwrap_or_default(), format, destination }
    }
}

/// Whether these are tracing's directives, each with a level. [`EnvFilter`] alone takes any word for the name of a target, of
/// which it then shows all, and of others nothing: a slip of the pen would silence the log.
fn has_levels(directives: &str) -> bool {
    let is_level = |text: &str| !text.is_empty() && text.parse::<LevelFilter>().is_ok();
    directives.split(',').all(|part| is_level(part) || part.rsplit_once('=').is_some_and(|(_, level)| is_level(level)))
        && EnvFilter::try_new(directives).is_ok()
}
