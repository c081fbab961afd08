//! Sessions that are left on purpose, and found again.
//!
//! Detach first marks the pod, so that no owner's end is its end, and then tells the supervisor: whatever is cut after that, what
//! was promised holds (docs/design/0008-detach.md).

use super::{
    Sessions,
    records::{exit, unreachable},
};
use crate::{
    cluster::{ClusterError, PodRef},
    failure::short,
    handle::Contents,
    identity::{KEPT_UNTIL, Marks, kept_until},
    lifecycle::Backoff,
    link::{Found, LinkEnded, News, Place},
    persistent,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    SessionId,
    v1::{self, Reason, Refusal},
};
use podbay_agent_wire::{
    client::{Event, ResumeFrom},
    id::Attempt,
    proto,
};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// One second is the least that is worth a mark.
const MIN_KEEP: Duration = Duration::from_secs(1);

impl Sessions {
    /// Leaves a session running without a client: it and its pod are kept for `keep` (zero = the configured most), then the
    /// session's exit for what is left of it. A client that has it is superseded. Gives how long it is kept.
    ///
    /// Cancel safe: the pod may be marked by then, and the session still be somebody's.
    ///
    /// # Errors
    /// `NOT_FOUND` for a session that the pod does not know, `POD_GONE`, `KUBERNETES_UNAVAILABLE` where pod or agent can't be
    /// reached within two times `timeouts.http`, `UNIMPLEMENTED` without podbay-agent.
    pub async fn detach(
        &self,
        contents: &Contents,
        session: SessionId,
        keep: Option<Duration>,
    ) -> Result<Duration, Refusal> {
        let deadline = Instant::now() + contents.timeouts.http * 2;
        let most = self.leases.ownership().max_keep;
        let keep = keep.map_or(most, |keep| keep.clamp(MIN_KEEP, most));
        let place = self.place_of(contents, session).await?;
        self.known(&place, session, deadline).await?;
        self.mark_kept(&place.pod, keep, deadline).await?;
        self.leave(&place, session, keep, deadline).await?;
        tracing::info!(target: "podbay::activity", connection = %contents.connection, %session, ?keep, "session detached");
        Ok(keep)
    }

    /// Refuses what the pod does not know, before anything is changed.
    async fn known(&self, place: &Place, session: SessionId, deadline: Instant) -> Result<(), Refusal> {
        let link = self.links.program(place);
        match timeout_at(deadline, link.list(Some(session))).await {
            Ok(Ok(found)) if found.iter().any(|one| one.session.as_ref() == session.as_bytes()) => Ok(()),
            Ok(Ok(_)) => Err(super::records::unknown()),
            Ok(Err(LinkEnded)) | Err(_) => Err(self.why_unreachable(place).await),
        }
    }

    /// Of a place whose agent gave no answer: by now it may be known that it is not podbay-agent.
    pub(super) async fn why_unreachable(&self, place: &Place) -> Refusal {
        if let Some(found @ (Found::Containerssh | Found::Nothing)) = self.links.found(&place.image) {
            return without(found);
        }
        match self.lifecycle.cluster().get_pod(&place.pod).await {
            Err(ClusterError::NotFound { .. }) => Refusal::new(Reason::PodGone, "the session's pod is gone"),
            Ok(_) | Err(_) => unreachable(),
        }
    }

