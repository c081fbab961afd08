//! A link that is away: the user is told, and the wait has an end.

use super::{Durable, Stop, over::Over};
use crate::{handle::Contents, link::Health, session::ending};
use podbay::v1::{self, Reason, Refusal, run_session_response::Frame as Out};
use std::time::Duration;
use tokio::time::Instant;

/// A link that is away for less is nobody's news.
const TELL_AFTER: Duration = Duration::from_secs(5);

pub(super) struct Waits {
    pub within: Duration,
    pub now: Option<Wait>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub since: Instant,
    /// The user knows.
    pub told: bool,
}

impl Waits {
    /// When something is to be told, or done about it.
    pub fn due(&self) -> Option<Instant> {
        let wait = self.now?;
        let patience = if wait.told { self.within } else { self.within.min(TELL_AFTER) };
        Some(wait.since + patience)
    }
}

impl Durable {
    /// The link was waited for.
    pub(super) fn waited(&mut self, contents: &Contents) -> Result<(), Stop> {
        let Health::Down { since: _, api, why } = self.link.health.borrow().clone() else { return Ok(()) };
        let Some(wait) = &mut self.waits.now else { return Ok(()) };
        let within = self.waits.within;
        if Instant::now() < wait.since + within {
            wait.told = true;
            let whom = if api { "the Kubernetes API" } else { "the pod's agent" };
            let message = format!(
                "the connection to the pod broke and the program runs on: waiting for {whom}, at most {within:?} ({why})"
            );
            self.control.push_back(Out::Notice(v1::Notice { message }));
            return Ok(());
        }
        if api {
            // Another replica may have a better way to it.
            let text = format!("the Kubernetes API did not answer for {within:?}: {why} (timeouts.relink)");
            return Err(Refusal::new(Reason::KubernetesUnavailable, text).into());
        }
        let text = format!(
            "the pod's agent could not be reached for {within:?}: {why} (timeouts.relink); how the program ends is not known"
        );
        let exit = ending::lost(Reason::StreamLost, text);
        self.over(Over::Unreachable(exit), contents);
        Ok(())
    }
}
