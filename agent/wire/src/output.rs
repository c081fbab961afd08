//! One output stream of a program, in the pod: what it wrote and its consumer has not acknowledged.
//!
//! The oldest bytes are in a [`Ring`]; where the policy is to spill, those after them are in a file while it lasts. A file never
//! comes before memory: once one is open, all new bytes go through it until it is drained.

use crate::{
    budget::Budget,
    flow::FlowError,
    frame::{HEADER, MAX_DATA, Stream, data_header, put_control, put_end},
    proto::{Gap, ToBackend, to_backend},
    ring::Ring,
};
use bytes::{BufMut as _, BytesMut};
use std::{fmt::Debug, io};

/// A file for output that nobody takes now.
pub trait Spill: Debug {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Fills `bytes` from `offset`.
    fn read_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

/// Where spill files come from. A dropped [`Spill`] frees its space.
pub trait Spills: Debug {
    /// A new, empty file.
    fn open(&mut self) -> io::Result<Box<dyn Spill>>;
}

/// No place for spill files.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSpills;

impl Spills for NoSpills {
    fn open(&mut self) -> io::Result<Box<dyn Spill>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What happens to output while no link has the program and the window is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The program waits.
    Block,
    /// The oldest bytes are dropped.
    KeepLast,
    /// Output goes to a file.
    Spill {
        /// The file's bound, at least 1.
        max: u64,
        /// When it is full, the oldest bytes are dropped; else the program waits.
        keep_last: bool,
    },
}

/// The most bytes that [`Output::push`] takes at once.
pub const MAX_PUSH: usize = 64 * 1024;

#[derive(Debug)]
struct File {
    spill: Box<dyn Spill>,
    /// Offset of the stream that the file began with.
    start: u64,
    max: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Output {
    ring: Ring,
    file: Option<File>,
    policy: Policy,
    /// The lowest byte that is held.
    start: u64,
    end: u64,
    ended: bool,
    /// Taken from the program, but the file did not take it: written again at the next push or [`Output::retry`].
    stuck: Vec<u8>,
    link: Link,
}

/// What the link that has the program was sent.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    sent: u64,
    limit: u64,
    gap: Option<(u64, u64)>,
    end_sent: bool,
}

/// The resume offset was never reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadOffset;

impl Output {
    /// An output at offset 0 whose window in memory is `window` bytes at first (they are taken from the budget already).
    pub fn new(policy: Policy, window: usize) -> Self {
        Self {
            ring: Ring::new(0, window),
            file: None,
            policy,
            start: 0,
            end: 0,
            ended: false,
            stuck: Vec::new(),
            link: Link::default(),
        }
    }

    /// Bytes that [`push`](Self::push) takes now, at most [`MAX_PUSH`]; 0 = the program waits. Widens the window up to `max_window`
    /// where the budget allows.
    pub fn room(&mut self, attached: bool, max_window: usize, budget: &mut Budget) -> usize {
        if !self.stuck.is_empty() || self.ended {
            return 0;
        }
        if self.file.is_none() && self.ring.room() == 0 {
            let window = self.ring.limit();
            if window * 2 <= max_window && budget.take_spare(window) {
                self.ring.grow(window * 2);
            }
        }
        let memory = if self.file.is_none() { self.ring.room() } else { 0 };
        let room = match (self.policy, attached) {
            (Policy::Block, _) | (Policy::KeepLast, true) => memory,
            (Policy::KeepLast, false) => self.ring.limit(),
            (Policy::Spill { .. }, _) if memory > 0 => memory,
            (Policy::Spill { max, keep_last }, attached) => match &self.file {
                Some(_) if keep_last && !attached => clamp(max),
                Some(file) => clamp(max - (self.end - file.start.max(self.start))),
                None if attached => 0,
                None => clamp(max),
            },
        };
        room.min(MAX_PUSH)
    }

    /// Takes what the program wrote: at most [`room`](Self::room) bytes, asked for just before.
    pub fn push(&mut self, bytes: &[u8], attached: bool, spills: &mut dyn Spills) {
        debug_assert!(self.stuck.is_empty() && !self.ended, "asked for room first");
        if self.file.is_none() {
            if self.policy == Policy::KeepLast && !attached {
                let over = bytes.len().saturating_sub(self.ring.room());
                self.drop_below(self.start + over as u64);
            }
            if self.ring.push(bytes) {
                self.end += bytes.len() as u64;
                return;
            }
        }
        if let Err(error) = self.spill(bytes, attached, spills) {
            // The disk is full or there is none: as BLOCK, since the bytes are in our hands and none may be lost.
            drop(error);
            self.stuck.extend_from_slice(bytes);
        }
    }

    /// Tries again what the file did not take. Returns whether there is nothing left of it.
    pub fn retry(&mut self, attached: bool, spills: &mut dyn Spills) -> bool {
        if self.stuck.is_empty() {
            return true;
        }
        let stuck = std::mem::take(&mut self.stuck);
        if self.file.is_none() && self.ring.push(&stuck) {
            self.end += stuck.len() as u64;
        } else if self.spill(&stuck, attached, spills).is_err() {
            self.stuck = stuck;
        }
        self.stuck.is_empty()
    }

