//! A session's stream from its client's end: what goes out next, what came in, and what is said again on a new stream. The SSH
//! frontend and `podbay run`, `shell` and `attach` are such clients.
//!
//! Where the program outlives its streams (`Started.durable`), everything that the other side does not hold yet is kept:
//! stdin until it is acknowledged, requests until they are answered, the offsets that output has reached. A stream that
//! breaks, or a replica that drains, then costs nothing: [`ClientSession::reopen`] gives the next attempt's first frame
//! its offsets, and what follows goes on where the pod stands. Without that promise a broken stream is a lost session.

mod output;
mod stdin;

use bytes::Bytes;
use output::Output;
use podbay::v1::{self, Stream, run_session_request::Frame as Out, run_session_response::Frame as In};
use podbay_agent_wire::flow::FlowError;
use std::collections::{BTreeMap, VecDeque};
use stdin::Stdin;

/// The other side broke the contract; the session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Offsets or credits that can't be.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// Bytes that it has acknowledged are asked for again, or such that were never sent.
    #[error("stdin continues at {told}, but bytes from {from} to {to} are here")]
    Stdin {
        /// Where it says that stdin continues.
        told: u64,
        /// The first byte that is kept.
        from: u64,
        /// The last one's end.
        to: u64,
    },
    /// Output before Started, or Started twice.
    #[error("a frame out of order: {0}")]
    Order(&'static str),
    /// A gap that does not begin where its stream stands.
    #[error("a gap from {from} to {to} in a stream that stands at {at}")]
    Gap {
        /// Its beginning.
        from: u64,
        /// Its end.
        to: u64,
        /// Where the stream stands.
        at: u64,
    },
}

/// What a frame from the backend means for its session.
#[derive(Debug)]
pub enum Event {
    /// Nothing to do.
    Nothing,
    /// News of the start.
    Progress(v1::Progress),
    /// The program runs (on this stream).
    Started(v1::Started),
    /// Output; [`ClientSession::taken`] once it is handed on.
    Data(v1::Data),
    /// There may be more room for stdin.
    Room,
    /// The answer to this request.
    Answered(u64, Option<v1::Refusal>),
    /// A line for the user.
    Notice(String),
    /// Output of this length was dropped by agreement.
    Gap(u64),
    /// The replica drains: open the session on another one.
    Moving,
    /// The program has ended. The last frame.
    Exit(v1::Exit),
}

/// The state of one session over all its streams.
#[derive(Debug)]
pub struct ClientSession {
    attempt: u32,
    phase: Phase,
    durable: bool,
    terminal: bool,
    /// Stdin goes on wherever the first Started says.
    adopts: bool,
    stdin: Stdin,
    stdout: Output,
    stderr: Output,
    requests: Requests,
    hangup: Hangup,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Open was or will be sent on this stream.
    Opening,
    Running,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hangup {
    No,
    Asked,
    Sent,
}

#[derive(Debug, Default)]
struct Requests {
    last: u64,
    /// Not answered, in the order of their ids; with Eof, which has no answer and does no harm when it is said again.
    open: BTreeMap<u64, Out>,
    /// Those of `open` that this stream has not had.
    unsent: VecDeque<u64>,
    eof: Option<u64>,
}

impl ClientSession {
    /// A session before its first attempt.
    pub fn new(terminal: bool) -> Self {
        Self {
            attempt: 1,
            phase: Phase::Opening,
            durable: false,
            terminal,
            adopts: false,
            stdin: Stdin::new(),
            stdout: Output::from(0),
            stderr: Output::from(0),
            requests: Requests::default(),
            hangup: Hangup::No,
        }
    }

    /// A session whose outputs are for whoever comes later: this client gives no credit and acknowledges nothing.
    pub fn without_output() -> Self {
        Self { stdout: Output::untouched(), stderr: Output::untouched(), ..Self::new(false) }
    }

