//! The command line: containerssh-agent's, and what we add to it.
//!
//! It is the same under any name and in any place: ContainerSSH calls it `/usr/bin/containerssh-agent`. Exit codes are the
//! original's; the few differences are listed in `docs/agent.md`.

mod console;
mod install;
mod send_signal;
mod wait_signal;
mod write_file;

use crate::exec_child;
use std::{
    ffi::{OsStr, OsString},
    io::{self, Write as _},
};

const LICENSE: &str = include_str!("../../../LICENSE");

const HELP: &str = "\
podbay-agent: runs inside a pod for Podbay, and in containerssh-agent's place

Usage: podbay-agent COMMAND [OPTIONS]

As containerssh-agent has them:
  console [--env NAME=VALUE]... [--wait] [--pid] -- PROGRAM [ARG]...
      Become PROGRAM: a path; the PATH is not searched.
      --env NAME=VALUE  set a variable, in place of an older one of that name
      --wait            first read one byte, NUL or newline, from stdin
      --pid             first write the process id: 4 bytes, little endian
  signal --pid N --signal NAME [--group]
      Send a signal (TERM, HUP, ...; no SIG) to process N.
      --group           to its whole process group, if it leads one (ours)
  wait-signal --signal NAME [--signal NAME]... [--message TEXT]
      Wait for one of the signals, then write TEXT and end; meanwhile reap
      what is orphaned. The idle command of a pod's container.
  write-file PATH
      Write stdin to a file that only its owner can read (mode 0600).
  license
      The licence.

Ours:
  supervise -- PROGRAM [ARG]...
      Run the idle command, and own the programs of the pod's sessions.
  attach [--spawn]
      Connect stdin and stdout to the supervisor.
  install PATH
      Copy this program to PATH (in a folder: PATH/podbay-agent), executable
      by all. For the init container that brings the agent to an image.
  version
      The version.

Exit codes: 0 done; 1 bad arguments, or it failed; 2 and 3 see docs/agent.md;
of console 127 if PROGRAM can't be executed, else PROGRAM's own.
";

/// Why a command did not do what it should: the exit code, and the words for stderr.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: u8,
    /// Printed after `Error: `.
    message: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The caller got it wrong: point to the help.
    Usage,
    /// It went wrong.
    Failed,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into(), kind: Kind::Usage }
    }

    fn failed(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), kind: Kind::Failed }
    }
}

/// Runs the command that the arguments (without the program's name) ask for; gives the exit code.
pub fn run(mut args: impl Iterator<Item = OsString>) -> u8 {
    let result = match args.next() {
        None => Err(Failure::usage("no command given")),
        Some(command) => match command.to_str() {
            Some("console") => console::run(args),
            Some("signal") => send_signal::run(args),
            Some("wait-signal") => wait_signal::run(args),
            Some("write-file") => write_file::run(args),
            Some("forward-server") => Err(Failure::failed(
                1,
                "forward-server: this agent does not forward connections yet; use containerssh-agent for that",
            )),
            Some("supervise") => Err(Failure::failed(1, "supervise: not in this build of the agent")),
            Some("attach") => Err(Failure::failed(1, "attach: not in this build of the agent")),
            Some("install") => install::run(args),
            Some("version" | "--version" | "-V") => print(concat!("podbay-agent ", env!("CARGO_PKG_VERSION"), "\n")),
            Some("license") => print(LICENSE),
            Some("help" | "--help" | "-h") => print(HELP),
            Some(exec_child::NAME) => return exec_child::run(args),
            _ => Err(Failure::usage(format!("unknown command {}", command.display()))),
        },
    };
    result.unwrap_or_else(|failure| tell(&failure))
}

fn print(text: &str) -> Result<u8, Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Failure::failed(1, error.to_string()))?;
    Ok(0)
}

/// All of it goes to stderr. The original writes its usage text to stdout, where the backend expects a process id.
fn tell(Failure { code, message, kind }: &Failure) -> u8 {
    let text = match kind {
        Kind::Usage => format!("Error: {message}\nFor the usage: podbay-agent --help\n"),
        Kind::Failed => format!("Error: {message}\n"),
    };
    // Nobody is left to be told if that fails.
    let _ = io::stderr().write_all(text.as_bytes());
    *code
}

/// The argument of an option.
fn argument(option: &str, next: Option<OsString>) -> Result<OsString, Failure> {
    next.ok_or_else(|| Failure::usage(format!("{option} needs an argument")))
}

/// A signal by its name.
fn parse_signal(name: &OsStr) -> Result<crate::signal::Signal, Failure> {
    name.to_str()
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| Failure::usage(format!("{}: {}", name.display(), crate::signal::UnknownSignal)))
}
