//! The first frame of a session, checked: what runs, with what environment, on what terminal. Pure.

use super::{
    machine::Credits,
    program::{argv, forced},
    rules, violation,
};
use crate::{
    handle::Contents,
    policy::{ORIGINAL_COMMAND, Runs},
    wrapper,
};
use podbay::{
    Denied, MAX_CREDIT, SessionId,
    v1::{self, Reason, Refusal, output_when_detached},
};
use podbay_agent_wire::output::Policy;
use podbay_runtime::codes;
use std::{collections::BTreeMap, fmt, time::Duration};

const MAX_ENTRIES: usize = 256;
const MAX_ENVIRONMENT: usize = 64 * 1024;
const MAX_TERM: usize = 128;
const MAX_MODES: usize = 256;

/// A valid Open.
#[derive(Clone, PartialEq)]
pub struct Opening {
    /// The session.
    pub session: SessionId,
    /// What runs; empty = the image's own command (mode `session` only).
    pub argv: Vec<String>,
    /// The connection's environment, the session's, and TERM; sorted, each name once.
    pub environment: Vec<(String, String)>,
    /// A terminal.
    pub tty: bool,
    /// Its size, where known.
    pub size: Option<(u16, u16)>,
    /// The first credits.
    pub(super) stdout_credit: u64,
    pub(super) stderr_credit: u64,
    /// Counts the client's streams for the session, from 1.
    pub attempt: u32,
    /// Take the session whatever the attempt.
    pub take_over: bool,
    /// The program runs already: output continues here.
    pub resume: Option<v1::ResumeFrom>,
    /// The terminal as it was asked for.
    pub(super) pty: Option<v1::Pty>,
    /// What becomes of output while no client takes it.
    pub(super) output: Policy,
    /// How long the program has run already, as the client says.
    pub(super) ran: Duration,
}

/// Commands and environment may be secrets.
impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").field("session", &self.session).field("tty", &self.tty).finish_non_exhaustive()
    }
}

impl Opening {
    /// Checks an Open against its connection.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `POLICY`, and `SUBSYSTEM_UNKNOWN`.
    pub fn parse(open: &v1::Open, contents: &Contents) -> Result<Self, Refusal> {
        let session = open.session_id.parse().map_err(|_| invalid("session_id must be 32 lower-case hex digits"))?;
        let resume = open.resume_from.unwrap_or_default();
        for (credit, from) in [(open.stdout_credit, resume.stdout), (open.stderr_credit, resume.stderr)] {
            if credit > from.saturating_add(MAX_CREDIT) {
                return Err(invalid("a first credit is at most 256 KiB beyond where the output continues"));
            }
        }
        let mut environment = contents.environment.clone();
        environment.extend(session_environment(&open.environment)?);
        let runs = contents.security.runs(open).map_err(|denied| denied_open(denied, session, contents))?;
        runs.check()?;
        let size = match &open.pty {
            None => None,
            Some(pty) => {
                if pty.term.len() > MAX_TERM || pty.term.contains('\0') {
                    return Err(invalid("term must be at most 128 bytes without NUL"));
                }
                if !pty.term.is_empty() {
                    environment.insert("TERM".to_owned(), pty.term.clone());
                }
                if pty.modes.len() > MAX_MODES || pty.modes.iter().any(|mode| !(1..160).contains(&mode.opcode)) {
                    return Err(invalid("a terminal has at most 256 modes, with opcodes from 1 to 159"));
                }
                rules::size(pty.size.unwrap_or_default()).map_err(|refusal| invalid(&refusal.message))?
            }
        };
        Ok(Self {
            session,
            argv: match runs {
                Runs::AsAsked => argv(open.program.as_ref(), contents)?,
                Runs::Forced { by, command, original } => {
                    let connection = contents.connection;
                    let (argv, original) = forced((by, command, original), open.program.as_ref(), contents)?;
                    tracing::info!(code = codes::SECURITY_EXEC_FORCING_COMMAND, %connection, %session, "the command is forced");
                    environment.extend(original.map(|original| (ORIGINAL_COMMAND.to_owned(), original)));
                    argv
                }
            },
            environment: environment.into_iter().collect(),
            tty: open.pty.is_some(),
            size,
            stdout_credit: open.stdout_credit,
            stderr_credit: open.stderr_credit,
            attempt: open.attempt.max(1),
            take_over: open.take_over,
            resume: open.resume_from,
            pty: open.pty.clone(),
            output: output(open.output_when_detached.unwrap_or_default())?,
            ran: open.ran.and_then(|ran| Duration::try_from(ran).ok()).unwrap_or_default(),
        })
    }

