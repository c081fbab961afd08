//! A session's stream from its client's end: what goes out next, what came in, and what is said again on a new stream.
//!
//! Where the program outlives its streams (`Started.durable`), everything that the other side does not hold yet is kept:
//! stdin until it is acknowledged, requests until they are answered, the offsets that output has reached. A stream that
//! breaks, or a replica that drains, then costs nothing: [`ClientSession::reopen`] gives the next attempt's first frame
//! its offsets, and what follows goes on where the pod stands. Without that promise a broken stream is a lost session.

use bytes::{Buf as _, Bytes};
use podbay::{
    FRAME, MAX_CREDIT,
    v1::{self, Stream, run_session_request::Frame as Out, run_session_response::Frame as In},
};
use podbay_agent_wire::flow::{FlowError, Incoming, Outgoing};
use std::collections::{BTreeMap, VecDeque};

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

#[derive(Debug)]
struct Stdin {
    flow: Outgoing,
    /// Sent, and not acknowledged; the first byte's offset is `flow.acked()`. Empty where nothing is durable.
    kept: VecDeque<u8>,
    /// Not sent on any stream yet.
    fresh: VecDeque<Bytes>,
    fresh_len: usize,
    /// Bytes of `kept` that this stream has not had.
    again: usize,
    ended: bool,
}

#[derive(Debug)]
struct Output {
    flow: Incoming,
    due: Due,
}

