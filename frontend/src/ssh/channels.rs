//! The session channels of one connection: which are open, how far each has come, and the program that one was started for.
//!
//! What a request means in the state of its channel is [`ChannelState`]'s to say; whether the policy lets it get here is the
//! callbacks'.

use super::{Conn, LateAnswer, input::Input};
use crate::{metrics::Turned, session::Session as Program};
use podbay_frontend_core::{ChannelState, Request, Start, Step, WindowSize};
use podbay_runtime::codes;
use russh::{
    Channel, ChannelId, ChannelWriteHalf, Error,
    server::{Msg, Session},
};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};
use tracing::debug;

/// Signals that wait for a program.
const SIGNALS: usize = 32;

/// Told to who asks for one session too many.
pub const TOO_MANY: &str = "too many sessions at once on this connection";

/// The channels. Dropping them gives up their programs.
pub struct Channels {
    conn: Arc<Conn>,
    entries: HashMap<ChannelId, Entry>,
    /// In the life of the connection.
    opened: usize,
}

/// A session channel.
struct Entry {
    input: Arc<Input>,
    state: ChannelState,
    run: Run,
}

enum Run {
    /// No program was asked for.
    Waiting { write: ChannelWriteHalf<Msg>, slot: Slot },
    /// One was.
    Started { signals: mpsc::Sender<String>, size: watch::Sender<Option<WindowSize>>, task: AbortHandle },
}

/// A session channel counts as open until this is dropped.
#[derive(Debug)]
pub struct Slot(Arc<Conn>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.channels.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        for entry in self.entries.values() {
            entry.stop();
        }
    }
}

impl Entry {
    fn stop(&self) {
        self.input.close();
        if let Run::Started { task, .. } = &self.run {
            task.abort();
        }
    }

    fn finished(&self) -> bool {
        matches!(&self.run, Run::Started { task, .. } if task.is_finished())
    }
}

impl Channels {
    /// Of a connection that has none yet.
    pub fn new(conn: Arc<Conn>) -> Self {
        Self { conn, entries: HashMap::new(), opened: 0 }
    }

    /// What stands against one more.
    pub fn no_room(&mut self) -> Option<&'static str> {
        self.entries.retain(|_, entry| !entry.finished());
        let limits = &self.conn.config.frontend;
        let policy = self.conn.phase.borrow().terms().map_or(0, |terms| terms.max_sessions);
        let most = match policy {
            0 => limits.max_sessions_per_connection,
            policy => policy.min(limits.max_sessions_per_connection),
        };
        if self.conn.open_channels() >= most {
            Some(TOO_MANY)
        } else if self.opened >= limits.max_channels_per_connection {
            Some("too many sessions in the life of this connection; please connect anew")
        } else {
            None
        }
    }

    /// Takes one more.
    pub fn open(&mut self, channel: Channel<Msg>) {
        self.opened += 1;
        self.conn.channels.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(Arc::clone(&self.conn));
        let id = channel.id();
        debug!(code = codes::SSH_NEW_CHANNEL, connection = %self.conn.id, channel = id.number(), "a channel is opened");
        // The read half is dropped: russh would wait for whoever reads it, and with it the whole connection.
        let (_, write) = channel.split();
        let input = Input::new(id, &self.conn);
        self.entries.insert(id, Entry { input, state: ChannelState::default(), run: Run::Waiting { write, slot } });
    }

    /// The input of one that is open.
    pub fn input(&self, id: ChannelId) -> Option<&Input> {
        self.entries.get(&id).map(|entry| &*entry.input)
    }

    /// Closes one: its program is given up.
    pub fn close(&mut self, id: ChannelId) {
        if let Some(entry) = self.entries.remove(&id) {
            entry.stop();
        }
    }

    /// Takes a channel request that the policy allows, and answers it or has it answered.
    ///
    /// # Errors
    /// What russh says of an answer that can't be sent.
    pub fn request(&mut self, id: ChannelId, request: Request, session: &mut Session) -> Result<(), Error> {
        let Some(entry) = self.entries.get_mut(&id) else { return session.channel_failure(id) };
        match entry.state.request(request) {
            Step::Accept => session.channel_success(id),
            Step::Refuse(why) => {
                let (code, connection) = (codes::SSH_CHANNEL_REQUEST_FAILED, self.conn.id);
                debug!(code, %connection, channel = id.number(), "request refused: {why}");
                self.conn.server.metrics.turned(Turned::Request);
                session.channel_failure(id)
            }
            Step::Start(start) => self.start(id, *start, session),
            Step::Resize(new) => {
                if let Run::Started { size, .. } = &entry.run {
                    size.send_replace(Some(new));
                }
                session.channel_success(id)
            }
            Step::Signal(name) => match &entry.run {
                Run::Started { signals, .. } if signals.try_send(name).is_ok() => session.channel_success(id),
                Run::Started { .. } | Run::Waiting { .. } => session.channel_failure(id),
            },
        }
    }

    fn start(&mut self, id: ChannelId, start: Start, session: &mut Session) -> Result<(), Error> {
        let open = self.conn.open_channels();
        let Some(Entry { input, state, run: Run::Waiting { write, slot } }) = self.entries.remove(&id) else {
            return session.channel_failure(id);
        };
        let (signals, signals_in) = mpsc::channel(SIGNALS);
        let (size, size_in) = watch::channel(None);
        let answer = LateAnswer::new(&self.conn, session.handle(), id, open);
        let program = Program {
            conn: Arc::clone(&self.conn),
            handle: session.handle(),
            write: Arc::new(write),
            input: Arc::clone(&input),
            start,
            signals: signals_in,
            size: size_in,
            answer,
            slot,
        };
        let task = self.conn.tasks.spawn(program.run()).abort_handle();
        self.entries.insert(id, Entry { input, state, run: Run::Started { signals, size, task } });
        Ok(())
    }
}
