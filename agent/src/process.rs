//! Programs of the pod's user: started ([`Starter`]), sent signals, and how they ended.

mod start;

pub(crate) use self::start::REPORT_FD;
pub use self::start::{Launching, Spec, StartError, Starter, Stdio};
pub use crate::environment::{Environment, InvalidVariable};

use crate::{
    pty,
    signal::{self, Signal},
};
use rustix::{
    fd::OwnedFd,
    io::Errno,
    process::{Pid, WaitOptions, kill_process_group, waitpid},
};
use std::{io, os::unix::process::ExitStatusExt as _, process::ExitStatus};

/// Our ends of a program's stdio. All are blocking and close on exec.
#[derive(Debug)]
pub enum Io {
    /// See [`pty::Master`].
    Terminal(pty::Master),
    /// The pipes.
    Pipes {
        /// To write to.
        stdin: OwnedFd,
        /// To read from.
        stdout: OwnedFd,
        /// To read from.
        stderr: OwnedFd,
    },
    /// It has ours.
    Inherited,
}

/// A program that was started. Dropping it neither ends nor reaps it.
#[derive(Debug)]
pub struct Program {
    pid: Pid,
    /// Our ends of its stdio.
    pub io: Io,
    ended: Option<Exit>,
}

impl Program {
    /// Its process id, which is its session's and its process group's too.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if that is known.
    pub fn exit(&self) -> Option<Exit> {
        self.ended
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// `ECHILD`: somebody else has reaped it.
    pub fn wait(&mut self) -> io::Result<Exit> {
        self.reap(WaitOptions::empty())?.ok_or_else(|| io::Error::other("neither ended nor running"))
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// `ECHILD`: somebody else has reaped it.
    pub fn try_wait(&mut self) -> io::Result<Option<Exit>> {
        self.reap(WaitOptions::NOHANG)
    }

    fn reap(&mut self, options: WaitOptions) -> io::Result<Option<Exit>> {
        if self.ended.is_none() {
            self.ended = reap(self.pid, options)?;
        }
        Ok(self.ended)
    }

    /// For who reaps all children at one place (`waitpid(-1)`, as a subreaper must): tells that this one has been, and how it
    /// ended. From then on no signal is sent: the id may be another's.
    pub fn reaped(&mut self, exit: Exit) {
        self.ended = Some(exit);
    }

    /// Sends a signal to what the user sees running: the terminal's foreground process group, and where there is none (or no
    /// terminal) the program's own process group.
    ///
    /// # Errors
    /// See [`SignalError`].
    pub fn signal(&self, signal: Signal) -> Result<(), SignalError> {
        if self.ended.is_some() {
            return Err(SignalError::Ended);
        }
        if let Io::Terminal(master) = &self.io
            && let Ok(Some(group)) = master.foreground()
            && kill_process_group(group, signal.os()).is_ok()
        {
            return Ok(());
        }
        self.signal_group(signal)
    }

    /// Sends a signal to the program's own process group, whoever has the terminal.
    ///
    /// # Errors
    /// See [`SignalError`].
    pub fn signal_group(&self, signal: Signal) -> Result<(), SignalError> {
        if self.ended.is_some() {
            return Err(SignalError::Ended);
        }
        // Its leader has not been reaped, so the id can't have become another's.
        match kill_process_group(self.pid, signal.os()) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(SignalError::Ended),
            Err(errno) => Err(SignalError::Refused(errno)),
        }
    }
}

/// Why a signal was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// The program has ended.
    #[error("the program has ended")]
    Ended,
    /// The kernel refuses: `EPERM`, the program runs as another user.
    #[error("{0}")]
    Refused(Errno),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// By itself.
    Code(u8),
    /// By a signal.
    Signal {
        /// The kernel's number.
        number: i32,
        /// Whether it left a core file.
        core_dumped: bool,
    },
}

impl Exit {
    /// From what `waitpid` gave; `None` for a program that has only stopped or continued.
    pub fn from_wait_status(status: i32) -> Option<Self> {
        let status = ExitStatus::from_raw(status);
        match (status.code(), status.signal()) {
            (Some(code), _) => Some(Self::Code(code as u8)),
            (None, Some(number)) => Some(Self::Signal { number, core_dumped: status.core_dumped() }),
            (None, None) => None,
        }
    }

    /// As shells and container runtimes tell it: 128 + n for signal n.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal { number, .. } => 128_u8.saturating_add(u8::try_from(number).unwrap_or(u8::MAX)),
        }
    }

    /// The signal's name without `SIG`; see [`signal::name_of`].
    pub fn signal_name(self) -> Option<String> {
        match self {
            Self::Code(_) => None,
            Self::Signal { number, .. } => Some(signal::name_of(number)),
        }
    }
}

/// `None`: it runs on (only with `NOHANG`).
fn reap(pid: Pid, options: WaitOptions) -> io::Result<Option<Exit>> {
    loop {
        match waitpid(Some(pid), options) {
            Ok(Some((_, status))) => {
                if let Some(exit) = Exit::from_wait_status(status.as_raw()) {
                    return Ok(Some(exit));
                }
            }
            Ok(None) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
