//! Marks of connections that are over: leases `podbay-closed-<connection>…` that no owner has, which the reaper removes
//! after a while. Session starts refuse what is marked; where an operator made the mark, it carries the words for the user.

use super::lease::{EXPIRED, Leases, unavailable};
use crate::{
    cluster::ClusterError,
    identity::{self, CALLER, CONNECTION, MESSAGE, TERMINATED, TERMINATED_YES},
    lifecycle::Backoff,
};
use k8s_openapi::api::coordination::v1::Lease;
use podbay::{
    ConnectionId,
    v1::{Reason, Refusal},
};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep};

/// The longest message of an operator in bytes (contract).
const MAX_MESSAGE: usize = 256;

/// Why a connection ends before its owner ended it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// This calling service closes it. Its mark counts for its own handles only: whose the connection is, no pod may tell yet.
    ByCaller(String),
    /// An operator ends it, with these words for the user, which may be empty.
    ByOperator(String),
}

impl Closing {
    /// An operator's, with the contract's message.
    ///
    /// # Errors
    /// `INVALID_REQUEST` where the message is more than one line of printable text, or too long.
    pub fn by_operator(message: &str) -> Result<Self, Refusal> {
        // Line and paragraph separators, and what changes the direction of text: a terminal would show something else.
        let hidden = |c: char| matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if message.len() > MAX_MESSAGE || message.chars().any(|c| c.is_control() || hidden(c)) {
            let text = format!("message: one line of printable text, at most {MAX_MESSAGE} bytes");
            return Err(Refusal::new(Reason::InvalidRequest, text));
        }
        Ok(Self::ByOperator(message.trim().to_owned()))
    }
}

/// The mark's name: of a calling service, or of operators. Each has one of its own, so that nobody who knows an id can end
/// another's connection, nor, by being first, keep its own caller from ending it.
pub(super) fn name(connection: ConnectionId, by: Option<&str>) -> String {
    match by {
        None => format!("podbay-closed-{connection}"),
        // A service's name may hold anything; half a SHA-256 may not be found twice, and is a name for Kubernetes.
        Some(caller) => {
            let mut digest = hex::encode(Sha256::digest(caller));
            digest.truncate(32);
            format!("podbay-closed-{connection}-{digest}")
        }
    }
}

/// Why no program starts on the connection that has this mark.
pub(super) fn refusal(mark: &Lease) -> Refusal {
    let text = terminated(mark).map_or_else(|| "the connection was closed".to_owned(), podbay::terminated_text);
    Refusal::new(Reason::Terminated, text)
}

/// The operator's words, where it is an operator's mark.
fn terminated(mark: &Lease) -> Option<&str> {
    let labels = mark.metadata.labels.as_ref()?;
    if labels.get(TERMINATED).map(String::as_str) != Some(TERMINATED_YES) {
        return None;
    }
    let words = mark.metadata.annotations.as_ref().and_then(|notes| notes.get(MESSAGE));
    Some(words.map(String::as_str).unwrap_or_default())
}

impl Leases {
    /// Marks a connection as over. The first mark counts.
    ///
    /// # Errors
    /// `KUBERNETES_UNAVAILABLE` and the like, at the deadline.
    pub async fn revoke(&self, connection: ConnectionId, why: &Closing, deadline: Instant) -> Result<(), Refusal> {
        let by = match why {
            Closing::ByCaller(caller) => Some(caller.as_str()),
            Closing::ByOperator(_) => None,
        };
        let mut lease = self.bare(name(connection, by), EXPIRED);
        let labels = lease.metadata.labels.get_or_insert_default();
        labels.insert(CONNECTION.into(), connection.to_string());
        match why {
            // For people.
            Closing::ByCaller(caller) => {
                lease.metadata.annotations = Some(BTreeMap::from([(CALLER.to_owned(), caller.clone())]));
            }
            Closing::ByOperator(message) => {
                labels.insert(TERMINATED.into(), TERMINATED_YES.into());
                if !message.is_empty() {
                    lease.metadata.annotations = Some(BTreeMap::from([(MESSAGE.to_owned(), message.clone())]));
                }
            }
        }
        let mut backoff = Backoff::default();
        loop {
            match self.cluster.create_lease(&lease).await {
                Ok(_) | Err(ClusterError::AlreadyExists) => return Ok(()),
                Err(error) if Instant::now() + Duration::from_millis(100) >= deadline => {
                    return Err(unavailable("made", &error));
                }
                Err(_) => sleep(backoff.next(None)).await,
            }
        }
    }

    /// The refusal of a connection that an operator ended. `None` also where that can't be read: it is asked when something
    /// has gone wrong already, and must not make it worse. One read, bounded by `timeouts.http`.
    pub async fn terminated(&self, connection: ConnectionId) -> Option<Refusal> {
        let mark = self.cluster.get_lease(&self.ownership.namespace, &name(connection, None)).await.ok()?;
        terminated(&mark).is_some().then(|| refusal(&mark))
    }

    /// All connections that operators ended, with the words for their users, for as long as their marks stand.
    pub async fn all_terminated(&self) -> Result<BTreeMap<ConnectionId, String>, ClusterError> {
        let marks = self.cluster.list_leases(&self.ownership.namespace, &identity::of_terminated()).await?;
        let named = marks.iter().filter_map(|mark| {
            let connection = mark.metadata.labels.as_ref()?.get(CONNECTION)?.parse().ok()?;
            Some((connection, terminated(mark)?.to_owned()))
        });
        Ok(named.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_message_is_one_line_of_printable_text() {
        for good in ["", "  maintenance, back at 12 ", "wartung läuft – bis später", &"x".repeat(256)] {
            assert_eq!(Closing::by_operator(good), Ok(Closing::ByOperator(good.trim().to_owned())));
        }
        for bad in ["a\nb", "\u{1b}[31m", "a\0", "\u{7f}", "\u{9b}31m", "\u{202e}txet", "a\u{2028}b", &"x".repeat(257)]
        {
            let refused = Closing::by_operator(bad).expect_err(bad);
            assert_eq!(refused.reason(), Reason::InvalidRequest);
        }
    }
}
