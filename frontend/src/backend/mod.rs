//! The backend side: what the frontend asks of it, and how calls find a replica that answers.
//!
//! [`Backend`] is the port; [`pool::Pool`] is its gRPC adapter. [`login`] keeps one connection: opens it, and closes it
//! when the client is gone. [`owner`] keeps the process's claim on all of them.

pub mod connector;
mod endpoint;
pub mod login;
pub mod owner;
pub mod phase;
pub mod pool;

pub use phase::{Phase, Terms};

use futures::{future::BoxFuture, stream::BoxStream};
use podbay::v1;
use std::{fmt, net::SocketAddr, time::Duration};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// One replica of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Replica(pub SocketAddr);

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which replica to call.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// This one, while it is healthy.
    pub prefer: Option<Replica>,
    /// None of these.
    pub avoid: Vec<Replica>,
}

/// A call's way over the replicas, each once, and then perhaps again.
#[derive(Debug, Default)]
pub struct Tour {
    /// For the next call.
    pub choice: Choice,
    last: Option<Failure>,
}

impl Tour {
    /// Begins with a replica, while it is healthy.
    pub fn preferring(replica: Replica) -> Self {
        Self { choice: Choice { prefer: Some(replica), avoid: Vec::new() }, last: None }
    }

    /// A call has failed. `Ok` is to try another replica at once; `Err` that all were tried, with the last failure that
    /// says something: the next call begins a new round.
    pub fn failed(&mut self, failure: Failure) -> Result<(), Failure> {
        if let Some(replica) = failure.replica() {
            self.choice.avoid.push(replica);
            self.last = Some(failure);
            Ok(())
        } else {
            self.choice.avoid.clear();
            Err(self.last.clone().unwrap_or(failure))
        }
    }
}

/// Why a call gave no answer, or no good one.
#[derive(Debug, Clone)]
pub enum Failure {
    /// No replica is known, or all were to be avoided.
    NoReplica,
    /// The replica could not be reached; it knows nothing of the call.
    NotSent(Replica, Status),
    /// The connection broke; the call may have had its effect.
    Broken(Replica, Status),
    /// The backend's own answer.
    Answered(Replica, Status),
}

impl Failure {
    /// The replica that failed.
    pub const fn replica(&self) -> Option<Replica> {
        match self {
            Self::NoReplica => None,
            Self::NotSent(replica, _) | Self::Broken(replica, _) | Self::Answered(replica, _) => Some(*replica),
        }
    }

    /// Whether another replica may answer where this one did not, for a call that is idempotent.
    pub fn may_retry(&self) -> bool {
        match self {
            Self::NoReplica | Self::NotSent(..) | Self::Broken(..) => true,
            Self::Answered(_, status) => {
                status.code() == Code::Unavailable
                    && podbay::refusal_of(status).reason() != v1::Reason::KubernetesUnavailable
            }
        }
    }

    /// Whether the call surely had no effect and another replica may answer: for a call that must not run twice. Of answers
    /// only the one of a replica that drains and began nothing: one that lost the API may have started the program.
    pub fn may_retry_once_only(&self) -> bool {
        match self {
            Self::NoReplica | Self::NotSent(..) => true,
            Self::Broken(..) => false,
            Self::Answered(_, status) => podbay::refusal_of(status).reason() == v1::Reason::Draining,
        }
    }

    /// The refusal for the user.
    pub fn refusal(&self) -> v1::Refusal {
        match self {
            Self::NoReplica | Self::NotSent(..) => v1::Refusal::new(
                v1::Reason::StreamLost,
                "no backend can be reached at the moment; try again in a few minutes",
            ),
            Self::Broken(..) => v1::Refusal::new(v1::Reason::StreamLost, "the connection to the backend broke"),
            Self::Answered(_, status) => podbay::refusal_of(status),
        }
    }

    /// For the log and for metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::NoReplica => Code::Unavailable,
            Self::NotSent(_, status) | Self::Broken(_, status) | Self::Answered(_, status) => status.code(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReplica => f.write_str("no replica of the backend is known"),
            Self::NotSent(replica, status) => write!(f, "{replica} can't be reached: {}", status.message()),
            Self::Broken(replica, status) => write!(f, "the connection to {replica} broke: {}", status.message()),
            Self::Answered(replica, status) => write!(f, "{replica}: {:?}: {}", status.code(), status.message()),
        }
    }
}

/// What a call that was answered gives.
pub type Answer<T> = Result<(Replica, T), Failure>;

/// Frames from the backend. Ends after the last one; dropping it cancels the call.
pub type Frames<T> = BoxStream<'static, Result<T, Failure>>;

/// Frames to the backend, of one session.
pub type Requests = ReceiverStream<v1::RunSessionRequest>;

/// What the frontend asks of the backend. Each call goes to one replica and is not repeated here.
///
/// Every future is cancel safe in this sense: dropping it cancels the call at the backend.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// Opens a connection.
    fn open_connection(
        &self,
        choice: Choice,
        request: v1::OpenConnectionRequest,
    ) -> BoxFuture<'_, Answer<Frames<v1::OpenConnectionResponse>>>;

    /// Closes a connection, within `deadline`.
    fn close_connection(
        &self,
        choice: Choice,
        request: v1::CloseConnectionRequest,
        deadline: Duration,
    ) -> BoxFuture<'_, Answer<v1::CloseConnectionResponse>>;

    /// Renews the owner's lease, within `deadline`.
    fn heartbeat(
        &self,
        choice: Choice,
        request: v1::HeartbeatRequest,
        deadline: Duration,
    ) -> BoxFuture<'_, Answer<v1::HeartbeatResponse>>;

    /// Says that an exit is known, within `deadline`.
    fn ack_exit(
        &self,
        choice: Choice,
        request: v1::AckExitRequest,
        deadline: Duration,
    ) -> BoxFuture<'_, Answer<v1::AckExitResponse>>;

    /// Runs a program.
    fn run_session(&self, choice: Choice, requests: Requests) -> BoxFuture<'_, Answer<Frames<v1::RunSessionResponse>>>;
}
