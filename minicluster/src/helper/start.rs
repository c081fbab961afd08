//! The stub: makes a session (and the controlling terminal), opens the program's stdio and becomes the program.
//!
//! Arguments: the supervisor's pid, the terminal, stdin, stdout and stderr as paths (`-` for none), the executable, then all
//! of argv. Its stdout is the supervisor's: a failure is written there as `ERRNO MESSAGE`; a success closes it, silently.

use nix::sys::signal::SigSet;
use rustix::process::{Signal, getppid, ioctl_tiocsctty, set_parent_process_death_signal, setsid};
use std::{
    convert::Infallible,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsFd as _,
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    process::{Command, Stdio},
};

/// Exit code of a stub whose program did not start. Nobody reads it: the message tells.
const NOT_STARTED: i32 = 127;

pub(super) fn run(args: impl Iterator<Item = OsString>) -> i32 {
    // Kept apart (and closed by a successful exec) because fd 1 is the program's by the time exec can fail.
    let Ok(report) = io::stdout().as_fd().try_clone_to_owned() else { return NOT_STARTED };
    let Err(error) = launch(args);
    let message = format!("{} {error}", error.raw_os_error().unwrap_or(0));
    // If the supervisor is gone, so are we soon.
    let _ = File::from(report).write_all(message.as_bytes());
    NOT_STARTED
}

fn launch(mut args: impl Iterator<Item = OsString>) -> io::Result<Infallible> {
    let mut next = || args.next().ok_or_else(|| io::Error::other("an argument of the stub is missing"));
    let supervisor = next()?;
    let terminal = path(next()?);
    let (stdin, stdout, stderr) = (path(next()?), path(next()?), path(next()?));
    let (program, argv0) = (next()?, next()?);

    // The supervisor blocks what it takes by signalfd, and `Command` lets a child inherit that.
    SigSet::empty().thread_set_mask()?;
    setsid()?;
    // The supervisor kills what it has. If it is itself killed, at least the programs that it started go with it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().is_none_or(|parent| *parent.to_string() != *supervisor) {
        return Err(io::Error::other("the supervisor is gone"));
    }
    let mut command = Command::new(program);
    command.arg0(argv0).args(args);
    match terminal {
        Some(terminal) => {
            let no_ctty = i32::try_from(rustix::fs::OFlags::NOCTTY.bits()).map_err(io::Error::other)?;
            let terminal = OpenOptions::new().read(true).write(true).custom_flags(no_ctty).open(terminal)?;
            ioctl_tiocsctty(&terminal)?;
            command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
        }
        None => {
            command.stdin(open(stdin, false)?).stdout(open(stdout, true)?).stderr(open(stderr, true)?);
        }
    }
    Err(command.exec())
}

fn path(arg: OsString) -> Option<OsString> {
    (arg != "-").then_some(arg)
}

fn open(path: Option<OsString>, write: bool) -> io::Result<Stdio> {
    match path {
        None => Ok(Stdio::null()),
        Some(path) => Ok(OpenOptions::new().read(!write).write(write).open(path)?.into()),
    }
}
