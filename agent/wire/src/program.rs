//! What a program is started with and how it ends: the messages' contents, parsed once.

use crate::{
    output::Policy,
    proto::{self, exit_status, output_policy::Mode},
};
use bytes::Bytes;
use std::{collections::BTreeSet, fmt, time::Duration};

/// What runs, and how. Its `Debug` shows neither arguments nor environment.
#[derive(Clone, PartialEq, Eq)]
pub struct Start {
    /// The program and its arguments; not empty, no NUL.
    pub argv: Vec<Bytes>,
    /// Each replaces the variable of this name or is added; no name twice.
    pub environment: Vec<(Bytes, Bytes)>,
    /// The program gets `environment` alone, nothing of the container's.
    pub clear_environment: bool,
    /// Absolute; `None` = the supervisor's.
    pub working_directory: Option<Bytes>,
    /// A terminal; `None` = pipes.
    pub pty: Option<Pty>,
    /// For output that no link takes.
    pub output: Policy,
    /// How it is ended when it is given up.
    pub hangup: Hangup,
    /// How long it may run without a link and without Detach; `None` = the supervisor's default.
    pub orphan_timeout: Option<Duration>,
    /// How long it may run, whoever has it or nobody; `None` = for ever.
    pub limit: Option<Duration>,
}

impl Start {
    /// `argv` with pipes and everything else as by default.
    pub fn new<A: Into<Bytes>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            clear_environment: false,
            working_directory: None,
            pty: None,
            output: Policy::Block,
            hangup: Hangup::default(),
            orphan_timeout: None,
            limit: None,
        }
    }
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start")
            .field("arguments", &self.argv.len())
            .field("variables", &self.environment.len())
            .field("pty", &self.pty)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pty {
    /// `TERM`; at most 128 bytes.
    pub term: String,
    /// Set before the program starts.
    pub size: Size,
    /// Opcodes of RFC 4254 section 8 and their arguments, in order.
    pub modes: Vec<(u8, u32)>,
}

/// A terminal's size; 0 = not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Characters.
    pub columns: u16,
    /// Characters.
    pub rows: u16,
    /// Pixels.
    pub width: u16,
    /// Pixels.
    pub height: u16,
}

/// The times between the signals that end a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hangup {
    /// From HUP to TERM.
    pub term_after: Duration,
    /// From TERM to KILL.
    pub kill_after: Duration,
}

impl Default for Hangup {
    /// 5 s and 5 s: within the 30 s that Kubernetes gives a pod by default (`terminationGracePeriodSeconds`).
    fn default() -> Self {
        Self { term_after: Duration::from_secs(5), kill_after: Duration::from_secs(5) }
    }
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It ended by itself.
    Code(u8),
    /// A signal ended it.
    Signal {
        /// Without `SIG`.
        name: String,
        /// A core was dumped.
        core_dumped: bool,
        /// For the user; may be empty.
        message: String,
    },
}

/// A message that makes no sense; says which field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub &'static str);

const MAX_ARGUMENTS: usize = 8192;
const MAX_VARIABLES: usize = 2048;
const MAX_MODES: usize = 256;
/// The longest time that a message may name: ten years, so that adding it to a clock never fails.
const MAX_TIME: Duration = Duration::from_hours(10 * 365 * 24);

pub(crate) fn time(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds).min(MAX_TIME)
}

pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl TryFrom<proto::Start> for Start {
    type Error = Invalid;

    fn try_from(start: proto::Start) -> Result<Self, Invalid> {
        let nul = |bytes: &[u8]| bytes.contains(&0);
        if start.argv.first().is_none_or(Bytes::is_empty) || start.argv.iter().any(|argument| nul(argument)) {
            return Err(Invalid("argv is empty or has a NUL"));
        }
        if start.argv.len() > MAX_ARGUMENTS || start.environment.len() > MAX_VARIABLES {
            return Err(Invalid("too many arguments or variables"));
        }
        let mut names = BTreeSet::new();
        for proto::Variable { name, value } in &start.environment {
            if name.is_empty() || nul(name) || name.contains(&b'=') || nul(value) || !names.insert(name) {
                return Err(Invalid("a variable's name or value is malformed, or a name stands twice"));
            }
        }
        let directory = start.working_directory;
        if !directory.is_empty() && (!directory.starts_with(b"/") || nul(&directory)) {
            return Err(Invalid("the working directory is not absolute"));
        }
        let hangup = start.hangup.unwrap_or_default();
        Ok(Self {
            argv: start.argv,
            environment: start.environment.into_iter().map(|variable| (variable.name, variable.value)).collect(),
            clear_environment: start.clear_environment,
            working_directory: Some(directory).filter(|directory| !directory.is_empty()),
            pty: start.pty.map(Pty::try_from).transpose()?,
            output: policy(start.output.unwrap_or_default())?,
            hangup: Hangup { term_after: time(hangup.term_after_ms), kill_after: time(hangup.kill_after_ms) },
            orphan_timeout: (start.orphan_timeout_ms > 0).then(|| time(start.orphan_timeout_ms)),
            limit: (start.limit_ms > 0).then(|| time(start.limit_ms)),
        })
    }
}

