//! How many sessions a connection may have at once on this replica.
//!
//! Without a store that replicas share, each counts its own: the frontend counts for SSH, and callers that spread one
//! connection's sessions over n replicas may have n times as many (docs/contract.md). In mode `session` the pods are counted
//! as well, by [`super::Sessions::start`].

use podbay::{
    ConnectionId,
    v1::{Reason, Refusal},
};
use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// A session whose client has just let another one go waits so long for its place: the two may overtake each other.
pub(super) const OVERLAP: Duration = Duration::from_secs(1);

/// The connections with a limit that have sessions here. Clones share everything.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<ConnectionId, Weak<Semaphore>>>>);

/// A session's place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// A place for one more session. Cancel safe.
    ///
    /// # Errors
    /// `LIMIT` where there is none.
    pub async fn take(&self, connection: ConnectionId, most: Option<NonZeroU32>) -> Result<Place, Refusal> {
        let Some(most) = most else { return Ok(Place { _permit: None }) };
        match timeout(OVERLAP, self.of(connection, most).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place { _permit: Some(permit) }),
            // It is never closed.
            Ok(Err(_)) | Err(_) => Err(full(most)),
        }
    }

    fn of(&self, connection: ConnectionId, most: NonZeroU32) -> Arc<Semaphore> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = all.get(&connection).and_then(Weak::upgrade) {
            return there;
        }
        all.retain(|_, places| places.strong_count() > 0);
        let most = usize::try_from(most.get()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(most));
        all.insert(connection, Arc::downgrade(&places));
        places
    }
}

pub(super) fn full(most: NonZeroU32) -> Refusal {
    let text = format!("too many sessions at once on this connection: at most {most} (security.maxSessions)");
    Refusal::new(Reason::Limit, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_again_when_its_session_is_over_and_nothing_is_kept() {
        let (places, two) = (Places::default(), NonZeroU32::new(2));
        let id = |n| ConnectionId::from_bytes([n; 16]);
        let first = places.take(id(1), two).await.expect("room");
        let second = places.take(id(1), two).await.expect("room");
        let other = places.take(id(2), two).await.expect("room: another connection");
        assert_eq!(places.take(id(1), two).await.expect_err("full").reason(), Reason::Limit);
        places.take(id(1), None).await.expect("no limit");
        let (waits, ()) = tokio::join!(places.take(id(1), two), async {
            tokio::time::sleep(OVERLAP / 2).await;
            drop(first);
        });
        let third = waits.expect("the first one's");
        drop((second, third, other));
        places.take(id(3), two).await.expect("room");
        assert_eq!(places.0.lock().expect("a lock").len(), 1, "those without sessions are forgotten");
    }
}
