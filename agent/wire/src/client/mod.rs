//! The backend's end of the link to one pod: all of this replica's programs there, over whatever links there were.
//!
//! [`Client`] survives its links. After [`connected`](Client::connected) on a new byte stream it attaches to its programs again and
//! sends what was not acknowledged; to its user that is invisible but for [`Event::Relinked`]. The user feeds bytes and
//! time, takes [`Event`]s and bytes to send. Memory is bounded: per program the window of stdin and [`MAX_REQUESTS`]; what arrives becomes events at
//! once, within the credit that was given.

mod event;
mod link;
mod program;
mod send;
mod streams;

use crate::{
    frame::Stream,
    id::{Attempt, Instance, SessionId},
    program::{Size, Start},
    proto::Reason,
};
use bytes::Bytes;
pub use event::{Event, LinkError, RequestError};
use link::Link;
use program::{Closing, Place, Program, Request, RequestKind, Want};
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// Signals and resizes of one program that may wait for their answers at once.
pub const MAX_REQUESTS: usize = 32;

/// A program of this client; never used again. Two attachments to one session have two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

/// The bounds and times of a client.
#[derive(Debug, Clone)]
pub struct Config {
    /// For the agent's log.
    pub name: String,
    /// The most stdin of one program that is kept until it is acknowledged; what the agent grants beyond is not passed on.
    pub window: usize,
    /// How often a ping is sent.
    pub ping_every: Duration,
    /// A link from which nothing was heard for so long is given up; the hello has to come within it too.
    pub silence: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: String::new(),
            window: 256 * 1024,
            ping_every: Duration::from_secs(5),
            silence: Duration::from_secs(15),
        }
    }
}

/// Where output begins, and how much of it may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResumeFrom {
    /// First wanted byte of stdout.
    pub stdout: u64,
    /// Absolute.
    pub stdout_credit: u64,
    /// First wanted byte of stderr.
    pub stderr: u64,
    /// Absolute.
    pub stderr_credit: u64,
}

/// A file under way.
#[derive(Debug)]
struct File {
    path: Bytes,
    mode: u32,
    data: Bytes,
    /// `None` = all is sent.
    sent: Option<usize>,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    config: Config,
    link: Link,
    instance: Option<Instance>,
    programs: BTreeMap<Key, Program>,
    ready: VecDeque<Key>,
    acks: BTreeMap<SessionId, bool>,
    lists: BTreeMap<u64, (Option<SessionId>, bool)>,
    files: BTreeMap<u64, File>,
    events: VecDeque<Event>,
    next: u64,
    /// The last thing sent was a piece of a file: a program comes next.
    programs_turn: bool,
}