    /// Goes on with a session that an earlier client left: output from these offsets, stdin where the pod stands. Requests
    /// are numbered above `last_id`, which must be above what earlier clients used: the pod acts on each number once.
    pub fn attaching(terminal: bool, from: v1::ResumeFrom, last_id: u64) -> Self {
        let requests = Requests { last: last_id, ..Requests::default() };
        let (stdout, stderr) = (Output::from(from.stdout), Output::from(from.stderr));
        Self { stdout, stderr, requests, adopts: true, ..Self::new(terminal) }
    }

    /// Fills in what an Open tells of this attempt: its number, offsets and credits.
    pub fn open(&self, open: &mut v1::Open) {
        open.attempt = self.attempt;
        open.resume_from = self.resume_from();
        open.stdout_credit = self.stdout.granted();
        open.stderr_credit = if self.terminal { 0 } else { self.stderr.granted() };
    }

    /// Set once the program has run: then it is never started again.
    fn resume_from(&self) -> Option<v1::ResumeFrom> {
        let from = v1::ResumeFrom { stdout: self.stdout.received(), stderr: self.stderr.received() };
        (self.durable || self.adopts).then_some(from)
    }

    /// Whether the program outlives its streams.
    pub const fn is_durable(&self) -> bool {
        self.durable
    }

    /// The next stream's attempt begins: whatever this one had under way is not known to have arrived.
    pub fn reopen(&mut self) {
        self.attempt = self.attempt.saturating_add(1);
        if self.phase == Phase::Running {
            self.phase = Phase::Opening;
        }
        self.stdin.reopen();
        self.requests.unsent = self.requests.open.keys().copied().collect();
        if self.hangup == Hangup::Sent {
            self.hangup = Hangup::Asked;
        }
    }

    /// Bytes of stdin that may be pushed now.
    pub fn room(&self) -> usize {
        if self.phase == Phase::Running { self.stdin.room() } else { 0 }
    }

    /// Takes stdin, at most [`Self::room`] at some time before: credit never shrinks. What is more waits.
    pub fn push(&mut self, bytes: Bytes) {
        self.stdin.push(bytes);
    }

    /// No more stdin follows.
    pub fn end_stdin(&mut self) {
        self.stdin.end();
    }

    /// Whether all stdin that was pushed is held by the pod. Without [durability](Self::is_durable), by the API server.
    pub fn is_stdin_safe(&self) -> bool {
        self.stdin.is_safe()
    }

    /// A Signal or Resize, with its id, which an answer will name.
    pub fn ask(&mut self, make: impl FnOnce(u64) -> Out) -> u64 {
        let id = self.requests.next_id();
        self.requests.open.insert(id, make(id));
        self.requests.unsent.push_back(id);
        id
    }

    /// Nobody waits for this answer any more: it is not asked again.
    pub fn forget(&mut self, id: u64) {
        self.requests.open.remove(&id);
        self.requests.unsent.retain(|unsent| *unsent != id);
    }

    /// Gives the program up: it is ended.
    pub fn hang_up(&mut self) {
        if self.hangup == Hangup::No {
            self.hangup = Hangup::Asked;
        }
    }

    /// Whether the hangup went out.
    pub fn has_hung_up(&self) -> bool {
        self.hangup == Hangup::Sent
    }

    /// Output of this length was handed on.
    pub fn taken(&mut self, stream: Stream, len: usize) {
        self.output(stream).take(len);
    }

    /// How far the outputs were handed on: where a later client goes on. What was dropped by agreement counts.
    pub const fn taken_up_to(&self) -> v1::ResumeFrom {
        v1::ResumeFrom { stdout: self.stdout.taken_up_to(), stderr: self.stderr.taken_up_to() }
    }

    fn output(&mut self, stream: Stream) -> &mut Output {
        match stream {
            Stream::Stderr => &mut self.stderr,
            Stream::Stdout | Stream::Stdin | Stream::Unspecified => &mut self.stdout,
        }
    }

    /// The next frame for the stream, after its Open.
    pub fn next_frame(&mut self) -> Option<v1::RunSessionRequest> {
        let frame = self.next()?;
        Some(v1::RunSessionRequest { frame: Some(frame) })
    }

