//! A ring of bytes with absolute offsets: what was sent and may have to be sent again.

use bytes::BufMut;

/// Bytes `start..end` of a stream. Memory grows by doubling as it is used, never beyond what [`grow`](Ring::grow) allowed;
/// no frame costs an allocation (on musl that would make the copy three times slower).
#[derive(Default)]
pub struct Ring {
    /// Its length is 0 or a power of two.
    buffer: Vec<u8>,
    start: u64,
    end: u64,
    limit: usize,
}

impl Ring {
    /// An empty ring at `offset` that may hold `limit` bytes.
    pub const fn new(offset: u64, limit: usize) -> Self {
        Self { buffer: Vec::new(), start: offset, end: offset, limit }
    }

    /// Offset of the first byte that is held.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Offset after the last byte.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes held.
    pub const fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether nothing is held.
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The most bytes that may be held.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that may be pushed now.
    pub const fn room(&self) -> usize {
        self.limit.saturating_sub(self.len())
    }

    /// Bytes of memory in use.
    pub const fn allocated(&self) -> usize {
        self.buffer.len()
    }

    /// Allows more bytes (never fewer than before).
    pub fn grow(&mut self, limit: usize) {
        self.limit = self.limit.max(limit);
    }

    /// Allows fewer bytes from now on and gives memory back; only an empty ring can.
    pub fn shrink(&mut self, limit: usize) {
        if self.is_empty() {
            self.limit = limit;
            self.buffer = Vec::new();
        }
    }

    /// Appends all of `bytes`, or nothing of them where they don't fit.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.room() {
            return false;
        }
        if bytes.is_empty() {
            return true;
        }
        self.make_room(self.len() + bytes.len());
        let at = self.index(self.end);
        let first = bytes.len().min(self.buffer.len() - at);
        let (head, tail) = bytes.split_at(first);
        self.buffer[at..at + first].copy_from_slice(head);
        self.buffer[..tail.len()].copy_from_slice(tail);
        self.end += bytes.len() as u64;
        true
    }

    /// Bytes from `offset` on, at most `max`, in one or two pieces. Empty where the ring holds none from there.
    pub fn slices(&self, offset: u64, max: usize) -> (&[u8], &[u8]) {
        if offset < self.start || offset >= self.end {
            return (&[], &[]);
        }
        let len = ((self.end - offset) as usize).min(max);
        let at = self.index(offset);
        let first = len.min(self.buffer.len() - at);
        (&self.buffer[at..at + first], &self.buffer[..len - first])
    }

    /// Appends what [`slices`](Self::slices) gives to `out`; returns how many bytes that were.
    pub fn copy(&self, offset: u64, max: usize, out: &mut impl BufMut) -> usize {
        let (head, tail) = self.slices(offset, max);
        out.put_slice(head);
        out.put_slice(tail);
        head.len() + tail.len()
    }

    /// Lets go of all bytes below `offset`.
    pub fn release(&mut self, offset: u64) {
        self.start = offset.clamp(self.start, self.end);
    }

    /// Forgets all bytes and continues at `offset`.
    pub fn restart(&mut self, offset: u64) {
        self.start = offset;
        self.end = offset;
    }

    fn index(&self, offset: u64) -> usize {
        (offset & (self.buffer.len() as u64 - 1)) as usize
    }

    fn make_room(&mut self, needed: usize) {
        if needed <= self.buffer.len() {
            return;
        }
        let mut buffer = vec![0; needed.next_power_of_two().max(4096)];
        let (head, tail) = self.slices(self.start, usize::MAX);
        let mask = buffer.len() as u64 - 1;
        for (offset, piece) in [(self.start, head), (self.start + head.len() as u64, tail)] {
            let at = (offset & mask) as usize;
            let first = piece.len().min(buffer.len() - at);
            buffer[at..at + first].copy_from_slice(&piece[..first]);
            buffer[..piece.len() - first].copy_from_slice(&piece[first..]);
        }
        self.buffer = buffer;
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({}..{} of {})", self.start, self.end, self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The ring agrees with a plain list of all bytes, whatever is pushed, released and read.
        #[test]
        fn a_ring_is_a_window_on_the_stream(
            begin in prop_oneof![Just(0u64), any::<u32>().prop_map(u64::from), Just(u64::MAX / 2)],
            limit in 1usize..20_000,
            steps in prop::collection::vec((0usize..9_000, 0u64..9_000, 0u64..12_000, 0usize..9_000), 1..40),
        ) {
            let mut ring = Ring::new(begin, limit);
            let mut all: Vec<u8> = Vec::new();
            for (push, release, read, max) in steps {
                let bytes: Vec<u8> = (0..push).map(|i| (all.len() + i) as u8 ^ (i >> 8) as u8).collect();
                let fits = push <= limit - ring.len();
                prop_assert_eq!(ring.push(&bytes), fits);
                if fits { all.extend(&bytes) }
                ring.release(ring.start() + release.min(ring.len() as u64));
                prop_assert!(ring.allocated() <= limit.next_power_of_two().max(4096));
                prop_assert_eq!(ring.end() - begin, all.len() as u64);
                let from = ring.start() + read;
                let mut got = Vec::new();
                let len = ring.copy(from, max, &mut got);
                prop_assert_eq!(len, got.len());
                let at = ((from - begin) as usize).min(all.len());
                let end = (at + max).min(all.len());
                prop_assert_eq!(&got[..], &all[at..end]);
            }
        }
    }

    #[test]
    fn what_is_gone_is_not_read() {
        let mut ring = Ring::new(10, 8);
        assert!(ring.push(b"abcdefgh"));
        assert!(!ring.push(b"x"));
        ring.release(14);
        assert_eq!(ring.slices(13, 8), (&[][..], &[][..]));
        assert_eq!(ring.slices(18, 8), (&[][..], &[][..]));
        assert_eq!(ring.slices(14, 2).0, b"ef");
        ring.release(u64::MAX);
        assert!(ring.is_empty());
        ring.shrink(4);
        assert_eq!((ring.limit(), ring.allocated()), (4, 0));
    }
}
