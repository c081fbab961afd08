//! A program's stdin: what waits for credit, and what is kept until it is safe.

use super::Violation;
use bytes::{Buf as _, Bytes};
use podbay::{
    FRAME,
    v1::{self, Stream, run_session_request::Frame as Out},
};
use podbay_agent_wire::flow::Outgoing;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Stdin {
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

impl Stdin {
    pub const fn new() -> Self {
        Self {
            flow: Outgoing::new(0, 0),
            kept: VecDeque::new(),
            fresh: VecDeque::new(),
            fresh_len: 0,
            again: 0,
            ended: false,
        }
    }

    /// It goes on here, wherever that is.
    pub const fn adopt(&mut self, offset: u64, credit: u64) {
        self.flow = Outgoing::new(offset, credit);
    }

    /// Whether there is no more of it.
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Its length so far, as it was sent.
    pub const fn offset(&self) -> u64 {
        self.flow.offset()
    }

    pub fn room(&self) -> usize {
        if self.ended {
            return 0;
        }
        usize::try_from(self.flow.room()).unwrap_or(usize::MAX).saturating_sub(self.fresh_len)
    }

    pub fn push(&mut self, bytes: Bytes) {
        self.fresh_len += bytes.len();
        self.fresh.push_back(bytes);
    }

    pub fn end(&mut self) {
        if !self.ended {
            self.ended = true;
            self.shrink();
        }
    }

    pub const fn credit(&mut self, limit: u64) -> bool {
        self.flow.credit(limit)
    }

    /// A new stream has had none of what is kept.
    pub fn reopen(&mut self) {
        self.again = self.kept.len();
    }

    /// Where a stream's Started says that it goes on, and with what credit.
    pub fn started(&mut self, offset: u64, credit: u64) -> Result<(), Violation> {
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

    pub fn acked(&mut self, offset: u64) -> Result<(), Violation> {
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

    pub fn next(&mut self, durable: bool) -> Option<Out> {
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

    /// Whether this stream has had all of it.
    pub fn is_sent(&self) -> bool {
        self.fresh.is_empty() && self.again == 0
    }

    /// Whether the pod holds all of it.
    pub fn is_safe(&self) -> bool {
        self.is_sent() && self.kept.is_empty()
    }
}
