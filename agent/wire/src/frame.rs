//! Frames: a header of 13 bytes, then the payload.
//!
//! | bytes | field | data | credit, ack, end | control |
//! | --- | --- | --- | --- | --- |
//! | 0 | kind | `0x10 + stream` | `0x20`, `0x30`, `0x40` + stream | `0x01` |
//! | 1–2 | program | its number on the link | the same | 0 |
//! | 3–4 | length | of the payload, 1 to 32768 | 0 | 0 |
//! | 5–12 | offset | of the first byte | the limit; what is safe; the stream's length | length of the payload |
//!
//! Numbers are big-endian. Streams: 0 stdin, 1 stdout, 2 stderr. A control payload is one prost message. Each direction begins
//! with [`MAGIC`], so that a peer that is no agent (a usage message, a shell's error) is told from a broken one.

use bytes::{Buf as _, BufMut, Bytes, BytesMut};
use prost::Message;
use std::marker::PhantomData;

/// The first bytes of each direction. Not text, so no program's message begins so by chance.
pub const MAGIC: [u8; 8] = *b"\x00podbay\x01";
/// Bytes of a header.
pub const HEADER: usize = 13;
/// The most bytes of one data frame.
pub const MAX_DATA: usize = 32 * 1024;
/// The longest control message to an agent: a command line of 128 KiB and an environment of 64 KiB (the contract's bounds), and
/// their framing.
pub const MAX_TO_AGENT: usize = 256 * 1024;
/// The longest control message from an agent: a list of sessions.
pub const MAX_TO_BACKEND: usize = 64 * 1024;
/// The highest offset that a stream may reach: so far from the end of `u64` that no sum overflows (four exbibytes).
pub const MAX_OFFSET: u64 = 1 << 62;
/// The version of the protocol.
pub const VERSION: u32 = 1;

/// A program's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// To the program.
    Stdin,
    /// From the program; with a terminal all output.
    Stdout,
    /// From the program; never with a terminal.
    Stderr,
}

impl Stream {
    const fn number(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// A frame; `C` is the control message of its direction.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame<C> {
    /// A control message.
    Control(C),
    /// Bytes of a stream.
    Data {
        /// Whose.
        program: u16,
        /// Which.
        stream: Stream,
        /// Of the first byte.
        offset: u64,
        /// 1 to [`MAX_DATA`] bytes.
        data: Bytes,
    },
    /// The receiver of this frame may send the stream's bytes below `limit`.
    Credit {
        /// Whose.
        program: u16,
        /// Which.
        stream: Stream,
        /// An absolute offset.
        limit: u64,
    },
    /// The sender of this frame holds (stdin) or handed on (output) everything below `offset`.
    Ack {
        /// Whose.
        program: u16,
        /// Which.
        stream: Stream,
        /// An absolute offset.
        offset: u64,
    },
    /// The output stream has ended at `offset`. (Stdin's end is a message, since it is a request with an answer.)
    End {
        /// Whose.
        program: u16,
        /// Which.
        stream: Stream,
        /// Its length.
        offset: u64,
    },
}

/// These bytes are no frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not begin with [`MAGIC`]: the peer is no podbay-agent. The first bytes, made printable, may tell what it is.
    #[error("the peer is no podbay-agent; it says: {0}")]
    NotAnAgent(String),
    /// No such kind of frame.
    #[error("a frame of unknown kind {0:#04x}")]
    Kind(u8),
    /// A length that this kind of frame can't have.
    #[error("a frame of kind {kind:#04x} with length {length}")]
    Length {
        /// The kind.
        kind: u8,
        /// The length.
        length: u64,
    },
    /// The control message can't be read.
    #[error("a control message that can't be read: {0}")]
    Control(String),
}

const CONTROL: u8 = 0x01;
const DATA: u8 = 0x10;
const CREDIT: u8 = 0x20;
const ACK: u8 = 0x30;
const END: u8 = 0x40;

/// A header on the stack: for data the payload follows, from wherever it lies.
pub fn header(kind: u8, program: u16, length: u16, offset: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let mut out = &mut header[..];
    out.put_u8(kind);
    out.put_u16(program);
    out.put_u16(length);
    out.put_u64(offset);
    header
}

/// The header of a data frame of `length` bytes (at most [`MAX_DATA`]).
pub fn data_header(program: u16, stream: Stream, offset: u64, length: usize) -> [u8; HEADER] {
    debug_assert!(length > 0 && length <= MAX_DATA, "cut by the caller");
    header(DATA | stream.number(), program, length as u16, offset)
}

/// Appends a credit frame.
pub fn put_credit(program: u16, stream: Stream, limit: u64, out: &mut impl BufMut) {
    out.put_slice(&header(CREDIT | stream.number(), program, 0, limit));
}

