//! One direction of one byte stream, seen from its sender ([`Outgoing`]) and from its receiver ([`Incoming`], or [`Arrived`] where
//! the receiver grants by rules of its own).
//!
//! Offsets are absolute: the number of bytes of the stream that came before. A receiver grants credit as an absolute
//! limit, so a lost or repeated grant does no harm; it never grants more than [`Incoming::window`] beyond what its
//! consumer took, so memory is bounded by that.

/// A peer broke the rules of the stream; the session ends with a protocol violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// A frame does not begin where the last one ended.
    #[error("a frame begins at offset {got}, but the stream stands at {expected}")]
    Gap {
        /// Where the stream stands.
        expected: u64,
        /// Where the frame begins.
        got: u64,
    },
    /// A frame ends beyond the credit.
    #[error("a frame ends at offset {end}, beyond the credit {limit}")]
    Overrun {
        /// Where the frame ends.
        end: u64,
        /// The credit.
        limit: u64,
    },
    /// Data after the end of the stream, a second end, or an end at another offset than the stream's.
    #[error("the stream had ended, or ends at another offset than it stands at")]
    AfterEnd,
    /// An acknowledgement of bytes that were never sent.
    #[error("acknowledged up to {ack}, but only {sent} bytes were sent")]
    AckBeyondSent {
        /// What was acknowledged.
        ack: u64,
        /// What was sent.
        sent: u64,
    },
}

/// The sender's side: what was sent, what may be sent, what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    sent: u64,
    limit: u64,
    acked: u64,
}

impl Outgoing {
    /// A stream that continues at `offset`, with credit up to `limit`.
    pub const fn new(offset: u64, limit: u64) -> Self {
        Self { sent: offset, limit, acked: offset }
    }

    /// Bytes that may be sent now.
    pub const fn room(&self) -> u64 {
        self.limit.saturating_sub(self.sent)
    }

    /// Offset of the next byte.
    pub const fn offset(&self) -> u64 {
        self.sent
    }

    /// Everything below this offset is safe with the peer.
    pub const fn acked(&self) -> u64 {
        self.acked
    }

    /// Records that `len` bytes are sent, and returns the offset of the first.
    ///
    /// # Panics
    /// If `len` is more than [`room`](Self::room): the caller, not the peer, sent too much.
    pub fn send(&mut self, len: usize) -> u64 {
        assert!(len as u64 <= self.room(), "sent beyond the credit");
        let offset = self.sent;
        self.sent += len as u64;
        offset
    }

    /// Takes a grant. A lower one than before is old news. Returns whether there is more room now.
    pub const fn credit(&mut self, limit: u64) -> bool {
        let more = limit > self.limit;
        if more {
            self.limit = limit;
        }
        more
    }

    /// Takes an acknowledgement.
    pub const fn ack(&mut self, offset: u64) -> Result<(), FlowError> {
        if offset > self.sent {
            return Err(FlowError::AckBeyondSent { ack: offset, sent: self.sent });
        }
        if offset > self.acked {
            self.acked = offset;
        }
        Ok(())
    }
}

/// Where a stream stands at its receiver: what arrived, and whether that is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    received: u64,
    ended: bool,
}

impl Arrived {
    /// A stream that continues at `offset`.
    pub const fn from(offset: u64) -> Self {
        Self { received: offset, ended: false }
    }

    /// Offset of the next byte.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Whether the stream has ended.
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// Checks and records a frame; `granted` is the credit given so far.
    pub fn receive(&mut self, offset: u64, len: usize, granted: u64) -> Result<(), FlowError> {
        if self.ended {
            return Err(FlowError::AfterEnd);
        }
        if offset != self.received {
            return Err(FlowError::Gap { expected: self.received, got: offset });
        }
        let end = offset.saturating_add(len as u64);
        if end > granted {
            return Err(FlowError::Overrun { end, limit: granted });
        }
        self.received = end;
        Ok(())
    }

    /// Records that nothing comes below `to`: the caller has checked that the sender may drop it.
    pub const fn skip(&mut self, to: u64) {
        self.received = to;
    }

    /// Checks and records the end of the stream. Returns whether it is news: a link or stream of frames that goes on with the
    /// session says it again.
    pub fn end(&mut self, offset: u64) -> Result<bool, FlowError> {
        if offset != self.received {
            return Err(FlowError::AfterEnd);
        }
        Ok(!std::mem::replace(&mut self.ended, true))
    }
}

