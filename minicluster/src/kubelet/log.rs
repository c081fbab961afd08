//! A container's log: its last output, in memory. What is over the limit is dropped from the front, as a kubelet's rotation
//! does; a follower that is slower than that misses what was dropped.

use bytes::Bytes;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Bytes kept per container instance.
const KEEP: usize = 1024 * 1024;
/// Bytes given out at once.
const READ: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Log {
    kept: Mutex<Kept>,
    /// How far it goes, and whether that is all.
    end: watch::Sender<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub offset: u64,
    pub closed: bool,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: VecDeque<u8>,
    /// Offset of the first kept byte.
    start: u64,
}

impl Kept {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl Log {
    pub fn new() -> Self {
        Self { kept: Mutex::default(), end: watch::Sender::new(End { offset: 0, closed: false }) }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn subscribe(&self) -> watch::Receiver<End> {
        self.end.subscribe()
    }

    pub fn push(&self, bytes: &[u8]) {
        let offset = {
            let mut kept = self.lock();
            kept.bytes.extend(bytes);
            let over = kept.bytes.len().saturating_sub(KEEP);
            kept.bytes.drain(..over);
            kept.start += over as u64;
            kept.end()
        };
        self.end.send_modify(|end| end.offset = offset);
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.end.send_modify(|end| end.closed = true);
    }

    /// What there is from an offset on, at most [`READ`] bytes of it, and the offset after it. Empty at the end.
    pub fn read(&self, from: u64) -> (Bytes, u64) {
        let kept = self.lock();
        let from = from.clamp(kept.start, kept.end());
        let skip = usize::try_from(from - kept.start).unwrap_or(usize::MAX).min(kept.bytes.len());
        let found: Bytes = kept.bytes.range(skip..).take(READ).copied().collect();
        let next = from + found.len() as u64;
        (found, next)
    }

    /// Where the last `lines` lines begin.
    pub fn tail(&self, lines: usize) -> u64 {
        let kept = self.lock();
        if lines == 0 {
            return kept.end();
        }
        let mut seen = 0;
        for (back, byte) in kept.bytes.iter().rev().enumerate() {
            // A line break that ends the log begins no further line.
            if *byte == b'\n' && back > 0 {
                seen += 1;
            }
            if seen == lines {
                return kept.end() - back as u64;
            }
        }
        kept.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(log: &Log, from: u64) -> String {
        String::from_utf8(log.read(from).0.to_vec()).expect("text")
    }

    #[test]
    fn tail_counts_lines() {
        let log = Log::new();
        for part in ["a\nb", "b\n", "c\n"] {
            log.push(part.as_bytes());
        }
        assert_eq!(text(&log, log.tail(1)), "c\n");
        assert_eq!(text(&log, log.tail(2)), "bb\nc\n");
        assert_eq!(text(&log, log.tail(9)), "a\nbb\nc\n");
        assert_eq!(text(&log, log.tail(0)), "");
        log.push(b"d");
        assert_eq!(text(&log, log.tail(1)), "d");
    }

    #[test]
    fn the_oldest_goes_first() {
        let log = Log::new();
        log.push(b"first");
        log.push(&vec![b'x'; KEEP]);
        assert_eq!(log.read(0).1, 5 + READ as u64);
        assert!(text(&log, 0).bytes().all(|byte| byte == b'x'));
        assert_eq!(log.subscribe().borrow().offset, 5 + KEEP as u64);
    }
}
