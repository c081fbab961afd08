//! The supervisor's end of all its links: programs by session, who has them, what is sent to whom.
//!
//! [`Host`] decides; the supervisor does. It feeds what arrives (bytes of links, output and ends of programs, time), and takes
//! [`Action`]s, bytes to send and stdin to write. After each call it should drain [`Host::next_action`].
//!
//! Memory is bounded: windows by the [`Budget`], messages to a link by [`CONTROL_QUEUE`] (beyond which nothing more is read from
//! it), programs, links and tombstones by [`Config`].

mod attach;
mod ending;
mod input;
mod link;
mod program;
mod requests;

use crate::{
    budget::Budget,
    id::{Instance, SessionId},
    output::{NoSpills, Spills},
    program::{Exit, Size, Start},
    proto::{self, Reason},
};
use bytes::Bytes;
use link::Link;
use program::Program;
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// Bytes of messages that may wait for a link before no more of its requests are read.
pub const CONTROL_QUEUE: usize = 64 * 1024;
/// [`proto::AgentHello::features`]: output may be spilled to files.
pub const FEATURE_SPILL: u64 = 1;
/// [`proto::AgentHello::features`]: files may be written.
pub const FEATURE_FILES: u64 = 2;

/// A program of this supervisor; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramKey(u64);

/// A link of this supervisor; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkKey(u64);

/// One of a program's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Out {
    /// With a terminal all output.
    Stdout,
    /// Never with a terminal.
    Stderr,
}

/// The bounds and times of a supervisor.
#[derive(Debug, Clone)]
pub struct Config {
    /// Random, new for each run.
    pub instance: Instance,
    /// For the backend's log.
    pub agent_version: String,
    /// [`FEATURE_SPILL`] and [`FEATURE_FILES`].
    pub features: u64,
    /// Bytes that all windows share.
    pub budget: usize,
    /// Programs at once, those included that have ended and are not acknowledged.
    pub max_programs: usize,
    /// Links at once, those not counted that were told goodbye.
    pub max_links: usize,
    /// The widest window of one direction; a power of two times `min_window`.
    pub window: usize,
    /// The window that each direction has at least; a program for which it is not there is refused.
    pub min_window: usize,
    /// How long a program may run without a link where its Start does not say.
    pub orphan_timeout: Duration,
    /// How long an exit is kept without a link.
    pub exit_retention: Duration,
    /// The most that a Detach may ask for.
    pub max_keep: Duration,
    /// A link from which nothing was heard for so long is closed.
    pub silence: Duration,
    /// The most that one stream may spill.
    pub max_spill: u64,
    /// Sessions that are over and remembered, so that a late Start does not run them again.
    pub tombstones: usize,
}

impl Config {
    /// The defaults.
    pub fn new(instance: Instance) -> Self {
        Self {
            instance,
            agent_version: String::new(),
            features: 0,
            budget: crate::budget::MAX_BUDGET,
            max_programs: 256,
            max_links: 32,
            window: 256 * 1024,
            min_window: 16 * 1024,
            orphan_timeout: Duration::from_mins(10),
            exit_retention: Duration::from_hours(1),
            max_keep: Duration::from_hours(7 * 24),
            silence: Duration::from_secs(45),
            max_spill: 4 << 30,
            tombstones: 4096,
        }
    }
}

/// What the supervisor shall do.
#[derive(Debug)]
pub enum Action {
    /// Start a program, then call [`Host::spawned`].
    Spawn {
        /// Whose.
        program: ProgramKey,
        /// What.
        start: Box<Start>,
    },
    /// Send a signal to the foreground process group of its terminal or to its process group, then call
    /// [`Host::answered`] where there is a request.
    Signal {
        /// Whose.
        program: ProgramKey,
        /// Without `SIG`; as the client sent it, so perhaps no signal at all.
        name: String,
        /// The request, for [`Host::answered`]. Without one (the program is being ended) the whole process group is meant.
        request: Option<u64>,
    },
    /// Set the terminal's size, then call [`Host::answered`].
    Resize {
        /// Whose.
        program: ProgramKey,
        /// What.
        size: Size,
        /// The request.
        request: u64,
    },
    /// The program is forgotten: close what is held for it, and kill what is left of its group.
    Forget {
        /// Which.
        program: ProgramKey,
        /// How it ended, where it did.
        exit: Option<Exit>,
    },
    /// Write a piece of a file; after the last one, or a failure, call [`Host::file_written`].
    WriteFile {
        /// Who asked.
        link: LinkKey,
        /// The piece.
        piece: proto::WriteFile,
    },
}

/// What stands next on a program's stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// Nothing to write now.
    Idle,
    /// Bytes to write: [`Host::stdin`].
    Data,
    /// All was written; close it, then call [`Host::stdin_closed`].
    End,
}

/// Why a program could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The part that a program decides on.
    pub reason: Reason,
    /// For the user or the log; cut to 1 KiB.
    pub message: String,
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    config: Config,
    budget: Budget,
    spills: Box<dyn Spills>,
    programs: BTreeMap<ProgramKey, Program>,
    sessions: BTreeMap<SessionId, ProgramKey>,
    links: BTreeMap<LinkKey, Link>,
    over: VecDeque<SessionId>,
    actions: VecDeque<Action>,
    next_key: u64,
    stopping: bool,
    /// The last [`tick`](Self::tick).
    ticked: Option<Instant>,
}

