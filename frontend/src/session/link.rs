//! One RunSession stream: its requests, its credit in both directions, and the answers that are awaited.

use crate::backend::Requests;
use podbay::{
    MAX_CREDIT,
    v1::{self, Stream, run_session_request::Frame},
};
use podbay_agent_wire::flow::{FlowError, Incoming, Outgoing};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// Frames on their way into the stream; the bound is what makes tasks wait, not what keeps data bounded.
const QUEUE: usize = 8;

/// The stream is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// The client's end of a stream.
#[derive(Debug)]
pub struct Link {
    requests: mpsc::Sender<v1::RunSessionRequest>,
    stdin: Mutex<Outgoing>,
    room: Notify,
    stdout: Mutex<Incoming>,
    stderr: Mutex<Incoming>,
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Option<v1::Refusal>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// A link, and the frames that it will send.
    pub fn new() -> (Self, Requests) {
        let (requests, frames) = mpsc::channel(QUEUE);
        let link = Self {
            requests,
            stdin: Mutex::new(Outgoing::new(0, 0)),
            room: Notify::new(),
            stdout: Mutex::new(Incoming::new(0, MAX_CREDIT)),
            stderr: Mutex::new(Incoming::new(0, MAX_CREDIT)),
            asked: Mutex::default(),
        };
        (link, ReceiverStream::new(frames))
    }

    /// Sends a frame. Cancel safe: it is sent or not.
    pub async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.requests.send(v1::RunSessionRequest { frame: Some(frame) }).await.map_err(|_| Gone)
    }

    /// Sends a request that is to be answered, or an Eof, with the next id. Ids go out in their order.
    pub async fn ask(
        &self,
        make: impl FnOnce(u64) -> Frame,
    ) -> Result<(u64, oneshot::Receiver<Option<v1::Refusal>>), Gone> {
        let permit = self.requests.reserve().await.map_err(|_| Gone)?;
        let (answer, answered) = oneshot::channel();
        let mut asked = lock(&self.asked);
        asked.last += 1;
        let id = asked.last;
        asked.waiting.insert(id, answer);
        permit.send(v1::RunSessionRequest { frame: Some(make(id)) });
        Ok((id, answered))
    }

    /// Nobody waits for this answer any more.
    pub fn forget(&self, id: u64) {
        lock(&self.asked).waiting.remove(&id);
    }

    /// An answer has come; one that nobody waits for is no fault, it was late.
    pub fn answered(&self, answer: v1::Answer) {
        if let Some(waiting) = lock(&self.asked).waiting.remove(&answer.id) {
            let _ = waiting.send(answer.refusal);
        }
    }

    /// The first credit for stdin.
    pub fn started(&self, started: &v1::Started) {
        *lock(&self.stdin) = Outgoing::new(started.stdin_offset, started.stdin_credit);
    }

    /// The output credit that Open tells.
    pub fn granted(&self) -> u64 {
        lock(&self.stdout).granted()
    }

    /// Bytes of stdin that may be sent; waits until there are some. Cancel safe.
    pub async fn room(&self) -> usize {
        loop {
            let room = lock(&self.stdin).room();
            if room > 0 {
                return usize::try_from(room).unwrap_or(usize::MAX);
            }
            self.room.notified().await;
        }
    }

    /// Takes room for `len` bytes of stdin, which [`room`](Self::room) has promised. Returns their offset.
    pub fn sending(&self, len: usize) -> u64 {
        lock(&self.stdin).send(len)
    }

    /// How much of stdin was sent.
    pub fn sent(&self) -> u64 {
        lock(&self.stdin).offset()
    }

    /// More room for stdin.
    pub fn credited(&self, credit: &v1::Credit) {
        if credit.stream() == Stream::Stdin && lock(&self.stdin).credit(credit.limit) {
            self.room.notify_one();
        }
    }

    /// Stdin that is safe at the other side.
    pub fn acknowledged(&self, ack: &v1::Ack) -> Result<(), FlowError> {
        if ack.stream() == Stream::Stdin { lock(&self.stdin).ack(ack.offset) } else { Ok(()) }
    }

    fn incoming(&self, stream: Stream) -> &Mutex<Incoming> {
        match stream {
            Stream::Stderr => &self.stderr,
            Stream::Stdout | Stream::Stdin | Stream::Unspecified => &self.stdout,
        }
    }

    /// Checks output that arrived.
    pub fn received(&self, data: &v1::Data) -> Result<(), FlowError> {
        lock(self.incoming(data.stream())).receive(data.offset, data.data.len())
    }

    /// Checks the end of an output stream.
    pub fn ended(&self, eof: &v1::Eof) -> Result<(), FlowError> {
        lock(self.incoming(eof.stream())).end(eof.offset)
    }

    /// The client has taken `len` bytes of output: grants more, now and then.
    pub async fn taken(&self, stream: Stream, len: usize) -> Result<(), Gone> {
        let (limit, offset) = {
            let mut incoming = lock(self.incoming(stream));
            (incoming.consume(len), incoming.consumed())
        };
        let Some(limit) = limit else { return Ok(()) };
        let stream = stream.into();
        self.send(Frame::Ack(v1::Ack { stream, offset })).await?;
        self.send(Frame::Credit(v1::Credit { stream, limit })).await
    }
}
