//! The two programs, and ways to run them.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, OwnedFd},
    io::Errno,
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
};
use std::{
    ffi::OsStr,
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// ContainerSSH's, as far as a double can be it.
    Original,
    Ours,
}

pub const BOTH: [Agent; 2] = [Agent::Original, Agent::Ours];

/// How a run ended and what it said.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub pid: u32,
    /// The exit code, or 128 + the signal.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Run {
    /// stdout as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }

    /// stdout after the process id, which must be the true one.
    pub fn text_after_pid(&self) -> &str {
        let (pid, rest) = self.stdout.split_first_chunk().expect("a process id");
        assert_eq!(u32::from_le_bytes(*pid), self.pid);
        std::str::from_utf8(rest).expect("text")
    }
}

impl Agent {
    pub fn path(self) -> &'static str {
        match self {
            Self::Original => env!("CARGO_BIN_EXE_containerssh-agent-double"),
            Self::Ours => podbay_agent_embed::BUILT_AT,
        }
    }

    pub fn command(self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(self.path());
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(self, args: &[impl AsRef<OsStr>]) -> Run {
        self.run_with(args, b"")
    }

    pub fn run_with(self, args: &[impl AsRef<OsStr>], stdin: &[u8]) -> Run {
        finish(self.command(args), stdin)
    }

    /// Its exit code for arguments that it refuses.
    pub fn refusal(self, args: &[&str]) -> i32 {
        let run = self.run(args);
        assert!(!run.stderr.is_empty(), "{self:?} {args:?}");
        run.code
    }
}

pub fn finish(mut command: Command, stdin: &[u8]) -> Run {
    let mut child = command.spawn().expect("starts");
    let pid = child.id();
    // Small enough for a pipe. The program may be gone, or not want it.
    let _ = child.stdin.take().expect("piped").write_all(stdin);
    let output = child.wait_with_output().expect("ends");
    Run {
        pid,
        code: output.status.code().or(output.status.signal().map(|signal| 128 + signal)).expect("an end"),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// A terminal with a program on it (all three; not its controlling terminal, which nothing here needs).
pub struct OnTerminal {
    pub master: OwnedFd,
    pub child: Child,
}

impl OnTerminal {
    pub fn start(agent: Agent, args: &[&str]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        unlockpt(&master).expect("unlocked");
        let peer = ioctl_tiocgptpeer(&master, flags).expect("its other end");
        let mut command = agent.command(args);
        command.stdin(peer.try_clone().expect("a copy")).stdout(peer.try_clone().expect("a copy")).stderr(peer);
        Self { master, child: command.spawn().expect("starts") }
    }

    /// All that came until the end.
    pub fn output(&mut self) -> Vec<u8> {
        let all = read_until(&self.master, |_| false);
        self.child.wait().expect("ends");
        all
    }
}

/// Reads until enough, or the end, or fails at the deadline.
pub fn read_until(from: &impl AsFd, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + DEADLINE;
    let mut all = Vec::new();
    while !enough(&all) {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let ready = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&left)).expect("poll");
        assert_ne!(ready, 0, "in time; so far: {all:?}");
        let mut buffer = [0; 4096];
        match rustix::io::read(from, &mut buffer) {
            Ok(0) | Err(Errno::IO) => break,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) => panic!("{error}"),
        }
    }
    all
}

/// Waits for something to be so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
