//! What the parts of one SSH connection share.

use super::{Gate, Input};
use crate::{backend::Phase, config::Config, server::Server};
use podbay::ConnectionId;
use podbay_frontend_core::{Limits, SoftStop, soft_stop::WindowExceeded};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The most bytes of input that one connection may have queued.
const CAP: usize = 64 << 20;

/// The same, once the process has more queued than it should: one stuck channel and a little.
const CAP_WHEN_SHORT: usize = 8 << 20;

/// How far a client has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It has connected.
    Connected,
    /// Keys are exchanged.
    Keyed,
    /// It has logged in.
    LoggedIn,
}

/// One SSH connection.
#[derive(Debug)]
pub struct Conn {
    /// Its id, towards the backend and in the log.
    pub id: ConnectionId,
    /// Where the client is.
    pub remote: IpAddr,
    /// Its port there.
    pub port: u16,
    /// Its identification, once it was read.
    pub version: Arc<OnceLock<String>>,
    /// The process.
    pub server: Arc<Server>,
    /// What counted when it came, and counts for it to its end. Not for who may log in: that is the process's, of the moment.
    pub config: Arc<Config>,
    /// Its read gate.
    pub gate: Gate,
    soft_stop: Mutex<SoftStop>,
    inputs: Mutex<HashMap<u32, Weak<Input>>>,
    /// Reading was stopped by the cap.
    pub capped: Notify,
    /// How far the client has come.
    pub stage: watch::Sender<Stage>,
    /// What the backend has made of it.
    pub phase: watch::Sender<Phase>,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
    /// Set when the connection is to end before its client ends it, with the text for the user.
    pub ended: watch::Sender<Option<Arc<str>>>,
    /// Its session tasks.
    pub tasks: TaskTracker,
    /// Session channels that are open.
    pub channels: AtomicUsize,
    /// Attempts to log in that failed.
    pub failures: AtomicUsize,
    /// The webhook's last answer took more than one call.
    pub retried: AtomicBool,
    /// A session tells its user why the connection ends.
    telling: AtomicBool,
    /// Programs that were let in by [`Conn::admit`].
    programs: AtomicUsize,
}

impl Conn {
    /// A connection that was just accepted.
    pub fn new(server: Arc<Server>, config: Arc<Config>, peer: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            id: ConnectionId::from_bytes(rand::random()),
            remote: peer.ip().to_canonical(),
            port: peer.port(),
            version: Arc::default(),
            server,
            config,
            gate: Gate::default(),
            soft_stop: Mutex::new(SoftStop::new(Limits::default())),
            inputs: Mutex::default(),
            capped: Notify::new(),
            stage: watch::Sender::new(Stage::Connected),
            phase: watch::Sender::new(Phase::Asking),
            gone: CancellationToken::new(),
            ended: watch::Sender::new(None),
            tasks: TaskTracker::new(),
            channels: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            retried: AtomicBool::new(false),
            telling: AtomicBool::new(false),
            programs: AtomicUsize::new(0),
        })
    }

    /// The connection's soft stop. Never hold it over an await or a call of the gate.
    pub fn soft_stop(&self) -> SoftStopGuard<'_> {
        let guard = self.soft_stop.lock().unwrap_or_else(PoisonError::into_inner);
        SoftStopGuard { before: (guard.queued(), guard.stuck()), guard, server: &self.server }
    }

    /// The input of an open channel.
    pub fn input(&self, channel: u32) -> Option<Arc<Input>> {
        self.inputs().get(&channel)?.upgrade()
    }

    pub(super) fn add_input(&self, input: &Arc<Input>) {
        self.inputs().insert(input.channel.number(), Arc::downgrade(input));
    }

    pub(super) fn remove_input(&self, channel: u32) {
        self.inputs().remove(&channel);
    }

    fn inputs(&self) -> MutexGuard<'_, HashMap<u32, Weak<Input>>> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a packet of input, and says whether to queue it.
    pub fn received(&self, channel: u32, len: usize, window: u32) -> Result<bool, WindowExceeded> {
        let cap = if self.server.short_of_memory() { CAP_WHEN_SHORT } else { CAP };
        let taken = self.soft_stop().data(channel, len, window, cap, Instant::now())?;
        if let Some(at) = taken.pause_until {
            self.gate.pause_until(at.into());
        }
        if taken.capped {
            self.gate.cap(true);
            self.capped.notify_one();
        }
        Ok(!taken.dropped)
    }

    /// A session ends the connection, which it tells its user as the others do, and then the connection itself. The first
    /// text counts.
    pub fn end(&self, text: &str) {
        self.telling.store(true, Ordering::Release);
        self.ended.send_if_modified(|ended| ended.is_none() && ended.replace(text.into()).is_none());
    }

    /// [`Self::ended`], for a session, which tells its user.
    pub async fn ended_for_session(&self) -> Arc<str> {
        let text = self.ended().await;
        // Before its channel counts as closed: whoever sees no channel sees this.
        self.telling.store(true, Ordering::Release);
        text
    }

    /// Whether sessions are there that tell their users why the connection ends, or were.
    pub fn has_told(&self) -> bool {
        self.open_channels() > 0 || self.telling.load(Ordering::Acquire)
    }

    /// Returns when the connection is to end, with the text for its user. Cancel safe.
    pub async fn ended(&self) -> Arc<str> {
        let text = self.ended.subscribe().wait_for(Option::is_some).await.ok().and_then(|text| text.clone());
        match text {
            Some(text) => text,
            None => std::future::pending().await,
        }
    }

    /// Lets one more program in, where the policy allows it (0 = any number). Channels that were opened before the policy was
    /// known are counted here at the latest.
    pub fn admit(self: &Arc<Self>, most: usize) -> Option<Admitted> {
        let more = |programs: usize| (most == 0 || programs < most).then_some(programs + 1);
        self.programs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Admitted(Arc::clone(self)))
    }

    /// Session channels that are open now.
    pub fn open_channels(&self) -> usize {
        self.channels.load(Ordering::Acquire)
    }
}

/// A program that was let in, until this is dropped.
#[derive(Debug)]
pub struct Admitted(Arc<Conn>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.programs.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // Whatever was still queued when the client went away.
        let left = self.soft_stop.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.server.count_input(left.queued(), left.stuck(), 0, 0);
    }
}

/// Access to the soft stop; keeps the process's sums right.
pub struct SoftStopGuard<'a> {
    guard: MutexGuard<'a, SoftStop>,
    before: (usize, usize),
    server: &'a Server,
}

impl std::ops::Deref for SoftStopGuard<'_> {
    type Target = SoftStop;

    fn deref(&self) -> &SoftStop {
        &self.guard
    }
}

impl std::ops::DerefMut for SoftStopGuard<'_> {
    fn deref_mut(&mut self) -> &mut SoftStop {
        &mut self.guard
    }
}

impl Drop for SoftStopGuard<'_> {
    fn drop(&mut self) {
        self.server.count_input(self.before.0, self.before.1, self.guard.queued(), self.guard.stuck());
    }
}
