//! What a connection may do (`security`), decided without I/O: rules, a forced command, limits.
//!
//! [`Security`] is a value: the file's, or for one user the file's with another laid over it ([`Security::merged`]). It is
//! sealed into the connection's handle, so every replica decides the same for as long as the connection lives. Who is allowed
//! to log in, and what a pod may do, is decided elsewhere.

mod clock;
mod decide;

pub use clock::{Clock, Known, Tick, agents_limit};
pub use decide::{Ask, ORIGINAL_COMMAND, Runs};

use podbay::v1;
use serde::{Deserialize, Serialize};
use std::{num::NonZeroU32, time::Duration};

/// What is done with requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// They pass, but for those on the list `deny`.
    Enable,
    /// Only those on the list `allow` pass; where there is no list, none.
    Filter,
    /// None passes.
    Disable,
}

/// A rule for requests with a name. Names are compared byte by byte: no patterns, no case, blanks count.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rule {
    /// `None`: as [`Security::default_mode`] says.
    pub mode: Option<Mode>,
    /// For [`Mode::Filter`] only.
    pub allow: Vec<String>,
    /// For [`Mode::Enable`] only.
    pub deny: Vec<String>,
}

/// Modes of forwarding. `None` = [`Mode::Disable`], whatever [`Security::default_mode`] says. [`Mode::Filter`] is the same, as
/// there are no lists; [`Mode::Enable`] is a mistake of a configuration, since nothing is built that forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Forwarding {
    /// `tcpip-forward`.
    pub reverse: Option<Mode>,
    /// `direct-tcpip`.
    pub direct: Option<Mode>,
    /// `direct-streamlocal@openssh.com`.
    pub socket: Option<Mode>,
    /// `streamlocal-forward@openssh.com`.
    pub socket_listen: Option<Mode>,
    /// `x11-req`.
    pub x11: Option<Mode>,
}

/// How many sessions a connection may have open at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Most {
    /// Any number: ContainerSSH's -1.
    Unlimited,
    /// So many.
    Sessions(NonZeroU32),
}

/// The longest command that is forced, in bytes: it goes into every handle.
pub const MAX_FORCED: usize = 16 * 1024;

/// Who forces a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Forcer {
    /// The operator: the file, or the config webhook.
    #[default]
    Policy,
    /// The user's own credentials ([`Security::restricted`]).
    Login,
}

/// What the user's own credentials restrict a connection to. It takes away, and never adds to what a policy allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restrictions {
    /// Runs in the place of whatever is asked for, where the policy forces nothing itself; not blank.
    pub force_command: Option<String>,
    /// No session gets a terminal.
    pub no_terminal: bool,
}

/// The policy of a connection. The default allows everything but forwarding.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// `defaultMode`, for rules without a mode; `None` = [`Mode::Enable`].
    pub default_mode: Option<Mode>,
    /// `forceCommand`: runs instead of whatever is asked for; empty = off.
    pub force_command: String,
    /// Where that came from.
    pub forced_by: Forcer,
    /// `env`, by name.
    pub env: Rule,
    /// `command`, by the whole command line; `deny` is not used.
    pub command: Rule,
    /// `shell.mode`.
    pub shell: Option<Mode>,
    /// `subsystem`, by name.
    pub subsystem: Rule,
    /// `tty.mode`.
    pub tty: Option<Mode>,
    /// `signal`, by name without SIG.
    pub signal: Rule,
    /// `forwarding`.
    pub forwarding: Forwarding,
    /// `maxSessions`; `None` = unlimited.
    pub most: Option<Most>,
    /// `maxSessionTime`, from a program's start; zero = no limit.
    pub max_session_time: Duration,
    /// `idleTimeout`, without a byte in either direction; zero = no limit.
    pub idle_timeout: Duration,
}

impl Rule {
    fn merged(self, over: Self) -> Self {
        let list = |own: Vec<String>, over: Vec<String>| if over.is_empty() { own } else { over };
        Self { mode: over.mode.or(self.mode), allow: list(self.allow, over.allow), deny: list(self.deny, over.deny) }
    }

    fn to_proto(&self, default: Mode) -> v1::Rule {
        let mode = self.mode.unwrap_or(default);
        let names = match mode {
            Mode::Enable => self.deny.clone(),
            Mode::Filter => self.allow.clone(),
            Mode::Disable => Vec::new(),
        };
        v1::Rule { mode: mode.to_proto().into(), names }
    }
}

