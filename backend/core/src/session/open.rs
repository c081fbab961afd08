//! The first frame of a session, checked: what runs, with what environment, on what terminal. Pure.

use super::{
    machine::{Credits, size_of},
    violation,
};
use crate::{
    config::EXEC_DISABLED,
    handle::Contents,
    policy::{Denied, ORIGINAL_COMMAND, Runs},
    wrapper,
};
use podbay::{
    MAX_CREDIT, SessionId,
    v1::{self, Reason, Refusal, open::Program, output_when_detached},
};
use podbay_agent_wire::output::Policy;
use podbay_runtime::codes;
use std::{collections::BTreeMap, fmt, time::Duration};

const MAX_ENTRIES: usize = 256;
const MAX_ENVIRONMENT: usize = 64 * 1024;
const MAX_TERM: usize = 128;
const MAX_MODES: usize = 256;
const MAX_COMMAND: usize = 128 * 1024;

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
    /// How long the program has run already.
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
                size_of(pty.size.unwrap_or_default()).map_err(|refusal| invalid(&refusal.message))?
            }
        };
        Ok(Self {
            session,
            argv: match runs {
                Runs::AsAsked => argv(open.program.as_ref(), contents)?,
                Runs::Forced { command, original } => {
                    let connection = contents.connection;
                    tracing::info!(code = codes::SECURITY_EXEC_FORCING_COMMAND, %connection, %session, "the command is forced");
                    environment.extend(original.map(|original| (ORIGINAL_COMMAND.to_owned(), original)));
                    vec![wrapper::SHELL.to_owned(), "-c".to_owned(), command.to_owned()]
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

fn argv(program: Option<&Program>, contents: &Contents) -> Result<Vec<String>, Refusal> {
    match program {
        None => Err(invalid("Open names no program: shell, exec or subsystem")),
        Some(Program::Exec(_) | Program::Subsystem(_)) if contents.only_shells => {
            tracing::info!(code = EXEC_DISABLED, connection = %contents.connection, "a program was refused: kuberun.pod.disableCommand");
            Err(Refusal::new(Reason::Policy, "commands are disabled here; ask for a shell"))
        }
        Some(Program::Shell(v1::Shell {})) => Ok(contents.shell.clone()),
        Some(Program::Exec(exec)) if exec.argv.is_empty() => {
            let command = &exec.command;
            if command.is_empty() || command.len() > MAX_COMMAND || command.contains('\0') {
                return Err(invalid("a command has 1 byte to 128 KiB and no NUL"));
            }
            // One argument, always: nothing of it is split or interpreted on this side.
            Ok(vec![wrapper::SHELL.to_owned(), "-c".to_owned(), command.clone()])
        }
        Some(Program::Exec(exec)) => {
            let size: usize = exec.argv.iter().map(|argument| argument.len() + 1).sum();
            let first = exec.argv.first().map(String::as_str).unwrap_or_default();
            if size > MAX_COMMAND || exec.argv.iter().any(|argument| argument.contains('\0')) {
                return Err(invalid("an argument vector has at most 128 KiB and no NUL"));
            }
            if first.is_empty() || first.starts_with('-') {
                return Err(invalid("a program's name is not empty and does not begin with '-'"));
            }
            Ok(exec.argv.clone())
        }
        Some(Program::Subsystem(subsystem)) => {
            let path = contents.subsystems.get(&subsystem.name).ok_or_else(|| {
                let text = format!("the subsystem {:?} is not configured", subsystem.name);
                Refusal::new(Reason::SubsystemUnknown, text)
            })?;
            Ok(vec![path.clone()])
        }
    }
}

/// The log gets ContainerSSH's code, and nothing that may be a secret.
fn denied_open(denied: Denied, session: SessionId, contents: &Contents) -> Refusal {
    let (code, connection, user) = (denied.code(), contents.connection, &contents.user.name);
    tracing::info!(code, %connection, %session, user, "refused by policy");
    denied.refusal()
}

fn invalid(text: &str) -> Refusal {
    Refusal::new(Reason::InvalidRequest, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::testing::contents;
    use podbay::v1::{Exec, Open, Pty, ResumeFrom, Shell, Subsystem, WindowSize};

    fn open(program: Program) -> Open {
        Open { session_id: "0".repeat(32), program: Some(program), ..Open::default() }
    }

    fn exec(command: &str, argv: &[&str]) -> Program {
        Program::Exec(Exec { command: command.into(), argv: argv.iter().map(ToString::to_string).collect() })
    }

    #[test]
    fn what_runs() {
        let argv = |program| Opening::parse(&open(program), &contents()).map(|opening| opening.argv);
        assert_eq!(argv(Program::Shell(Shell {})), Ok(vec!["/bin/bash".to_owned()]));
        let line = "/bin/echo 'a b' $(id)";
        assert_eq!(argv(exec(line, &[])), Ok(["/bin/sh", "-c", line].map(str::to_owned).to_vec()));
        assert_eq!(argv(exec("ignored", &["a", "b c"])), Ok(["a", "b c"].map(str::to_owned).to_vec()));
        let sftp = |name: &str| Program::Subsystem(Subsystem { name: name.into() });
        assert_eq!(argv(sftp("sftp")), Ok(vec!["/usr/lib/openssh/sftp-server".to_owned()]));
        assert_eq!(argv(sftp("x")).map_err(|r| r.reason()), Err(Reason::SubsystemUnknown));
        for bad in [
            exec("", &[]),
            exec("a\0", &[]),
            exec(&"x".repeat(MAX_COMMAND + 1), &[]),
            exec("", &["-x"]),
            exec("", &[""]),
        ] {
            assert_eq!(argv(bad).map_err(|r| r.reason()), Err(Reason::InvalidRequest));
        }
    }

    #[test]
    fn a_policy_stands_before_all_and_a_forced_command_in_its_place() {
        use crate::policy::{Mode, Rule};
        let mut contents = contents();
        let refused =
            |open: &Open, contents: &Contents| Opening::parse(open, contents).err().map(|refusal| refusal.reason());
        contents.security.shell = Some(Mode::Disable);
        contents.security.force_command = "forced".into();
        let shell = open(Program::Shell(Shell {}));
        assert_eq!(refused(&shell, &contents), Some(Reason::Policy));
        assert_eq!(refused(&Open { program: None, ..shell }, &contents), Some(Reason::InvalidRequest));
        let mut asked = open(Program::Subsystem(Subsystem { name: "nosuch".into() }));
        asked.environment = [("C".to_owned(), "c".to_owned())].into();
        let opening = Opening::parse(&asked, &contents).expect("forced");
        assert_eq!(opening.argv, ["/bin/sh", "-c", "forced"]);
        let environment = [("C", "c"), (ORIGINAL_COMMAND, "nosuch")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(opening.environment, environment);
        // Neither a resume nor an attach is a way around it.
        asked.environment.insert(ORIGINAL_COMMAND.into(), "lie".into());
        asked.resume_from = Some(ResumeFrom::default());
        assert_eq!(refused(&asked, &contents), Some(Reason::Policy));
        asked.environment.clear();
        asked.pty = Some(Pty::default());
        assert_eq!(refused(&asked, &contents), None);
        contents.security.tty = Some(Mode::Filter);
        assert_eq!(refused(&asked, &contents), Some(Reason::Policy));
        asked.pty = None;
        contents.security.subsystem = Rule { mode: Some(Mode::Filter), ..Rule::default() };
        asked.take_over = true;
        assert_eq!(refused(&asked, &contents), Some(Reason::Policy));
    }

    #[test]
    fn kuberuns_disable_command_leaves_shells() {
        let contents = Contents { only_shells: true, ..contents() };
        let reason = |program| Opening::parse(&open(program), &contents).map(drop).map_err(|refusal| refusal.reason());
        assert_eq!(reason(Program::Shell(Shell {})), Ok(()));
        assert_eq!(reason(exec("id", &[])), Err(Reason::Policy));
        assert_eq!(reason(exec("", &["id"])), Err(Reason::Policy));
        assert_eq!(reason(Program::Subsystem(Subsystem { name: "sftp".into() })), Err(Reason::Policy));
    }

    #[test]
    fn the_sessions_environment_comes_after_the_connections() {
        let mut open = open(Program::Shell(Shell {}));
        open.environment = [("A".to_owned(), "session".to_owned()), ("C".to_owned(), "c".to_owned())].into();
        open.pty = Some(Pty {
            term: "xterm".into(),
            size: Some(WindowSize { columns: 80, rows: 24, ..WindowSize::default() }),
            modes: Vec::new(),
        });
        let mut contents = contents();
        contents.environment = [("A".to_owned(), "a".to_owned()), ("B".to_owned(), "b".to_owned())].into();
        let opening = Opening::parse(&open, &contents).expect("valid");
        let environment: Vec<_> = opening.environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(environment, [("A", "session"), ("B", "b"), ("C", "c"), ("TERM", "xterm")]);
        assert_eq!((opening.tty, opening.size), (true, Some((80, 24))));
    }

    #[test]
    fn what_is_not_valid_is_refused_with_its_reason() {
        let refused = |change: fn(&mut Open)| {
            let mut open = open(Program::Shell(Shell {}));
            change(&mut open);
            Opening::parse(&open, &contents()).expect_err("not valid").reason()
        };
        let invalid: [fn(&mut Open); 9] = [
            |open| open.session_id = "x".into(),
            |open| open.program = None,
            |open| open.stdout_credit = MAX_CREDIT + 1,
            |open| open.stderr_credit = u64::MAX,
            |open| drop(open.environment.insert("1".into(), String::new())),
            |open| drop(open.environment.insert("A".into(), "\0".into())),
            |open| drop(open.environment.insert("A".into(), "x".repeat(MAX_ENVIRONMENT))),
            |open| open.pty = Some(Pty { term: "x".repeat(MAX_TERM + 1), ..Pty::default() }),
            |open| {
                let size = Some(WindowSize { columns: 65536, ..WindowSize::default() });
                open.pty = Some(Pty { size, ..Pty::default() });
            },
        ];
        for change in invalid {
            assert_eq!(refused(change), Reason::InvalidRequest);
        }
        let refused = |change: fn(&mut Open)| {
            let mut open = open(Program::Shell(Shell {}));
            change(&mut open);
            let opening = Opening::parse(&open, &contents()).expect("valid");
            opening.without_agent().expect_err("needs the agent").reason()
        };
        let unimplemented: [fn(&mut Open); 4] = [
            |open| open.attempt = 2,
            |open| open.take_over = true,
            |open| open.resume_from = Some(ResumeFrom { stdout: 1, stderr: 0 }),
            |open| {
                let spill = v1::OutputWhenDetached { mode: 2, max_bytes: 1, ..Default::default() };
                open.output_when_detached = Some(spill);
            },
        ];
        for change in unimplemented {
            assert_eq!(refused(change), Reason::Unimplemented);
        }
    }
}