    /// What only a program that outlives its stream can have: a refusal where this asks for it.
    pub(super) fn without_agent(&self) -> Result<(), Refusal> {
        if self.attempt > 1 || self.take_over || self.resume.is_some() {
            let text = "a session can be continued only where podbay-agent runs in the pod; start a new one";
            return Err(Refusal::new(Reason::Unimplemented, text));
        }
        match self.output {
            Policy::Block => Ok(()),
            Policy::KeepLast | Policy::Spill { .. } => {
                let text = "output can be kept for later only where podbay-agent runs in the pod";
                Err(Refusal::new(Reason::Unimplemented, text))
            }
        }
    }

    pub(super) fn credits(&self) -> Credits {
        Credits { stdout: self.stdout_credit, stderr: self.stderr_credit }
    }
}

/// The Open in a stream's first frame.
///
/// # Errors
/// `PROTOCOL_VIOLATION` where it is another.
pub fn first_frame(frame: v1::RunSessionRequest) -> Result<v1::Open, Refusal> {
    match frame.frame {
        Some(v1::run_session_request::Frame::Open(open)) => Ok(open),
        _ => Err(violation("the first frame must be Open")),
    }
}

fn output(wanted: v1::OutputWhenDetached) -> Result<Policy, Refusal> {
    use output_when_detached::Mode;
    let then = match Mode::try_from(wanted.then) {
        Ok(Mode::Unspecified | Mode::Block) => Ok(false),
        Ok(Mode::KeepLast) => Ok(true),
        Ok(Mode::Spill) | Err(_) => Err(invalid("output_when_detached.then is BLOCK or KEEP_LAST")),
    };
    match Mode::try_from(wanted.mode) {
        Ok(Mode::Unspecified | Mode::Block) => Ok(Policy::Block),
        Ok(Mode::KeepLast) => Ok(Policy::KeepLast),
        Ok(Mode::Spill) if wanted.max_bytes > 0 => Ok(Policy::Spill { max: wanted.max_bytes, keep_last: then? }),
        Ok(Mode::Spill) => Err(invalid("output_when_detached needs max_bytes with SPILL")),
        Err(_) => Err(invalid("output_when_detached.mode is not known")),
    }
}

fn session_environment(given: &std::collections::HashMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    let size: usize = given.iter().map(|(name, value)| name.len() + value.len()).sum();
    if given.len() > MAX_ENTRIES || size > MAX_ENVIRONMENT {
        return Err(invalid("the environment has at most 256 entries and 64 KiB"));
    }
    let mut environment = BTreeMap::new();
    for (name, value) in given {
        if !wrapper::is_name(name) {
            return Err(invalid("names of environment variables match [A-Za-z_][A-Za-z0-9_]*"));
        }
        if value.contains('\0') {
            return Err(invalid("a value of the environment contains a NUL"));
        }
        environment.insert(name.clone(), value.clone());
    }
    Ok(environment)
}

/// The log gets ContainerSSH's code, and nothing that may be a secret.
fn denied_open(denied: Denied, session: SessionId, contents: &Contents) -> Refusal {
    let (code, connection, user) = (denied.code(), contents.connection, &contents.user.name);
    tracing::info!(code, %connection, %session, user, "refused by policy");
    denied.refusal()
}

pub(super) fn invalid(text: &str) -> Refusal {
    Refusal::new(Reason::InvalidRequest, text)
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
