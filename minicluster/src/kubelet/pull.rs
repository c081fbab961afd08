//! Getting a container's image, or saying again and again why it can't be had.

use super::{container::ContainerTask, pod::stopped_within};
use crate::{
    faults::Pull,
    image::{self, Image},
};
use std::time::Duration;

impl ContainerTask {
    /// The image; `None` when the pod is to stop before it could be had.
    pub(super) async fn pull(&mut self) -> Option<Image> {
        let name = self.spec.image.clone().unwrap_or_default();
        let policy = self.spec.image_pull_policy.clone().unwrap_or_default();
        let mut pause = Duration::ZERO;
        loop {
            let (reason, message) = match self.try_pull(&name, &policy) {
                Ok(image) => return Some(image),
                Err(failed) => failed,
            };
            self.note(true, "Failed", &message);
            self.note(true, "Failed", &format!("Error: {reason}"));
            self.wait_state(reason, Some(message.clone()));
            pause = self.next_pause(pause);
            // The kubelet shows the error until its next look at the pod, then that it waits.
            if stopped_within(&mut self.stop, pause / 4).await {
                return None;
            }
            if reason == "ErrImagePull" {
                let backing_off = format!("Back-off pulling image \"{name}\"");
                self.note(false, "BackOff", &backing_off);
                self.note(true, "Failed", "Error: ImagePullBackOff");
                self.wait_state("ImagePullBackOff", Some(format!("{backing_off}: ErrImagePull: {message}")));
            }
            if stopped_within(&mut self.stop, pause * 3 / 4).await {
                return None;
            }
        }
    }

    fn try_pull(&self, name: &str, policy: &str) -> Result<Image, (&'static str, String)> {
        if !image::is_valid_name(name) {
            let message = format!(
                "Failed to apply default image tag \"{name}\": couldn't parse image name \"{name}\": invalid reference format"
            );
            return Err(("InvalidImageName", message));
        }
        let failure = self.kubelet.faults.pull(name);
        let image = self.kubelet.settings.images.get(name).filter(|_| failure.is_none());
        if let Some(image) = image {
            if policy == "Always" {
                self.note(false, "Pulling", &format!("Pulling image \"{name}\""));
                self.note(
                    false,
                    "Pulled",
                    &format!(
                        "Successfully pulled image \"{name}\" in 1ms (1ms including waiting). Image size: 0 bytes."
                    ),
                );
            } else {
                self.note(false, "Pulled", &format!("Container image \"{name}\" already present on machine"));
            }
            return Ok(image.clone());
        }
        if policy == "Never" {
            let message = format!("Container image \"{name}\" is not present with pull policy of Never");
            return Err(("ErrImageNeverPull", message));
        }
        self.note(false, "Pulling", &format!("Pulling image \"{name}\""));
        let cause = match failure.unwrap_or(Pull::NotFound) {
            Pull::NotFound => format!("{name}: not found"),
            Pull::Unauthorized => "pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials".to_owned(),
            Pull::Unreachable => "failed to do request: Head: dial tcp 127.0.0.1:80: connect: connection refused".to_owned(),
        };
        let code = match failure {
            Some(Pull::Unauthorized | Pull::Unreachable) => "Unknown",
            Some(Pull::NotFound) | None => "NotFound",
        };
        let message = format!(
            "Failed to pull image \"{name}\": rpc error: code = {code} desc = failed to pull and unpack image \"{name}\": failed to resolve reference \"{name}\": {cause}"
        );
        Err(("ErrImagePull", message))
    }
}
