//! One session's stream as a machine: frames in, frames out, no I/O and no time.
//!
//! It checks what the client sends against its credit, keeps what can't be sent yet within bounds, and decides what goes
//! next. Answers go before data, so that a client that grants no credit still gets them.

mod output;
mod stdin;

use super::{
    rules::{self, Ids, MAX_CONTROL},
    violation,
};
use crate::{cluster::Input, policy::Security};
use bytes::Bytes;
use output::Out;
use podbay::v1::{
    self, Reason, Refusal, Stream, run_session_request::Frame as FromClient, run_session_response::Frame,
};
use std::collections::VecDeque;
use stdin::{Piece, Stdin};

const NO_AGENT: &str = "a signal can't be delivered: no agent runs in this pod (on a terminal, ^C and the like work)";

/// Output kept per stream for want of credit; when one is full, neither is read any more. A client that reads only one
/// of them loses nothing, and costs no more than this.
const HOLD: usize = 256 * 1024;
/// The same before Started, where stderr may overtake the wrapper's mark on stdout.
const HOLD_EARLY: usize = 1024 * 1024;
/// Signals that wait for the one before.
const MAX_SIGNALS: usize = 64;

/// The flow of one session.
#[derive(Debug)]
pub struct Machine {
    phase: Phase,
    tty: bool,
    ids: Ids,
    stdin: Stdin,
    stdout: Out,
    stderr: Out,
    stderr_next: bool,
    control: VecDeque<Frame>,
    resize: Option<(u16, u16)>,
    signals: VecDeque<v1::Signal>,
    /// Whether something can deliver them; known when the program runs.
    delivers: Option<bool>,
    /// Which may be asked for.
    policy: Security,
}

#[derive(Debug)]
enum Phase {
    /// Before Started.
    Starting,
    /// Between Started and the program's end.
    Running,
    /// The program has ended; its output may still have to be sent, then the ends of its streams, then this.
    Ending(v1::Exit),
    /// Exit was sent.
    Done,
}

/// What the first frame allows.
#[derive(Debug, Clone, Copy)]
pub struct Credits {
    /// Of stdout.
    pub stdout: u64,
    /// Of stderr.
    pub stderr: u64,
}

impl Machine {
    /// A session before Started.
    pub fn new(tty: bool, credits: Credits) -> Self {
        Self {
            phase: Phase::Starting,
            tty,
            ids: Ids::default(),
            stdin: Stdin::new(),
            stdout: Out::new(credits.stdout),
            stderr: Out::new(credits.stderr),
            stderr_next: false,
            control: VecDeque::new(),
            resize: None,
            signals: VecDeque::new(),
            delivers: None,
            policy: Security::default(),
        }
    }

    /// Signals are asked for under this policy.
    #[must_use]
    pub fn under(self, policy: &Security) -> Self {
        Self { policy: policy.clone(), ..self }
    }

    /// Whether the client may be read: always, but for one that asks and asks and never reads an answer.
    pub fn takes_frames(&self) -> bool {
        self.control.len() < MAX_CONTROL
    }

    /// Takes a frame from the client.
    ///
    /// # Errors
    /// `PROTOCOL_VIOLATION`: the stream ends.
    pub fn receive(&mut self, frame: v1::RunSessionRequest) -> Result<(), Refusal> {
        match rules::frame(frame)? {
            FromClient::Data(data) => self.data(data),
            FromClient::Credit(credit) => self.credit(&credit),
            FromClient::Ack(ack) => {
                let out = self.out(ack.stream())?;
                out.flow.ack(ack.offset).map_err(|error| violation(&error.to_string()))
            }
            FromClient::Eof(eof) => {
                self.ids.take(eof.id)?;
                rules::eof(&eof)?;
                self.stdin.end_at(eof.offset)
            }
            FromClient::Signal(signal) => {
                self.ids.take(signal.id)?;
                match rules::signal(&signal, &self.policy)? {
                    None => self.signal(signal),
                    denied => self.answer(signal.id, denied),
                }
                Ok(())
            }
            FromClient::Resize(resize) => self.resize(&resize),
            // Its driver's to act on; and what the rules do not let through.
            FromClient::Hangup(v1::Hangup {}) | FromClient::Open(_) => Ok(()),
        }
    }

    /// The client sends no more frames: stdin is at its end too.
    pub fn client_closed(&mut self) {
        self.stdin.end();
    }

