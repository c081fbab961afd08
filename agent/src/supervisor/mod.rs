//! The supervisor: owns the programs of a pod's sessions, so that their lives are tied to no connection.
//!
//! One thread and one `poll`: it carries bytes between processes, links and [`Host`], which decides everything. It is process 1 of
//! a container (or a subreaper) and reaps what is orphaned.

mod child;
mod ending;
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
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
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
    let ends_on = vec![NixSignal::SIGTERM, NixSignal::SIGINT];
    match Supervisor::new(options, ends_on, &FORWARDED.map(|(signal, _)| signal)) {
        Ok(mut supervisor) => match supervisor.run() {
            Ok(code) => code,
            Err(error) => failed(EXIT_UNAVAILABLE, &error),
        },
        Err(StartError::Place(error @ PlaceError::Taken)) => failed(EXIT_TAKEN, &error),
        Err(StartError::Idle(error)) => failed(error.exit_code(), &format!("the idle command: {error}")),
        Err(error) => failed(EXIT_UNAVAILABLE, &error),
    }
}

/// Supervises until one of the signals comes: for an idle command that is the agent's own (`wait-signal`). Other signals keep
/// their default actions.
///
/// # Errors
/// There is no place for a socket, or a supervisor runs already: wait without.
pub fn until_signal(signals: Vec<NixSignal>) -> Result<(), impl std::fmt::Display> {
    let supervisor = Supervisor::new(Options::default(), signals, &[]);
    supervisor.and_then(|mut supervisor| supervisor.run().map_err(StartError::from)).map(|_| ())
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
    /// Any of these begins the end.
    ends_on: Vec<NixSignal>,
    /// What we end with.
    code: u8,
    /// How the session's program ended.
    session_exit: Option<Exit>,
    busy_at: Instant,
    /// Not before: there were no descriptors left.
    accept_at: Instant,
    oom_kills: u64,
    buffer: Vec<u8>,
}

impl Supervisor {
    /// Ends on any of `ends_on`; `signals` are those that we take from their default actions besides.
    fn new(options: Options, ends_on: Vec<NixSignal>, signals: &[NixSignal]) -> Result<Self, StartError> {
        if options.detached {
            // Fails where we lead a group already: then nobody's terminal is ours anyway.
            let _ = rustix::process::setsid();
        }
        if rustix::process::getpid() != rustix::process::Pid::INIT {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(io::Error::from)?;
        }
        let mut set: SigSet = ends_on.iter().chain(signals).copied().collect();
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
        let spills = match &options.spill_dir {
            Some(folder) => vec![folder.clone()],
            None => spill::SpillFolder::places(place.folder()),
        };
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
            ends_on,
            code: 0,
            session_exit: None,
            busy_at: Instant::now(),
            accept_at: Instant::now(),
            oom_kills: system::oom_kills(),
            buffer: vec![0; BUFFER],
        })
    }

    fn run(&mut self) -> io::Result<u8> {
        // Some may have ended before SIGCHLD was ours to see (a container's processes, where this took another program's place).
        self.reap(Instant::now());
        loop {
            let now = Instant::now();
            if self.host.next_deadline(now).is_some_and(|at| at <= now) {
                self.host.tick(now);
            }
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

    /// Outputs that are held open by nobody of interest.
    fn drain(&mut self, now: Instant) {
        for (&key, child) in &mut self.children {
            if child.drain_at(self.options.drain_pipes, self.options.drain_terminal).is_some_and(|at| now >= at) {
                child.drain(key, &mut self.host, now);
            }
        }
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
        loop {
            let stream = match self.place.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // It would be ready again at once.
                    self.accept_at = now + ACCEPT_PAUSE;
                    return;
                }
            };
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
