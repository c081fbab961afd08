//! Starting a program.
//!
//! A program is started by way of a stub ([`crate::exec_child`]): this program, executed again with default signal
//! dispositions and an empty signal mask (`posix_spawn` sets both; std's `Command` sets neither), which makes the session,
//! takes the terminal, enters the folder and becomes the program. So nothing runs between fork and exec, and no `unsafe` is
//! needed. The stub tells over a pipe what went wrong; when it becomes the program, that pipe closes.

use super::{Io, Program, reap};
use crate::{
    environment::Environment,
    exec_child::{self, Report},
    pty,
};
use nix::{
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::signal::SigSet,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    io::Errno,
    process::{Pid, WaitOptions},
};
use std::{
    ffi::{CString, OsStr, OsString},
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
};

/// This program, also when its file was replaced or removed since.
const SELF: &str = "/proc/self/exe";
/// Descriptors are moved to here and above before they are laid out for the stub, so that none is in another's place.
const ABOVE_STDIO: i32 = 10;
/// Where the stub finds its end of the report pipe.
pub(crate) const REPORT_FD: i32 = 3;

/// A program to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The program and its arguments. Without a `/` the program is searched for in the `PATH` of `environment`.
    pub argv: Vec<OsString>,
    /// All of its environment; nothing is inherited.
    pub environment: Environment,
    /// Where it starts; `None` = where we are.
    pub working_directory: Option<PathBuf>,
    /// What its stdin, stdout and stderr are.
    pub stdio: Stdio,
}

/// What a program's stdin, stdout and stderr shall be. In each case it leads a session and a process group of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdio {
    /// A terminal, which is its controlling terminal too.
    Terminal(pty::Request),
    /// Three pipes, no terminal.
    Pipes,
    /// Ours, no controlling terminal.
    Inherit,
}

/// Why a program did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// There is no such file (or the interpreter that it names is missing). A shell says 127.
    #[error("not found")]
    NotFound,
    /// The file can't be executed by this user. A shell says 126.
    #[error("permission denied")]
    PermissionDenied,
    /// The kernel can't execute it, for another reason (for example `ENOEXEC`, `E2BIG`). A shell says 126.
    #[error("cannot be executed: {0}")]
    Exec(Errno),
    /// The working directory can't be entered.
    #[error("the working directory cannot be entered: {0}")]
    WorkingDirectory(Errno),
    /// There is no terminal to be had.
    #[error("no terminal: {0}")]
    Terminal(Errno),
    /// No program was named, or there is a NUL in an argument.
    #[error("an empty command, or a NUL in it")]
    Invalid,
    /// The agent itself is in trouble: no processes, memory or descriptors, or the stub can't run.
    #[error("the agent cannot start programs: {0}")]
    Agent(String),
}

impl StartError {
    /// The status a shell would give.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound => 127,
            Self::PermissionDenied
            | Self::Exec(_)
            | Self::WorkingDirectory(_)
            | Self::Terminal(_)
            | Self::Invalid
            | Self::Agent(_) => 126,
        }
    }
}

/// Starts programs.
#[derive(Debug, Clone)]
pub struct Starter {
    stub: PathBuf,
}

impl Starter {
    /// With this very program as stub: for `podbay-agent` itself.
    pub fn this_program() -> Self {
        Self { stub: SELF.into() }
    }

    /// With the given `podbay-agent` as stub: for tests, whose own program is another.
    pub fn with_stub(agent: impl Into<PathBuf>) -> Self {
        Self { stub: agent.into() }
    }