impl Mode {
    const fn to_proto(self) -> v1::rule::Mode {
        match self {
            Self::Enable => v1::rule::Mode::Enable,
            Self::Filter => v1::rule::Mode::Filter,
            Self::Disable => v1::rule::Mode::Disable,
        }
    }
}

impl Forwarding {
    /// Each with its key under `security.forwarding`.
    pub const fn keyed(&self) -> [(&'static str, Option<Mode>); 5] {
        [
            ("reverseForwardingMode", self.reverse),
            ("forwardingMode", self.direct),
            ("socketForwardingMode", self.socket),
            ("socketListenMode", self.socket_listen),
            ("x11ForwardingMode", self.x11),
        ]
    }
}

impl Security {
    /// This with another laid over it, as ContainerSSH merges a user's over the file's: what is set there wins, a list that
    /// is not empty replaces the whole list, and what is empty changes nothing.
    #[must_use]
    pub fn merged(self, over: Self) -> Self {
        let longer = |own: Duration, over: Duration| if over.is_zero() { own } else { over };
        Self {
            default_mode: over.default_mode.or(self.default_mode),
            force_command: if over.force_command.is_empty() { self.force_command } else { over.force_command },
            // Configurations know no other.
            forced_by: Forcer::Policy,
            env: self.env.merged(over.env),
            command: self.command.merged(over.command),
            shell: over.shell.or(self.shell),
            subsystem: self.subsystem.merged(over.subsystem),
            tty: over.tty.or(self.tty),
            signal: self.signal.merged(over.signal),
            forwarding: Forwarding {
                reverse: over.forwarding.reverse.or(self.forwarding.reverse),
                direct: over.forwarding.direct.or(self.forwarding.direct),
                socket: over.forwarding.socket.or(self.forwarding.socket),
                socket_listen: over.forwarding.socket_listen.or(self.forwarding.socket_listen),
                x11: over.forwarding.x11.or(self.forwarding.x11),
            },
            most: over.most.or(self.most),
            max_session_time: longer(self.max_session_time, over.max_session_time),
            idle_timeout: longer(self.idle_timeout, over.idle_timeout),
        }
    }

    /// This for a connection whose user has logged in with these restrictions. As in sshd, the server's own forced command goes before a
    /// certificate's. A replica that is older and knows no [`Forcer`] keeps to the result all the same.
    #[must_use]
    pub fn restricted(self, by: &Restrictions) -> Self {
        let (force_command, forced_by) = match &by.force_command {
            Some(command) if self.force_command.is_empty() => (command.clone(), Forcer::Login),
            Some(_) | None => (self.force_command, self.forced_by),
        };
        let tty = if by.no_terminal { Some(Mode::Disable) } else { self.tty };
        Self { force_command, forced_by, tty, ..self }
    }

    /// The most sessions at once; `None` = no limit.
    pub const fn max_sessions(&self) -> Option<NonZeroU32> {
        match self.most {
            None | Some(Most::Unlimited) => None,
            Some(Most::Sessions(most)) => Some(most),
        }
    }

    /// As the contract announces it, for a connection with these subsystems.
    pub fn to_proto<'a>(&self, subsystems: impl IntoIterator<Item = &'a String>) -> v1::Policy {
        let default = self.default_mode.unwrap_or(Mode::Enable);
        let switch = |mode: Option<Mode>| Some(Rule { mode, ..Rule::default() }.to_proto(default));
        // Where the operator forces a command, a subsystem need not be there to be asked for.
        let any = !self.force_command.is_empty() && self.forced_by == Forcer::Policy;
        let told = |name: &&String| !any && self.admits(Ask::Subsystem(name)).is_ok();
        let subsystems = subsystems.into_iter().filter(told).cloned().collect();
        v1::Policy {
            subsystems,
            max_sessions: self.max_sessions().map_or(0, NonZeroU32::get),
            env: Some(self.env.to_proto(default)),
            // It has no list of what is denied.
            command: Some(Rule { deny: Vec::new(), ..self.command.clone() }.to_proto(default)),
            shell: switch(self.shell),
            subsystem: Some(self.subsystem.to_proto(default)),
            tty: switch(self.tty),
            signal: Some(self.signal.to_proto(default)),
        }
    }
}

#[cfg(test)]
mod tests;
