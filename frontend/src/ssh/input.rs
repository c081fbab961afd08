//! One channel's input, between russh's callbacks and the task that feeds the program.

use super::{Gate, shared::Conn};
use bytes::Bytes;
use podbay_frontend_core::{InputQueue, Piece, soft_stop::Freed};
use russh::ChannelId;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A queue that the connection's soft stop bounds.
#[derive(Debug)]
pub struct Input {
    /// russh's name for the channel.
    pub channel: ChannelId,
    queue: Mutex<InputQueue>,
    arrived: Notify,
    evicted: CancellationToken,
    has_program: AtomicBool,
    conn: Weak<Conn>,
}

impl Input {
    /// The input of a channel that was just opened.
    pub fn new(channel: ChannelId, conn: &Arc<Conn>) -> Arc<Self> {
        conn.soft_stop().opened(channel.number());
        let input = Arc::new(Self {
            channel,
            queue: Mutex::default(),
            arrived: Notify::new(),
            evicted: CancellationToken::new(),
            has_program: AtomicBool::new(false),
            conn: Arc::downgrade(conn),
        });
        conn.add_input(&input);
        input
    }

    /// A program's session looks after [`evicted`](Self::evicted) from now on.
    pub fn has_program(&self) {
        self.has_program.store(true, Ordering::Release);
    }

    /// Ends the channel for what it holds. Returns false where no program's session will do it.
    pub fn evict(&self) -> bool {
        self.evicted.cancel();
        self.close();
        self.has_program.load(Ordering::Acquire)
    }

    /// Returns when the channel is to end because its input filled the connection's share of memory.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    fn queue(&self) -> MutexGuard<'_, InputQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends what russh received. The soft stop has counted it before.
    pub fn push(&self, data: &[u8]) {
        self.queue().push(data);
        self.arrived.notify_one();
    }

    /// The client has ended its input.
    pub fn eof(&self) {
        if let Some(conn) = self.conn.upgrade() {
            conn.soft_stop().eof(self.channel.number());
        }
        self.queue().eof();
        self.arrived.notify_one();
    }

    /// Nobody takes this input any more.
    pub fn close(&self) {
        self.queue().close();
        self.arrived.notify_one();
        if let Some(conn) = self.conn.upgrade() {
            let freed = conn.soft_stop().finished(self.channel.number());
            apply(&conn.gate, freed);
        }
    }

    /// Takes at most `max` bytes if there are any.
    fn pop(&self, max: usize) -> Piece {
        let piece = self.queue().pop(max);
        if let Piece::Bytes(bytes) = &piece
            && let Some(conn) = self.conn.upgrade()
        {
            let freed = conn.soft_stop().consumed(self.channel.number(), bytes.len());
            apply(&conn.gate, freed);
        }
        piece
    }

    /// Waits for the next bytes, at most `max` (which is not 0). `Ok(None)` is the end of the input, `Err` that it was
    /// closed. Cancel safe.
    pub async fn take(&self, max: usize) -> Result<Option<Bytes>, Closed> {
        loop {
            match self.pop(max) {
                Piece::Bytes(bytes) => return Ok(Some(bytes)),
                Piece::Eof => return Ok(None),
                Piece::Closed => return Err(Closed),
                Piece::Empty => self.arrived.notified().await,
            }
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.upgrade() {
            conn.remove_input(self.channel.number());
            let freed = conn.soft_stop().closed(self.channel.number());
            apply(&conn.gate, freed);
        }
    }
}

/// The input was closed; there is nobody to feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

fn apply(gate: &Gate, freed: Freed) {
    if freed.unstuck {
        gate.resume();
    }
    if freed.uncapped {
        gate.cap(false);
    }
}