impl From<&Start> for proto::Start {
    /// Without the fields that place it on a link.
    fn from(start: &Start) -> Self {
        let variable = |(name, value): &(Bytes, Bytes)| proto::Variable { name: name.clone(), value: value.clone() };
        Self {
            argv: start.argv.clone(),
            environment: start.environment.iter().map(variable).collect(),
            clear_environment: start.clear_environment,
            working_directory: start.working_directory.clone().unwrap_or_default(),
            pty: start.pty.as_ref().map(proto::Pty::from),
            output: Some(start.output.into()),
            hangup: Some(proto::Hangup {
                term_after_ms: milliseconds(start.hangup.term_after),
                kill_after_ms: milliseconds(start.hangup.kill_after),
            }),
            orphan_timeout_ms: start.orphan_timeout.map_or(0, |time| milliseconds(time).max(1)),
            limit_ms: start.limit.map_or(0, |time| milliseconds(time).max(1)),
            ..Self::default()
        }
    }
}

impl TryFrom<proto::Pty> for Pty {
    type Error = Invalid;

    fn try_from(pty: proto::Pty) -> Result<Self, Invalid> {
        if pty.term.len() > 128 || pty.term.contains('\0') {
            return Err(Invalid("TERM is too long or has a NUL"));
        }
        if pty.modes.len() > MAX_MODES {
            return Err(Invalid("too many terminal modes"));
        }
        let mode = |mode: proto::TerminalMode| Some((u8::try_from(mode.opcode).ok()?, mode.value));
        Ok(Self {
            term: pty.term,
            size: pty.size.unwrap_or_default().into(),
            modes: pty.modes.into_iter().filter_map(mode).collect(),
        })
    }
}

impl From<&Pty> for proto::Pty {
    fn from(pty: &Pty) -> Self {
        let mode = |&(opcode, value): &(u8, u32)| proto::TerminalMode { opcode: opcode.into(), value };
        Self { term: pty.term.clone(), size: Some(pty.size.into()), modes: pty.modes.iter().map(mode).collect() }
    }
}

impl From<proto::WindowSize> for Size {
    /// More than 65535 is 65535.
    fn from(size: proto::WindowSize) -> Self {
        let narrow = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        Self {
            columns: narrow(size.columns),
            rows: narrow(size.rows),
            width: narrow(size.width_pixels),
            height: narrow(size.height_pixels),
        }
    }
}

impl From<Size> for proto::WindowSize {
    fn from(size: Size) -> Self {
        Self {
            columns: size.columns.into(),
            rows: size.rows.into(),
            width_pixels: size.width.into(),
            height_pixels: size.height.into(),
        }
    }
}

fn policy(policy: proto::OutputPolicy) -> Result<Policy, Invalid> {
    let mode = |number| Mode::try_from(number).map_err(|_| Invalid("an unknown output policy"));
    Ok(match mode(policy.mode)? {
        Mode::Unspecified | Mode::Block => Policy::Block,
        Mode::KeepLast => Policy::KeepLast,
        Mode::Spill if policy.max_bytes == 0 => return Err(Invalid("SPILL without max_bytes")),
        Mode::Spill => {
            let keep_last = match mode(policy.then)? {
                Mode::Unspecified | Mode::Block => false,
                Mode::KeepLast => true,
                Mode::Spill => return Err(Invalid("SPILL, then SPILL")),
            };
            Policy::Spill { max: policy.max_bytes, keep_last }
        }
    })
}