    /// Marks the pod as kept, never for less than another Detach has.
    pub(super) async fn mark_kept(&self, pod: &PodRef, keep: Duration, deadline: Instant) -> Result<(), Refusal> {
        let cluster = self.lifecycle.cluster();
        let mut backoff = Backoff::default();
        loop {
            let error = match cluster.get_pod(pod).await {
                Ok(found) if found.metadata.deletion_timestamp.is_some() => {
                    return Err(Refusal::new(Reason::PodGone, "the session's pod is being deleted"));
                }
                // Nobody of ours deletes it, so that nothing has to be kept from it.
                Ok(found) if Marks::read(&found.metadata).is_none() && !persistent::is_ours(&found.metadata) => {
                    return Ok(());
                }
                Ok(found) => {
                    let Some(until) = later(&found, Timestamp::now(), keep) else { return Ok(()) };
                    let version = found.metadata.resource_version.as_deref().unwrap_or_default();
                    match cluster.annotate_pod(pod, version, KEPT_UNTIL, &until.to_string()).await {
                        Ok(()) => return Ok(()),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            let reason = match &error {
                ClusterError::NotFound { .. } => {
                    return Err(Refusal::new(Reason::PodGone, "the session's pod is gone"));
                }
                ClusterError::Forbidden { .. } | ClusterError::Unauthorized { .. } => {
                    let text = format!("the pod can't be marked as kept: {}", short(&error.to_string()));
                    return Err(Refusal::new(Reason::BackendNotAllowed, text));
                }
                // Somebody (the kubelet, another Detach) changed it meanwhile, or the API is away.
                other => format!("the pod can't be marked as kept: {}", short(&other.to_string())),
            };
            let pause = backoff.next(None);
            if Instant::now() + pause >= deadline {
                return Err(Refusal::new(Reason::KubernetesUnavailable, reason));
            }
            sleep(pause).await;
        }
    }

    /// Takes the session from whoever has it, and leaves it.
    async fn leave(&self, place: &Place, session: SessionId, keep: Duration, deadline: Instant) -> Result<(), Refusal> {
        let mut link = self.links.program(place);
        // Nothing is read, so nothing is granted: output stays where it is, for the client that comes back.
        let from = ResumeFrom { stdout: 0, stdout_credit: 0, stderr: 0, stderr_credit: 0 };
        let lost = |LinkEnded| unreachable();
        link.attach(session, Attempt::new(1), true, from).await.map_err(lost)?;
        let commands = link.commands();
        loop {
            match timeout_at(deadline, link.news.recv()).await {
                Ok(Some(News::Wire(Event::Started { .. }))) => commands.detach(Some(keep)).await.map_err(lost)?,
                Ok(Some(News::Wire(Event::Closed { reason: proto::Reason::Detached, .. }))) => return Ok(()),
                Ok(Some(News::Wire(Event::Closed { reason, .. }))) => {
                    return Err(match reason {
                        proto::Reason::UnknownSession | proto::Reason::SessionOver | proto::Reason::Forgotten => {
                            super::records::unknown()
                        }
                        proto::Reason::Superseded => {
                            Refusal::new(Reason::Superseded, "another client has taken this session meanwhile")
                        }
                        _ => unreachable(),
                    });
                }
                // What becomes of the program meanwhile is for the client that comes back.
                Ok(Some(News::Wire(_))) => {}
                Ok(Some(News::Gone(_))) => return Err(Refusal::new(Reason::PodGone, "the session's pod is gone")),
                Ok(Some(News::Other(found, _))) => return Err(without(found)),
                Ok(None) | Err(_) => return Err(unreachable()),
            }
        }
    }

    /// The sessions in one pod. `None`: it has no podbay-agent, or can't be reached now.
    pub async fn in_pod(&self, place: &Place, deadline: Instant) -> Option<Vec<v1::Session>> {
        if matches!(self.links.found(&place.image), Some(Found::Containerssh | Found::Nothing)) {
            return None;
        }
        let link = self.links.program(place);
        let listed = timeout_at(deadline, link.list(None)).await.ok()?.ok()?;
        let sessions = listed.iter().filter_map(|one| {
            let id: [u8; 16] = one.session.as_ref().try_into().ok()?;
            Some(v1::Session {
                session_id: SessionId::from_bytes(id).to_string(),
                attempt: u32::try_from(Attempt(one.attempt).contract()).unwrap_or(u32::MAX),
                exit: one.exit.as_ref().map(exit),
                ..v1::Session::default()
            })
        });
        Some(sessions.collect())
    }
}

pub(super) fn without(found: Found) -> Refusal {
    let text = match found {
        Found::Containerssh => {
            "the pod's agent is containerssh-agent: sessions outlive their streams only with podbay-agent"
        }
        Found::Nothing | Found::Podbay => "sessions outlive their streams only where podbay-agent runs in the pod",
    };
    Refusal::new(Reason::Unimplemented, text)
}

/// The mark that the pod should have; `None`: it has one that is as good.
fn later(pod: &Pod, now: Timestamp, keep: Duration) -> Option<Timestamp> {
    let until = now.checked_add(keep).unwrap_or(Timestamp::MAX);
    let has = kept_until(&pod.metadata);
    has.is_none_or(|has| has < until).then_some(until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_only_grows() {
        let (connection, owner) = ("1".repeat(32), "2".repeat(32));
        let mut pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {
            "labels": {
                "app.kubernetes.io/managed-by": "podbay", "podbay.dev/connection": connection, "podbay.dev/owner": owner,
            },
            "annotations": {"podbay.dev/user": "alice"},
        }}))
        .expect("a pod");
        let now = Timestamp::from_second(1_000_000).expect("a time");
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).expect("a time");
        assert_eq!(later(&pod, now, Duration::from_mins(1)), Some(at(60)));
        let notes = pod.metadata.annotations.get_or_insert_default();
        notes.insert(KEPT_UNTIL.into(), at(60).to_string());
        assert_eq!(later(&pod, now, Duration::from_mins(1)), None);
        assert_eq!(later(&pod, now, Duration::from_secs(61)), Some(at(61)));
        // One that can't be read counts for nothing.
        pod.metadata.annotations.get_or_insert_default().insert(KEPT_UNTIL.into(), "later".into());
        assert_eq!(later(&pod, now, Duration::from_secs(1)), Some(at(1)));
    }
}
