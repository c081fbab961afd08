//! What a client tells its user.

use super::Key;
use crate::{
    flow::FlowError,
    frame::{FrameError, Stream},
    id::{Attempt, Instance, SessionId},
    program::Exit,
    proto::{self, Reason},
};
use bytes::Bytes;
use std::time::Duration;

/// What happened. Those with a `key` of a program that the user closed come no more after [`Event::Closed`].
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The link is up.
    Linked {
        /// The supervisor's run.
        instance: Instance,
        /// Its version, for logs.
        agent_version: String,
        /// See [`crate::host::FEATURE_SPILL`].
        features: u64,
        /// Bytes that its windows share.
        memory_budget: u64,
    },
    /// The program runs, and this client has it. Once for each key.
    Started {
        /// Which.
        key: Key,
        /// With what attempt.
        attempt: Attempt,
        /// It ran before.
        resumed: bool,
        /// Where stdin continues.
        stdin_offset: u64,
        /// How far it may go now.
        stdin_credit: u64,
        /// It has ended there.
        stdin_ended: bool,
        /// In the pod.
        pid: u32,
        /// Whether it has one.
        terminal: bool,
        /// How long it has run; `None` from a supervisor that does not tell.
        ran: Option<Duration>,
        /// It has ended; its exit follows its output.
        ended: bool,
    },
    /// The program goes on over a new link.
    Relinked {
        /// Which.
        key: Key,
    },
    /// Output, within the credit, in order.
    Data {
        /// Whose.
        key: Key,
        /// Stdout or stderr.
        stream: Stream,
        /// Of the first byte.
        offset: u64,
        /// A slice of what was received.
        data: Bytes,
    },
    /// Output was dropped by agreement; it continues at `to`.
    Gap {
        /// Whose.
        key: Key,
        /// Stdout or stderr.
        stream: Stream,
        /// First missing byte.
        from: u64,
        /// First byte that follows.
        to: u64,
    },
    /// An output has ended.
    End {
        /// Whose.
        key: Key,
        /// Stdout or stderr.
        stream: Stream,
        /// Its length.
        offset: u64,
    },
    /// Stdin may go on up to there.
    Credit {
        /// Whose.
        key: Key,
        /// Absolute.
        limit: u64,
    },
    /// Stdin is held in the pod up to there.
    Ack {
        /// Whose.
        key: Key,
        /// Absolute.
        offset: u64,
    },
    /// An Eof, Signal or Resize is done (`Ok`) or refused.
    Answer {
        /// Whose.
        key: Key,
        /// The request.
        id: u64,
        /// Why not, and a sentence for the log.
        result: Result<(), (Reason, String)>,
    },
    /// How the program ended; once, after all output. The supervisor keeps it until [`Client::ack_exit`].
    Exit {
        /// Which.
        key: Key,
        /// How.
        exit: Exit,
        /// The container was being stopped when it ended, which may be why.
        stopping: bool,
    },
    /// The client does not have the program (any more): it could not be started, was taken over, given up, or is gone.
    Closed {
        /// Which; not used again.
        key: Key,
        /// Why. [`Reason::InstanceDiffers`] and [`Reason::UnknownSession`]: the program and its record are gone.
        reason: Reason,
        /// For the user or the log; may be empty.
        message: String,
    },
    /// The answer to [`Client::ack_exit`].
    Forgotten {
        /// Which.
        session: SessionId,
        /// It runs still: nothing was forgotten.
        running: bool,
    },
    /// The answer to [`Client::list`].
    Listed {
        /// What `list` gave.
        id: u64,
        /// In no order.
        sessions: Vec<proto::Session>,
    },
    /// The answer to [`Client::write_file`].
    FileWritten {
        /// What `write_file` gave.
        id: u64,
        /// Why not.
        result: Result<(), (Reason, String)>,
    },
}

/// The link can't go on: drop its byte stream. Programs run on; connect again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// See [`FrameError`]; [`FrameError::NotAnAgent`] means that the container has no podbay-agent at that path.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The agent broke the protocol.
    #[error("the agent broke the protocol: {0}")]
    Violation(String),
    /// The agent speaks no version that we speak.
    #[error("the agent speaks versions {min} to {max} of the protocol, not {ours}")]
    Version {
        /// Its lowest.
        min: u32,
        /// Its highest.
        max: u32,
        /// Ours.
        ours: u32,
    },
    /// The agent ended the link.
    #[error("the agent ended the link: {reason:?} {message}")]
    Goodbye {
        /// Why.
        reason: Reason,
        /// For the log.
        message: String,
    },
    /// Nothing was heard for too long.
    #[error("nothing was heard from the agent")]
    Silent,
}

/// The user of the client, not the agent, asked for what can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No such key (any more): a Closed is on its way to the user.
    #[error("no such program")]
    Unknown,
    /// Stdin breaks its flow.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// Ids grow.
    #[error("a request's id is not higher than the last one's")]
    Id,
    /// More than [`MAX_REQUESTS`] wait for answers.
    #[error("too many requests at once")]
    TooMany,
}