    /// Whether output waits for credit alone.
    pub fn wants_credit(&self) -> bool {
        let waits = |out: &Out| out.held > 0 && out.flow.room() == 0;
        !matches!(self.phase, Phase::Starting) && (waits(&self.stdout) || waits(&self.stderr)) && !self.has_frame()
    }

    fn data(&mut self, data: v1::Data) -> Result<(), Refusal> {
        rules::data(&data)?;
        if matches!(self.phase, Phase::Starting) {
            return Err(violation("data before Started: there is no credit yet"));
        }
        let len = data.data.len();
        if !self.stdin.receive(data.offset, data.data)? {
            self.consume(len);
        }
        Ok(())
    }

    fn credit(&mut self, credit: &v1::Credit) -> Result<(), Refusal> {
        let tty = self.tty;
        let stream = credit.stream();
        let out = self.out(stream)?;
        if !(tty && stream == Stream::Stderr) {
            rules::credit(credit.limit, out.flow.offset())?;
        }
        out.flow.credit(credit.limit);
        Ok(())
    }

    fn signal(&mut self, signal: v1::Signal) {
        match (&self.phase, self.delivers) {
            (Phase::Ending(_) | Phase::Done, _) => self.not_delivered(signal.id, "the program has ended"),
            (Phase::Starting | Phase::Running, Some(false)) => self.not_delivered(signal.id, NO_AGENT),
            (Phase::Starting | Phase::Running, None | Some(true)) if self.signals.len() < MAX_SIGNALS => {
                self.signals.push_back(signal);
            }
            (Phase::Starting | Phase::Running, None | Some(true)) => {
                self.not_delivered(signal.id, "too many signals wait already");
            }
        }
    }

    fn not_delivered(&mut self, id: u64, why: &str) {
        self.answer(id, Some(Refusal::new(Reason::SignalNotDelivered, why)));
    }

    /// Nothing can deliver signals: they are refused, at once.
    pub fn without_signals(&mut self) {
        self.delivers = Some(false);
        self.refuse_signals(NO_AGENT);
    }

    fn refuse_signals(&mut self, why: &str) {
        for signal in std::mem::take(&mut self.signals) {
            self.not_delivered(signal.id, why);
        }
    }

    /// The next signal for the program, once it runs. [`Self::signalled`] answers it.
    pub fn take_signal(&mut self) -> Option<v1::Signal> {
        if matches!(self.phase, Phase::Running) { self.signals.pop_front() } else { None }
    }

    /// What came of a signal.
    pub fn signalled(&mut self, id: u64, result: Result<(), Refusal>) {
        self.answer(id, result.err());
    }

    fn resize(&mut self, resize: &v1::Resize) -> Result<(), Refusal> {
        self.ids.take(resize.id)?;
        let size = rules::size(resize.size.unwrap_or_default())?;
        if !self.tty {
            self.answer(resize.id, Some(rules::no_terminal()));
            return Ok(());
        }
        match self.phase {
            Phase::Starting | Phase::Running => self.resize = size.or(self.resize),
            Phase::Ending(_) | Phase::Done => {}
        }
        // Taken: the newest wins, and is delivered as soon as the connection takes it.
        self.answer(resize.id, None);
        Ok(())
    }

    fn out(&mut self, stream: Stream) -> Result<&mut Out, Refusal> {
        rules::output(stream, &mut self.stdout, &mut self.stderr)
    }

    fn answer(&mut self, id: u64, refusal: Option<Refusal>) {
        self.control.push_back(Frame::Answer(v1::Answer { id, refusal }));
    }

    /// The newest size that was asked for, once.
    pub fn take_resize(&mut self) -> Option<(u16, u16)> {
        self.resize.take()
    }

    /// News of the start; dropped where many wait.
    pub fn progress(&mut self, progress: v1::Progress) {
        if self.control.len() < MAX_CONTROL / 4 {
            self.control.push_back(Frame::Progress(progress));
        }
    }

    /// A line for the user; dropped where many answers wait.
    pub fn notice(&mut self, message: String) {
        if self.control.len() < MAX_CONTROL {
            self.control.push_back(Frame::Notice(v1::Notice { message }));
        }
    }

    /// The program runs: this is told, with the first credit of stdin.
    pub fn started(&mut self, mut started: v1::Started) {
        started.stdin_offset = self.stdin.received();
        started.stdin_credit = self.stdin.granted();
        self.control.push_back(Frame::Started(started));
        self.phase = Phase::Running;
    }

