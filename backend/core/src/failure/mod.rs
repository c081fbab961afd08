//! Why a pod does not start: from its status, its events and the API's refusals, in words for the person who waits.
//!
//! Pure. What is *certain* is told at once; what *may heal* (an autoscaler, a quota, a registry) is shown as progress
//! and named at the end of `podStart`: the contract's table of certain failures.

mod create;
mod image;
mod status;

pub use create::{CreateFailure, of_create, of_delete};
pub use status::Observer;

use podbay::v1::{Reason, Refusal, StartPhase};

/// What a pod that starts is doing; one line for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The phase.
    pub phase: StartPhase,
    /// The line.
    pub message: String,
}

/// What is to be thought of a starting pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All well so far.
    Waiting(Progress),
    /// It runs.
    Ready,
    /// Its console container ran and ended; only where that is no failure ([`Observer::for_program`]).
    Ended,
    /// It will not start.
    Certain(Reason, String),
    /// It does not start now, and may later.
    MayHeal(Reason, Progress),
}

/// There is nothing that runs at the agent's path; and what can be done about it.
pub(crate) fn agent_missing(path: &str, words: &str) -> Refusal {
    let text = format!(
        "the image has no agent that runs at {path} ({}): add it to the image, set kubernetes.pod.disableAgent: true, or let \
         kubernetes.pod.agentInjection bring it",
        short(words)
    );
    Refusal::new(Reason::AgentMissing, text)
}

/// The refusal of a pod whose command is the agent, where that is what failed: for want of the agent.
pub(crate) fn or_agent_missing(refusal: Refusal, agent: Option<&str>, command: &[String]) -> Refusal {
    match agent {
        Some(path)
            if command.first().map(String::as_str) == Some(path)
                && refusal.reason() == Reason::ContainerFailed
                && refusal.message.contains(path)
                && crate::session::is_missing(&refusal.message) =>
        {
            agent_missing(path, &refusal.message)
        }
        Some(_) | None => refusal,
    }
}

/// The API's words on one line, cut for a terminal. The whole text is in the log.
pub(crate) fn short(text: &str) -> String {
    const MOST: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let clean: String = line.chars().filter(|c| !c.is_control()).take(MOST + 1).collect();
    match clean.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", clean.get(..end).unwrap_or_default()),
        None => clean,
    }
}

#[cfg(test)]
mod tests;
