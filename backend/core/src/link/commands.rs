//! What a program may want of its link, and the way there: a bounded queue that the link's task never lets wait.

use super::{LinkEnded, News, Written};
use bytes::Bytes;
use podbay::SessionId;
use podbay_agent_wire::{
    client::ResumeFrom,
    frame::Stream,
    id::Attempt,
    program::{Size, Start},
    proto,
};
use std::time::Duration;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// What a program wants of its link.
#[derive(Debug)]
pub(super) enum Do {
    Start {
        session: SessionId,
        attempt: Attempt,
        start: Box<Start>,
        from: ResumeFrom,
        news: mpsc::UnboundedSender<News>,
    },
    Attach {
        session: SessionId,
        attempt: Attempt,
        take_over: bool,
        from: ResumeFrom,
        news: mpsc::UnboundedSender<News>,
    },
    Stdin {
        offset: u64,
        data: Bytes,
    },
    Eof {
        id: u64,
        offset: u64,
    },
    Signal {
        id: u64,
        name: String,
        deadline: Instant,
    },
    Resize {
        id: u64,
        size: Size,
        deadline: Instant,
    },
    Credit {
        stream: Stream,
        limit: u64,
    },
    Ack {
        stream: Stream,
        offset: u64,
    },
    Detach {
        keep: Option<Duration>,
    },
    Release,
    AckExit {
        session: SessionId,
        done: oneshot::Sender<bool>,
    },
    List {
        session: Option<SessionId>,
        done: oneshot::Sender<Vec<proto::Session>>,
    },
    WriteFile {
        path: String,
        mode: u32,
        data: Bytes,
        done: oneshot::Sender<Written>,
    },
}

/// By the token of the program that wants it.
pub(super) type Command = (u64, Do);

/// Where commands of one program go. Each call waits only for a queue that the link's task empties without waiting.
#[derive(Debug, Clone)]
pub struct Commands {
    pub(super) token: u64,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Commands {
    pub(super) async fn send(&self, what: Do) -> Result<(), LinkEnded> {
        self.commands.send((self.token, what)).await.map_err(|_| LinkEnded)
    }

    /// Bytes for stdin, within the credit.
    pub async fn stdin(&self, offset: u64, data: Bytes) -> Result<(), LinkEnded> {
        self.send(Do::Stdin { offset, data }).await
    }

    /// The end of stdin.
    pub async fn eof(&self, id: u64, offset: u64) -> Result<(), LinkEnded> {
        self.send(Do::Eof { id, offset }).await
    }

    /// Asks for a signal.
    pub async fn signal(&self, id: u64, name: String, deadline: Instant) -> Result<(), LinkEnded> {
        self.send(Do::Signal { id, name, deadline }).await
    }

    /// Tells the terminal's size.
    pub async fn resize(&self, id: u64, size: Size, deadline: Instant) -> Result<(), LinkEnded> {
        self.send(Do::Resize { id, size, deadline }).await
    }

    /// The consumer has room for output up to `limit`.
    pub async fn credit(&self, stream: Stream, limit: u64) -> Result<(), LinkEnded> {
        self.send(Do::Credit { stream, limit }).await
    }

    /// The consumer has output up to `offset`.
    pub async fn ack(&self, stream: Stream, offset: u64) -> Result<(), LinkEnded> {
        self.send(Do::Ack { stream, offset }).await
    }

    /// Leaves the program running: kept for this time, or for its orphan timeout.
    pub async fn detach(&self, keep: Option<Duration>) -> Result<(), LinkEnded> {
        self.send(Do::Detach { keep }).await
    }

    /// Gives the program up.
    pub async fn release(&self) -> Result<(), LinkEnded> {
        self.send(Do::Release).await
    }
}
