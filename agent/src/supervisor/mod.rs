//! The supervisor: owns the programs of a pod's sessions, so that their lives are tied to no connection.
//!
//! One thread and one `poll`: it carries bytes between processes, links and [`Host`], which decides everything. It is process 1 of
//! a container (or a subreaper) and reaps what is orphaned.

mod child;
mod files;
mod options;
mod peer;
mod poll;
pub mod socket;
mod spill;
mod system;

pub use options::Options;

use crate::{
    process::{Environment, Exit, Program, Spec, Starter, Stdio},
    signal::Signal,
};
use child::{Child, Stage};
use files::Files;
use nix::sys::{
    signal::{SigSet, Signal as NixSignal},
    signalfd::{SfdFlags, SignalFd},
};
use peer::{Peer, Presence};
use podbay_agent_wire::host::{Action, Config, FEATURE_FILES, FEATURE_SPILL, Host, LinkKey, ProgramKey, Stdin};
use rustix::{
    io::Errno,
    process::{WaitOptions, wait},
};
use socket::{Place, PlaceError};
use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    time::{Duration, Instant},
};

/// Exit code: the arguments are wrong.
pub const EXIT_USAGE: u8 = 64;
/// Exit code: there is no place for the socket, or no supervisor there.
pub const EXIT_UNAVAILABLE: u8 = 69;
/// Exit code: a supervisor runs already.
pub const EXIT_TAKEN: u8 = 73;

/// What a detached supervisor says on stdout once it listens, before it closes it.
pub const READY: &str = "ready\n";

/// A detached supervisor without programs and links ends after this.
const IDLE_EXIT: Duration = Duration::from_mins(5);
/// After all programs ended: so long their ends can be fetched before the container ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
const BUFFER: usize = 64 * 1024;
/// Handed on to the idle command.
const FORWARDED: [(NixSignal, Signal); 6] = [
    (NixSignal::SIGTERM, Signal::Term),
    (NixSignal::SIGINT, Signal::Int),
    (NixSignal::SIGHUP, Signal::Hup),
    (NixSignal::SIGQUIT, Signal::Quit),
    (NixSignal::SIGUSR1, Signal::Usr1),
    (NixSignal::SIGUSR2, Signal::Usr2),
];

/// The command `supervise`: gives the exit code. `args` follow the command's name.
pub fn run(args: impl Iterator<Item = OsString>) -> u8 {
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(error) => {
            say(&format!("supervise: {error}\n{}", options::USAGE));
            return EXIT_USAGE;
        }
    };
    let detached = options.detached;
    let failed = |code: u8, error: &dyn std::fmt::Display| {
        if detached {
            // `attach` reads it there.
            let _ = writeln!(io::stdout(), "{error}");
        } else {
            say(&format!("supervise: {error}"));
        }
        code
    };
    match Supervisor::new(options) {
        Ok(mut supervisor) => match supervisor.run() {
            Ok(code) => code,
            Err(error) => failed(EXIT_UNAVAILABLE, &error),
        },
        Err(StartError::Place(error @ PlaceError::Taken)) => failed(EXIT_TAKEN, &error),
        Err(StartError::Idle(error)) => failed(error.exit_code(), &format!("the idle command: {error}")),
        Err(error) => failed(EXIT_UNAVAILABLE, &error),
    }
}

/// For the container's log.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "podbay-agent: {text}");
}

/// Why a supervisor could not begin.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Idle(crate::process::StartError),
}

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Programs are being ended.
    Ending,
    /// They have ended; their ends may be fetched until then.
    LastWords(Instant),
    /// Goodbye was said; it is read until then.
    Leaving(Instant),
}

#[derive(Debug)]
struct Supervisor {
    options: Options,
    host: Host,
    place: Place,
    signals: SignalFd,
    starter: Starter,
    children: BTreeMap<ProgramKey, Child>,
    by_pid: HashMap<i32, ProgramKey>,
    peers: BTreeMap<LinkKey, Peer>,
    files: Files,
    idle: Option<Program>,
    phase: Phase,
    /// What we end with.
    code: u8,
    /// How the session's program ended.
    session_exit: Option<Exit>,
    busy_at: Instant,
    oom_kills: u64,
    buffer: Vec<u8>,
}

