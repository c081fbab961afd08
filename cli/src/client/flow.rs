//! Where a session's streams stand, so that another stream of frames can go on there. No I/O.

use bytes::Bytes;
use podbay::{
    FRAME, MAX_CREDIT,
    v1::{self, Stream, run_session_request::Frame},
};
use std::collections::VecDeque;

/// What of stdin is not safe yet.
#[derive(Debug, Default)]
pub struct Input {
    /// Not acknowledged, in order; the first byte's offset is `from`.
    kept: VecDeque<Bytes>,
    from: u64,
    /// How many of `kept` are sent.
    sent: usize,
    /// The offset behind those.
    at: u64,
    limit: u64,
    ended: bool,
    eof_sent: bool,
}

impl Input {
    /// Whether more may be read: all that was read is sent.
    pub fn wants(&self) -> bool {
        !self.ended && self.sent == self.kept.len()
    }

    /// What was read.
    pub fn push(&mut self, mut data: Bytes) {
        while !data.is_empty() {
            self.kept.push_back(data.split_to(data.len().min(FRAME)));
        }
    }

    /// There is no more.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// A stream of frames begins: it takes bytes from `offset`, up to `limit`.
    pub fn begin(&mut self, offset: u64, limit: u64) {
        self.ack(offset);
        (self.sent, self.at, self.limit, self.eof_sent) = (0, self.from, limit, false);
    }

    /// A client without memory: stdin continues where the pod says.
    pub fn adopt(&mut self, offset: u64) {
        self.from = offset;
    }

    /// More may be sent.
    pub fn credit(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// Everything below is safe.
    pub fn ack(&mut self, offset: u64) {
        while let Some(first) = self.kept.front_mut() {
            let len = first.len() as u64;
            if offset <= self.from {
                return;
            }
            if offset < self.from + len {
                // Part of a piece that is sent: the rest is a piece of its own.
                let gone = usize::try_from(offset - self.from).unwrap_or(usize::MAX);
                *first = first.slice(gone.min(first.len())..);
                self.from = offset;
                return;
            }
            self.from += len;
            self.kept.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }

    /// The next frame that may be sent; `id` is for an Eof.
    pub fn next(&mut self, id: impl FnOnce() -> u64) -> Option<Frame> {
        let stream = Stream::Stdin.into();
        if let Some(piece) = self.kept.get(self.sent) {
            let room = usize::try_from(self.limit.saturating_sub(self.at)).unwrap_or(usize::MAX);
            if room == 0 {
                return None;
            }
            let mut piece = piece.clone();
            if piece.len() > room {
                let rest = piece.split_off(room);
                self.kept.insert(self.sent + 1, rest);
                if let Some(first) = self.kept.get_mut(self.sent) {
                    *first = piece.clone();
                }
            }
            let offset = self.at;
            self.at += piece.len() as u64;
            self.sent += 1;
            return Some(Frame::Data(v1::Data { stream, offset, data: piece }));
        }
        if self.ended && !self.eof_sent {
            self.eof_sent = true;
            return Some(Frame::Eof(v1::Eof { stream, offset: self.at, id: id() }));
        }
        None
    }

    /// Whether all that was read is safe.
    pub fn is_safe(&self) -> bool {
        self.kept.is_empty()
    }
}

/// An output, from the pod to here.
#[derive(Debug, Default)]
pub struct Output {
    /// Behind the last byte that came.
    pub received: u64,
    /// Behind the last byte that was written.
    pub written: u64,
    /// Bytes that came and are not written: gaps are in neither.
    pending: u64,
    granted: u64,
}

impl Output {
    /// From an earlier client's offset.
    pub fn from(offset: u64) -> Self {
        Self { received: offset, written: offset, ..Self::default() }
    }

    /// The first credit of a stream of frames.
    pub fn first_credit(&mut self) -> u64 {
        self.granted = self.received - self.pending + MAX_CREDIT;
        self.granted
    }

    /// Bytes that came; an error where they do not continue.
    pub fn data(&mut self, data: &v1::Data) -> Result<u64, String> {
        if data.offset != self.received {
            return Err(format!("output at {} where {} was due", data.offset, self.received));
        }
        self.received += data.data.len() as u64;
        self.pending += data.data.len() as u64;
        Ok(self.received)
    }

    /// What was dropped by agreement.
    pub fn gap(&mut self, stream: Stream, to: u64) -> Option<[Frame; 2]> {
        self.received = self.received.max(to);
        self.wrote(stream, self.written, 0)
    }

    /// So many bytes more were written, up to `end`; gives the frames that tell so, not for each few bytes.
    pub fn wrote(&mut self, stream: Stream, end: u64, len: u64) -> Option<[Frame; 2]> {
        self.pending = self.pending.saturating_sub(len);
        self.written = if self.pending == 0 { self.received } else { self.written.max(end) };
        let limit = self.written + MAX_CREDIT;
        if limit < self.granted + MAX_CREDIT / 4 && self.pending > 0 {
            return None;
        }
        self.granted = self.granted.max(limit);
        let stream = stream.into();
        Some([
            Frame::Ack(v1::Ack { stream, offset: self.written }),
            Frame::Credit(v1::Credit { stream, limit: self.granted }),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(input: &mut Input) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(frame) = input.next(|| 1) {
            match frame {
                Frame::Data(data) => all.extend_from_slice(&data.data),
                other => assert!(matches!(other, Frame::Eof(_))),
            }
        }
        all
    }

    #[test]
    fn stdin_goes_on_where_the_pod_has_it() {
        let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        for (first, held) in [(100_000, 70_001), (100_000, 100_000), (1, 0), (50_000, 32_768), (200_000, 199_999)] {
            let mut input = Input::default();
            input.begin(0, first);
            input.push(Bytes::from(data.clone()));
            input.end();
            assert_eq!(sent(&mut input), data[..first as usize]);
            // The stream breaks; the pod has a part of what was sent, some of it acknowledged.
            input.ack(held / 2);
            input.begin(held, u64::MAX);
            assert_eq!(sent(&mut input), data[held as usize..], "{first} {held}");
            assert!(!input.is_safe());
            input.ack(data.len() as u64);
            assert!(input.is_safe());
        }
    }

    #[test]
    fn output_is_granted_ahead_of_what_was_written() {
        let mut output = Output::from(10);
        assert_eq!(output.first_credit(), 10 + MAX_CREDIT);
        let data = |offset, len| v1::Data { stream: 2, offset, data: Bytes::from(vec![0; len]) };
        assert_eq!(output.data(&data(10, 100)), Ok(110));
        assert!(output.data(&data(111, 1)).is_err());
        assert!(output.wrote(Stream::Stdout, 50, 40).is_none());
        assert!(output.wrote(Stream::Stdout, 110, 60).is_some(), "all that came is written");
        // Behind a gap the credit that was given ends nowhere near.
        let told = output.gap(Stream::Stdout, 1 << 30).expect("new credit");
        assert!(matches!(&told[1], Frame::Credit(credit) if credit.limit == (1 << 30) + MAX_CREDIT));
        assert_eq!(output.data(&data(1 << 30, 1)), Ok((1 << 30) + 1));
        assert_eq!(output.first_credit(), (1 << 30) + MAX_CREDIT);
    }
}
