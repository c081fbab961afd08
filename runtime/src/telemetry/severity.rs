//! How grave a line is, in syslog's and ContainerSSH's words. tracing has five levels; the three gravest and `notice` are told by a line's code.

use crate::codes;
use tracing::Level;

/// From RFC 5424 section 6.2.1: the lower the number, the graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Severity {
    /// Nothing works.
    Emerg = 0,
    /// Act at once.
    Alert = 1,
    /// The process can't do its work.
    Crit = 2,
    /// Something failed.
    Err = 3,
    /// Something may be wrong.
    Warning = 4,
    /// What is normal, and rare.
    Notice = 5,
    /// What is normal.
    Info = 6,
    /// For whoever looks for a mistake.
    #[default]
    Debug = 7,
}

impl Severity {
    /// ContainerSSH's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Emerg => "emerg",
            Self::Alert => "alert",
            Self::Crit => "crit",
            Self::Err => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// An event's: its level's, or its code's where tracing has no level for that.
    pub(super) fn of(level: Level, code: Option<&str>) -> Self {
        let plain = match level {
            Level::ERROR => Self::Err,
            Level::WARN => Self::Warning,
            Level::INFO => Self::Info,
            Level::DEBUG | Level::TRACE => Self::Debug,
        };
        match code.and_then(codes::severity) {
            Some(graver) if plain == Self::Err && graver < Self::Err => graver,
            Some(Self::Notice) if plain == Self::Info => Self::Notice,
            Some(_) | None => plain,
        }
    }
}
