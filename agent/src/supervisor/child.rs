//! One program: its process, its descriptors, and what of its outputs is still to come.

use crate::{
    process::{Environment, Exit, Io, Launching, Program, Spec, StartError, Stdio},
    pty, signal,
};
use podbay_agent_wire::{
    host::{Host, Out, ProgramKey, Refusal, Stdin},
    program::{self, Start},
    proto::Reason,
};
use rustix::{
    event::PollFlags,
    fd::{AsFd as _, BorrowedFd, OwnedFd},
    io::Errno,
    termios::{LocalModes, SpecialCodeIndex, tcgetattr},
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The stub has spoken.
    Launching,
    /// A terminal, both ways.
    Terminal,
    /// A pipe.
    Stdin,
    /// A pipe.
    Output(Out),
}

#[derive(Debug)]
pub struct Child {
    pub stage: Stage,
    terminal: bool,
    /// Pipes, while they are open. (A terminal's is in the program.)
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// The terminal's output has not ended.
    terminal_open: bool,
    /// The last byte that was written to the terminal.
    last_typed: Option<u8>,
    /// After its end: since when its outputs are silent.
    silent_since: Option<Instant>,
}

#[derive(Debug)]
pub enum Stage {
    /// The stub is becoming the program; it may have ended already.
    Launching {
        launching: Option<Launching>,
        exit: Option<Exit>,
    },
    Running(Program),
}

/// What to give to [`crate::process::Starter`].
pub fn spec(start: Start) -> Result<Spec, StartError> {
    let text = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let mut environment = if start.clear_environment { Environment::new() } else { Environment::inherited() };
    for (name, value) in &start.environment {
        environment.set(text(name), text(value)).map_err(|_| StartError::Invalid)?;
    }
    let stdio = start.pty.map_or(Stdio::Pipes, |pty| {
        let modes = pty.modes.iter().map(|&(opcode, value)| pty::Mode { opcode, value }).collect();
        Stdio::Terminal(pty::Request { term: pty.term, size: size(pty.size), modes })
    });
    Ok(Spec {
        argv: start.argv.iter().map(|argument| text(argument)).collect(),
        environment,
        working_directory: start.working_directory.map(|path| text(&path).into()),
        stdio,
    })
}

pub fn size(size: program::Size) -> pty::Size {
    pty::Size { columns: size.columns, rows: size.rows, width: size.width, height: size.height }
}

/// Why a program did not start, for the link.
pub fn refusal(error: &StartError) -> Refusal {
    let reason = match error {
        StartError::NotFound | StartError::WorkingDirectory(Errno::NOENT) => Reason::NotFound,
        StartError::PermissionDenied | StartError::WorkingDirectory(Errno::ACCESS) => Reason::NotPermitted,
        StartError::Invalid => Reason::Invalid,
        StartError::WorkingDirectory(_) | StartError::Exec(_) | StartError::Terminal(_) | StartError::Agent(_) => {
            Reason::ExecFailed
        }
    };
    Refusal { reason, message: error.to_string() }
}

/// How a program ended, for the link.
pub fn exit(exit: Exit, out_of_memory: bool) -> program::Exit {
    match exit {
        Exit::Code(code) => program::Exit::Code(code),
        Exit::Signal { number, core_dumped } => program::Exit::Signal {
            name: signal::name_of(number),
            core_dumped,
            message: if out_of_memory { "out of memory".into() } else { String::new() },
        },
    }
}

impl Child {
    pub fn launching(launching: Launching, terminal: bool) -> Self {
        Self {
            stage: Stage::Launching { launching: Some(launching), exit: None },
            terminal,
            stdin: None,
            stdout: None,
            stderr: None,
            terminal_open: false,
            last_typed: None,
            silent_since: None,
        }
    }

    /// The stub became the program: takes its descriptors, which shall not block.
    pub fn run(&mut self, mut program: Program) -> Result<(), Errno> {
        match &mut program.io {
            Io::Terminal(master) => {
                rustix::io::ioctl_fionbio(master.as_fd(), true)?;
                self.terminal_open = true;
            }
            Io::Pipes { stdin, stdout, stderr } => {
                for fd in [&*stdin, &*stdout, &*stderr] {
                    rustix::io::ioctl_fionbio(fd, true)?;
                }
            }
            Io::Inherited => {}
        }
        if !self.terminal
            && let Io::Pipes { stdin, stdout, stderr } = std::mem::replace(&mut program.io, Io::Inherited)
        {
            (self.stdin, self.stdout, self.stderr) = (Some(stdin), Some(stdout), Some(stderr));
        }
        self.stage = Stage::Running(program);
        Ok(())
    }

