//! One connection to the socket: the bytes of one link.

use bytes::{Buf as _, BytesMut};
use podbay_agent_wire::host::{Host, LinkKey};
use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// Bytes that wait for a peer outside of the host: one write's worth.
const BATCH: usize = 64 * 1024;
/// Writes to one peer before others have their turn.
const TURN: usize = 4;
/// A peer that was told goodbye may take so long to read it.
const CLOSING: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    out: BytesMut,
    closing_since: Option<Instant>,
}

/// Whether the peer is there still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    There,
    Gone,
}

impl Peer {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, out: BytesMut::new(), closing_since: None })
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether bytes wait for the peer to take them.
    pub fn waits(&self) -> bool {
        !self.out.is_empty()
    }

    /// When it is given up, if it was told goodbye.
    pub fn deadline(&self) -> Option<Instant> {
        Some(self.closing_since? + CLOSING)
    }

    /// Reads once.
    pub fn read(&mut self, key: LinkKey, host: &mut Host, buffer: &mut [u8], now: Instant) -> Presence {
        match (&self.stream).read(buffer) {
            Ok(0) => Presence::Gone,
            Ok(len) => {
                host.receive(key, &buffer[..len], now);
                Presence::There
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Presence::There,
            Err(_) => Presence::Gone,
        }
    }

    /// Writes what there is, as far as the peer takes it.
    pub fn write(&mut self, key: LinkKey, host: &mut Host, now: Instant) -> Presence {
        for _ in 0..TURN {
            if self.out.is_empty() {
                host.transmit(key, &mut self.out, BATCH, now);
            }
            if self.out.is_empty() {
                break;
            }
            match (&self.stream).write(&self.out) {
                Ok(len) => self.out.advance(len),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Presence::Gone,
            }
        }
        if !host.is_closing(key) {
            return Presence::There;
        }
        let since = *self.closing_since.get_or_insert(now);
        let all_sent = self.out.is_empty() && !host.wants_output(key);
        if all_sent || now >= since + CLOSING { Presence::Gone } else { Presence::There }
    }
}
