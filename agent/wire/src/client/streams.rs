//! A program's streams as the backend sees them.

use crate::{
    flow::{Arrived, FlowError},
    frame::{HEADER, MAX_DATA, Stream, data_header, put_ack, put_control, put_credit},
    proto::{self, ToAgent, to_agent},
    ring::Ring,
};
use bytes::{BufMut as _, BytesMut};

/// Stdin: what was not acknowledged.
#[derive(Debug)]
pub(super) struct Writing {
    ring: Ring,
    sent: u64,
    /// What the agent granted.
    granted: u64,
    /// What was passed on.
    told: u64,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy)]
struct End {
    id: u64,
    offset: u64,
    state: EndState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndState {
    Unsent,
    Sent,
    Answered,
}

impl Writing {
    pub(super) fn new(window: usize) -> Self {
        Self { ring: Ring::new(0, window), sent: 0, granted: 0, told: 0, end: None }
    }

    pub(super) fn push(&mut self, offset: u64, data: &[u8]) -> Result<(), FlowError> {
        if self.end.is_some() {
            return Err(FlowError::AfterEnd);
        }
        if offset != self.ring.end() {
            return Err(FlowError::Gap { expected: self.ring.end(), got: offset });
        }
        let end = offset.saturating_add(data.len() as u64);
        if end > self.told || !self.ring.push(data) {
            return Err(FlowError::Overrun { end, limit: self.told });
        }
        Ok(())
    }

    pub(super) fn end(&mut self, id: u64, offset: u64) -> Result<(), FlowError> {
        if self.end.is_some() || offset != self.ring.end() {
            return Err(FlowError::AfterEnd);
        }
        self.end = Some(End { id, offset, state: EndState::Unsent });
        Ok(())
    }

    /// The first link has the program: stdin continues there.
    pub(super) fn begin(&mut self, offset: u64, granted: u64) -> u64 {
        self.ring.restart(offset);
        self.sent = offset;
        self.granted = granted;
        self.told = offset;
        self.grant(granted).unwrap_or(offset)
    }

    /// Another link has it. An offset below what was acknowledged, or above what was ever sent, is the agent's fault.
    pub(super) fn resume(&mut self, offset: u64) -> bool {
        if offset < self.ring.start() || offset > self.ring.end() {
            return false;
        }
        self.ring.release(offset);
        self.sent = offset;
        if let Some(end) = &mut self.end
            && end.state == EndState::Sent
        {
            end.state = EndState::Unsent;
        }
        true
    }

    pub(super) fn start(&self) -> u64 {
        self.ring.start()
    }

    /// The agent granted more: what may be passed on of it, if that is more than before.
    pub(super) fn grant(&mut self, granted: u64) -> Option<u64> {
        self.granted = self.granted.max(granted);
        let limit = self.granted.min(self.ring.start().saturating_add(self.ring.limit() as u64));
        let more = limit > self.told;
        self.told = self.told.max(limit);
        more.then_some(limit)
    }

    pub(super) fn acked(&mut self, offset: u64) -> Result<(), FlowError> {
        if offset > self.sent {
            return Err(FlowError::AckBeyondSent { ack: offset, sent: self.sent });
        }
        self.ring.release(offset);
        Ok(())
    }

    /// Whether the answer is to the end of stdin; true once.
    pub(super) fn answered(&mut self, id: u64) -> bool {
        match &mut self.end {
            Some(end) if end.id == id && end.state == EndState::Sent => {
                end.state = EndState::Answered;
                true
            }
            Some(_) | None => false,
        }
    }

    pub(super) fn transmit(&mut self, number: u16, out: &mut BytesMut) -> bool {
        let (head, tail) = self.ring.slices(self.sent, MAX_DATA);
        let len = head.len() + tail.len();
        if len > 0 {
            out.reserve(HEADER + len);
            out.put_slice(&data_header(number, Stream::Stdin, self.sent, len));
            out.put_slice(head);
            out.put_slice(tail);
            self.sent += len as u64;
            return true;
        }
        if let Some(end) = &mut self.end
            && end.state == EndState::Unsent
        {
            end.state = EndState::Sent;
            let eof = proto::Eof { program: number.into(), id: end.id, offset: end.offset };
            put_control(&ToAgent { message: Some(to_agent::Message::Eof(eof)) }, out);
        }
        false
    }
}

/// An output: what was received, granted and acknowledged.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) arrived: Arrived,
    pub(super) granted: u64,
    told: u64,
    acked: u64,
    acked_told: u64,
    /// Nothing has come of it since it was asked for: what is not held any more may be told now, however much it is.
    fresh: bool,
}

impl Reading {
    pub(super) fn new(from: u64, credit: u64) -> Self {
        Self { arrived: Arrived::from(from), granted: credit, told: 0, acked: 0, acked_told: 0, fresh: false }
    }

    /// Start or Attach tells the credit.
    pub(super) fn ask(&mut self) {
        self.told = self.granted;
        self.acked_told = 0;
        self.fresh = true;
    }

    pub(super) fn credit(&mut self, limit: u64) {
        self.granted = self.granted.max(limit);
    }

    pub(super) fn ack(&mut self, offset: u64) {
        self.acked = self.acked.max(offset.min(self.arrived.received()));
    }

    pub(super) fn receive(&mut self, offset: u64, len: usize) -> Result<(), FlowError> {
        self.arrived.receive(offset, len, self.granted)?;
        self.fresh = false;
        Ok(())
    }

    /// What was dropped. Where output begins on a link it may go beyond the credit, once; else it counts as the bytes would. So the
    /// news of an output is bounded by its credit, whatever the pod sends.
    pub(super) fn gap(&mut self, from: u64, to: u64) -> Result<(), FlowError> {
        let at = self.arrived.received();
        if self.arrived.ended() || from != at || to <= from {
            return Err(FlowError::Gap { expected: at, got: from });
        }
        if to > self.granted && !self.fresh {
            return Err(FlowError::Overrun { end: to, limit: self.granted });
        }
        self.arrived.skip(to);
        self.fresh = false;
        Ok(())
    }

    /// Returns whether the end is news: a new link tells it again.
    pub(super) fn end(&mut self, offset: u64) -> Result<bool, FlowError> {
        self.arrived.end(offset)
    }

    pub(super) fn transmit(&mut self, number: u16, stream: Stream, out: &mut BytesMut) {
        if self.granted > self.told {
            self.told = self.granted;
            put_credit(number, stream, self.granted, out);
        }
        if self.acked > self.acked_told {
            self.acked_told = self.acked;
            put_ack(number, stream, self.acked, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_bounded_by_the_credit_but_for_the_one_that_a_link_begins_with() {
        let mut output = Reading::new(10, 20);
        output.ask();
        assert_eq!(output.gap(10, 1000), Ok(()), "what a client that comes back has missed");
        for (from, to) in [(1000, 1001), (1000, 1 << 60)] {
            let flood = output.gap(from, to);
            assert_eq!(flood, Err(FlowError::Overrun { end: to, limit: 20 }), "a pod could fill our memory with them");
        }
        output.credit(1010);
        assert_eq!(output.gap(1000, 1005), Ok(()), "the pod's disk has lost some");
        assert_eq!(output.receive(1005, 5), Ok(()));
        assert!(output.gap(1010, 1011).is_err());
        output.ask();
        assert_eq!(output.gap(1010, 2000), Ok(()), "a new link");
        let mut output = Reading::new(0, 100);
        output.ask();
        assert_eq!(output.receive(0, 100), Ok(()));
        assert!(output.gap(100, 101).is_err(), "output has begun");
    }
}
