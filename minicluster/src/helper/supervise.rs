//! The supervisor: one single-threaded process per running container, parent and subreaper of all its programs.

use super::{
    MARK, SELF, START, tree,
    wire::{Event, Exit, Request, Start, Stdio},
};
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{getpid, set_child_subreaper, setsid},
};
use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Command, Stdio as ProcessStdio, id},
};

/// How long to wait for killed processes to be gone before looking for new ones. Their deaths wake us earlier.
const KILL_ROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

pub(super) fn run() -> i32 {
    match Supervisor::new().and_then(|mut supervisor| {
        let result = supervisor.serve();
        supervisor.kill_all()?;
        result
    }) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("minicluster supervisor: {error}");
            1
        }
    }
}

struct Supervisor {
    signals: SignalFd,
    /// Programs that were started by request and have not been waited for.
    programs: HashMap<Pid, Program>,
    unread: Vec<u8>,
    /// The minicluster does not read any more; stop writing.
    deaf: bool,
}

struct Program {
    id: u64,
    main: bool,
}

/// What waiting for children showed.
struct Reaped {
    main_ended: bool,
    /// There is nothing left to wait for.
    childless: bool,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Next {
    Serve,
    End,
}

impl Supervisor {
    fn new() -> io::Result<Self> {
        // Away from the terminal of whoever started the minicluster: a Ctrl-C there is the minicluster's business.
        // Fails only for a process group leader, which then is out of that terminal's foreground group anyway.
        let _ = setsid();
        set_child_subreaper(Some(getpid()))?;
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { signals, programs: HashMap::new(), unread: Vec::new(), deaf: false })
    }

    /// Until the end is asked for, stdin ends, or the main program ended.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let (requests, signals) = {
                let stdin = io::stdin();
                let mut fds = [
                    PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
                ];
                match poll(&mut fds, None) {
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
                let [stdin, signals] = &fds;
                (!stdin.revents().is_empty(), !signals.revents().is_empty())
            };
            if signals && (self.take_signals()? == Next::End || self.reap()?.main_ended) {
                return Ok(());
            }
            if requests && self.take_requests()? == Next::End {
                return Ok(());
            }
        }
    }

    fn take_signals(&mut self) -> io::Result<Next> {
        let mut next = Next::Serve;
        while let Some(signal) = self.signals.read_signal()? {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                next = Next::End;
            }
        }
        Ok(next)
    }

    fn take_requests(&mut self) -> io::Result<Next> {
        let mut buffer = [0; 8192];
        let n = rustix::io::read(io::stdin(), &mut buffer)?;
        if n == 0 {
            return Ok(Next::End);
        }
        self.unread.extend(buffer.iter().take(n));
        while let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            match serde_json::from_slice(&line).map_err(io::Error::other)? {
                Request::Start(start) => self.start(&start),
                Request::Signal { id, signal } => self.signal(id, signal),
                Request::End => return Ok(Next::End),
            }
        }
        Ok(Next::Serve)
    }

    fn start(&mut self, start: &Start) {
        match spawn(start) {
            Ok(pid) => {
                self.programs.insert(pid, Program { id: start.id, main: start.main });
                self.tell(&Event::Started { id: start.id });
            }
            Err(error) => {
                let (errno, message) = (error.raw_os_error().unwrap_or(0), error.to_string());
                self.tell(&Event::Failed { id: start.id, errno, message });
            }
        }
    }

    /// Only to a child that was not waited for: its pid cannot have been given to another process.
    fn signal(&self, id: u64, signal: i32) {
        let Ok(signal) = Signal::try_from(signal) else { return };
        if let Some((&pid, _)) = self.programs.iter().find(|(_, program)| program.id == id) {
            let _ = kill(pid, signal);
        }
    }

    /// Waits for whatever ended, adopted processes too.
    fn reap(&mut self) -> io::Result<Reaped> {
        let mut reaped = Reaped { main_ended: false, childless: false };
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) => return Ok(reaped),
                Err(Errno::ECHILD) => return Ok(Reaped { childless: true, ..reaped }),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if let Some(program) = self.programs.remove(&pid) {
                self.tell(&Event::Exited { id: program.id, exit });
                reaped.main_ended |= program.main;
            }
        }
    }

    /// Kills until nothing is left below us. What dies hands its children to us, so each round sees the next generation.
    fn kill_all(&mut self) -> io::Result<()> {
        while !self.reap()?.childless {
            for pid in tree::below(id()) {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            let mut fds = [PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
            let _ = poll(&mut fds, Some(&KILL_ROUND));
            self.take_signals()?;
        }
        Ok(())
    }

    fn tell(&mut self, event: &Event) {
        if self.deaf {
            return;
        }
        let line = serde_json::to_string(event).map_err(io::Error::other);
        let mut stdout = io::stdout().lock();
        let told = line.and_then(|line| stdout.write_all(format!("{line}\n").as_bytes())).and_then(|()| stdout.flush());
        self.deaf = told.is_err();
    }
}

/// Starts the stub and waits until it became the program (its end of the pipe closes) or said why it can't.
fn spawn(start: &Start) -> io::Result<Pid> {
    let (argv0, args) = start.argv.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let (mut report, ours) = io::pipe()?;
    let none = || "-".to_owned();
    let [terminal, stdin, stdout, stderr] = match &start.stdio {
        Stdio::Terminal(path) => [path.clone(), none(), none(), none()],
        Stdio::Pipes { stdin, stdout, stderr } => {
            [None, stdin.clone(), stdout.clone(), stderr.clone()].map(|path| path.unwrap_or_else(none))
        }
    };
    let child = Command::new(SELF)
        .arg0("podbay-minicluster-start")
        .args([MARK, START, &id().to_string(), &terminal, &stdin, &stdout, &stderr, &start.program, argv0])
        .args(args)
        .env_clear()
        .envs(start.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&start.cwd)
        .stdin(ProcessStdio::null())
        .stdout(ours)
        .stderr(ProcessStdio::null())
        .spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut said = String::new();
    report.read_to_string(&mut said)?;
    let Some((errno, message)) = said.split_once(' ') else { return Ok(pid) };
    // It is ending: wait for it here, so that it is not taken for the program.
    while waitpid(pid, None) == Err(Errno::EINTR) {}
    Err(match errno.parse() {
        Ok(0) | Err(_) => io::Error::other(message.to_owned()),
        Ok(errno) => io::Error::from_raw_os_error(errno),
    })
}
