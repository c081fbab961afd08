//! Files that webhooks give a connection's pod: written by its agent before the connection is open, so before any program.

use crate::{
    config::{Mode, PodConfig},
    link::{Links, Place},
};
use podbay::v1::{Reason, Refusal};
use podbay_runtime::{codes, webhook::Entry};
use std::collections::BTreeMap;
use tokio::time::{Instant, timeout_at};

type Files = BTreeMap<String, Entry<Vec<u8>>>;

/// Owner's only: like ContainerSSH's agent writes them.
const MODE: u32 = 0o600;

/// Refuses files where there is nobody to write them, before anything is begun.
pub(super) fn possible(files: &Files, config: &PodConfig) -> Result<(), Refusal> {
    let why = match (config.mode, &config.agent) {
        _ if files.is_empty() => return Ok(()),
        (Mode::Session | Mode::Persistent, _) => "files for pods need kubernetes.pod.mode connection",
        (Mode::Connection, None) => {
            "files for pods need podbay-agent in the image: kubernetes.pod.disableAgent is true"
        }
        (Mode::Connection, Some(_)) => return Ok(()),
    };
    Err(Refusal::new(Reason::ConfigWebhook, format!("{why}; tell your administrator")))
}

/// Writes them all, until the start's deadline.
///
/// # Errors
/// `AGENT_MISSING`, or `CONFIG_WEBHOOK` with the agent's words.
pub(super) async fn write(links: &Links, place: &Place, files: Files, deadline: Instant) -> Result<(), Refusal> {
    let link = links.program(place);
    for (path, file) in files {
        tracing::debug!(code = codes::KUBERNETES_FILE_WRITE, pod = place.pod.name, path, "writing a file into the pod");
        let refused = match timeout_at(deadline, link.write_file(&path, MODE, file.value.into())).await {
            Ok(Ok(Ok(()))) => continue,
            Ok(Ok(Err(why))) => {
                Refusal::new(Reason::ConfigWebhook, format!("{path} can't be written in the pod: {why}"))
            }
            Ok(Err(_)) => Refusal::new(
                Reason::AgentMissing,
                format!("{path} can't be written in the pod: there is no podbay-agent"),
            ),
            Err(_) => Refusal::new(
                Reason::PodStartTimeout,
                format!("{path} was not written in the pod in time (timeouts.podStart)"),
            ),
        };
        let code = codes::KUBERNETES_FILE_WRITE_FAILED;
        tracing::error!(code, pod = place.pod.name, path, why = refused.message, "a file is not written into the pod");
        return Err(refused);
    }
    Ok(())
}