    /// Starts a program and waits until it runs or can't: about 2 ms, unless its folder or file is on a file system that
    /// hangs. Who can't have that takes [`Starter::launch`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(&self, spec: &Spec) -> Result<Program, StartError> {
        self.launch(spec)?.finish()
    }

    /// Begins to start a program.
    ///
    /// # Errors
    /// See [`StartError`]; what can only be known later comes from [`Launching::finish`].
    pub fn launch(&self, spec: &Spec) -> Result<Launching, StartError> {
        if spec.argv.is_empty() {
            return Err(StartError::Invalid);
        }
        let mut environment = spec.environment.clone();
        let (child, io) = match &spec.stdio {
            Stdio::Terminal(request) => {
                if !request.term.is_empty() {
                    environment.set("TERM", request.term.clone()).map_err(|_| StartError::Invalid)?;
                }
                let (master, peer) = pty::Master::open(request).map_err(StartError::Terminal)?;
                (Some([clone_fd(&peer)?, clone_fd(&peer)?, clone_fd(&peer)?]), Io::Terminal(master))
            }
            Stdio::Pipes => {
                let ((stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?, pipe()?);
                let io = Io::Pipes { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr };
                (Some([clone_fd(&stdin)?, clone_fd(&stdout)?, clone_fd(&stderr)?]), io)
            }
            Stdio::Inherit => (None, Io::Inherited),
        };
        let (report, stub_report) = pipe()?;
        let stub_report = clone_fd(&stub_report)?;
        rustix::io::ioctl_fionbio(&report, true).map_err(agent)?;

        let mut actions = PosixSpawnFileActions::init().map_err(agent)?;
        for (fd, place) in child.iter().flatten().zip(0..) {
            actions.add_dup2(fd.as_raw_fd(), place).map_err(agent)?;
        }
        actions.add_dup2(stub_report.as_raw_fd(), REPORT_FD).map_err(agent)?;
        let mut attributes = PosixSpawnAttr::init().map_err(agent)?;
        attributes.set_sigdefault(&SigSet::all()).map_err(agent)?;
        attributes.set_sigmask(&SigSet::empty()).map_err(agent)?;
        let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK;
        attributes.set_flags(flags).map_err(agent)?;

        let terminal = matches!(io, Io::Terminal(_));
        let directory = spec.working_directory.as_deref().map_or(OsStr::new(""), |path| path.as_os_str());
        let arguments = exec_child::arguments(terminal, directory, &spec.argv)
            .into_iter()
            .map(|text| CString::new(text.into_vec()));
        let arguments = arguments.collect::<Result<Vec<_>, _>>().map_err(|_| StartError::Invalid)?;
        let environment = environment.to_c().map_err(|_| StartError::Invalid)?;
        let pid = posix_spawn(self.stub.as_path(), &actions, &attributes, &arguments, &environment);
        let pid = match pid {
            Ok(pid) => Pid::from_raw(pid.as_raw()).ok_or_else(|| StartError::Agent("no process id".into()))?,
            // The stub's own arguments and environment are the program's and a little more.
            Err(nix::Error::E2BIG) => return Err(StartError::Exec(Errno::TOOBIG)),
            Err(error) => return Err(StartError::Agent(format!("{}: {error}", self.stub.display()))),
        };
        Ok(Launching { pid, io, report: report.into(), said: Vec::with_capacity(Report::MAX) })
    }
}

/// A program that is about to run: the stub's report is awaited. Who can't wait polls the descriptor for reading, calls
/// [`Launching::is_decided`] each time that it is readable, and then [`Launching::finish`]. Dropped before, it runs or not, and
/// is reaped by nobody.
#[derive(Debug)]
pub struct Launching {
    pid: Pid,
    io: Io,
    report: File,
    said: Vec<u8>,
}

impl Launching {
    /// The process that is becoming the program.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Reads what the stub has said so far, without waiting. True: [`Launching::finish`] will not wait either.
    pub fn is_decided(&mut self) -> bool {
        let mut bytes = [0; Report::MAX];
        loop {
            match self.report.read(&mut bytes) {
                Ok(0) => return true,
                Ok(n) if self.said.len() <= Report::MAX => self.said.extend(bytes.iter().take(n)),
                // More than a stub ever says: its report is nonsense already.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// Waits until the program runs, or is known not to; then the stub has been reaped.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn finish(mut self) -> Result<Program, StartError> {
        while !self.is_decided() {
            match poll(&mut [PollFd::new(&self.report, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(agent(error)),
            }
        }
        let error = match Report::parse(&self.said) {
            Some(Report::Became) => return Ok(Program { pid: self.pid, io: self.io, ended: None }),
            Some(Report::Directory(errno)) => StartError::WorkingDirectory(errno),
            Some(Report::Terminal(errno)) => StartError::Terminal(errno),
            Some(Report::Exec(Errno::NOENT | Errno::NOTDIR)) => StartError::NotFound,
            Some(Report::Exec(Errno::ACCESS | Errno::PERM)) => StartError::PermissionDenied,
            Some(Report::Exec(errno)) => StartError::Exec(errno),
            Some(Report::Session(errno)) => StartError::Agent(format!("no session: {errno}")),
            None => StartError::Agent("the stub ended without a word".into()),
        };
        // It is ending: wait for it here, so that nobody takes it for the program.
        let _ = reap(self.pid, WaitOptions::empty());
        Err(error)
    }
}

impl AsFd for Launching {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }
}

/// To read from and to write to; both close on exec.
fn pipe() -> Result<(OwnedFd, OwnedFd), StartError> {
    let (read, write) = io::pipe().map_err(agent)?;
    Ok((read.into(), write.into()))
}

fn clone_fd(fd: &OwnedFd) -> Result<OwnedFd, StartError> {
    rustix::io::fcntl_dupfd_cloexec(fd, ABOVE_STDIO).map_err(agent)
}

fn agent(error: impl fmt::Display) -> StartError {
    StartError::Agent(error.to_string())
}
