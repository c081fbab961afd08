//! Closing connections: by their callers or by operators, within `podStop`.

use super::Connections;
use crate::{
    config::Mode,
    identity::{self, Marks},
    ownership::Closing,
};
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId,
    v1::{Reason, Refusal},
};
use podbay_runtime::codes;
use std::sync::{Mutex, PoisonError};
use tokio::time::{Instant, timeout};

impl Connections {
    /// Closes a connection of this caller: its pods are gone, within `podStop`. Gives how many there were; a connection that
    /// isn't there is closed.
    ///
    /// With `keep_detached`, pods that a Detach keeps stay: their time, or a later call without it, ends them.
    ///
    /// Cancel safe, in that dropping it leaves the deletion asked but not awaited.
    pub async fn close(&self, id: ConnectionId, caller: &str, keep_detached: bool) -> Result<u32, Refusal> {
        self.end(id, Some(caller), &Closing::ByCaller(caller.to_owned()), keep_detached).await
    }

    /// Closes anybody's connection; for operators. Its sessions end with `TERMINATED` and the message, and so say the
    /// heartbeats of its owner.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a message that is no line of text; else as [`Self::close`].
    pub async fn terminate(&self, id: ConnectionId, message: &str) -> Result<u32, Refusal> {
        self.end(id, None, &Closing::by_operator(message)?, false).await
    }

    async fn end(
        &self,
        id: ConnectionId,
        caller: Option<&str>,
        why: &Closing,
        keep_detached: bool,
    ) -> Result<u32, Refusal> {
        let budget = self.lifecycle.timeouts().pod_stop;
        let late =
            || Refusal::new(Reason::PodStopTimeout, "the pods were not gone in time; they will be removed later");
        let whole = async {
            // Where it is not known, as in the one in which pods may still be made.
            let mode = self.reach.mode.unwrap_or(Mode::Session);
            match (mode, why) {
                (Mode::Connection, Closing::ByCaller(_)) => {}
                // First, so that sessions that find their pod gone find the words too; but words hold no deletion up.
                (Mode::Connection, Closing::ByOperator(_)) => {
                    let marked = self.leases.revoke(id, why, Instant::now() + budget / 4);
                    match timeout(budget / 2, marked).await {
                        Ok(Ok(())) => {}
                        Ok(Err(refusal)) => {
                            tracing::warn!(connection = %id, "users won't be told why: {}", refusal.message);
                        }
                        Err(_) => tracing::warn!(connection = %id, "users won't be told why: no answer in time"),
                    }
                }
                // First, so that no session starts a pod behind our back, or a program in one that stays.
                (Mode::Session | Mode::Persistent, _) => self.leases.revoke(id, why, Instant::now() + budget).await?,
            }
            let kept = Mutex::new(Vec::new());
            let ours = |pod: &Pod| {
                let Some(marks) = Marks::read(&pod.metadata) else { return false };
                let ours = caller.is_none_or(|caller| caller == marks.caller);
                if ours && keep_detached && marks.is_kept() {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(pod.clone());
                    return false;
                }
                ours
            };
            if self.reach.persistent {
                let deadline = Instant::now() + budget;
                let theirs = |by: &str| caller.is_none_or(|caller| caller == by);
                for namespace in self.places() {
                    self.lifecycle.release(namespace, id, &theirs, deadline).await?;
                }
            }
            let selector = identity::of_connection(id);
            let stopped = self.stop_everywhere(&selector, ours).await?;
            let kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
            Ok(stopped + self.stop_without_detached(kept).await?)
        };
        let result = timeout(budget, whole).await.unwrap_or_else(|_| Err(late()));
        match &result {
            Ok(pods) => {
                let code = (*pods > 0).then_some(codes::KUBERNETES_POD_REMOVE_SUCCESSFUL);
                tracing::info!(target: "podbay::activity", code, connection = %id, pods, "connection closed");
            }
            Err(refusal) => {
                let code = codes::KUBERNETES_POD_REMOVE_FAILED;
                tracing::error!(code, connection = %id, reason = %refusal.message, "connection not closed in time");
            }
        }
        result.map_err(|refusal| refusal.about(id))
    }

    /// Deletes pods wherever they may be, and sees them gone. Gives how many.
    pub(super) async fn stop_everywhere(&self, selector: &str, which: impl Fn(&Pod) -> bool) -> Result<u32, Refusal> {
        let places = self.places().iter();
        let stops = places.map(|namespace| self.lifecycle.stop_all(namespace, selector, &which));
        Ok(futures::future::try_join_all(stops).await?.iter().sum())
    }
}