    fn spill(&mut self, bytes: &[u8], attached: bool, spills: &mut dyn Spills) -> io::Result<()> {
        let Policy::Spill { max, keep_last } = self.policy else { return Err(io::ErrorKind::StorageFull.into()) };
        if self.file.is_none() {
            self.file = Some(File { spill: spills.open()?, start: self.end, max });
        }
        let end = self.end + bytes.len() as u64;
        let Some(file) = &mut self.file else { return Ok(()) };
        let over = end.saturating_sub(file.start.max(self.start)).saturating_sub(max);
        // A link that has the program is owed every byte.
        if over > 0 && (attached || !keep_last) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (head, tail) = bytes.split_at(file.until_wrap(self.end, bytes.len()));
        file.spill.write_at(head, file.position(self.end))?;
        if !tail.is_empty() {
            file.spill.write_at(tail, 0)?;
        }
        let lowest = file.start.max(self.start);
        self.end = end;
        if over > 0 {
            self.drop_below(lowest + over);
        }
        Ok(())
    }

    fn drop_below(&mut self, offset: u64) {
        self.start = offset.clamp(self.start, self.end);
        self.ring.release(self.start);
        if self.start == self.end && self.file.take().is_some() {
            self.ring.restart(self.end);
        }
    }

    /// The program's stream has ended.
    pub fn finish(&mut self) {
        self.ended = true;
    }

    /// Whether the stream has ended.
    pub fn ended(&self) -> bool {
        self.ended && self.stuck.is_empty()
    }

    /// Whether there is something to [`retry`](Self::retry).
    pub fn is_stuck(&self) -> bool {
        !self.stuck.is_empty()
    }

    /// The lowest offset that is held.
    pub fn held(&self) -> u64 {
        self.start
    }

    /// The stream's length so far.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes of the budget that this stream has.
    pub fn window(&self) -> usize {
        self.ring.limit()
    }

    /// Gives all but `window` bytes back to the budget, where nothing is held.
    pub fn shrink(&mut self, window: usize, budget: &mut Budget) {
        if self.ring.is_empty() && self.ring.limit() > window {
            budget.give(self.ring.limit() - window);
            self.ring.shrink(window);
        }
    }

    /// A new link has the program and wants output from `from` on. What is not held any more is told as a gap.
    pub fn resume(&mut self, from: u64, credit: u64) -> Result<(), BadOffset> {
        if from > self.end {
            return Err(BadOffset);
        }
        let sent = from.max(self.start);
        let gap = (from < sent).then_some((from, sent));
        self.link = Link { sent, limit: credit, gap, end_sent: false };
        Ok(())
    }

    /// Takes a grant; a lower one than before is old news.
    pub fn credit(&mut self, limit: u64) {
        self.link.limit = self.link.limit.max(limit);
    }

    /// Takes an acknowledgement.
    pub fn ack(&mut self, offset: u64) -> Result<(), FlowError> {
        if offset > self.link.sent {
            return Err(FlowError::AckBeyondSent { ack: offset, sent: self.link.sent });
        }
        self.drop_below(offset);
        Ok(())
    }

    /// Whether everything, its end too, was sent to the link.
    pub fn all_sent(&self) -> bool {
        self.link.end_sent
    }

    /// Appends one frame, where there is one to send. `stream` is which this is.
    pub fn transmit(&mut self, program: u16, stream: Stream, out: &mut BytesMut) -> bool {
        if let Some((from, to)) = self.link.gap.take() {
            put_gap(program, stream, from, to, out);
            return true;
        }
        let Link { sent, limit, .. } = self.link;
        let len = (self.end - sent).min(limit.saturating_sub(sent)).min(MAX_DATA as u64) as usize;
        if len > 0 {
            self.transmit_data(program, stream, len, out);
            return true;
        }
        if self.ended() && sent == self.end && !self.link.end_sent {
            put_end(program, stream, self.end, out);
            self.link.end_sent = true;
            return true;
        }
        false
    }

    fn transmit_data(&mut self, program: u16, stream: Stream, len: usize, out: &mut BytesMut) {
        let sent = self.link.sent;
        out.reserve(HEADER + len);
        let (head, tail) = self.ring.slices(sent, len);
        if !head.is_empty() {
            let len = head.len() + tail.len();
            out.put_slice(&data_header(program, stream, sent, len));
            out.put_slice(head);
            out.put_slice(tail);
            self.link.sent += len as u64;
            return;
        }
        self.link.sent += len as u64;
        let begin = out.len();
        out.put_slice(&data_header(program, stream, sent, len));
        out.put_bytes(0, len);
        let read = match &mut self.file {
            Some(file) => file.read(sent, &mut out[begin + HEADER..]),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        if read.is_err() {
            // The disk lost them: never silent.
            out.truncate(begin);
            put_gap(program, stream, sent, sent + len as u64, out);
        }
    }
}

impl File {
    fn position(&self, offset: u64) -> u64 {
        (offset - self.start) % self.max
    }

    fn until_wrap(&self, offset: u64, len: usize) -> usize {
        usize::try_from(self.max - self.position(offset)).map_or(len, |wrap| wrap.min(len))
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let first = self.until_wrap(offset, bytes.len());
        let position = self.position(offset);
        let (head, tail) = bytes.split_at_mut(first);
        self.spill.read_at(head, position)?;
        if tail.is_empty() { Ok(()) } else { self.spill.read_at(tail, 0) }
    }
}

fn clamp(bytes: u64) -> usize {
    bytes.min(MAX_PUSH as u64) as usize
}

fn put_gap(program: u16, stream: Stream, from: u64, to: u64, out: &mut BytesMut) {
    let gap = Gap { program: program.into(), stderr: stream == Stream::Stderr, from, to };
    put_control(&ToBackend { message: Some(to_backend::Message::Gap(gap)) }, out);
}

#[cfg(test)]
mod tests;
