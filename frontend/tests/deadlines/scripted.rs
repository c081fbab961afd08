//! A backend that does what its script says, and keeps what it was asked and when.

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use podbay::v1::{self, open_connection_response::Event};
use podbay_frontend::backend::{Answer, Backend, Choice, Failure, Frames, Replica, Requests};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tonic::Status;

/// What one OpenConnection does.
pub enum Opening {
    /// Sends these events, then nothing more.
    Events(Vec<Event>),
    /// Fails at once.
    Fails(Failure),
    /// Sends these events, then breaks.
    Breaks(Vec<Event>),
}

#[derive(Default)]
pub struct State {
    pub openings: VecDeque<Opening>,
    pub opened: Vec<(Choice, String)>,
    pub dropped: usize,
    pub closings: VecDeque<Result<u32, Failure>>,
    /// When, and with which deadline.
    pub closed: Vec<(Instant, Duration)>,
    pub beats: Vec<v1::HeartbeatRequest>,
    pub beaten: Vec<Instant>,
    pub beat_answers: VecDeque<Result<v1::HeartbeatResponse, Failure>>,
}

#[derive(Clone, Default)]
pub struct Scripted(Arc<Mutex<State>>);

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

struct Dropped(Scripted);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.state().dropped += 1;
    }
}

pub fn replica(n: u16) -> Replica {
    Replica(([127, 0, 0, 1], n).into())
}

pub fn broken(n: u16) -> Failure {
    Failure::Broken(replica(n), Status::unknown("reset"))
}

impl Scripted {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Scripted {
    fn open_connection(
        &self,
        choice: Choice,
        request: v1::OpenConnectionRequest,
    ) -> BoxFuture<'_, Answer<Frames<v1::OpenConnectionResponse>>> {
        let opening = {
            let mut state = self.state();
            state.opened.push((choice, request.connection_id));
            state.openings.pop_front().unwrap_or(Opening::Fails(Failure::NoReplica))
        };
        let (events, breaks) = match opening {
            Opening::Fails(failure) => return async { Err(failure) }.boxed(),
            Opening::Events(events) => (events, false),
            Opening::Breaks(events) => (events, true),
        };
        let dropped = Dropped(self.clone());
        let events: Vec<_> =
            events.into_iter().map(|event| Ok(v1::OpenConnectionResponse { event: Some(event) })).collect();
        let end = if breaks {
            stream::once(async { Err(broken(1)) }).boxed()
        } else {
            stream::once(async move {
                let _dropped = dropped;
                std::future::pending().await
            })
            .boxed()
        };
        async move { Ok((replica(1), stream::iter(events).chain(end).boxed())) }.boxed()
    }

    fn close_connection(
        &self,
        _: Choice,
        _: v1::CloseConnectionRequest,
        deadline: Duration,
    ) -> BoxFuture<'_, Answer<v1::CloseConnectionResponse>> {
        let mut state = self.state();
        state.closed.push((Instant::now(), deadline));
        match state.closings.pop_front() {
            Some(Ok(pods_deleted)) => {
                async move { Ok((replica(1), v1::CloseConnectionResponse { pods_deleted })) }.boxed()
            }
            Some(Err(failure)) => async move { Err(failure) }.boxed(),
            None => std::future::pending().boxed(),
        }
    }

    fn heartbeat(
        &self,
        _: Choice,
        request: v1::HeartbeatRequest,
        _: Duration,
    ) -> BoxFuture<'_, Answer<v1::HeartbeatResponse>> {
        let mut state = self.state();
        state.beats.push(request);
        state.beaten.push(Instant::now());
        let answer = state.beat_answers.pop_front().unwrap_or(Err(Failure::NoReplica));
        async move { answer.map(|answer| (replica(1), answer)) }.boxed()
    }

    fn ack_exit(&self, _: Choice, _: v1::AckExitRequest, _: Duration) -> BoxFuture<'_, Answer<v1::AckExitResponse>> {
        async { Err(Failure::NoReplica) }.boxed()
    }

    fn run_session(&self, _: Choice, _: Requests) -> BoxFuture<'_, Answer<Frames<v1::RunSessionResponse>>> {
        async { Err(Failure::NoReplica) }.boxed()
    }
}
