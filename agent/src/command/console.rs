//! `console`: says its process id and becomes a program.

use super::{Failure, argument};
use crate::{environment::Environment, exec::exec};
use rustix::{
    io::Errno,
    stdio::{stdin, stdout},
    termios::{OptionalActions, OutputModes, tcgetattr, tcsetattr},
};
use std::{
    ffi::{CString, OsStr, OsString},
    io::{self, Write as _},
    os::unix::ffi::OsStrExt as _,
};

#[derive(Debug, PartialEq, Eq)]
struct Console {
    /// In order; a later one wins.
    env: Vec<(OsString, OsString)>,
    wait: bool,
    pid: bool,
    /// Never empty.
    argv: Vec<OsString>,
}

pub(super) fn run(args: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    let console = parse(args)?;
    let mut environment = Environment::inherited();
    for (name, value) in console.env {
        // The name can only be empty, which is of no use to anybody; the original passes it on.
        let _ = environment.set(name, value);
    }
    let nul = |_| Failure::usage("a NUL in an argument");
    let environment = environment.to_c().map_err(nul)?;
    let argv =
        console.argv.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<Vec<_>, _>>().map_err(nul)?;
    if console.wait {
        wait_for_start()?;
    }
    if console.pid {
        say_pid().map_err(|error| Failure::failed(3, format!("the process id could not be written: {error}")))?;
    }
    let program = console.argv.first().map_or(OsStr::new(""), OsString::as_os_str);
    let Err(error) = exec(program, &argv, &environment);
    // No newline, as in the original; and by then nobody may be left to read it.
    let _ = write!(io::stderr(), "Error: {} can't be executed: {error}", program.display());
    Ok(127)
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Console, Failure> {
    let (mut env, mut wait, mut pid) = (Vec::new(), false, false);
    loop {
        let Some(option) = args.next() else {
            // The original crashes here, with a crashed Go program's exit code.
            return Err(Failure { code: 2, ..Failure::usage("`--` and a program are missing") });
        };
        match option.to_str() {
            Some("--") => break,
            Some("--wait") => wait = true,
            Some("--pid") => pid = true,
            Some("--env") => {
                let variable = argument("--env", args.next())?;
                let bytes = variable.as_bytes();
                let equals = bytes.iter().position(|&byte| byte == b'=').filter(|_| !bytes.starts_with(b"--"));
                let split = equals.and_then(|at| Some((bytes.get(..at)?, bytes.get(at + 1..)?)));
                let (name, value) = split.ok_or_else(|| Failure::usage("--env needs NAME=VALUE"))?;
                env.push((OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value).to_owned()));
            }
            _ => return Err(Failure::usage(format!("console: unknown option {}", option.display()))),
        }
    }
    let argv: Vec<_> = args.collect();
    if argv.is_empty() {
        return Err(Failure::usage("a program is missing after `--`"));
    }
    Ok(Console { env, wait, pid, argv })
}

/// Takes exactly one byte: what follows is the program's, so no buffer may read ahead.
fn wait_for_start() -> Result<(), Failure> {
    let mut byte = [0];
    loop {
        return match rustix::io::read(stdin(), &mut byte) {
            // A terminal eats NUL, hence the newline.
            Ok(1) if matches!(byte, [0 | b'\n']) => Ok(()),
            Ok(0) => Err(Failure::failed(2, "stdin ended before the start byte")),
            Ok(_) => Err(Failure::failed(2, "the start byte is neither NUL nor newline")),
            Err(Errno::INTR) => continue,
            Err(error) => Err(Failure::failed(2, format!("the start byte could not be read: {error}"))),
        };
    }
}

/// Writes our process id, which will be the program's.
fn say_pid() -> io::Result<()> {
    let pid = std::process::id().to_le_bytes();
    // A terminal would make CR LF of a byte that is 10 (process ids 10, 266, 2560 …), and whoever reads it would get another
    // process's. What it does to output, it does when that is written: so switch it off for just that.
    let Ok(modes) = tcgetattr(stdout()) else {
        return write_all(&pid);
    };
    let mut plain = modes.clone();
    plain.output_modes.remove(OutputModes::OPOST);
    if tcsetattr(stdout(), OptionalActions::Now, &plain).is_err() {
        return write_all(&pid);
    }
    let written = write_all(&pid);
    tcsetattr(stdout(), OptionalActions::Now, &modes)?;
    written
}

/// Without std's buffer, which an exec would lose.
fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(stdout(), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Console, u8> {
        parse(args.iter().map(OsString::from)).map_err(|failure| failure.code)
    }

    #[test]
    fn options_come_in_any_order_and_often() {
        let console =
            parsed(&["--pid", "--env", "A=b=c", "--wait", "--pid", "--env", "B=--", "--", "x", "--pid"]).expect("good");
        assert!(console.pid && console.wait);
        assert_eq!(console.env, [("A".into(), "b=c".into()), ("B".into(), "--".into())]);
        assert_eq!(console.argv, ["x", "--pid"]);
    }

    #[test]
    fn mistakes_have_the_originals_codes() {
        assert_eq!(parsed(&[]), Err(2));
        assert_eq!(parsed(&["--pid"]), Err(2));
        assert_eq!(parsed(&["--"]), Err(1));
        assert_eq!(parsed(&["--pid", "/bin/true"]), Err(1));
        assert_eq!(parsed(&["--env"]), Err(1));
        assert_eq!(parsed(&["--env", "A", "--", "x"]), Err(1));
        assert_eq!(parsed(&["--env", "--A=b", "--", "x"]), Err(1));
        assert_eq!(parsed(&["--envy", "--", "x"]), Err(1));
    }
}