/// The receiver's side: what arrived, what its consumer took, what was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    arrived: Arrived,
    consumed: u64,
    granted: u64,
    window: u64,
}

impl Incoming {
    /// A stream that continues at `offset`. The first grant, `offset + window`, counts as given: see
    /// [`granted`](Self::granted).
    pub const fn new(offset: u64, window: u64) -> Self {
        Self { arrived: Arrived::from(offset), consumed: offset, granted: offset + window, window }
    }

    /// The credit given so far.
    pub const fn granted(&self) -> u64 {
        self.granted
    }

    /// Bytes that arrived.
    pub const fn received(&self) -> u64 {
        self.arrived.received()
    }

    /// Bytes that the consumer took.
    pub const fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The most bytes that may be under way.
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// Widens the window (never narrows it). The next grant is by the new one.
    pub const fn grow(&mut self, window: u64) {
        if window > self.window {
            self.window = window;
        }
    }

    /// Whether the stream has ended.
    pub const fn ended(&self) -> bool {
        self.arrived.ended()
    }

    /// Checks and records a frame.
    pub fn receive(&mut self, offset: u64, len: usize) -> Result<(), FlowError> {
        self.arrived.receive(offset, len, self.granted)
    }

    /// Checks and records the end of the stream, which is told once.
    pub fn end(&mut self, offset: u64) -> Result<(), FlowError> {
        if self.arrived.end(offset)? { Ok(()) } else { Err(FlowError::AfterEnd) }
    }

    /// Records that the consumer took `len` more bytes. Returns a new grant once half a window can be given: frames
    /// that grant a few bytes each cost more than they give.
    pub fn consume(&mut self, len: usize) -> Option<u64> {
        self.consumed = (self.consumed + len as u64).min(self.received());
        let limit = self.consumed + self.window;
        if self.ended() || limit - self.granted < self.window.div_ceil(2) {
            return None;
        }
        self.granted = limit;
        Some(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_breaks_the_rules_is_named() {
        let mut incoming = Incoming::new(10, 8);
        assert_eq!(incoming.receive(9, 1), Err(FlowError::Gap { expected: 10, got: 9 }));
        assert_eq!(incoming.receive(10, 9), Err(FlowError::Overrun { end: 19, limit: 18 }));
        assert_eq!(incoming.receive(10, usize::MAX), Err(FlowError::Overrun { end: u64::MAX, limit: 18 }));
        assert_eq!(incoming.receive(10, 8), Ok(()));
        assert_eq!(incoming.end(17), Err(FlowError::AfterEnd));
        assert_eq!(incoming.end(18), Ok(()));
        assert_eq!(incoming.receive(18, 0), Err(FlowError::AfterEnd));
        let mut outgoing = Outgoing::new(0, 4);
        outgoing.send(3);
        assert_eq!(outgoing.ack(4), Err(FlowError::AckBeyondSent { ack: 4, sent: 3 }));
    }

    proptest! {
        /// Whatever is sent and taken, in whatever pieces: all of it arrives, the sender never waits for ever, and
        /// no more than the window is ever under way.
        #[test]
        fn all_arrives_within_the_window(
            window in 1u64..100,
            total in 0u64..5_000,
            pieces in prop::collection::vec((1usize..64, 1usize..64), 1..50),
        ) {
            let mut incoming = Incoming::new(0, window);
            let mut outgoing = Outgoing::new(0, incoming.granted());
            for (send, take) in pieces.iter().cycle() {
                if incoming.consumed() == total { break }
                let len = (*send as u64).min(outgoing.room()).min(total - outgoing.offset()) as usize;
                let offset = outgoing.send(len);
                prop_assert_eq!(incoming.receive(offset, len), Ok(()));
                prop_assert!(incoming.received() - incoming.consumed() <= window);
                let take = (*take as u64).min(incoming.received() - incoming.consumed()) as usize;
                if let Some(limit) = incoming.consume(take) { outgoing.credit(limit); }
                prop_assert!(len > 0 || take > 0, "nothing moves");
            }
            prop_assert_eq!(incoming.end(total), Ok(()));
        }
    }
}
