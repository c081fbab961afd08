//! Signals by SSH's names.

use rustix::process::Signal as Os;
use std::{fmt, str::FromStr};

/// A signal that a client may send.
///
/// RFC 4254 section 6.10 names them all. OpenSSH's client sends no others: of its own extensions there is
/// `INFO@openssh.com`, a signal that Linux does not have, and `WINCH`, `CONT`, `STOP` and `TSTP` its server refuses, as we do
/// (a stopped program would hold its session for ever).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGABRT
    Abrt,
    /// SIGALRM
    Alrm,
    /// SIGFPE
    Fpe,
    /// SIGHUP
    Hup,
    /// SIGILL
    Ill,
    /// SIGINT
    Int,
    /// SIGKILL
    Kill,
    /// SIGPIPE
    Pipe,
    /// SIGQUIT
    Quit,
    /// SIGSEGV
    Segv,
    /// SIGTERM
    Term,
    /// SIGUSR1
    Usr1,
    /// SIGUSR2
    Usr2,
}

impl Signal {
    /// All of them, in RFC 4254's order.
    pub const ALL: [Self; 13] = [
        Self::Abrt,
        Self::Alrm,
        Self::Fpe,
        Self::Hup,
        Self::Ill,
        Self::Int,
        Self::Kill,
        Self::Pipe,
        Self::Quit,
        Self::Segv,
        Self::Term,
        Self::Usr1,
        Self::Usr2,
    ];

    /// SSH's name, without `SIG`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Abrt => "ABRT",
            Self::Alrm => "ALRM",
            Self::Fpe => "FPE",
            Self::Hup => "HUP",
            Self::Ill => "ILL",
            Self::Int => "INT",
            Self::Kill => "KILL",
            Self::Pipe => "PIPE",
            Self::Quit => "QUIT",
            Self::Segv => "SEGV",
            Self::Term => "TERM",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
        }
    }

    /// The kernel's.
    pub fn os(self) -> Os {
        match self {
            Self::Abrt => Os::ABORT,
            Self::Alrm => Os::ALARM,
            Self::Fpe => Os::FPE,
            Self::Hup => Os::HUP,
            Self::Ill => Os::ILL,
            Self::Int => Os::INT,
            Self::Kill => Os::KILL,
            Self::Pipe => Os::PIPE,
            Self::Quit => Os::QUIT,
            Self::Segv => Os::SEGV,
            Self::Term => Os::TERM,
            Self::Usr1 => Os::USR1,
            Self::Usr2 => Os::USR2,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not a signal that can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a signal that can be sent; known are ABRT ALRM FPE HUP ILL INT KILL PIPE QUIT SEGV TERM USR1 USR2")]
pub struct UnknownSignal;

impl FromStr for Signal {
    type Err = UnknownSignal;

    /// The exact name: upper case, no `SIG`.
    fn from_str(name: &str) -> Result<Self, UnknownSignal> {
        Self::ALL.into_iter().find(|signal| signal.name() == name).ok_or(UnknownSignal)
    }
}

/// The name of a signal that ended a program, without `SIG`: SSH's where it has one, else Linux's, else `SIG` and the number
/// (a real-time signal).
pub fn name_of(number: i32) -> String {
    if let Some(signal) = Signal::ALL.into_iter().find(|signal| signal.os().as_raw() == number) {
        return signal.name().to_owned();
    }
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.as_str().trim_start_matches("SIG").to_owned(),
        Err(_) => format!("SIG{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact_and_lead_to_their_numbers() {
        for signal in Signal::ALL {
            assert_eq!(signal.name().parse(), Ok(signal));
            assert_eq!(name_of(signal.os().as_raw()), signal.name());
        }
        for wrong in ["", "term", "SIGTERM", "TERM ", "INFO", "INFO@openssh.com", "WINCH", "CONT", "STOP", "TSTP", "15"]
        {
            assert_eq!(wrong.parse::<Signal>(), Err(UnknownSignal), "{wrong:?}");
        }
    }

    #[test]
    fn a_death_by_any_signal_has_a_name() {
        assert_eq!(name_of(7), "BUS");
        assert_eq!(name_of(31), "SYS");
        assert_eq!(name_of(34), "SIG34");
    }
}