/// What is to be told of an output next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    /// What was taken, and then the credit.
    Ack,
    Credit,
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
        let output = || Output { flow: Incoming::new(0, MAX_CREDIT), due: Due::Nothing };
        Self {
            attempt: 1,
            phase: Phase::Opening,
            durable: false,
            terminal,
            adopts: false,
            stdin: Stdin {
                flow: Outgoing::new(0, 0),
                kept: VecDeque::new(),
                fresh: VecDeque::new(),
                fresh_len: 0,
                again: 0,
                ended: false,
            },
            stdout: output(),
            stderr: output(),
            requests: Requests::default(),
            hangup: Hangup::No,
        }
    }

    /// Goes on with a session that an earlier client left: output from these offsets, stdin where the pod stands. Requests
    /// are numbered above `last_id`, which must be above what earlier clients used: the pod acts on each number once.
    pub fn attaching(terminal: bool, from: v1::ResumeFrom, last_id: u64) -> Self {
        let output = |offset| Output { flow: Incoming::new(offset, MAX_CREDIT), due: Due::Nothing };
        let requests = Requests { last: last_id, ..Requests::default() };
        let new = Self::new(terminal);
        Self { stdout: output(from.stdout), stderr: output(from.stderr), requests, adopts: true, ..new }
    }

    /// Fills in what an Open tells of this attempt: its number, offsets and credits.
    pub fn open(&self, open: &mut v1::Open) {
        open.attempt = self.attempt;
        open.resume_from = self.resume_from();
        open.stdout_credit = self.stdout.flow.granted();
        open.stderr_credit = if self.terminal { 0 } else { self.stderr.flow.granted() };
    }

    /// Set once the program has run: then it is never started again.
    fn resume_from(&self) -> Option<v1::ResumeFrom> {
        let from = v1::ResumeFrom { stdout: self.stdout.flow.received(), stderr: self.stderr.flow.received() };
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
        self.stdin.again = self.stdin.kept.len();
        self.requests.unsent = self.requests.open.keys().copied().collect();
        if self.hangup == Hangup::Sent {
            self.hangup = Hangup::Asked;
        }
    }

    /// Bytes of stdin that may be pushed now.
    pub fn room(&self) -> usize {
        if self.phase != Phase::Running || self.stdin.ended {
            return 0;
        }
        usize::try_from(self.stdin.flow.room()).unwrap_or(usize::MAX).saturating_sub(self.stdin.fresh_len)
    }

    /// Takes stdin, at most [`Self::room`] at some time before: credit never shrinks. What is more waits.
    pub fn push(&mut self, bytes: Bytes) {
        self.stdin.fresh_len += bytes.len();
        self.stdin.fresh.push_back(bytes);
    }

    /// No more stdin follows.
    pub fn end_stdin(&mut self) {
        if !self.stdin.ended {
            self.stdin.ended = true;
            self.stdin.shrink();
        }
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
        let output = self.output(stream);
        if output.flow.consume(len).is_some() {
            output.due = Due::Ack;
        }
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
        if self.stdin.ended && self.requests.eof.is_none() {
            let id = self.requests.next_id();
            let eof = Out::Eof(v1::Eof { stream: Stream::Stdin.into(), offset: self.stdin.flow.offset(), id });
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
                self.output(data.stream()).flow.receive(data.offset, data.data.len())?;
                Ok(Event::Data(data))
            }
            In::Eof(eof) => {
                self.output(eof.stream()).flow.end(eof.offset)?;
                Ok(Event::Nothing)
            }
            In::Gap(gap) => {
                let flow = &mut self.output(gap.stream()).flow;
                let at = flow.received();
                if gap.from != at || gap.to < gap.from {
                    return Err(Violation::Gap { from: gap.from, to: gap.to, at });
                }
                *flow = Incoming::new(gap.to, MAX_CREDIT);
                self.output(gap.stream()).due = Due::Ack;
                Ok(Event::Gap(gap.to - gap.from))
            }
            In::Credit(credit) => {
                let more = credit.stream() == Stream::Stdin && self.stdin.flow.credit(credit.limit);
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
            self.stdin.flow = Outgoing::new(started.stdin_offset, started.stdin_credit);
        }
        self.stdin.started(started.stdin_offset, started.stdin_credit)?;
        if self.attempt > 1 {
            self.stdout.due = Due::Ack;
            self.stderr.due = if self.terminal { Due::Nothing } else { Due::Ack };
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

impl Output {
    fn next(&mut self, stream: Stream) -> Option<Out> {
        let stream = stream.into();
        match self.due {
            Due::Nothing => None,
            Due::Ack => {
                self.due = Due::Credit;
                Some(Out::Ack(v1::Ack { stream, offset: self.flow.consumed() }))
            }
            Due::Credit => {
                self.due = Due::Nothing;
                Some(Out::Credit(v1::Credit { stream, limit: self.flow.granted() }))
            }
        }
    }
}

impl Stdin {
    fn started(&mut self, offset: u64, credit: u64) -> Result<(), Violation> {
        let (from, to) = (self.flow.acked(), self.flow.acked() + self.kept.len() as u64);
        if offset < from || offset > to {
            return Err(Violation::Stdin { told: offset, from, to });
        }
        self.discard(offset - from);
        self.again = self.kept.len();
        let sent = to;
        let mut flow = Outgoing::new(offset, credit.max(sent));
        // What is kept was within a credit once, and a credit never shrinks.
        flow.send(self.kept.len());
        self.flow = flow;
        Ok(())
    }

    fn acked(&mut self, offset: u64) -> Result<(), Violation> {
        let before = self.flow.acked();
        self.flow.ack(offset)?;
        self.discard(self.flow.acked() - before);
        Ok(())
    }

    fn discard(&mut self, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.kept.len());
        self.kept.drain(..len);
        self.again = self.again.min(self.kept.len());
        self.shrink();
    }

    /// An idle session holds no window's worth of memory.
    fn shrink(&mut self) {
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }

    fn next(&mut self, durable: bool) -> Option<Out> {
        let (offset, data) = if self.again > 0 {
            let at = self.kept.len() - self.again;
            let data: Vec<u8> = self.kept.range(at..).copied().take(FRAME).collect();
            self.again -= data.len();
            (self.flow.acked() + at as u64, Bytes::from(data))
        } else {
            let room = usize::try_from(self.flow.room()).unwrap_or(usize::MAX).min(FRAME);
            let front = self.fresh.front_mut().filter(|_| room > 0)?;
            let data = front.split_to(front.len().min(room));
            if !front.has_remaining() {
                self.fresh.pop_front();
            }
            self.fresh_len -= data.len();
            let offset = self.flow.send(data.len());
            if durable {
                self.kept.extend(data.iter());
            } else {
                // Nobody keeps it: what was sent is gone.
                let _ = self.flow.ack(self.flow.offset());
            }
            (offset, data)
        };
        Some(Out::Data(v1::Data { stream: Stream::Stdin.into(), offset, data }))
    }

    fn is_sent(&self) -> bool {
        self.fresh.is_empty() && self.again == 0
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