    /// Whether more output can be kept.
    pub fn takes_output(&self) -> bool {
        let bound = if matches!(self.phase, Phase::Starting) { HOLD_EARLY } else { HOLD };
        self.stdout.held < bound && self.stderr.held < bound
    }

    /// Takes output of stdout.
    pub fn stdout(&mut self, bytes: Bytes) {
        self.stdout.push(bytes);
    }

    /// Takes output of stderr; with a terminal it goes where all output goes.
    pub fn stderr(&mut self, bytes: Bytes) {
        if self.tty { self.stdout.push(bytes) } else { self.stderr.push(bytes) }
    }

    /// The program has ended so: after what is kept and the ends of its streams, this is the last frame.
    pub fn finish(&mut self, exit: v1::Exit) {
        self.phase = Phase::Ending(exit);
        self.refuse_signals("the program has ended");
        self.discard_input();
    }

    /// Nobody takes stdin any more: what comes is dropped, and the client may go on sending.
    pub fn discard_input(&mut self) {
        let dropped = self.stdin.discard();
        self.consume(dropped);
    }

    /// Whether [`Self::take_input`] gives something.
    pub fn has_input(&self) -> bool {
        matches!(self.phase, Phase::Running) && self.stdin.has()
    }

    /// What goes to the program next. It counts as given to the API server.
    pub fn take_input(&mut self) -> Option<Input> {
        if !self.has_input() {
            return None;
        }
        match self.stdin.take()? {
            Piece::Bytes(bytes) => {
                self.consume(bytes.len());
                Some(Input::Stdin(bytes))
            }
            Piece::End(typed) => {
                self.ack();
                // A terminal has no end, and closing its stdin cuts the output on some runtimes: its user types an end.
                Some(if self.tty { Input::Stdin(typed) } else { Input::CloseStdin })
            }
        }
    }

    fn consume(&mut self, len: usize) {
        if let Some(limit) = self.stdin.consume(len) {
            let stream = Stream::Stdin.into();
            self.control.push_back(Frame::Credit(v1::Credit { stream, limit }));
            self.ack();
        }
    }

    fn ack(&mut self) {
        let ack = v1::Ack { stream: Stream::Stdin.into(), offset: self.stdin.consumed() };
        self.control.push_back(Frame::Ack(ack));
    }

    /// Whether [`Self::next_frame`] gives something.
    pub fn has_frame(&self) -> bool {
        !self.control.is_empty()
            || match self.phase {
                Phase::Starting | Phase::Done => false,
                Phase::Running => self.stdout.can_send() || self.stderr.can_send(),
                Phase::Ending(_) => {
                    let empty = self.stdout.held == 0 && self.stderr.held == 0;
                    empty || self.stdout.can_send() || self.stderr.can_send()
                }
            }
    }

    /// What goes to the client next.
    pub fn next_frame(&mut self) -> Option<v1::RunSessionResponse> {
        let frame = self.next()?;
        Some(v1::RunSessionResponse { frame: Some(frame) })
    }

    fn next(&mut self) -> Option<Frame> {
        if let Some(frame) = self.control.pop_front() {
            return Some(frame);
        }
        if matches!(self.phase, Phase::Starting | Phase::Done) {
            return None;
        }
        let stderr_first = self.stderr_next;
        self.stderr_next = !stderr_first;
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        let data = if stderr_first {
            stderr.next(Stream::Stderr).or_else(|| stdout.next(Stream::Stdout))
        } else {
            stdout.next(Stream::Stdout).or_else(|| stderr.next(Stream::Stderr))
        };
        data.or_else(|| self.last_frames())
    }

    fn last_frames(&mut self) -> Option<Frame> {
        let Phase::Ending(exit) = &self.phase else { return None };
        if self.stdout.held > 0 || self.stderr.held > 0 {
            return None;
        }
        let eof = |out: &mut Out, stream: Stream| {
            out.ended = true;
            Some(Frame::Eof(v1::Eof { stream: stream.into(), offset: out.flow.offset(), id: 0 }))
        };
        if !self.stdout.ended {
            return eof(&mut self.stdout, Stream::Stdout);
        }
        if !self.tty && !self.stderr.ended {
            return eof(&mut self.stderr, Stream::Stderr);
        }
        let exit = exit.clone();
        self.phase = Phase::Done;
        Some(Frame::Exit(exit))
    }

    /// Whether Exit was sent.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Bytes that passed: given of stdin, sent of stdout and of stderr.
    pub fn bytes(&self) -> [u64; 3] {
        [self.stdin.given(), self.stdout.flow.offset(), self.stderr.flow.offset()]
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
