//! What is asked of a durable session besides its stream: how it ended, and that this is known.

use super::{
    Sessions,
    detach::without,
    durable::end,
    ending::{lost, of_gone},
};
use crate::{
    cluster::{PodRef, StreamEnd},
    config::Mode,
    handle::{Contents, Target},
    identity::{self, Marks},
    lifecycle::{Backoff, image_id, reference},
    link::{Found, LinkEnded, Place},
};
use podbay::{
    SessionId,
    v1::{self, Reason, Refusal},
};
use podbay_agent_wire::{program, proto};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// The longest wait for an end in one call; clients ask again.
const MAX_WAIT: Duration = Duration::from_mins(1);

impl Sessions {
    /// Says that a session's exit is known and stored: the pod forgets it. A session that the pod does not know (any more) is
    /// forgotten.
    ///
    /// Cancel safe, in that the pod is told all the same.
    ///
    /// # Errors
    /// `UNIMPLEMENTED` without podbay-agent, `INVALID_REQUEST` while the program runs, `KUBERNETES_UNAVAILABLE` where the pod
    /// can't be reached in time (`timeouts.http`).
    pub async fn ack_exit(&self, contents: &Contents, session: SessionId) -> Result<(), Refusal> {
        let place = self.place_of(contents, session).await?;
        let link = self.links.program(&place);
        match timeout(contents.timeouts.http, link.ack_exit(session)).await {
            Ok(Ok(true)) => {
                // A program's own pod has nothing more to tell.
                if contents.mode() == Mode::Session {
                    self.lifecycle.undo(place.pod);
                }
                Ok(())
            }
            Ok(Ok(false)) => Err(Refusal::new(Reason::InvalidRequest, "the program runs still: it has no exit yet")),
            Ok(Err(LinkEnded)) | Err(_) => Err(self.why_unreachable(&place).await),
        }
    }

    /// How a session ended; `None` = it runs still, also after this wait.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// `NOT_FOUND` for a session that the pod does not know, and as [`Self::ack_exit`].
    pub async fn collect_exit(
        &self,
        contents: &Contents,
        session: SessionId,
        wait: Duration,
    ) -> Result<Option<v1::Exit>, Refusal> {
        let place = self.place_of(contents, session).await?;
        let link = self.links.program(&place);
        let until = Instant::now() + wait.min(MAX_WAIT);
        let mut backoff = Backoff::default();
        loop {
            let listed = timeout(contents.timeouts.http, link.list(Some(session))).await;
            let Ok(Ok(sessions)) = listed else { return self.gone(contents, &place).await };
            let Some(found) = sessions.iter().find(|found| found.session.as_ref() == session.as_bytes()) else {
                return Err(unknown());
            };
            if let Some(status) = &found.exit {
                return Ok(Some(exit(status)));
            }
            let pause = backoff.next(None).min(Duration::from_secs(1));
            if Instant::now() + pause >= until {
                return Ok(None);
            }
            sleep(pause).await;
        }
    }

    /// The pod can't be reached: it may be gone, and the session with it.
    async fn gone(&self, contents: &Contents, place: &Place) -> Result<Option<v1::Exit>, Refusal> {
        if let Some(found @ (Found::Containerssh | Found::Nothing)) = self.links.found(&place.image) {
            return Err(without(found));
        }
        let found = self.lifecycle.cluster().get_pod(&place.pod).await;
        let exit = of_gone(&found, &contents.console, &StreamEnd::Lost(String::new()));
        match &exit.end {
            Some(v1::exit::End::Lost(refusal)) if refusal.reason() == Reason::StreamLost => Err(unreachable()),
            _ => Ok(Some(exit)),
        }
    }

    /// Where a session's program is: in the connection's pod, or in one of its own.
    pub(super) async fn place_of(&self, contents: &Contents, session: SessionId) -> Result<Place, Refusal> {
        let agent = contents.agent.clone().ok_or_else(|| without(Found::Nothing))?;
        let (pod, image) = match (&contents.target, contents.pod()) {
            (Target::Pod { image_id, .. }, Some(pod)) => (pod, image_id.clone()),
            (Target::Pod { .. }, None) => {
                return Err(Refusal::new(Reason::Internal, "a connection without its pod"));
            }
            (Target::Template(_), _) => {
                let (pod, image, _) = self.own_pod_of(contents, session).await?.ok_or_else(unknown)?;
                (pod, image)
            }
        };
        Ok(Place { pod, container: contents.console.clone(), agent, image })
    }

    /// The pod of one session (mode `session`), where it is, its image by its status, and whether the session was detached.
    pub(super) async fn own_pod_of(
        &self,
        contents: &Contents,
        session: SessionId,
    ) -> Result<Option<(PodRef, String, bool)>, Refusal> {
        let Target::Template(base) = &contents.target else { return Ok(None) };
        let namespace = base.metadata.namespace.as_deref().unwrap_or_default();
        let deadline = Instant::now() + contents.timeouts.http;
        let pods = self.lifecycle.list(namespace, &identity::of_connection(contents.connection), deadline).await?;
        Ok(pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).find_map(|pod| {
            let marks = Marks::read(&pod.metadata).filter(|marks| marks.session == Some(session))?;
            Some((reference(pod)?, image_id(pod, &contents.console), marks.is_kept()))
        }))
    }
}

pub(super) fn unreachable() -> Refusal {
    Refusal::new(Reason::KubernetesUnavailable, "the pod's agent can't be reached at the moment; ask again")
}

pub(super) fn unknown() -> Refusal {
    Refusal::new(Reason::NotFound, "the pod knows no such session, or its end was acknowledged")
}

pub(super) fn exit(status: &proto::ExitStatus) -> v1::Exit {
    match program::Exit::try_from(status.clone()) {
        Ok(exit) => v1::Exit { end: Some(end(exit)) },
        Err(_) => lost(Reason::ContainerFailed, "the pod's agent tells an end that makes no sense"),
    }
}
