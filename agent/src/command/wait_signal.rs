//! `wait-signal`: waits for a signal, and meanwhile supervises and reaps orphans: the idle command of a pod's container.

use super::{Failure, argument, parse_signal};
use crate::supervisor;
use nix::sys::signal::{SigSet, Signal as NixSignal};
use rustix::{
    io::Errno,
    process::{WaitOptions, wait},
};
use std::{
    ffi::OsString,
    io::{self, Write as _},
    os::unix::ffi::OsStrExt as _,
};

pub(super) fn run(args: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    let (signals, message) = parse(args)?;
    // Where there is no place for a supervisor's socket, or one runs already, waiting is all there is to do.
    if supervisor::until_signal(signals.clone()).is_ok() {
        return say(&message);
    }
    let failed = |error: &dyn std::fmt::Display| Failure::failed(2, format!("can't wait for signals: {error}"));
    let mut set = SigSet::empty();
    for signal in &signals {
        set.add(*signal);
    }
    // Blocked signals are kept for us also where we are process 1, which default actions do not reach.
    set.add(NixSignal::SIGCHLD);
    set.thread_block().map_err(|error| failed(&error))?;
    loop {
        // First of all: some may have come before us (a container's processes, if this took the place of another program).
        reap_all();
        if set.wait().map_err(|error| failed(&error))? != NixSignal::SIGCHLD {
            break;
        }
    }
    say(&message)
}

fn say(message: &OsString) -> Result<u8, Failure> {
    let mut out = io::stdout().lock();
    out.write_all(message.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::failed(1, error.to_string()))?;
    Ok(0)
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<(Vec<NixSignal>, OsString), Failure> {
    let (mut signals, mut message) = (Vec::new(), None);
    while let Some(option) = args.next() {
        match option.to_str() {
            Some("--signal") => {
                let signal = parse_signal(&argument("--signal", args.next())?)?;
                let signal =
                    NixSignal::try_from(signal.os().as_raw()).map_err(|error| Failure::usage(error.to_string()))?;
                signals.push(signal);
            }
            Some("--message") => {
                if message.replace(argument("--message", args.next())?).is_some() {
                    return Err(Failure::usage("--message is given twice"));
                }
            }
            _ => return Err(Failure::usage(format!("wait-signal: unknown option {}", option.display()))),
        }
    }
    if signals.is_empty() {
        return Err(Failure::usage("--signal is missing"));
    }
    Ok((signals, message.unwrap_or_default()))
}

fn reap_all() {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<(Vec<NixSignal>, OsString), u8> {
        parse(args.iter().map(OsString::from)).map_err(|failure| failure.code)
    }

    #[test]
    fn several_signals_and_one_message() {
        let (signals, message) = parsed(&["--signal", "INT", "--message", "bye", "--signal", "TERM"]).expect("good");
        assert_eq!((signals, message), (vec![NixSignal::SIGINT, NixSignal::SIGTERM], "bye".into()));
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for args in [
            &[][..],
            &["--message", "x"],
            &["--signal"],
            &["--signal", "CHLD"],
            &["--signal", "INT", "--message"],
            &["--signal", "INT", "--message", "a", "--message", "b"],
            &["--signal", "INT", "more"],
        ] {
            assert_eq!(parsed(args), Err(1), "{args:?}");
        }
    }
}