impl From<Policy> for proto::OutputPolicy {
    fn from(policy: Policy) -> Self {
        let (mode, max_bytes, then) = match policy {
            Policy::Block => (Mode::Block, 0, Mode::Unspecified),
            Policy::KeepLast => (Mode::KeepLast, 0, Mode::Unspecified),
            Policy::Spill { max, keep_last } => {
                (Mode::Spill, max, if keep_last { Mode::KeepLast } else { Mode::Block })
            }
        };
        Self { mode: mode.into(), max_bytes, then: then.into() }
    }
}

impl TryFrom<proto::ExitStatus> for Exit {
    type Error = Invalid;

    fn try_from(status: proto::ExitStatus) -> Result<Self, Invalid> {
        match status.end {
            Some(exit_status::End::Code(code)) => {
                u8::try_from(code).map(Self::Code).map_err(|_| Invalid("an exit code above 255"))
            }
            Some(exit_status::End::Signal(name)) if !name.is_empty() && name.len() <= 32 => {
                Ok(Self::Signal { name, core_dumped: status.core_dumped, message: status.message })
            }
            Some(exit_status::End::Signal(_)) => Err(Invalid("an exit signal without a name")),
            None => Err(Invalid("an exit without code and signal")),
        }
    }
}

impl From<&Exit> for proto::ExitStatus {
    fn from(exit: &Exit) -> Self {
        match exit {
            Exit::Code(code) => {
                Self { end: Some(exit_status::End::Code((*code).into())), core_dumped: false, message: String::new() }
            }
            Exit::Signal { name, core_dumped, message } => Self {
                end: Some(exit_status::End::Signal(name.clone())),
                core_dumped: *core_dumped,
                message: message.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_survives_the_journey() {
        let mut start = Start::new(["sh", "-c", "echo"]);
        start.environment = vec![("A".into(), "1=2".into()), ("B".into(), Bytes::new())];
        start.working_directory = Some("/tmp".into());
        start.pty = Some(Pty {
            term: "xterm".into(),
            size: Size { columns: 80, rows: 24, width: 1, height: 2 },
            modes: vec![(53, 0), (42, 1)],
        });
        start.output = Policy::Spill { max: 7, keep_last: true };
        start.orphan_timeout = Some(Duration::from_secs(3));
        start.limit = Some(Duration::from_secs(4));
        assert_eq!(Start::try_from(proto::Start::from(&start)), Ok(start.clone()));
        assert!(!format!("{start:?} {:?}", proto::Start::from(&start)).contains("1=2"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = proto::Start::from(&Start::new(["x"]));
        let refused = |change: fn(&mut proto::Start)| {
            let mut start = good.clone();
            change(&mut start);
            Start::try_from(start).is_err()
        };
        assert!(!refused(|_| ()));
        assert!(refused(|start| start.argv.clear()));
        assert!(refused(|start| start.argv = vec!["a\0b".into()]));
        assert!(refused(|start| start.argv = vec![Bytes::new()]));
        assert!(refused(|start| start.working_directory = "tmp".into()));
        assert!(refused(|start| {
            let variable = proto::Variable { name: "A".into(), value: "1".into() };
            start.environment = vec![variable.clone(), variable];
        }));
        assert!(refused(|start| {
            start.environment = vec![proto::Variable { name: "A=B".into(), value: "1".into() }];
        }));
        assert!(refused(|start| start.output = Some(proto::OutputPolicy { mode: 2, max_bytes: 0, then: 1 })));
        assert!(refused(|start| start.output = Some(proto::OutputPolicy { mode: 9, max_bytes: 0, then: 1 })));
    }

    #[test]
    fn an_exit_is_a_code_or_a_signal() {
        let signal = Exit::Signal { name: "SEGV".into(), core_dumped: true, message: String::new() };
        for exit in [Exit::Code(0), Exit::Code(255), signal] {
            assert_eq!(Exit::try_from(proto::ExitStatus::from(&exit)), Ok(exit));
        }
        assert!(Exit::try_from(proto::ExitStatus::default()).is_err());
        let code = proto::ExitStatus { end: Some(exit_status::End::Code(256)), ..Default::default() };
        assert!(Exit::try_from(code).is_err());
    }
}
