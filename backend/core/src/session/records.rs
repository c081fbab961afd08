//! What is asked of a durable session besides its stream: how it ended, and that this is known.

use super::{
    Sessions,
    durable::end,
    ending::{lost, of_gone},
};
use crate::{
    cluster::StreamEnd,
    handle::{Contents, Target},
    lifecycle::Backoff,
    link::{LinkEnded, LinkProgram, Place},
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
        let link = self.link_of(contents)?;
        let bound = contents.timeouts.http;
        match timeout(bound, link.ack_exit(session)).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(Refusal::new(Reason::InvalidRequest, "the program runs still: it has no exit yet")),
            Ok(Err(LinkEnded)) | Err(_) => Err(unreachable()),
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
        let link = self.link_of(contents)?;
        let until = Instant::now() + wait.min(MAX_WAIT);
        let mut backoff = Backoff::default();
        loop {
            let listed = timeout(contents.timeouts.http, link.list(Some(session))).await;
            let Ok(Ok(sessions)) = listed else { return self.gone(contents).await };
            let Some(found) = sessions.iter().find(|found| found.session.as_ref() == session.as_bytes()) else {
                return Err(Refusal::new(
                    Reason::NotFound,
                    "the pod knows no such session, or its end was acknowledged",
                ));
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
    async fn gone(&self, contents: &Contents) -> Result<Option<v1::Exit>, Refusal> {
        let pod = contents.pod().ok_or_else(unreachable)?;
        let found = self.lifecycle.cluster().get_pod(&pod).await;
        let exit = of_gone(&found, &contents.console, &StreamEnd::Lost(String::new()));
        match &exit.end {
            Some(v1::exit::End::Lost(refusal)) if refusal.reason() == Reason::StreamLost => Err(unreachable()),
            _ => Ok(Some(exit)),
        }
    }

    fn link_of(&self, contents: &Contents) -> Result<LinkProgram, Refusal> {
        let unimplemented = |text: &str| Refusal::new(Reason::Unimplemented, text);
        let agent = contents
            .agent
            .clone()
            .ok_or_else(|| unimplemented("sessions outlive their streams only where podbay-agent runs in the pod"))?;
        match (&contents.target, contents.pod()) {
            (Target::Pod { image_id, .. }, Some(pod)) => {
                let (container, image) = (contents.console.clone(), image_id.clone());
                Ok(self.links.program(&Place { pod, container, agent, image }))
            }
            _ => Err(unimplemented("in mode session a program's end is told by its stream, and its pod ends with it")),
        }
    }
}

fn unreachable() -> Refusal {
    Refusal::new(Reason::KubernetesUnavailable, "the pod's agent can't be reached at the moment; ask again")
}

fn exit(status: &proto::ExitStatus) -> v1::Exit {
    match program::Exit::try_from(status.clone()) {
        Ok(exit) => v1::Exit { end: Some(end(exit)) },
        Err(_) => lost(Reason::ContainerFailed, "the pod's agent tells an end that makes no sense"),
    }
}
