//! The process as an owner of connections: one id, a lease that heartbeats renew, and the list of what it has.

use super::{Backend, Tour, phase::Opened};
use bytes::Bytes;
use podbay::{ConnectionId, OwnerId, v1};
use podbay_runtime::codes;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::{Notify, broadcast, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// Until the backend has told its own interval.
const FIRST_INTERVAL: Duration = Duration::from_secs(5);

/// From the first claim to the first heartbeat, whose answer tells the interval also where Accepted did not. Not at once:
/// the lease is made by OpenConnection, and two that make it are in each other's way.
const FIRST_BEAT: Duration = Duration::from_millis(250);

/// The bounds of what it may tell.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_mins(1));

/// One heartbeat's time over all replicas, where the interval is longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One call of it: a replica that hangs costs no more than this.
const ONE_CALL: Duration = Duration::from_secs(3);

/// Between rounds over the replicas.
const PAUSE: Duration = Duration::from_millis(500);

/// Handles that one heartbeat has looked at, so that its message stays small.
const HANDLES_A_BEAT: usize = 64;
const HANDLE_BYTES_A_BEAT: usize = 512 * 1024;

#[derive(Debug)]
struct State {
    id: OwnerId,
    /// Whether the backend may know of it: it was given to a connection.
    claimed: bool,
    connections: BTreeMap<ConnectionId, Entry>,
    /// Handles after this one come next.
    cursor: Option<ConnectionId>,
}

#[derive(Debug)]
struct Entry {
    owner: OwnerId,
    opened: Weak<Opened>,
    terminated: watch::Sender<Option<Arc<str>>>,
}

/// This process, towards the backend. Its id changes only when its lease was lost.
#[derive(Debug)]
pub struct Owner {
    state: Mutex<State>,
    lost: broadcast::Sender<OwnerId>,
    first_claim: Notify,
    /// Between heartbeats, as the backend has told it last.
    interval: watch::Sender<Duration>,
}

/// A connection that this process has; dropped when it is closed.
#[derive(Debug)]
pub struct Claim {
    owner: Arc<Owner>,
    owner_id: OwnerId,
    connection: ConnectionId,
    terminated: watch::Receiver<Option<Arc<str>>>,
}

impl Claim {
    /// The owner that claims it.
    pub const fn owner_id(&self) -> OwnerId {
        self.owner_id
    }

    /// Returns when a heartbeat has told that an operator ended the connection, with the text for its user. Cancel safe.
    pub async fn terminated(&mut self) -> Arc<str> {
        let told = self.terminated.wait_for(Option::is_some).await.ok().and_then(|text| text.clone());
        match told {
            Some(text) => text,
            None => std::future::pending().await,
        }
    }

    /// The backend has told how soon it wants a heartbeat, or has not.
    pub fn told(&self, interval: Option<Duration>) {
        self.owner.told(interval);
    }

    /// It has a handle now, which heartbeats keep fresh.
    pub fn opened(&self, opened: &Arc<Opened>) {
        if let Some(entry) = self.owner.state().connections.get_mut(&self.connection) {
            entry.opened = Arc::downgrade(opened);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.owner.state().connections.remove(&self.connection);
    }
}

impl Owner {
    /// An owner with a fresh random id.
    pub fn new() -> Arc<Self> {
        let state = State { id: fresh(), claimed: false, connections: BTreeMap::new(), cursor: None };
        Arc::new(Self {
            state: Mutex::new(state),
            lost: broadcast::Sender::new(8),
            first_claim: Notify::new(),
            interval: watch::Sender::new(FIRST_INTERVAL),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection before the backend is asked for it.
    pub fn claim(self: &Arc<Self>, connection: ConnectionId) -> Claim {
        let mut state = self.state();
        let owner_id = state.id;
        state.claimed = true;
        let (terminated, told) = watch::channel(None);
        state.connections.insert(connection, Entry { owner: owner_id, opened: Weak::new(), terminated });
        self.first_claim.notify_one();
        Claim { owner: Arc::clone(self), owner_id, connection, terminated: told }
    }

    /// The id that new connections get.
    pub fn id(&self) -> OwnerId {
        self.state().id
    }

    /// Tells whose lease was lost; connections of that owner end.
    pub fn losses(&self) -> broadcast::Receiver<OwnerId> {
        self.lost.subscribe()
    }

    /// The backend wants a heartbeat within this time, and then again and again; absent = it has not said.
    pub fn told(&self, interval: Option<Duration>) {
        if let Some(interval) = interval {
            let interval = interval.clamp(INTERVALS.0, INTERVALS.1);
            self.interval.send_if_modified(|old| std::mem::replace(old, interval) != interval);
        }
    }

    /// The lease of `lost` ran out: its pods are being deleted. New connections get a new owner.
    pub fn expired(&self, lost: OwnerId) {
        let mut state = self.state();
        if state.id != lost {
            return;
        }
        state.id = fresh();
        state.claimed = false;
        let connections = state.connections.values().filter(|entry| entry.owner == lost).count();
        error!(code = codes::OWNER_LOST, owner = %lost, connections, "the lease of this process was lost; its connections end");
        let _ = self.lost.send(lost);
    }

    /// Operators ended these connections. Those that are not ours (any more) are left out.
    fn terminated(&self, told: &[v1::TerminatedConnection]) {
        let state = self.state();
        for one in told {
            let entry = one.connection_id.parse().ok().and_then(|id: ConnectionId| state.connections.get(&id));
            if let Some(entry) = entry {
                let text = podbay::terminated_text(&one.message);
                entry.terminated.send_if_modified(|before| before.is_none() && before.replace(text.into()).is_none());
            }
        }
    }

    fn beat(&self, leaving: bool) -> (OwnerId, v1::HeartbeatRequest, Vec<Arc<Opened>>) {
        let mut state = self.state();
        let id = state.id;
        let mine = || state.connections.iter().filter(|(_, entry)| entry.owner == id);
        let connection_ids = mine().map(|(id, _)| id.to_string()).collect();
        let after = |id: &ConnectionId| state.cursor.is_some_and(|cursor| *id > cursor);
        let open = || mine().filter_map(|(id, entry)| entry.opened.upgrade().map(|opened| (*id, opened)));
        let ordered = open().filter(|(id, _)| after(id)).chain(open().filter(|(id, _)| !after(id)));
        let (mut opened, mut handles, mut bytes, mut last) = (Vec::new(), Vec::new(), 0, None);
        for (id, one) in ordered.take(if leaving { 0 } else { HANDLES_A_BEAT }) {
            let handle = Bytes::clone(&one.handle.load());
            bytes += handle.len();
            if bytes > HANDLE_BYTES_A_BEAT && !handles.is_empty() {
                break;
            }
            handles.push(handle);
            opened.push(one);
            last = Some(id);
        }
        state.cursor = last;
        let request =
            v1::HeartbeatRequest { owner_id: id.to_string(), connection_ids, complete: true, handles, leaving };
        (id, request, opened)
    }

    /// Renews the lease until `stop`. There is no lease, and nothing to renew, before the first connection.
    pub async fn run(self: Arc<Self>, backend: Arc<dyn Backend>, stop: CancellationToken) {
        let mut told = self.interval.subscribe();
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.first_claim.notified() => {}
        }
        let mut next = Instant::now() + FIRST_BEAT.min(*told.borrow_and_update());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                // Shorter than what was waited for: sooner.
                Ok(()) = told.changed() => {
                    next = next.min(Instant::now() + *told.borrow_and_update());
                    continue;
                }
                () = sleep_until(next) => {}
            }
            let (id, request, opened) = self.beat(false);
            let interval = *told.borrow_and_update();
            match self.send(&*backend, request, PATIENCE.min(interval * 2)).await {
                Ok(answer) => {
                    self.terminated(&answer.terminated);
                    for (one, handle) in opened.iter().zip(answer.handles) {
                        if !handle.is_empty() {
                            one.handle.store(Arc::new(handle));
                        }
                    }
                    self.told(answer.interval.and_then(|d| Duration::try_from(d).ok()));
                }
                Err(Some(refusal)) if refusal.reason() == v1::Reason::OwnerExpired => self.expired(id),
                Err(refusal) => {
                    let text = refusal.map_or_else(|| "no backend answers".to_owned(), |refusal| refusal.message);
                    warn!(owner = %id, "heartbeat failed, the lease is not renewed: {text}");
                }
            }
            next = Instant::now() + *told.borrow_and_update();
        }
    }

    /// The process ends: its lease is deleted and whatever it still has is closed. Without a connection there is no lease.
    pub async fn leave(&self, backend: &dyn Backend, within: Duration) {
        if !self.state().claimed {
            return;
        }
        let (id, request, _) = self.beat(true);
        if let Err(refusal) = self.send(backend, request, within).await {
            let text = refusal.map_or_else(String::new, |refusal| refusal.message);
            warn!(owner = %id, "could not say that this process leaves; its lease will run out: {text}");
        }
    }

    /// One heartbeat over the replicas.
    async fn send(
        &self,
        backend: &dyn Backend,
        request: v1::HeartbeatRequest,
        within: Duration,
    ) -> Result<v1::HeartbeatResponse, Option<v1::Refusal>> {
        let deadline = Instant::now() + within;
        // Short leases leave time for another replica too.
        let (one_call, pause) = (ONE_CALL.min(within / 2), PAUSE.min(within / 4));
        let mut tour = Tour::default();
        let mut last = None;
        let sending = async {
            loop {
                match backend.heartbeat(tour.choice.clone(), request.clone(), one_call).await {
                    Ok((_, answer)) => return Ok(answer),
                    Err(failure) if !failure.may_retry() => return Err(failure.refusal()),
                    Err(failure) => {
                        debug!("heartbeat goes elsewhere: {failure}");
                        if let Err(failure) = tour.failed(failure) {
                            last = Some(failure.refusal());
                            sleep(pause).await;
                        }
                    }
                }
            }
        };
        match timeout_at(deadline, sending).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) => Err(Some(refusal)),
            Err(_) => Err(last),
        }
    }
}

fn fresh() -> OwnerId {
    OwnerId::from_bytes(rand::random())
}