/// Appends an ack frame.
pub fn put_ack(program: u16, stream: Stream, offset: u64, out: &mut impl BufMut) {
    out.put_slice(&header(ACK | stream.number(), program, 0, offset));
}

/// Appends an end frame.
pub fn put_end(program: u16, stream: Stream, offset: u64, out: &mut impl BufMut) {
    out.put_slice(&header(END | stream.number(), program, 0, offset));
}

/// Appends a control frame.
pub fn put_control(message: &impl Message, out: &mut BytesMut) {
    let length = message.encoded_len();
    out.reserve(HEADER + length);
    out.put_slice(&header(CONTROL, 0, 0, length as u64));
    message.encode_raw(out);
}

/// An incremental decoder of one direction of a link, over arbitrary cuts.
///
/// It holds at most one frame: memory is bounded by the longest control message, and nothing is allocated by a length that was not
/// checked. Where the [`Bytes`] of a frame are dropped before the next [`push`](Self::push), its one buffer is used
/// again and again.
#[derive(Debug)]
pub struct Decoder<C> {
    buffer: BytesMut,
    begun: bool,
    max_control: usize,
    message: PhantomData<C>,
}

impl<C: Message + Default> Decoder<C> {
    /// Control messages may have `max_control` bytes.
    pub fn new(max_control: usize) -> Self {
        Self { buffer: BytesMut::new(), begun: false, max_control, message: PhantomData }
    }

