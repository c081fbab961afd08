//! `signal`: sends a signal to a process.

use super::{Failure, argument, parse_signal};
use crate::signal::Signal;
use rustix::{
    io::Errno,
    process::{Pid, getpgid, kill_process, kill_process_group},
};
use std::ffi::{OsStr, OsString};

#[derive(Debug, PartialEq, Eq)]
struct Order {
    /// `None`: a number that no process can have.
    pid: Option<Pid>,
    signal: Signal,
    group: bool,
}

pub(super) fn run(args: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    let order = parse(args)?;
    send(&order).map_err(|error| Failure::failed(3, format!("the signal could not be sent: {error}")))?;
    Ok(0)
}

fn send(order: &Order) -> Result<(), Errno> {
    let pid = order.pid.ok_or(Errno::SRCH)?;
    if order.group && getpgid(Some(pid))? == pid {
        return kill_process_group(pid, order.signal.os());
    }
    kill_process(pid, order.signal.os())
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Order, Failure> {
    let (mut pid, mut signal, mut group) = (None, None, false);
    while let Some(option) = args.next() {
        let double = |double| if double { Err(Failure::usage("an option is given twice")) } else { Ok(()) };
        match option.to_str() {
            Some("--pid") => double(pid.replace(parse_pid(&argument("--pid", args.next())?)?).is_some())?,
            Some("--signal") => double(signal.replace(parse_signal(&argument("--signal", args.next())?)?).is_some())?,
            Some("--group") => group = true,
            _ => return Err(Failure::usage(format!("signal: unknown option {}", option.display()))),
        }
    }
    Ok(Order {
        pid: pid.ok_or_else(|| Failure::usage("--pid is missing"))?,
        signal: signal.ok_or_else(|| Failure::usage("--signal is missing"))?,
        group,
    })
}

/// Digits only, from 1. A number beyond the kernel's is a process that does not exist.
fn parse_pid(text: &OsStr) -> Result<Option<Pid>, Failure> {
    let digits = text.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number: u64 = digits
        .and_then(|digits| digits.parse().ok())
        .filter(|&number| number > 0)
        .ok_or_else(|| Failure::usage(format!("{}: not a process id", text.display())))?;
    Ok(i32::try_from(number).ok().and_then(Pid::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Order, u8> {
        parse(args.iter().map(OsString::from)).map_err(|failure| failure.code)
    }

    #[test]
    fn an_order_is_understood() {
        let order = parsed(&["--signal", "TERM", "--pid", "12"]).expect("good");
        assert_eq!(order, Order { pid: Pid::from_raw(12), signal: Signal::Term, group: false });
        assert_eq!(parsed(&["--pid", "99999999999", "--signal", "HUP"]).expect("good").pid, None);
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for args in [
            &[][..],
            &["--pid", "1"],
            &["--signal", "TERM"],
            &["--pid"],
            &["--pid", "0", "--signal", "TERM"],
            &["--pid", "-1", "--signal", "TERM"],
            &["--pid", "+1", "--signal", "TERM"],
            &["--pid", "", "--signal", "TERM"],
            &["--pid", "1", "--signal", "SIGTERM"],
            &["--pid", "1", "--signal", "term"],
            &["--pid", "1", "--pid", "1", "--signal", "TERM"],
            &["--pid", "1", "--signal", "TERM", "more"],
        ] {
            assert_eq!(parsed(args), Err(1), "{args:?}");
        }
    }
}
