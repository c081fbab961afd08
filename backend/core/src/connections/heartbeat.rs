//! Heartbeats: an owner's sign of life, and what it is told in return.

use super::{Connections, Heartbeat};
use crate::{
    config::duration_proto,
    identity::{self, Marks},
};
use bytes::Bytes;
use podbay::{
    ConnectionId,
    v1::{self, Refusal},
};
use std::{collections::HashSet, time::Duration};
use tokio::time::{Instant, timeout};

/// A heartbeat looks for marks of ended connections for at most so long: callers give the whole call a few seconds.
const LOOK_FOR_MARKS: Duration = Duration::from_secs(1);

impl Connections {
    /// Renews an owner's lease; where the owner tells all its connections, pods that it doesn't know are closed in the
    /// background; handles of old keys are sealed anew. An owner that leaves has its pods deleted, within `podStop`.
    pub async fn heartbeat(&self, beat: Heartbeat) -> Result<v1::HeartbeatResponse, Refusal> {
        let Heartbeat { owner, caller, known, complete, handles, leaving } = beat;
        let ownership = self.leases.ownership();
        let mut terminated = Vec::new();
        if leaving {
            let selector = identity::of_owner(owner);
            let ours = |meta: &_| Marks::read(meta).is_some_and(|marks| marks.caller == caller && !marks.is_kept());
            self.stop_everywhere(&selector, |pod| ours(&pod.metadata)).await?;
            self.leases.leave(owner, &caller).await?;
        } else {
            let deadline = Instant::now() + ownership.heartbeat().min(self.lifecycle.timeouts().http);
            let (renewed, found) =
                futures::join!(self.leases.renew(owner, &caller, deadline), self.terminated_among(&known));
            renewed?;
            terminated = found;
            if complete {
                let (this, caller, stays) = (self.clone(), caller.clone(), self.reach.persistent);
                // Apart, so that a slow list never delays a renewal's answer.
                self.lifecycle.tracker().spawn(async move {
                    let namespaces = this.places();
                    this.sweep.run(&this.lifecycle, namespaces, owner, &known, &caller).await;
                    if stays {
                        for namespace in namespaces {
                            this.sweep.claims(&this.lifecycle, namespace, owner, &known).await;
                        }
                    }
                });
            }
        }
        let handles = handles.iter().map(|handle| match self.keys.renew(handle, &caller) {
            Ok(renewed) => Bytes::from(renewed.unwrap_or_default()),
            Err(refusal) => {
                tracing::warn!(%owner, reason = %refusal.message, "a handle in a heartbeat is not valid");
                Bytes::new()
            }
        });
        let proto = |duration: Duration| Some(duration_proto(duration));
        Ok(v1::HeartbeatResponse {
            handles: handles.collect(),
            interval: proto(ownership.heartbeat()),
            lease_duration: proto(ownership.lease_duration),
            terminated,
        })
    }

    /// Which of these operators ended. Nothing where that can't be read at once: a renewal's answer must not wait for it.
    async fn terminated_among(&self, known: &HashSet<ConnectionId>) -> Vec<v1::TerminatedConnection> {
        if known.is_empty() {
            return Vec::new();
        }
        match timeout(LOOK_FOR_MARKS, self.leases.all_terminated()).await {
            Ok(Ok(marked)) => {
                let ours = marked.into_iter().filter(|(id, _)| known.contains(id));
                ours.map(|(id, message)| v1::TerminatedConnection { connection_id: id.to_string(), message }).collect()
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "marks of ended connections can't be listed; next time");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }
}
