//! Stdin between the client and the program: within its credit, whole, and with one end.

use crate::session::violation;
use bytes::Bytes;
use podbay::{MAX_CREDIT, v1::Refusal};
use podbay_agent_wire::flow::Incoming;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Stdin {
    flow: Incoming,
    queue: VecDeque<Bytes>,
    end: End,
    /// Bytes given to the program.
    given: u64,
    /// The last of them.
    last: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// Told by the client; to be given after what is queued.
    Told,
    /// Given, or nobody is there to take it.
    Over,
}

/// What the program gets next.
pub(super) enum Piece {
    Bytes(Bytes),
    /// The end; where there is a terminal, its user types this.
    End(Bytes),
}

impl Stdin {
    pub fn new() -> Self {
        Self { flow: Incoming::new(0, MAX_CREDIT), queue: VecDeque::new(), end: End::Open, given: 0, last: None }
    }

    /// Takes bytes from the client. Whether they are queued: else nobody takes them any more, and they count as consumed.
    ///
    /// # Errors
    /// `PROTOCOL_VIOLATION` for another offset than the stream's, or beyond the credit.
    pub fn receive(&mut self, offset: u64, bytes: Bytes) -> Result<bool, Refusal> {
        self.flow.receive(offset, bytes.len()).map_err(|error| violation(&error.to_string()))?;
        let is_taken = self.end != End::Over;
        if is_taken {
            self.queue.push_back(bytes);
        }
        Ok(is_taken)
    }

    /// The client says that this is where it ends.
    ///
    /// # Errors
    /// `PROTOCOL_VIOLATION` for another offset than the stream's, or a second end.
    pub fn end_at(&mut self, offset: u64) -> Result<(), Refusal> {
        self.flow.end(offset).map_err(|error| violation(&error.to_string()))?;
        self.end();
        Ok(())
    }

    /// No more comes.
    pub fn end(&mut self) {
        if self.end == End::Open {
            self.end = End::Told;
        }
    }

    /// Nobody takes any more. How many bytes are dropped: to be counted as consumed.
    pub fn discard(&mut self) -> usize {
        self.end = End::Over;
        self.queue.drain(..).map(|bytes| bytes.len()).sum()
    }

    /// Whether [`Self::take`] gives something.
    pub fn has(&self) -> bool {
        !self.queue.is_empty() || self.end == End::Told
    }

    /// What is next; its bytes are given, and still to be counted as consumed.
    pub fn take(&mut self) -> Option<Piece> {
        if !self.has() {
            return None;
        }
        let Some(bytes) = self.queue.pop_front() else {
            self.end = End::Over;
            return Some(Piece::End(typed_end(self.last)));
        };
        self.given += bytes.len() as u64;
        self.last = bytes.last().copied().or(self.last);
        Some(Piece::Bytes(bytes))
    }

    /// So many bytes have left. The new limit, where it is to be told.
    pub fn consume(&mut self, len: usize) -> Option<u64> {
        self.flow.consume(len)
    }

    /// Offset behind the last byte that came.
    pub const fn received(&self) -> u64 {
        self.flow.received()
    }

    /// The credit.
    pub const fn granted(&self) -> u64 {
        self.flow.granted()
    }

    /// Offset behind the last byte that left.
    pub const fn consumed(&self) -> u64 {
        self.flow.consumed()
    }

    /// Bytes given to the program.
    pub const fn given(&self) -> u64 {
        self.given
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// What a user types to end a terminal's input, behind this byte. The line discipline (n_tty, canonical mode with its usual
/// characters) makes an end of `^D` only where a line begins; elsewhere it hands over the line so far, and the next one is
/// the end. Behind `^V` the first one would be text.
fn typed_end(behind: Option<u8>) -> Bytes {
    Bytes::from_static(match behind {
        None | Some(b'\n' | b'\r' | 4) => b"\x04",
        Some(0x16) => b"\x04\x04\x04",
        Some(_) => b"\x04\x04",
    })
}
