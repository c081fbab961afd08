//! One output of a program: what came, what was handed on, and what to tell of it.

use podbay::{
    MAX_CREDIT,
    v1::{self, Stream, run_session_request::Frame as Out},
};
use podbay_agent_wire::flow::{Arrived, FlowError};
use std::collections::VecDeque;

use super::Violation;

/// An output. Offsets are the program's own: what was dropped by agreement counts in them.
#[derive(Debug)]
pub(super) struct Output {
    arrived: Arrived,
    /// Everything below was handed on, or dropped by agreement.
    taken: u64,
    granted: u64,
    /// Bytes that may be here and not handed on; 0: nothing is asked for.
    window: u64,
    /// What was dropped behind bytes that are not handed on yet: where, and up to what offset. At most one for each byte that waits.
    gaps: VecDeque<(u64, u64)>,
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

impl Output {
    /// From this offset on.
    pub const fn from(offset: u64) -> Self {
        Self::new(offset, MAX_CREDIT)
    }

    /// Nothing of it is asked for, ever.
    pub const fn untouched() -> Self {
        Self::new(0, 0)
    }

    const fn new(offset: u64, window: u64) -> Self {
        let granted = offset.saturating_add(window);
        let arrived = Arrived::from(offset);
        Self { arrived, taken: offset, granted, window, gaps: VecDeque::new(), due: Due::Nothing }
    }

    pub const fn received(&self) -> u64 {
        self.arrived.received()
    }

    pub const fn taken_up_to(&self) -> u64 {
        self.taken
    }

    pub const fn granted(&self) -> u64 {
        self.granted
    }

    /// A new stream knows nothing of what was told on the last one.
    pub const fn tell_again(&mut self) {
        self.due = if self.window == 0 { Due::Nothing } else { Due::Ack };
    }

    pub fn receive(&mut self, offset: u64, len: usize) -> Result<(), FlowError> {
        self.arrived.receive(offset, len, self.granted)
    }

    /// A stream that goes on with the session says again that it has ended.
    pub fn end(&mut self, offset: u64) -> Result<(), FlowError> {
        self.arrived.end(offset).map(drop)
    }

    /// What was dropped; gives how much.
    pub fn gap(&mut self, from: u64, to: u64) -> Result<u64, Violation> {
        let at = self.received();
        if from != at || to < from || self.arrived.ended() {
            return Err(Violation::Gap { from, to, at });
        }
        self.arrived.skip(to);
        match self.gaps.back_mut() {
            Some((_, end)) if *end == at => *end = to,
            Some(_) | None => self.gaps.push_back((at, to)),
        }
        // Where bytes wait in front of it, the credit stays behind it until they are handed on.
        self.hand_on(0);
        self.granted = self.granted.max(self.taken.saturating_add(self.window));
        self.tell_again();
        Ok(to - from)
    }

    /// So many bytes more were handed on.
    pub fn take(&mut self, len: usize) {
        self.hand_on(len as u64);
        let limit = self.taken.saturating_add(self.window);
        // Frames that grant a few bytes each cost more than they give.
        if !self.arrived.ended() && limit.saturating_sub(self.granted) >= self.window.div_ceil(2).max(1) {
            self.granted = limit;
            self.due = Due::Ack;
        }
    }

    fn hand_on(&mut self, mut len: u64) {
        loop {
            let next = self.gaps.front().copied();
            let step = len.min(next.map_or(self.received(), |(at, _)| at).saturating_sub(self.taken));
            self.taken += step;
            len -= step;
            match next {
                Some((at, to)) if at == self.taken => {
                    self.taken = to;
                    self.gaps.pop_front();
                }
                Some(_) | None => return,
            }
        }
    }

