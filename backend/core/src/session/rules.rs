//! What the contract asks of a client's frames, whoever carries the program: on a link ([`super::durable`]) or on a stream of its own
//! ([`super::Machine`]). Pure.

use super::violation;
use crate::policy::{Ask, Security};
use podbay::{
    MAX_CREDIT,
    v1::{self, Reason, Refusal, Stream, run_session_request::Frame},
};

/// The largest Data frame that the contract allows.
pub(super) const MAX_DATA: usize = 64 * 1024;
/// The longest name of a signal.
const MAX_NAME: usize = 32;
/// Answers and the like that wait to be sent; beyond it the client is not read until it has read.
pub(super) const MAX_CONTROL: usize = 256;

/// The ids of Eof, Signal and Resize.
#[derive(Debug, Default)]
pub(super) struct Ids {
    last: u64,
}

impl Ids {
    /// The next one.
    pub fn take(&mut self, id: u64) -> Result<(), Refusal> {
        if id <= self.last {
            return Err(violation("the ids of Eof, Signal and Resize must grow, from 1"));
        }
        self.last = id;
        Ok(())
    }

    #[cfg(test)]
    pub const fn is_new(&self) -> bool {
        self.last == 0
    }
}

/// A frame behind Open.
pub(super) fn frame(request: v1::RunSessionRequest) -> Result<Frame, Refusal> {
    match request.frame {
        None => Err(violation("a frame is empty or of a kind that is not known here")),
        Some(Frame::Open(_)) => Err(violation("Open must be the first frame and only that")),
        Some(frame) => Ok(frame),
    }
}

/// One of the outputs, of the two that there are.
pub(super) fn output<T>(stream: Stream, stdout: T, stderr: T) -> Result<T, Refusal> {
    match stream {
        Stream::Stdout => Ok(stdout),
        Stream::Stderr => Ok(stderr),
        Stream::Stdin | Stream::Unspecified => Err(violation("a client grants and acknowledges output only")),
    }
}

/// Data from a client; where it begins is checked against the stream.
pub(super) fn data(data: &v1::Data) -> Result<(), Refusal> {
    if data.stream() != Stream::Stdin || data.data.is_empty() || data.data.len() > MAX_DATA {
        return Err(violation("a client sends data of stdin only, 1 to 65536 bytes in a frame"));
    }
    Ok(())
}

/// A credit for an output of which so much was sent.
pub(super) fn credit(limit: u64, sent: u64) -> Result<(), Refusal> {
    if limit > sent.saturating_add(MAX_CREDIT) {
        return Err(violation("a credit is at most 256 KiB beyond what was sent"));
    }
    Ok(())
}

/// The end of a stream, which can only be stdin's.
pub(super) fn eof(eof: &v1::Eof) -> Result<(), Refusal> {
    if eof.stream() == Stream::Stdin { Ok(()) } else { Err(violation("a client can end stdin only")) }
}

/// A signal; `Some` is the answer where the policy forbids it.
pub(super) fn signal(signal: &v1::Signal, policy: &Security) -> Result<Option<Refusal>, Refusal> {
    if signal.name.len() > MAX_NAME {
        return Err(violation("a signal's name has at most 32 bytes"));
    }
    let denied = policy.admits(Ask::Signal(&signal.name)).err();
    Ok(denied.map(|denied| {
        tracing::info!(code = denied.code(), name = signal.name, "refused by policy");
        denied.refusal()
    }))
}

/// A size in (columns, rows); `None` where one of them is not known.
pub(super) fn size(size: v1::WindowSize) -> Result<Option<(u16, u16)>, Refusal> {
    match (u16::try_from(size.columns), u16::try_from(size.rows)) {
        (Ok(columns), Ok(rows)) => Ok((columns > 0 && rows > 0).then_some((columns, rows))),
        _ => Err(violation("a terminal has at most 65535 columns and rows")),
    }
}

/// The answer to a size without terminal.
pub(super) fn no_terminal() -> Refusal {
    Refusal::new(Reason::InvalidRequest, "this program has no terminal")
}
