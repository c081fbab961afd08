//! One session's link to the backend: its state over all its streams, and the answers that are awaited.
//!
//! Tasks put what they have into the state ([`ClientSession`]); [`Link::write`] carries it into whatever stream there is.

use podbay::v1::{self, Stream, run_session_request::Frame};
use podbay_frontend_core::{ClientSession, Event, Violation};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, mpsc, oneshot};

/// Frames on their way into a stream; the bound is what makes the writer wait, not what keeps data bounded.
const QUEUE: usize = 8;

/// Where frames of one stream go.
pub type Requests = mpsc::Sender<v1::RunSessionRequest>;

/// A session's state, shared by its tasks.
#[derive(Debug)]
pub struct Link {
    state: Mutex<State>,
    /// There may be a frame to send.
    outgoing: Notify,
    /// There may be room for stdin.
    room: Notify,
}

#[derive(Debug)]
struct State {
    session: ClientSession,
    waiting: HashMap<u64, oneshot::Sender<Option<v1::Refusal>>>,
}

impl Link {
    /// A link before its first stream.
    pub fn new(terminal: bool) -> Self {
        let state = State { session: ClientSession::new(terminal), waiting: HashMap::new() };
        Self { state: Mutex::new(state), outgoing: Notify::new(), room: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream's requests, of which `open` is the first.
    pub fn stream(&self, mut open: v1::Open) -> (Requests, crate::backend::Requests) {
        self.state().session.open(&mut open);
        let (requests, frames) = mpsc::channel(QUEUE);
        // The receiver is here: there is room for a first frame.
        let _ = requests.try_send(v1::RunSessionRequest { frame: Some(Frame::Open(open)) });
        (requests, frames.into())
    }

    /// What was under way on the last stream is not known to have arrived: the next one goes on from there.
    pub fn reopen(&self) {
        self.state().session.reopen();
    }

    /// Whether the program outlives its streams.
    pub fn is_durable(&self) -> bool {
        self.state().session.is_durable()
    }

    /// Carries frames into a stream for as long as it is polled and the stream is there. Cancel safe only together with
    /// [`Self::reopen`]: the frame in hand may or may not have gone.
    pub async fn write(&self, requests: &Requests) -> std::convert::Infallible {
        loop {
            // The stream's reader tells why it is gone.
            let Ok(permit) = requests.reserve().await else { return std::future::pending().await };
            let frame = self.state().session.next_frame();
            if let Some(frame) = frame {
                permit.send(frame);
            } else {
                drop(permit);
                self.outgoing.notified().await;
            }
        }
    }

    /// Gives the program up on this stream.
    pub async fn hang_up(&self, requests: &Requests) {
        self.state().session.hang_up();
        while !self.state().session.has_hung_up() {
            let Ok(permit) = requests.reserve().await else { return };
            let frame = self.state().session.next_frame();
            match frame {
                Some(frame) => permit.send(frame),
                None => return,
            }
        }
    }

    /// Takes a frame from a stream.
    pub fn receive(&self, frame: v1::RunSessionResponse) -> Result<Event, Violation> {
        let mut state = self.state();
        let event = state.session.receive(frame)?;
        match &event {
            Event::Room | Event::Started(_) => {
                self.room.notify_one();
                self.outgoing.notify_one();
            }
            Event::Answered(id, refusal) => {
                // One that nobody waits for is no fault, it was late.
                if let Some(waiting) = state.waiting.remove(id) {
                    let _ = waiting.send(refusal.clone());
                }
            }
            Event::Nothing
            | Event::Progress(_)
            | Event::Data(_)
            | Event::Notice(_)
            | Event::Gap(_)
            | Event::Moving
            | Event::Exit(_) => {}
        }
        Ok(event)
    }

    /// Asks for something that is to be answered.
    pub fn ask(&self, make: impl FnOnce(u64) -> Frame) -> (u64, oneshot::Receiver<Option<v1::Refusal>>) {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state();
        let id = state.session.ask(make);
        state.waiting.insert(id, answer);
        drop(state);
        self.outgoing.notify_one();
        (id, answered)
    }

    /// Nobody waits for this answer any more.
    pub fn forget(&self, id: u64) {
        let mut state = self.state();
        state.waiting.remove(&id);
        state.session.forget(id);
    }

    /// Bytes of stdin that may be pushed; waits until there are some. Cancel safe.
    pub async fn room(&self) -> usize {
        loop {
            let room = self.state().session.room();
            if room > 0 {
                return room;
            }
            self.room.notified().await;
        }
    }

    /// Stdin, at most what [`room`](Self::room) has promised to its one caller.
    pub fn push(&self, bytes: bytes::Bytes) {
        self.state().session.push(bytes);
        self.outgoing.notify_one();
    }

    /// No more stdin.
    pub fn end_stdin(&self) {
        self.state().session.end_stdin();
        self.outgoing.notify_one();
    }

    /// The client has taken `len` bytes of output.
    pub fn taken(&self, stream: Stream, len: usize) {
        self.state().session.taken(stream, len);
        self.outgoing.notify_one();
    }
}