    pub fn next(&mut self, stream: Stream) -> Option<Out> {
        let stream = stream.into();
        match self.due {
            Due::Nothing => None,
            Due::Ack => {
                self.due = Due::Credit;
                Some(Out::Ack(v1::Ack { stream, offset: self.taken }))
            }
            Due::Credit => {
                self.due = Due::Nothing;
                Some(Out::Credit(v1::Credit { stream, limit: self.granted }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_behind_bytes_that_wait_is_taken_with_them() {
        let mut output = Output::from(10);
        output.receive(10, 100).expect("within the credit");
        assert_eq!(output.gap(110, 1000), Ok(890));
        output.receive(1000, 5).expect("within the credit");
        assert_eq!(output.taken_up_to(), 10, "nothing was handed on");
        output.take(99);
        assert_eq!(output.taken_up_to(), 109);
        output.take(1);
        assert_eq!(output.taken_up_to(), 1000);
        output.take(5);
        assert_eq!((output.taken_up_to(), output.received()), (1005, 1005));
    }

    #[test]
    fn what_breaks_the_rules_is_named() {
        let mut output = Output::from(0);
        assert!(matches!(output.receive(1, 1), Err(FlowError::Gap { .. })));
        assert!(matches!(output.receive(0, usize::MAX), Err(FlowError::Overrun { .. })));
        assert!(matches!(output.gap(1, 2), Err(Violation::Gap { .. })));
        assert!(output.end(1).is_err());
        output.end(0).expect("its end");
        output.end(0).expect("said again by the next stream");
        assert_eq!(output.receive(0, 0), Err(FlowError::AfterEnd));
        assert!(Output::untouched().receive(0, 1).is_err());
    }

    #[test]
    fn of_one_that_nobody_wants_nothing_is_told() {
        let mut output = Output::untouched();
        output.tell_again();
        assert_eq!((output.next(Stream::Stdout), output.granted()), (None, 0));
        assert_eq!(output.gap(0, 50), Ok(50));
        assert_eq!(output.next(Stream::Stdout), None);
    }

    proptest! {
        /// Whatever comes, is dropped and is handed on: no more than the window waits, what is told as taken was handed on, and
        /// the sender never waits for ever.
        #[test]
        fn nothing_is_told_as_taken_that_waits(steps in prop::collection::vec((0u8..3, 1u64..200_000), 1..200)) {
            let mut output = Output::from(0);
            let (mut at, mut credit) = (0u64, output.granted());
            // What came, in order: bytes, and gaps.
            let mut waiting: VecDeque<(bool, u64)> = VecDeque::new();
            for (step, n) in steps {
                match step {
                    0 => {
                        // Behind a gap there may be none; a frame has a byte at least.
                        let len = n.min(credit.saturating_sub(at));
                        if len == 0 {
                            continue;
                        }
                        output.receive(at, len as usize).expect("within the credit");
                        at += len;
                        waiting.push_back((true, len));
                    }
                    1 => {
                        output.gap(at, at + n).expect("where it stands");
                        at += n;
                        waiting.push_back((false, n));
                    }
                    _ => {
                        let mut left = n;
                        while let Some((is_data, len)) = waiting.front_mut() {
                            if *is_data {
                                let step = left.min(*len);
                                output.take(step as usize);
                                *len -= step;
                                left -= step;
                                if *len > 0 { break }
                            }
                            waiting.pop_front();
                        }
                    }
                }
                while let Some(frame) = output.next(Stream::Stdout) {
                    if let Out::Credit(told) = frame { credit = credit.max(told.limit); }
                }
                let bytes: u64 = waiting.iter().filter(|(is_data, _)| *is_data).map(|(_, len)| len).sum();
                prop_assert!(bytes <= MAX_CREDIT);
                let first = waiting.iter().position(|(is_data, len)| *is_data && *len > 0);
                let behind: u64 = waiting.iter().skip(first.unwrap_or(waiting.len())).map(|(_, len)| len).sum();
                prop_assert_eq!(output.taken_up_to(), at - behind);
                prop_assert!(bytes > 0 || credit > at, "it waits for ever");
            }
        }
    }
}