    /// Appends bytes that arrived. Then call [`next`](Self::next) until it gives `None`.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait for the rest of their frame, or for [`next`](Self::next).
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Whether [`MAGIC`] has arrived.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// The bytes that arrived in place of [`MAGIC`], for a message: call when the stream ended before [`begun`](Self::begun).
    pub fn sample(&self) -> String {
        printable(&self.buffer)
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// After one, the stream can't be read further.
    #[expect(clippy::should_implement_trait, reason = "it is no iterator: None only means not yet")]
    pub fn next(&mut self) -> Result<Option<Frame<C>>, FrameError> {
        if !self.begun {
            let have = self.buffer.len().min(MAGIC.len());
            if self.buffer[..have] != MAGIC[..have] {
                return Err(FrameError::NotAnAgent(self.sample()));
            }
            if have < MAGIC.len() {
                return Ok(None);
            }
            self.buffer.advance(have);
            self.begun = true;
        }
        let Some(mut header) = self.buffer.get(..HEADER) else { return Ok(None) };
        let kind = header.get_u8();
        let program = header.get_u16();
        let length = header.get_u16();
        let offset = header.get_u64();
        if kind == CONTROL {
            let bad = FrameError::Length { kind, length: offset };
            let length = usize::try_from(offset).ok().filter(|&length| length <= self.max_control).ok_or(bad)?;
            let Some(payload) = self.take(length) else { return Ok(None) };
            let message = C::decode(payload).map_err(|error| FrameError::Control(error.to_string()))?;
            return Ok(Some(Frame::Control(message)));
        }
        let stream = match kind & 0x0f {
            0 => Stream::Stdin,
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return Err(FrameError::Kind(kind)),
        };
        let length_ok = match kind & 0xf0 {
            DATA => (1..=MAX_DATA).contains(&usize::from(length)),
            CREDIT | ACK | END => length == 0,
            _ => return Err(FrameError::Kind(kind)),
        };
        if !length_ok {
            return Err(FrameError::Length { kind, length: length.into() });
        }
        let Some(data) = self.take(length.into()) else { return Ok(None) };
        Ok(Some(match kind & 0xf0 {
            CREDIT => Frame::Credit { program, stream, limit: offset },
            ACK => Frame::Ack { program, stream, offset },
            END => Frame::End { program, stream, offset },
            _ => Frame::Data { program, stream, offset, data },
        }))
    }

    /// Takes a frame's header and payload off the buffer once both are there.
    fn take(&mut self, length: usize) -> Option<Bytes> {
        if self.buffer.len() < HEADER + length {
            return None;
        }
        self.buffer.advance(HEADER);
        Some(self.buffer.split_to(length).freeze())
    }
}

/// Decodes all frames in `bytes` as one direction of a link: what the fuzzer calls. Returns how many there were.
pub fn decode_all<C: Message + Default>(bytes: &[u8], max_control: usize) -> Result<usize, FrameError> {
    let mut decoder = Decoder::<C>::new(max_control);
    decoder.push(bytes);
    let mut count = 0;
    while decoder.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// At most 200 characters of the first line with something on it.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(800)]);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    line.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Ping, ToAgent, to_agent};
    use proptest::prelude::*;

    fn ping(id: u64) -> ToAgent {
        ToAgent { message: Some(to_agent::Message::Ping(Ping { id })) }
    }

    fn any_frame() -> impl Strategy<Value = Frame<ToAgent>> {
        let stream = prop_oneof![Just(Stream::Stdin), Just(Stream::Stdout), Just(Stream::Stderr)];
        let data = prop_oneof![1usize..20, Just(MAX_DATA)].prop_map(|len| Bytes::from(vec![len as u8; len]));
        (any::<u16>(), stream, any::<u64>(), data, 0..5).prop_map(
            |(program, stream, offset, data, which)| match which {
                0 => Frame::Control(ping(offset)),
                1 => Frame::Data { program, stream, offset, data },
                2 => Frame::Credit { program, stream, limit: offset },
                3 => Frame::Ack { program, stream, offset },
                _ => Frame::End { program, stream, offset },
            },
        )
    }

    fn encode(frame: &Frame<ToAgent>, out: &mut BytesMut) {
        match frame {
            Frame::Control(message) => put_control(message, out),
            Frame::Data { program, stream, offset, data } => {
                out.put_slice(&data_header(*program, *stream, *offset, data.len()));
                out.put_slice(data);
            }
            Frame::Credit { program, stream, limit } => put_credit(*program, *stream, *limit, out),
            Frame::Ack { program, stream, offset } => put_ack(*program, *stream, *offset, out),
            Frame::End { program, stream, offset } => put_end(*program, *stream, *offset, out),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_over_any_cuts(
            frames in prop::collection::vec(any_frame(), 0..12),
            cuts in prop::collection::vec(1usize..40_000, 1..20),
        ) {
            let mut bytes = BytesMut::new();
            bytes.put_slice(&MAGIC);
            for frame in &frames { encode(frame, &mut bytes) }
            let mut decoder = Decoder::<ToAgent>::new(100);
            let mut got = Vec::new();
            let mut cuts = cuts.iter().cycle();
            while !bytes.is_empty() {
                let cut = (*cuts.next().unwrap_or(&1)).min(bytes.len());
                decoder.push(&bytes.split_to(cut));
                while let Some(frame) = decoder.next().expect("frames") { got.push(frame) }
            }
            prop_assert_eq!(got, frames);
            prop_assert_eq!(decoder.buffered(), 0);
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if magic { bytes.splice(..0, MAGIC); }
            let _ = decode_all::<ToAgent>(&bytes, MAX_TO_AGENT);
        }
    }

    #[test]
    fn what_is_no_frame_is_named() {
        let decode = |bytes: &[u8]| {
            let mut decoder = Decoder::<ToAgent>::new(100);
            decoder.push(&MAGIC);
            decoder.push(bytes);
            decoder.next().expect_err("no frame")
        };
        assert_eq!(decode(&header(0, 0, 0, 0)), FrameError::Kind(0));
        assert_eq!(decode(&header(0x13, 0, 1, 0)), FrameError::Kind(0x13));
        assert_eq!(decode(&header(0x50, 0, 1, 0)), FrameError::Kind(0x50));
        assert_eq!(decode(&header(0x10, 0, 0, 0)), FrameError::Length { kind: 0x10, length: 0 });
        assert_eq!(decode(&header(0x11, 0, 32769, 0)), FrameError::Length { kind: 0x11, length: 32769 });
        assert_eq!(decode(&header(0x20, 0, 1, 0)), FrameError::Length { kind: 0x20, length: 1 });
        assert_eq!(decode(&header(1, 0, 0, u64::MAX)), FrameError::Length { kind: 1, length: u64::MAX });
        let mut garbage = header(1, 0, 0, 3).to_vec();
        garbage.extend([0xff; 3]);
        assert!(matches!(decode(&garbage), FrameError::Control(_)));
    }

    #[test]
    fn a_peer_that_is_no_agent_is_quoted() {
        let mut decoder = Decoder::<ToAgent>::new(100);
        decoder.push(b"\r\nusage:\tcontainerssh-agent console\nmore");
        assert_eq!(decoder.next(), Err(FrameError::NotAnAgent("usage:?containerssh-agent console".into())));
        let mut decoder = Decoder::<ToAgent>::new(100);
        decoder.push(&MAGIC[..5]);
        assert_eq!(decoder.next(), Ok(None));
    }

    #[test]
    fn one_buffer_is_used_again() {
        let mut decoder = Decoder::<ToAgent>::new(100);
        decoder.push(&MAGIC);
        let mut frame = data_header(1, Stream::Stdin, 0, MAX_DATA).to_vec();
        frame.resize(HEADER + MAX_DATA, 7);
        for _ in 0..1000 {
            decoder.push(&frame);
            assert!(matches!(decoder.next(), Ok(Some(Frame::Data { .. }))));
        }
        assert!(decoder.buffer.capacity() <= 2 * (HEADER + MAX_DATA), "{}", decoder.buffer.capacity());
    }
}
