//! The answer to `shell`, `exec` and `subsystem`, which is known only later.
//!
//! russh keeps one "wants a reply" flag per channel, and any later request of the client overwrites it: an answer that
//! comes after a `window-change` is never sent, and clients that wait for answers wait for ever. So nothing is read
//! from the connection until the answer is out, for a bounded time; when that is over the answer is success, and a
//! start that fails later is told on stderr with an exit status, as sshd does.

use super::{Conn, Hold};
use russh::{ChannelId, server::Handle};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long the input of a connection's only channel may wait.
const ALONE: Duration = Duration::from_secs(5);

/// How long the input of the connection's other channels may wait.
const BESIDE_OTHERS: Duration = Duration::from_millis(500);

/// An answer that is owed to a client. Dropping it opens the gate without an answer.
#[derive(Debug)]
pub struct LateAnswer {
    handle: Handle,
    channel: ChannelId,
    owed: Option<Owed>,
}

#[derive(Debug)]
struct Owed {
    until: Instant,
    _hold: Hold,
}

impl LateAnswer {
    /// Closes the connection's gate. Call it inside the request's callback.
    pub fn new(conn: &Arc<Conn>, handle: Handle, channel: ChannelId, channels: usize) -> Self {
        let time = if channels > 1 { BESIDE_OTHERS } else { ALONE };
        Self { handle, channel, owed: Some(Owed { until: Instant::now() + time, _hold: conn.gate.hold() }) }
    }

    /// When the answer must be given; never, once it is.
    pub async fn due(&self) {
        match &self.owed {
            Some(owed) => tokio::time::sleep_until(owed.until).await,
            None => std::future::pending().await,
        }
    }

    /// Answers success, unless there was an answer before. Not cancel safe: a dropped future may leave the client
    /// without an answer.
    pub async fn success(&mut self) {
        if let Some(owed) = self.owed.take() {
            let _ = self.handle.channel_success(self.channel).await;
            drop(owed);
        }
    }

    /// Answers failure. Returns false where success was answered before. As cancel safe as [`success`](Self::success).
    pub async fn failure(&mut self) -> bool {
        let Some(owed) = self.owed.take() else { return false };
        let _ = self.handle.channel_failure(self.channel).await;
        drop(owed);
        true
    }
}
