//! The stub between [`crate::process`] and a program: makes the session, takes the terminal, enters the folder, and becomes
//! the program. An internal command of the agent, not for people.
//!
//! It is started with default signal dispositions and an empty mask. Descriptor 3 is the report pipe: one byte when the stub
//! can speak, then nothing more if it becomes the program (the pipe closes), else what went wrong.

use crate::{environment::Environment, exec::exec_searched, process::REPORT_FD};
use rustix::{
    io::Errno,
    process::{ioctl_tiocsctty, setsid},
};
use std::{
    convert::Infallible,
    env,
    ffi::{CString, OsStr, OsString},
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::ffi::OsStrExt as _,
    },
};

/// The command's name.
pub const NAME: &str = "exec-child";
/// Exit code of a stub whose program did not start. Nobody reads it: the report tells.
const NOT_STARTED: u8 = 127;
const TERMINAL: &str = "terminal";
const NO_TERMINAL: &str = "-";

/// All of the stub's argv.
pub(crate) fn arguments(terminal: bool, directory: &OsStr, argv: &[OsString]) -> Vec<OsString> {
    let terminal = if terminal { TERMINAL } else { NO_TERMINAL };
    let own = ["podbay-agent".into(), NAME.into(), terminal.into(), directory.to_owned()];
    own.into_iter().chain(argv.iter().cloned()).collect()
}

/// What the stub says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// It became the program.
    Became,
    Session(Errno),
    Terminal(Errno),
    Directory(Errno),
    Exec(Errno),
}

impl Report {
    /// Bytes that are ever said: ready, what, errno.
    pub(crate) const MAX: usize = 6;
    const READY: u8 = b'+';

    fn failure(self) -> Option<[u8; 5]> {
        let (what, errno) = match self {
            Self::Became => return None,
            Self::Session(errno) => (b's', errno),
            Self::Terminal(errno) => (b't', errno),
            Self::Directory(errno) => (b'd', errno),
            Self::Exec(errno) => (b'x', errno),
        };
        let [a, b, c, d] = errno.raw_os_error().to_le_bytes();
        Some([what, a, b, c, d])
    }

    /// `None`: the stub never got as far as to speak, or said nonsense.
    pub(crate) fn parse(said: &[u8]) -> Option<Self> {
        match *said {
            [Self::READY] => Some(Self::Became),
            [Self::READY, what, a, b, c, d] => {
                let errno = Errno::from_raw_os_error(i32::from_le_bytes([a, b, c, d]));
                match what {
                    b's' => Some(Self::Session(errno)),
                    b't' => Some(Self::Terminal(errno)),
                    b'd' => Some(Self::Directory(errno)),
                    b'x' => Some(Self::Exec(errno)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// Runs the stub; returns only when it failed, with the exit code. `args` follow the command's name.
pub fn run(args: impl Iterator<Item = OsString>) -> u8 {
    // By the folder of descriptors, since 3 is only a number to safe code. The copy closes on exec.
    let report = File::options().write(true).open(format!("/proc/self/fd/{REPORT_FD}"));
    let Ok(mut report) = report else {
        eprintln!("podbay-agent: {NAME} is the agent's own and not for people (or there is no /proc)");
        return NOT_STARTED;
    };
    if report.write_all(&[Report::READY]).is_err() || close_others(report.as_raw_fd()).is_err() {
        return NOT_STARTED;
    }
    let Err(failure) = become_program(args);
    if let Some(failure) = failure.failure() {
        // If nobody reads it any more, nobody wants to know.
        let _ = report.write_all(&failure);
    }
    NOT_STARTED
}

/// Closes everything but stdio and the report: what the agent got from whoever started it (a container runtime's
/// descriptors, for example) is no program's business.
fn close_others(report: RawFd) -> io::Result<()> {
    let open: Vec<RawFd> =
        fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|&fd| fd > 2 && fd != report) {
        // The folder's own is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

fn become_program(mut args: impl Iterator<Item = OsString>) -> Result<Infallible, Report> {
    let (terminal, directory) = (args.next(), args.next());
    let argv: Vec<OsString> = args.collect();
    let program = argv.first().ok_or(Report::Exec(Errno::INVAL))?;
    setsid().map_err(Report::Session)?;
    if terminal.is_some_and(|word| word == TERMINAL) {
        ioctl_tiocsctty(io::stdin()).map_err(Report::Terminal)?;
    }
    if let Some(directory) = directory.filter(|directory| !directory.is_empty()) {
        env::set_current_dir(directory).map_err(|error| Report::Directory(errno(&error)))?;
    }
    // Ours is the program's already. No NUL can be in what came as arguments.
    let environment = Environment::inherited().to_c().map_err(|_| Report::Exec(Errno::INVAL))?;
    let arguments: Result<Vec<_>, _> = argv.iter().map(|argument| CString::new(argument.as_bytes())).collect();
    let arguments = arguments.map_err(|_| Report::Exec(Errno::INVAL))?;
    exec_searched(env::var_os("PATH").as_deref(), program, &arguments, &environment).map_err(Report::Exec)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_said() {
        for report in [
            Report::Session(Errno::PERM),
            Report::Terminal(Errno::IO),
            Report::Directory(Errno::NOENT),
            Report::Exec(Errno::ACCESS),
        ] {
            let mut said = vec![Report::READY];
            said.extend(report.failure().expect("a failure"));
            assert_eq!(Report::parse(&said), Some(report));
            assert!(said.len() <= Report::MAX);
        }
        assert_eq!(Report::parse(&[Report::READY]), Some(Report::Became));
    }

    #[test]
    fn silence_and_nonsense_are_no_start() {
        for said in [&b""[..], b"x", b"+x", b"+y\x01\0\0\0", b"+x\x01\0\0\0\0"] {
            assert_eq!(Report::parse(said), None);
        }
    }
}
