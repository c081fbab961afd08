//! Pods that a Detach keeps, when their connection is closed.

use super::Connections;
use crate::{
    lifecycle::{image_id, reference},
    link::Place,
};
use k8s_openapi::api::core::v1::Pod;
use podbay::v1::Refusal;
use tokio::time::timeout;

impl Connections {
    /// Of pods that are marked as kept, deletes those in which nothing is kept any more, nor somebody else's by now. Gives how many.
    pub(super) async fn stop_without_detached(&self, pods: Vec<Pod>) -> Result<u32, Refusal> {
        let (console, bound) = (&self.settings.pod.console, self.lifecycle.timeouts().http);
        let Some(agent) = &self.settings.pod.agent else { return Ok(0) };
        let mut stopped = 0;
        for pod in pods {
            let Some(reference) = reference(&pod) else { continue };
            let place = Place {
                pod: reference.clone(),
                container: console.clone(),
                agent: agent.clone(),
                image: image_id(&pod, console),
            };
            // One that gives no answer keeps what was promised.
            if let Ok(Ok(sessions)) = timeout(bound, self.links.program(&place).list(None)).await
                && !sessions.iter().any(|session| session.kept || session.exit.is_none())
            {
                self.lifecycle.stop(&reference).await?;
                stopped += 1;
            }
        }
        Ok(stopped)
    }
}
