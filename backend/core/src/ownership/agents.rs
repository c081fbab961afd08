//! What the agent of a pod that outlives connections says of its programs.

use crate::{
    cluster::PodRef,
    lifecycle::image_id,
    link::{Found, Links, Place},
};
use k8s_openapi::api::core::v1::Pod;
use std::time::Duration;
use tokio::time::timeout;

/// Where the agents of pods that outlive connections are: asked for programs that run before such a pod is deleted.
#[derive(Debug, Clone)]
pub struct Agents {
    /// The links to pods.
    pub links: Links,
    /// The agent's path in the console container.
    pub path: String,
    /// The console container.
    pub console: String,
}

/// What an agent says of its programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Programs {
    /// Some run, or their exits are kept as a Detach asked.
    Run,
    /// There are exits that nobody asked to keep.
    Over,
    /// There is nothing, or nobody to be asked.
    None,
    Unknown,
}

impl Agents {
    /// Whether programs of sessions run in the pod, or an exit is kept in it, as its agent says within `bound`.
    pub(super) async fn programs(&self, pod: &Pod, reference: &PodRef, bound: Duration) -> Programs {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase != Some("Running") {
            return Programs::None;
        }
        let image = image_id(pod, &self.console);
        let other = || matches!(self.links.found(&image), Some(Found::Containerssh | Found::Nothing));
        if other() {
            return Programs::None;
        }
        let place = Place {
            pod: reference.clone(),
            container: self.console.clone(),
            agent: self.path.clone(),
            image: image.clone(),
        };
        let link = self.links.program(&place);
        match timeout(bound, link.list(None)).await {
            Ok(Ok(sessions)) if sessions.iter().any(|session| session.exit.is_none() || session.kept) => Programs::Run,
            Ok(Ok(sessions)) if sessions.is_empty() => Programs::None,
            Ok(Ok(_)) => Programs::Over,
            Ok(Err(_)) | Err(_) if other() => Programs::None,
            Ok(Err(_)) | Err(_) => Programs::Unknown,
        }
    }
}