impl Host {
    /// A supervisor without programs and links, that can't spill.
    pub fn new(config: Config) -> Self {
        Self::with_spills(config, Box::new(NoSpills))
    }

    /// The same, with a place for spilled output.
    pub fn with_spills(config: Config, spills: Box<dyn Spills>) -> Self {
        Self {
            budget: Budget::new(config.budget),
            config,
            spills,
            programs: BTreeMap::new(),
            sessions: BTreeMap::new(),
            links: BTreeMap::new(),
            over: VecDeque::new(),
            actions: VecDeque::new(),
            next_key: 1,
            stopping: false,
            ticked: None,
        }
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Programs that run, or whose exit is not acknowledged.
    pub fn programs(&self) -> usize {
        self.programs.len()
    }

    /// Programs that run.
    pub fn running(&self) -> usize {
        self.programs.values().filter(|program| program.exit().is_none()).count()
    }

    /// The budget as it stands.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// A program was started, or could not be.
    pub fn spawned(&mut self, key: ProgramKey, result: Result<u32, Refusal>, now: Instant) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        match result {
            Ok(pid) => {
                program.running(pid);
                if program.released {
                    // Given up before it ran; the signal that was to end it found nothing.
                    self.actions.push_back(Action::Signal { program: key, name: "HUP".into(), request: None });
                }
                self.send_started(key, false, now);
            }
            Err(refusal) => {
                self.close_program(key, refusal.reason, &refusal.message, now);
                self.remove(key);
            }
        }
    }

    /// A Signal or Resize was done or refused.
    pub fn answered(&mut self, key: ProgramKey, request: u64, result: Result<(), Refusal>) {
        if let Some(program) = self.programs.get_mut(&key) {
            program.requests.answered(request, result.err());
            self.send_answer(key, request);
        }
    }

    /// What stands next on the program's stdin.
    pub fn stdin_state(&self, key: ProgramKey) -> Stdin {
        self.programs.get(&key).map_or(Stdin::Idle, |program| program.stdin.state())
    }

    /// Bytes for the program's stdin, in one or two pieces.
    pub fn stdin(&self, key: ProgramKey) -> (&[u8], &[u8]) {
        self.programs.get(&key).map_or((&[], &[]), |program| program.stdin.pending())
    }

    /// The program took `len` bytes of stdin.
    pub fn stdin_written(&mut self, key: ProgramKey, len: usize) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        if program.stdin.written(len, self.config.window, &mut self.budget) {
            self.wake(key);
        }
    }

    /// Stdin was closed: by us at its end, or by the program. What comes still is thrown away, as a pipe would.
    pub fn stdin_closed(&mut self, key: ProgramKey) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        if program.stdin.close() {
            self.wake(key);
        }
    }

    /// Bytes of output that [`output`](Self::output) takes now; 0 = don't read, the program shall wait.
    pub fn output_room(&mut self, key: ProgramKey, out: Out) -> usize {
        let Self { programs, budget, config, .. } = self;
        programs.get_mut(&key).map_or(0, |program| program.output_room(out, config.window, budget))
    }

    /// The program wrote `bytes`: at most [`output_room`](Self::output_room), asked for just before.
    pub fn output(&mut self, key: ProgramKey, out: Out, bytes: &[u8]) {
        let Self { programs, spills, .. } = self;
        if let Some(program) = programs.get_mut(&key) {
            program.push_output(out, bytes, spills.as_mut());
            self.wake(key);
        }
    }

    /// The output has ended: all that have it open closed it, or nobody waits for them any more.
    pub fn output_ended(&mut self, key: ProgramKey, out: Out) {
        if let Some(output) = self.programs.get_mut(&key).and_then(|program| program.output_mut(out)) {
            output.finish();
            self.wake(key);
        }
    }

    /// The program ended. Outputs may end later; the exit is told after them.
    pub fn exited(&mut self, key: ProgramKey, exit: Exit, now: Instant) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        program.ended(exit, self.stopping, now);
        if program.released {
            self.remove(key);
        } else {
            self.stdin_closed(key);
            self.wake(key);
        }
    }

    /// Removes a program and gives back what it had.
    fn remove(&mut self, key: ProgramKey) {
        let Some(program) = self.programs.remove(&key) else { return };
        self.budget.give(program.memory());
        self.sessions.remove(&program.session);
        if program.pid().is_some() {
            if self.over.len() >= self.config.tombstones {
                self.over.pop_front();
            }
            self.over.push_back(program.session);
            self.actions.push_back(Action::Forget { program: key, exit: program.exit().cloned() });
        }
        if let Some((link, number)) = program.link
            && let Some(link) = self.links.get_mut(&link)
        {
            link.programs.remove(&number);
        }
    }

    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }
}

/// A piece of a file that the host takes: checked for its form, passed on as an [`Action::WriteFile`].
fn file_piece_is_sound(piece: &proto::WriteFile) -> bool {
    let path: &Bytes = &piece.path;
    path.starts_with(b"/") && path.len() <= 4096 && !path.contains(&0) && piece.data.len() <= crate::frame::MAX_DATA
}

#[cfg(test)]
mod tests;