    fn next(&mut self) -> Option<Out> {
        // Before Started there is no credit; but whoever waits for a start may still give it up.
        if self.hangup == Hangup::Asked && self.phase != Phase::Ended {
            self.hangup = Hangup::Sent;
            return Some(Out::Hangup(v1::Hangup {}));
        }
        if self.phase != Phase::Running {
            return None;
        }
        for (stream, output) in [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)] {
            if let Some(frame) = output.next(stream) {
                return Some(frame);
            }
        }
        let waiting = self.requests.unsent.front().copied();
        let is_eof = waiting.is_some() && waiting == self.requests.eof;
        if let Some(id) = waiting.filter(|_| !is_eof) {
            self.requests.unsent.pop_front();
            return self.requests.open.get(&id).cloned();
        }
        if let Some(frame) = self.stdin.next(self.durable) {
            return Some(frame);
        }
        if !self.stdin.is_sent() {
            return None;
        }
        if let Some(id) = waiting {
            self.requests.unsent.pop_front();
            return self.requests.open.get(&id).cloned();
        }
        if self.stdin.has_ended() && self.requests.eof.is_none() {
            let id = self.requests.next_id();
            let eof = Out::Eof(v1::Eof { stream: Stream::Stdin.into(), offset: self.stdin.offset(), id });
            self.requests.eof = Some(id);
            if self.durable {
                self.requests.open.insert(id, eof.clone());
            }
            return Some(eof);
        }
        None
    }

    /// Takes a frame from the stream.
    ///
    /// # Errors
    /// The session is over: the other side breaks the contract.
    pub fn receive(&mut self, frame: v1::RunSessionResponse) -> Result<Event, Violation> {
        let Some(frame) = frame.frame else { return Ok(Event::Nothing) };
        if self.phase == Phase::Opening && matches!(frame, In::Data(_) | In::Eof(_) | In::Gap(_)) {
            return Err(Violation::Order("output before Started"));
        }
        match frame {
            In::Progress(progress) => Ok(Event::Progress(progress)),
            In::Started(started) => self.started(started),
            In::Data(data) => {
                self.output(data.stream()).receive(data.offset, data.data.len())?;
                Ok(Event::Data(data))
            }
            In::Eof(eof) => {
                self.output(eof.stream()).end(eof.offset)?;
                Ok(Event::Nothing)
            }
            In::Gap(gap) => Ok(Event::Gap(self.output(gap.stream()).gap(gap.from, gap.to)?)),
            In::Credit(credit) => {
                let more = credit.stream() == Stream::Stdin && self.stdin.credit(credit.limit);
                Ok(if more { Event::Room } else { Event::Nothing })
            }
            In::Ack(ack) => {
                if ack.stream() == Stream::Stdin && self.durable {
                    self.stdin.acked(ack.offset)?;
                }
                Ok(Event::Nothing)
            }
            In::Answer(answer) => {
                self.requests.open.remove(&answer.id);
                Ok(Event::Answered(answer.id, answer.refusal))
            }
            In::Notice(notice) => Ok(Event::Notice(notice.message)),
            In::Moving(_) => Ok(Event::Moving),
            In::Exit(exit) => {
                self.phase = Phase::Ended;
                Ok(Event::Exit(exit))
            }
        }
    }

    fn started(&mut self, started: v1::Started) -> Result<Event, Violation> {
        if self.phase != Phase::Opening {
            return Err(Violation::Order("Started twice"));
        }
        self.phase = Phase::Running;
        self.durable = started.durable;
        if std::mem::take(&mut self.adopts) {
            self.stdin.adopt(started.stdin_offset, started.stdin_credit);
        }
        self.stdin.started(started.stdin_offset, started.stdin_credit)?;
        if self.attempt > 1 {
            self.stdout.tell_again();
            if !self.terminal {
                self.stderr.tell_again();
            }
        }
        Ok(Event::Started(started))
    }
}

impl Requests {
    fn next_id(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

#[cfg(test)]
mod tests;