impl Supervisor {
    fn new(options: Options) -> Result<Self, StartError> {
        if options.detached {
            // Fails where we lead a group already: then nobody's terminal is ours anyway.
            let _ = rustix::process::setsid();
        }
        if rustix::process::getpid() != rustix::process::Pid::INIT {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(io::Error::from)?;
        }
        let mut set: SigSet = FORWARDED.iter().map(|(signal, _)| *signal).collect();
        set.add(NixSignal::SIGCHLD);
        set.thread_block().map_err(io::Error::from)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&set, flags).map_err(io::Error::from)?;
        let place = Place::take(options.socket.as_deref())?;
        let mut config = Config::new(system::instance()?);
        config.agent_version = env!("CARGO_PKG_VERSION").into();
        config.features = FEATURE_SPILL | FEATURE_FILES;
        config.budget = options.memory.unwrap_or_else(system::memory_budget);
        config.max_programs = options.max_programs;
        config.orphan_timeout = options.orphan_timeout;
        config.exit_retention = options.exit_retention;
        let spills = options.spill_dir.clone().unwrap_or_else(|| place.folder().to_owned());
        let starter = Starter::this_program();
        let idle = if options.idle.is_empty() {
            None
        } else {
            let environment = Environment::inherited();
            let spec = Spec { argv: options.idle.clone(), environment, working_directory: None, stdio: Stdio::Inherit };
            Some(starter.start(&spec).map_err(StartError::Idle)?)
        };
        if options.detached {
            detach_stdio()?;
        }
        Ok(Self {
            options,
            host: Host::with_spills(config, Box::new(spill::SpillFolder::new(spills))),
            place,
            signals,
            starter,
            children: BTreeMap::new(),
            by_pid: HashMap::new(),
            peers: BTreeMap::new(),
            files: Files::default(),
            idle,
            phase: Phase::Serving,
            code: 0,
            session_exit: None,
            busy_at: Instant::now(),
            oom_kills: system::oom_kills(),
            buffer: vec![0; BUFFER],
        })
    }

    fn run(&mut self) -> io::Result<u8> {
        loop {
            let now = Instant::now();
            self.host.tick(now);
            self.drain(now);
            self.act(now);
            self.write_to_peers(now);
            if self.is_over(now) {
                return Ok(self.code);
            }
            self.wait(now)?;
        }
    }

    /// Does what the host decided.
    fn act(&mut self, now: Instant) {
        while let Some(action) = self.host.next_action() {
            match action {
                Action::Spawn { program, start } => self.spawn(program, *start, now),
                Action::Signal { program, name, request } => {
                    let Some(child) = self.children.get(&program) else { continue };
                    let result = child.signal(&name, request.is_none());
                    if let Some(request) = request {
                        self.host.answered(program, request, result);
                    }
                }
                Action::Resize { program, size, request } => {
                    let Some(child) = self.children.get(&program) else { continue };
                    self.host.answered(program, request, child.resize(child::size(size)));
                }
                Action::Forget { program, .. } => {
                    self.children.remove(&program);
                    if self.options.session
                        && let Some(exit) = self.session_exit
                    {
                        self.end(exit.shell_code(), now);
                    }
                }
                Action::WriteFile { link, piece } => {
                    if let Some(result) = self.files.write(link, &piece) {
                        self.host.file_written(link, piece.id, result);
                    }
                }
            }
        }
        for (&key, child) in &mut self.children {
            if self.host.stdin_state(key) == Stdin::End {
                child.write_stdin(key, &mut self.host);
            }
        }
    }

    fn spawn(&mut self, key: ProgramKey, start: podbay_agent_wire::program::Start, now: Instant) {
        let terminal = start.pty.is_some();
        match child::spec(start).and_then(|spec| self.starter.launch(&spec)) {
            Ok(launching) => {
                self.by_pid.insert(launching.pid().as_raw_nonzero().get(), key);
                self.children.insert(key, Child::launching(launching, terminal));
            }
            Err(error) => self.host.spawned(key, Err(child::refusal(&error)), now),
        }
    }

    /// The stub has spoken.
    fn launched(&mut self, key: ProgramKey, now: Instant) {
        let Some(child) = self.children.get_mut(&key) else { return };
        let Stage::Launching { launching, exit } = &mut child.stage else { return };
        let early = *exit;
        let Some(mut ready) = launching.take() else { return };
        if !ready.is_decided() {
            *launching = Some(ready);
            return;
        }
        let pid = ready.pid().as_raw_nonzero().get();
        match ready.finish() {
            Ok(program) => {
                let running = child.run(program);
                self.host.spawned(key, Ok(pid.cast_unsigned()), now);
                if let Err(errno) = running {
                    say(&format!("a program's descriptors: {errno}"));
                }
                if let Some(exit) = early {
                    self.program_exited(key, exit, now);
                }
            }
            Err(error) => {
                self.by_pid.remove(&pid);
                self.children.remove(&key);
                self.host.spawned(key, Err(child::refusal(&error)), now);
            }
        }
    }

    /// Reaps everything that has ended, ours or orphaned.
    fn reap(&mut self, now: Instant) {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => (pid, status),
                Err(Errno::INTR) => continue,
                Ok(None) | Err(_) => return,
            };
            let Some(exit) = Exit::from_wait_status(status.as_raw()) else { continue };
            if let Some(idle) = &mut self.idle
                && idle.pid() == pid
            {
                idle.reaped(exit);
                self.end(exit.shell_code(), now);
            } else if let Some(key) = self.by_pid.remove(&pid.as_raw_nonzero().get()) {
                self.program_exited(key, exit, now);
            }
        }
    }

    fn program_exited(&mut self, key: ProgramKey, exit: Exit, now: Instant) {
        let Some(child) = self.children.get_mut(&key) else { return };
        child.exited(exit, now);
        if matches!(child.stage, Stage::Launching { .. }) {
            // It is told once the stub's last word is read.
            return;
        }
        let oom_kills = system::oom_kills();
        let killed = matches!(exit, Exit::Signal { number: 9, .. });
        let out_of_memory = killed && oom_kills > std::mem::replace(&mut self.oom_kills, oom_kills);
        if self.options.session {
            self.session_exit = Some(exit);
            system::write_termination_message(&self.options.termination_log, exit);
        }
        self.host.exited(key, child::exit(exit, out_of_memory), now);
    }

    /// Outputs that are held open by nobody of interest.
    fn drain(&mut self, now: Instant) {
        for (&key, child) in &mut self.children {
            if child.drain_at(self.options.drain_pipes, self.options.drain_terminal).is_some_and(|at| now >= at) {
                child.drain(key, &mut self.host, now);
            }
        }
    }

    /// Signals that came.
    fn signalled(&mut self, now: Instant) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal().map_err(io::Error::from)? {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            let Some((signal, forwarded)) = FORWARDED.iter().find(|(signal, _)| *signal as i32 == number) else {
                continue;
            };
            match &self.idle {
                Some(idle) => drop(idle.signal_group(*forwarded)),
                None if matches!(signal, NixSignal::SIGTERM | NixSignal::SIGINT) => self.code = 0,
                None => {}
            }
            if matches!(signal, NixSignal::SIGTERM | NixSignal::SIGINT) {
                let code = self.code;
                self.end(code, now);
            }
        }
        // Whatever woke us: a signal stands for many children.
        self.reap(now);
        Ok(())
    }

    /// The end begins: programs are ended, and ends can still be fetched.
    fn end(&mut self, code: u8, now: Instant) {
        self.code = code;
        if self.phase == Phase::Serving {
            self.phase = Phase::Ending;
            self.host.stop(now);
        }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        if self.host.programs() > 0 || !self.peers.is_empty() {
            self.busy_at = now;
        }
        match self.phase {
            Phase::Serving => return self.options.detached && now >= self.busy_at + IDLE_EXIT,
            Phase::Ending => {
                let idles = self.idle.as_ref().is_some_and(|idle| idle.exit().is_none());
                if !idles && self.host.running() == 0 {
                    self.phase = Phase::LastWords(now + LAST_WORDS);
                }
            }
            Phase::LastWords(_) | Phase::Leaving(_) => {}
        }
        if let Phase::LastWords(until) = self.phase
            && (self.host.programs() == 0 || self.peers.is_empty() || now >= until)
        {
            self.phase = Phase::Leaving(now + LAST_WORDS);
            self.host.say_goodbye(now);
            self.write_to_peers(now);
        }
        matches!(self.phase, Phase::Leaving(until) if self.peers.is_empty() || now >= until)
    }

    fn write_to_peers(&mut self, now: Instant) {
        let mut gone = Vec::new();
        for (&key, peer) in &mut self.peers {
            if peer.write(key, &mut self.host, now) == Presence::Gone {
                gone.push(key);
            }
        }
        for key in gone {
            self.peer_gone(key, now);
        }
    }

    fn accept(&mut self, now: Instant) {
        while let Ok((stream, _)) = self.place.listener.accept() {
            if !socket::is_ours(&stream) {
                continue;
            }
            let Ok(peer) = Peer::new(stream) else { continue };
            if let Some(key) = self.host.link_opened(now) {
                self.peers.insert(key, peer);
            }
        }
    }

    fn peer_gone(&mut self, key: LinkKey, now: Instant) {
        self.peers.remove(&key);
        self.files.link_closed(key);
        self.host.link_closed(key, now);
    }
}

/// Tells who started us that we listen, and lets go of its stdio.
fn detach_stdio() -> io::Result<()> {
    io::stdout().write_all(READY.as_bytes())?;
    io::stdout().flush()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
