//! `podbay agent-binary` as its user meets it.

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use std::process::{Command, Stdio};

fn agent_binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podbay"));
    command.arg("agent-binary");
    command
}

#[test]
fn it_writes_the_whole_agent_to_stdout() {
    let run = agent_binary().output().expect("runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(run.stdout == podbay_agent_embed::BINARY, "{} bytes", run.stdout.len());
}

#[test]
fn it_spares_a_terminal() {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).expect("a terminal");
    unlockpt(&master).expect("unlocked");
    let terminal = ioctl_tiocgptpeer(&master, flags).expect("its other end");
    let run = agent_binary().stdout(terminal).stderr(Stdio::piped()).spawn().expect("starts");
    let run = run.wait_with_output().expect("ends");
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&run.stderr).contains("agent-binary >FILE"), "{run:?}");
}

#[test]
fn a_write_that_fails_is_no_success() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("opens");
    let run = agent_binary().stdout(full).stderr(Stdio::null()).status().expect("runs");
    assert_eq!(run.code(), Some(1));
}