    fn program(&self) -> Option<&Program> {
        match &self.stage {
            Stage::Launching { .. } => None,
            Stage::Running(program) => Some(program),
        }
    }

    fn master(&self) -> Option<&pty::Master> {
        match self.program().map(|program| &program.io) {
            Some(Io::Terminal(master)) if self.terminal_open => Some(master),
            Some(Io::Terminal(_) | Io::Pipes { .. } | Io::Inherited) | None => None,
        }
    }

    /// What to wait for. Nothing is waited for that would not be acted on: a hung-up descriptor is always ready.
    pub fn interest<'a>(
        &'a self,
        key: ProgramKey,
        host: &mut Host,
        mut wait: impl FnMut(Token, BorrowedFd<'a>, PollFlags),
    ) {
        if let Stage::Launching { launching: Some(launching), .. } = &self.stage {
            wait(Token::Launching, launching.as_fd(), PollFlags::IN);
        }
        let state = host.stdin_state(key);
        let writes = state == Stdin::Data;
        if let Some(master) = self.master() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, host.output_room(key, Out::Stdout) > 0);
            // The end of a terminal's input is written, too.
            flags.set(PollFlags::OUT, writes || state == Stdin::End);
            if !flags.is_empty() {
                wait(Token::Terminal, master.as_fd(), flags);
            }
        }
        if let (Some(stdin), true) = (&self.stdin, writes) {
            wait(Token::Stdin, stdin.as_fd(), PollFlags::OUT);
        }
        for (out, fd) in [(Out::Stdout, &self.stdout), (Out::Stderr, &self.stderr)] {
            if let Some(fd) = fd
                && host.output_room(key, out) > 0
            {
                wait(Token::Output(out), fd.as_fd(), PollFlags::IN);
            }
        }
    }

    /// Writes what the program takes of its stdin, and closes it at its end.
    pub fn write_stdin(&mut self, key: ProgramKey, host: &mut Host) {
        loop {
            let fd = match (&self.stdin, self.master()) {
                (Some(stdin), _) => stdin.as_fd(),
                (None, Some(master)) => master.as_fd(),
                (None, None) => return,
            };
            match host.stdin_state(key) {
                Stdin::Idle => return,
                Stdin::End => {
                    // A terminal has no end of input but what its user types.
                    if self.stdin.is_none() && matches!(rustix::io::write(fd, &self.typed_end(fd)), Err(Errno::AGAIN)) {
                        return;
                    }
                    self.stdin = None;
                    host.stdin_closed(key);
                    return;
                }
                Stdin::Data => {
                    let (head, tail) = host.stdin(key);
                    let piece = if head.is_empty() { tail } else { head };
                    match rustix::io::write(fd, piece) {
                        Ok(len) => {
                            self.last_typed = piece.get(..len).and_then(<[u8]>::last).copied().or(self.last_typed);
                            host.stdin_written(key, len);
                        }
                        Err(Errno::INTR) => {}
                        Err(Errno::AGAIN) => return,
                        Err(_) => {
                            // The program has closed it; what comes still is thrown away.
                            self.stdin = None;
                            host.stdin_closed(key);
                            return;
                        }
                    }
                }
            }
        }
    }

    /// What ends a terminal's input: its own character for that. The line discipline makes an end of it only where a line
    /// begins; elsewhere it hands over the line so far, and the next one is the end. Behind the character that quotes,
    /// the first one would be text. A program that reads without lines gets it as it is.
    fn typed_end(&self, fd: BorrowedFd<'_>) -> Vec<u8> {
        const CONTROL_D: u8 = 4;
        let Ok(modes) = tcgetattr(fd) else { return vec![CONTROL_D] };
        let end = modes.special_codes[SpecialCodeIndex::VEOF];
        let times = match self.last_typed {
            _ if !modes.local_modes.contains(LocalModes::ICANON) => 1,
            None | Some(b'\n' | b'\r') => 1,
            Some(last) if last == end => 1,
            Some(last) if last == modes.special_codes[SpecialCodeIndex::VLNEXT] => 3,
            Some(_) => 2,
        };
        vec![end; times]
    }

    /// Reads once.
    pub fn read_output(&mut self, key: ProgramKey, out: Out, host: &mut Host, buffer: &mut [u8], now: Instant) {
        let room = host.output_room(key, out).min(buffer.len());
        let fd = match out {
            Out::Stdout => {
                self.stdout.as_ref().map(|fd| fd.as_fd()).or_else(|| self.master().map(|master| master.as_fd()))
            }
            Out::Stderr => self.stderr.as_ref().map(|fd| fd.as_fd()),
        };
        let Some(fd) = fd.filter(|_| room > 0) else { return };
        match rustix::io::read(fd, &mut buffer[..room]) {
            // EIO: nobody has the terminal open any more.
            Ok(0) | Err(Errno::IO) => self.end_output(key, out, host),
            Ok(len) => {
                host.output(key, out, &buffer[..len]);
                if self.silent_since.is_some() {
                    self.silent_since = Some(now);
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.end_output(key, out, host),
        }
    }

    fn end_output(&mut self, key: ProgramKey, out: Out, host: &mut Host) {
        match out {
            Out::Stdout => {
                self.stdout = None;
                self.terminal_open = false;
            }
            Out::Stderr => self.stderr = None,
        }
        host.output_ended(key, out);
    }

    /// The program has ended.
    pub fn exited(&mut self, exit: Exit, now: Instant) {
        match &mut self.stage {
            Stage::Launching { exit: early, .. } => *early = Some(exit),
            Stage::Running(program) => {
                program.reaped(exit);
                self.stdin = None;
                self.silent_since = Some(now);
            }
        }
    }

    /// When [`drain`](Self::drain) is due.
    pub fn drain_at(&self, pipes: Duration, terminal: Duration) -> Option<Instant> {
        let open = self.terminal_open || self.stdout.is_some() || self.stderr.is_some();
        let since = self.silent_since.filter(|_| open)?;
        Some(since + if self.terminal { terminal } else { pipes })
    }

    /// Outputs that somebody in the background holds open and that were silent for too long count as ended. One that waits for its
    /// reader is not silent.
    pub fn drain(&mut self, key: ProgramKey, host: &mut Host, now: Instant) {
        let open = [(Out::Stdout, self.stdout.is_some() || self.terminal_open), (Out::Stderr, self.stderr.is_some())];
        let open = open.into_iter().filter(|(_, open)| *open).map(|(out, _)| out);
        for out in open.collect::<Vec<_>>() {
            if host.output_room(key, out) > 0 {
                self.end_output(key, out, host);
            } else {
                self.silent_since = Some(now);
            }
        }
    }

    /// Sends a signal by name: to the foreground, and (`whole`: the program is being ended) to the program's own process group.
    pub fn signal(&self, name: &str, whole: bool) -> Result<(), Refusal> {
        let refuse = |reason, message: String| Err(Refusal { reason, message });
        let Ok(signal) = name.parse::<signal::Signal>() else {
            return refuse(Reason::UnknownSignal, signal::UnknownSignal.to_string());
        };
        let Some(program) = self.program() else { return refuse(Reason::Ended, "the program does not run".into()) };
        let foreground = self.master().and_then(|master| master.foreground().ok().flatten());
        let sent = if whole {
            // The shell and what it has in the foreground, each once.
            if foreground.is_some_and(|group| group != program.pid()) {
                let _ = program.signal(signal);
            }
            program.signal_group(signal)
        } else {
            program.signal(signal)
        };
        sent.or_else(|error| match error {
            crate::process::SignalError::Ended => refuse(Reason::Ended, error.to_string()),
            crate::process::SignalError::Refused(_) => refuse(Reason::NotPermitted, error.to_string()),
        })
    }

    /// Sets the terminal's size.
    pub fn resize(&self, size: pty::Size) -> Result<(), Refusal> {
        let Some(master) = self.master() else {
            return Err(Refusal { reason: Reason::Ended, message: "the terminal is closed".into() });
        };
        master.resize(size).map_err(|error| Refusal { reason: Reason::Ended, message: error.to_string() })
    }
}
