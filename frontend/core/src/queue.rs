//! A channel's input between the connection's task and the program.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Neighbours are merged up to this size: a client that sends single bytes costs no more memory than one that sends
/// whole packets. The size of an SSH packet and of a `Data` frame.
const PIECE: usize = 32 * 1024;

/// What a consumer finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// The next bytes; never empty.
    Bytes(Bytes),
    /// Nothing yet.
    Empty,
    /// The client has ended its input, and all of it was taken.
    Eof,
    /// The queue was closed by its owner.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Eof,
    Closed,
}

/// Bytes in order, counted. The bound is [`SoftStop`](crate::SoftStop)'s business.
#[derive(Debug)]
pub struct InputQueue {
    pieces: VecDeque<BytesMut>,
    bytes: usize,
    end: End,
}

impl Default for InputQueue {
    fn default() -> Self {
        Self { pieces: VecDeque::new(), bytes: 0, end: End::Open }
    }
}

impl InputQueue {
    /// Bytes waiting.
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends. Returns false where the queue takes nothing any more: after its end.
    pub fn push(&mut self, data: &[u8]) -> bool {
        if self.end != End::Open {
            return false;
        }
        match self.pieces.back_mut() {
            Some(last) if last.len() + data.len() <= PIECE => last.extend_from_slice(data),
            _ if data.is_empty() => {}
            _ => self.pieces.push_back(BytesMut::from(data)),
        }
        self.bytes += data.len();
        true
    }

    /// Takes at most `max` bytes from the front, one piece at most.
    pub fn pop(&mut self, max: usize) -> Piece {
        match (self.pieces.front_mut(), self.end) {
            (_, End::Closed) => Piece::Closed,
            (None, End::Eof) => Piece::Eof,
            (None, End::Open) => Piece::Empty,
            (Some(_), _) if max == 0 => Piece::Empty,
            (Some(front), _) => {
                let taken = front.split_to(max.min(front.len()));
                if front.is_empty() {
                    self.pieces.pop_front();
                }
                self.bytes -= taken.len();
                Piece::Bytes(taken.freeze())
            }
        }
    }

    /// The client has ended its input.
    pub fn eof(&mut self) {
        if self.end == End::Open {
            self.end = End::Eof;
        }
    }

    /// Drops what waits, and all that still comes.
    pub fn close(&mut self) {
        *self = Self { end: End::Closed, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ends_after_all_was_taken() {
        let mut queue = InputQueue::default();
        assert_eq!(queue.pop(9), Piece::Empty);
        assert!(queue.push(b"abc"));
        queue.eof();
        assert!(!queue.push(b"late"));
        assert_eq!(queue.pop(0), Piece::Empty);
        assert_eq!(queue.pop(2), Piece::Bytes(Bytes::from_static(b"ab")));
        assert_eq!(queue.pop(2), Piece::Bytes(Bytes::from_static(b"c")));
        assert_eq!(queue.pop(2), Piece::Eof);
    }

    #[test]
    fn a_closed_queue_is_empty_and_takes_nothing() {
        let mut queue = InputQueue::default();
        queue.push(&[1; 100]);
        queue.close();
        assert!(queue.is_empty() && !queue.push(b"x"));
        assert_eq!(queue.pop(9), Piece::Closed);
    }

    proptest! {
        #[test]
        fn gives_back_what_it_got_in_few_pieces(
            packets in prop::collection::vec(0usize..40_000, 0..60),
            takes in prop::collection::vec(1usize..50_000, 1..20),
        ) {
            let mut queue = InputQueue::default();
            let (mut given, mut byte) = (Vec::new(), 0u8);
            for len in packets {
                let data: Vec<u8> = (0..len).map(|_| { byte = byte.wrapping_mul(31).wrapping_add(7); byte }).collect();
                prop_assert!(queue.push(&data));
                given.extend_from_slice(&data);
            }
            prop_assert_eq!(queue.len(), given.len());
            prop_assert!(queue.pieces.len() <= 2 * given.len() / PIECE + 1);
            queue.eof();
            let mut got = Vec::new();
            for max in takes.into_iter().cycle() {
                match queue.pop(max) {
                    Piece::Bytes(bytes) => { prop_assert!(bytes.len() <= max); got.extend_from_slice(&bytes); }
                    Piece::Eof => break,
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(got, given);
        }
    }
}
