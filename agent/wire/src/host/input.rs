//! A program's stdin in the pod: what arrived and the program has not taken.

use super::Stdin;
use crate::{
    budget::Budget,
    flow::{FlowError, Incoming},
    ring::Ring,
};

/// See the module.
#[derive(Debug)]
pub struct Input {
    flow: Incoming,
    ring: Ring,
    state: State,
    /// To tell the link.
    pub(super) ack: bool,
    /// To tell the link.
    pub(super) credit: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Nobody reads it any more.
    Closed,
}

impl Input {
    /// A stdin with a window of `window` bytes (taken from the budget already).
    pub(super) fn new(window: usize) -> Self {
        let flow = Incoming::new(0, window as u64);
        Self { flow, ring: Ring::new(0, window), state: State::Open, ack: false, credit: false }
    }

    pub(super) fn received(&self) -> u64 {
        self.flow.received()
    }

    pub(super) fn granted(&self) -> u64 {
        self.flow.granted()
    }

    pub(super) fn ended(&self) -> bool {
        self.flow.ended()
    }

    pub(super) fn window(&self) -> usize {
        self.ring.limit()
    }

    pub(super) fn receive(&mut self, offset: u64, data: &[u8]) -> Result<(), FlowError> {
        self.flow.receive(offset, data.len())?;
        self.ack = true;
        match self.state {
            State::Open => {
                let fits = self.ring.push(data);
                debug_assert!(fits, "the ring is as large as the window");
            }
            State::Closed => self.consume(data.len()),
        }
        Ok(())
    }

    /// An end that was told before is told again where an answer was lost.
    pub(super) fn end(&mut self, offset: u64) -> Result<(), FlowError> {
        if self.flow.ended() && self.flow.received() == offset { Ok(()) } else { self.flow.end(offset) }
    }

    pub(super) fn state(&self) -> Stdin {
        match self.state {
            State::Open if !self.ring.is_empty() => Stdin::Data,
            State::Open if self.flow.ended() => Stdin::End,
            State::Open | State::Closed => Stdin::Idle,
        }
    }

    pub(super) fn pending(&self) -> (&[u8], &[u8]) {
        self.ring.slices(self.ring.start(), usize::MAX)
    }

    /// Returns whether there is something to tell the link.
    pub(super) fn written(&mut self, len: usize, max_window: usize, budget: &mut Budget) -> bool {
        self.ring.release(self.ring.start() + len as u64);
        // The sender used its credit up, so the window is what it waits for.
        let starved = self.flow.granted() - self.flow.received() < self.flow.window() / 2;
        let window = self.ring.limit();
        if starved && window * 2 <= max_window && budget.take_spare(window) {
            self.ring.grow(window * 2);
            self.flow.grow(window as u64 * 2);
        }
        self.consume(len);
        self.credit
    }

    /// Returns whether there is something to tell the link.
    pub(super) fn close(&mut self) -> bool {
        self.state = State::Closed;
        let rest = self.ring.len();
        self.ring.restart(self.ring.end());
        self.consume(rest);
        self.credit
    }

    fn consume(&mut self, len: usize) {
        self.credit |= self.flow.consume(len).is_some();
    }
}