impl Client {
    /// A client without a link.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            link: Link::Down,
            instance: None,
            programs: BTreeMap::new(),
            ready: VecDeque::new(),
            acks: BTreeMap::new(),
            lists: BTreeMap::new(),
            files: BTreeMap::new(),
            events: VecDeque::new(),
            next: 0,
            programs_turn: false,
        }
    }

    /// The next event. Take all of them after each call of another method.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Programs that this client has or is getting.
    pub fn programs(&self) -> usize {
        self.programs.len()
    }

    /// Whether a link is wanted: something waits for an answer or runs.
    pub fn wants_link(&self) -> bool {
        !self.acks.is_empty()
            || !self.lists.is_empty()
            || !self.files.is_empty()
            || self.programs.values().any(Program::wants_link)
    }

    /// Starts a program; attaches where the session exists.
    ///
    /// A new program can't begin at an offset: with `from` above zero this attaches only, and is refused with
    /// [`Reason::UnknownSession`] where the program is gone.
    pub fn start(&mut self, session: SessionId, attempt: Attempt, start: &Start, from: ResumeFrom) -> Key {
        self.open(session, attempt, Want::Start(Box::new(start.into())), from)
    }

    /// Attaches to a program; with `take_over` whatever the attempt (Started tells the new one).
    pub fn attach(&mut self, session: SessionId, attempt: Attempt, take_over: bool, from: ResumeFrom) -> Key {
        self.open(session, attempt, Want::Attach { take_over }, from)
    }

    fn open(&mut self, session: SessionId, attempt: Attempt, want: Want, from: ResumeFrom) -> Key {
        let key = Key(self.id());
        self.programs.insert(key, Program::new(session, attempt, want, from, self.config.window));
        self.wake(key);
        key
    }

    /// Bytes for stdin, within the credit.
    pub fn stdin(&mut self, key: Key, offset: u64, data: &[u8]) -> Result<(), RequestError> {
        self.program(key)?.stdin.push(offset, data)?;
        self.wake(key);
        Ok(())
    }

    /// The end of stdin; answered with `id`, which shares the counter of signals and resizes.
    pub fn eof(&mut self, key: Key, id: u64, offset: u64) -> Result<(), RequestError> {
        let program = self.program(key)?;
        program.stdin.end(id, offset)?;
        self.wake(key);
        Ok(())
    }

    /// Asks for a signal. It is acted on once, however many links it takes; past `deadline` the answer is
    /// [`Reason::Deadline`].
    pub fn signal(&mut self, key: Key, id: u64, name: &str, deadline: Instant) -> Result<(), RequestError> {
        self.request(key, Request { id, kind: RequestKind::Signal(name.to_owned()), deadline, sent: false })
    }

    /// Tells the terminal's new size. One that was not sent yet is overtaken, and answered as done.
    pub fn resize(&mut self, key: Key, id: u64, size: Size, deadline: Instant) -> Result<(), RequestError> {
        if let Some(overtaken) = self.program(key)?.overtake() {
            self.events.push_back(Event::Answer { key, id: overtaken, result: Ok(()) });
        }
        self.request(key, Request { id, kind: RequestKind::Resize(size), deadline, sent: false })
    }

    fn request(&mut self, key: Key, request: Request) -> Result<(), RequestError> {
        self.program(key)?.request(request)?;
        self.wake(key);
        Ok(())
    }

    /// The consumer has room for output up to `limit`.
    pub fn credit(&mut self, key: Key, stream: Stream, limit: u64) {
        if let Some(reading) = self.programs.get_mut(&key).and_then(|program| program.reading(stream)) {
            reading.credit(limit);
            self.wake(key);
        }
    }

    /// The consumer has taken output up to `offset`; the pod may let go of it.
    pub fn ack(&mut self, key: Key, stream: Stream, offset: u64) {
        if let Some(reading) = self.programs.get_mut(&key).and_then(|program| program.reading(stream)) {
            reading.ack(offset);
            self.wake(key);
        }
    }

    /// Leaves the program running: kept for `keep`, or (`None`: its client is lost) for its orphan timeout.
    /// [`Event::Closed`] tells when that is settled.
    pub fn detach(&mut self, key: Key, keep: Option<Duration>) {
        self.close(key, Closing::Detach(keep));
    }

    /// Gives the program up: HUP, TERM, KILL, and no exit. [`Event::Closed`] tells when the agent knows.
    pub fn release(&mut self, key: Key) {
        self.close(key, Closing::Release);
    }

    fn close(&mut self, key: Key, closing: Closing) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        if program.close(closing) {
            self.wake(key);
        } else {
            let reason = match closing {
                Closing::Detach(_) => Reason::Detached,
                Closing::Release => Reason::Released,
            };
            self.remove(key, reason, String::new());
        }
    }

    /// The exit is known to the session's client: the supervisor may forget it. Sent until it is answered.
    pub fn ack_exit(&mut self, session: SessionId) {
        self.acks.insert(session, false);
    }

    /// Asks for the sessions in the pod, or for one.
    pub fn list(&mut self, session: Option<SessionId>) -> u64 {
        let id = self.id();
        self.lists.insert(id, (session, false));
        id
    }

    /// Writes a file whole (a new one is put in its place), with the permissions of `mode`.
    pub fn write_file(&mut self, path: impl Into<Bytes>, mode: u32, data: Bytes) -> u64 {
        let id = self.id();
        self.files.insert(id, File { path: path.into(), mode, data, sent: Some(0) });
        id
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn program(&mut self, key: Key) -> Result<&mut Program, RequestError> {
        self.programs.get_mut(&key).ok_or(RequestError::Unknown)
    }

    fn wake(&mut self, key: Key) {
        if let Some(program) = self.programs.get_mut(&key)
            && !std::mem::replace(&mut program.queued, true)
        {
            self.ready.push_back(key);
        }
    }

    /// The supervisor does not have the session any more.
    fn forgotten(&mut self, session: SessionId, running: bool) {
        self.events.push_back(Event::Forgotten { session, running });
        // One that this link has was closed by a message of its own.
        let over = |program: &Program| program.session == session && program.exited && program.place == Place::None;
        let over: Vec<Key> = self.programs.iter().filter(|(_, program)| over(program)).map(|(key, _)| *key).collect();
        for key in over.into_iter().filter(|_| !running) {
            self.remove(key, Reason::Forgotten, String::new());
        }
    }

    /// Lets go of a program.
    fn remove(&mut self, key: Key, reason: Reason, message: String) {
        if self.programs.remove(&key).is_some() {
            self.events.push_back(Event::Closed { key, reason, message });
        }
    }
}
