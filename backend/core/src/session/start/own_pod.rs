//! Pods of programs' own (mode `session`): how many there may be, how they are made, and whose they are.

use crate::{
    cluster::PodRef,
    failure::or_agent_missing,
    handle::Contents,
    identity::{self, Marks},
    lifecycle::{Kind, Lifecycle, StartRequest},
    session::{Opening, Sessions, places},
    template::{SessionProgram, session_pod},
};
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    SessionId,
    v1::{self, Refusal},
};
use std::{collections::BTreeMap, num::NonZeroU32};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

/// A pod of the program's own, in which something waits.
pub(in crate::session) struct Prepared {
    pub own_pod: OwnPod,
    /// What it runs, by its status.
    pub image: String,
}

/// A pod of one program: deleted, under a fresh `podStop`, when this is dropped.
pub(in crate::session) struct OwnPod {
    lifecycle: Lifecycle,
    pub pod: PodRef,
    kept: bool,
    /// Its session was detached: it has its exit for whoever comes, until that is acknowledged.
    pub detached: bool,
}

impl OwnPod {
    /// It stays; whoever owns its connection removes it.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// It goes with its session from now on.
    pub fn ours(mut self) -> Self {
        self.kept = false;
        self
    }
}

impl Drop for OwnPod {
    fn drop(&mut self) {
        if !self.kept {
            self.lifecycle.undo(self.pod.clone());
        }
    }
}

impl Sessions {
    /// Makes the pod of a program that will be started over a link: it waits.
    pub(in crate::session) async fn waiting_pod(
        &self,
        contents: &Contents,
        opening: &Opening,
        base: &Pod,
        agent: &str,
        (deadline, progress): (Instant, &mpsc::Sender<v1::Progress>),
    ) -> Result<Prepared, Refusal> {
        let waits = [agent, "wait-signal", "--signal", "INT", "--signal", "TERM"].map(str::to_owned).into();
        let pod = pod_of(contents, opening, base, Some(waits), &BTreeMap::new());
        let request = StartRequest { pod, console: contents.console.clone(), kind: Kind::Program, deadline };
        let started = self.lifecycle.start(request, progress).await;
        let started = started.map_err(|refusal| or_agent_missing(refusal, Some(agent), &[agent.to_owned()]))?;
        Ok(Prepared { own_pod: self.made(started.pod), image: started.image_id })
    }

    /// Whether the connection has few enough pods for one more, whichever replica made them. (Two that look at the same
    /// time may both find room.)
    pub(in crate::session) async fn room(
        &self,
        contents: &Contents,
        opening: &Opening,
        base: &Pod,
        most: NonZeroU32,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let namespace = base.metadata.namespace.as_deref().unwrap_or_default();
        let selector = identity::of_connection(contents.connection);
        let until = Instant::now() + places::OVERLAP;
        loop {
            let pods = self.lifecycle.list(namespace, &selector, deadline).await?;
            let others = pods.iter().filter(|pod| is_live(pod, opening.session)).count();
            if others < usize::try_from(most.get()).unwrap_or(usize::MAX) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(places::full(most));
            }
            // A session that is over, and whose pod's end is not asked for yet.
            sleep(places::OVERLAP / 4).await;
        }
    }

    /// The pod of a program that is to be continued: somebody else's until it is ([`OwnPod::ours`]).
    pub(in crate::session) fn found(&self, pod: PodRef, detached: bool) -> OwnPod {
        OwnPod { lifecycle: self.lifecycle.clone(), pod, kept: true, detached }
    }

    fn made(&self, pod: PodRef) -> OwnPod {
        OwnPod { lifecycle: self.lifecycle.clone(), pod, kept: false, detached: false }
    }

    pub(super) async fn start_pod(
        &self,
        contents: &Contents,
        pod: Pod,
        deadline: Instant,
        progress: &mpsc::Sender<v1::Progress>,
    ) -> Result<OwnPod, Refusal> {
        let request = StartRequest { pod, console: contents.console.clone(), kind: Kind::Program, deadline };
        let started = self.lifecycle.start(request, progress).await?;
        Ok(self.made(started.pod))
    }
}

/// The pod of this program: its name is the session's.
pub(super) fn pod_of(
    contents: &Contents,
    opening: &Opening,
    base: &Pod,
    command: Option<Vec<String>>,
    environment: &BTreeMap<String, String>,
) -> Pod {
    let program = SessionProgram {
        connection: contents.connection,
        session: opening.session,
        console: &contents.console,
        command,
        tty: opening.tty,
        environment,
    };
    session_pod(base, program)
}

/// Whether a pod stands for another session that runs.
fn is_live(pod: &Pod, own: SessionId) -> bool {
    let ended = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    let other = Marks::read(&pod.metadata).is_some_and(|marks| marks.session.is_some_and(|session| session != own));
    other && !ended && pod.metadata.deletion_timestamp.is_none()
}

pub(super) fn named(contents: &Contents, opening: &Opening, base: &Pod) -> Option<PodRef> {
    let metadata = pod_of(contents, opening, base, None, &BTreeMap::new()).metadata;
    Some(PodRef { namespace: metadata.namespace?, name: metadata.name?, uid: None })
}

/// The image of the console container, as the pod is to be made.
pub(in crate::session) fn image_of(base: &Pod, console: &str) -> String {
    let containers = base.spec.iter().flat_map(|spec| &spec.containers);
    containers.filter(|c| c.name == console).find_map(|c| c.image.clone()).unwrap_or_default()
}
