//! One output between the program and the client: kept for want of credit, and sent in frames.

use bytes::Bytes;
use podbay::{
    FRAME,
    v1::{self, Stream, run_session_response::Frame},
};
use podbay_agent_wire::flow::Outgoing;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Out {
    pub flow: Outgoing,
    pending: VecDeque<Bytes>,
    /// Bytes that are kept.
    pub held: usize,
    /// Its end is under way.
    pub ended: bool,
}

impl Out {
    pub fn new(credit: u64) -> Self {
        Self { flow: Outgoing::new(0, credit), pending: VecDeque::new(), held: 0, ended: false }
    }

    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.held += bytes.len();
            self.pending.push_back(bytes);
        }
    }

    /// Whether [`Self::next`] gives something.
    pub fn can_send(&self) -> bool {
        self.held > 0 && self.flow.room() > 0
    }

    /// The next bytes for which there is credit, as a frame of this stream.
    pub fn next(&mut self, stream: Stream) -> Option<Frame> {
        let room = usize::try_from(self.flow.room()).unwrap_or(usize::MAX).min(FRAME);
        let front = self.pending.front_mut().filter(|_| room > 0)?;
        let data = front.split_to(front.len().min(room));
        if front.is_empty() {
            self.pending.pop_front();
        }
        self.held -= data.len();
        let offset = self.flow.send(data.len());
        Some(Frame::Data(v1::Data { stream: stream.into(), offset, data }))
    }
}
