//! Connections as the cluster knows them.

use super::Connections;
use crate::{
    identity::{self, Marks},
    lifecycle::reference,
    persistent::{self, Claim},
};
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId,
    v1::{self, Reason, Refusal},
};
use std::collections::BTreeMap;
use tokio::time::Instant;

const DEFAULT_PAGE: usize = 500;
const MAX_PAGE: usize = 1000;

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// Only of this user (by either name).
    pub user: Option<String>,
    /// Only of this calling service; `None` for operators.
    pub caller: Option<String>,
    /// At most so many; 0 = 500, at most 1000.
    pub page_size: u32,
    /// Only after this one.
    pub after: Option<ConnectionId>,
}

/// A page of connections.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// In the order of their ids.
    pub connections: Vec<v1::Connection>,
    /// Where the next page begins; `None` = that was all.
    pub next: Option<ConnectionId>,
}

impl ListRequest {
    /// From the contract's message; `caller` for callers that see only their own.
    ///
    /// # Errors
    /// `INVALID_REQUEST` where the page token is none.
    pub fn parse(message: v1::ListConnectionsRequest, caller: Option<String>) -> Result<Self, Refusal> {
        let after = match message.page_token.as_str() {
            "" => None,
            token => {
                Some(token.parse().map_err(|_| Refusal::new(Reason::InvalidRequest, "page_token is not one of ours"))?)
            }
        };
        let user = Some(message.user).filter(|user| !user.is_empty());
        Ok(Self { user, caller, page_size: message.page_size, after })
    }
}

impl Page {
    /// As the contract writes it.
    pub fn into_proto(self) -> v1::ListConnectionsResponse {
        let next_page_token = self.next.map(|id| id.to_string()).unwrap_or_default();
        v1::ListConnectionsResponse { connections: self.connections, next_page_token }
    }
}

impl Connections {
    /// Lists connections by their pods; within `timeouts.http` and some retries. (A connection in session mode that runs no
    /// program has no pod, and is not seen; nor is one in a pod that others made. `created` of one in a pod that stays is the pod's.)
    pub async fn list(&self, request: &ListRequest) -> Result<Page, Refusal> {
        let deadline = Instant::now() + self.lifecycle().timeouts().http;
        let all = identity::all();
        let lists = self.places().iter().map(|place| self.lifecycle().list_all(place, &all, deadline));
        Ok(page(&futures::future::try_join_all(lists).await?.concat(), request))
    }
}

/// The connections that a pod is there for: one, or those that claim it.
fn uses(pod: &Pod) -> Vec<(&Pod, Marks, v1::ExecutionMode)> {
    if let Some(marks) = Marks::read(&pod.metadata) {
        let mode = if marks.session_mode { v1::ExecutionMode::Session } else { v1::ExecutionMode::Connection };
        return vec![(pod, marks, mode)];
    }
    if !persistent::is_ours(&pod.metadata) {
        return Vec::new();
    }
    let claims = persistent::claims(&pod.metadata).into_iter().map(|claim| {
        let Claim { connection, owner, caller, user, remote } = claim;
        let marks =
            Marks { connection, owner, caller, user, remote, session: None, session_mode: false, kept_until: None };
        (pod, marks, v1::ExecutionMode::Persistent)
    });
    claims.collect()
}

fn page(pods: &[Pod], request: &ListRequest) -> Page {
    let mut all: BTreeMap<ConnectionId, v1::Connection> = BTreeMap::new();
    for (pod, marks, mode) in pods.iter().flat_map(uses) {
        let wanted = request.after.is_none_or(|after| marks.connection > after)
            && request.caller.as_ref().is_none_or(|caller| *caller == marks.caller)
            && request.user.as_ref().is_none_or(|user| *user == marks.user.name || *user == marks.user.authenticated);
        if !wanted {
            continue;
        }
        let created = pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| prost_types::Timestamp { seconds: time.0.as_second(), nanos: time.0.subsec_nanosecond() });
        let connection = all.entry(marks.connection).or_insert_with(|| v1::Connection {
            connection_id: marks.connection.to_string(),
            owner_id: marks.owner.to_string(),
            user: Some(marks.user.to_proto()),
            remote_address: marks.remote.clone(),
            mode: mode.into(),
            created,
            pods: Vec::new(),
        });
        let key = |time: &Option<prost_types::Timestamp>| time.as_ref().map(|time| (time.seconds, time.nanos));
        if key(&created) < key(&connection.created) {
            connection.created = created;
        }
        if let Some(reference) = reference(pod) {
            connection.pods.push(v1::Pod {
                namespace: reference.namespace,
                name: reference.name,
                uid: reference.uid.unwrap_or_default(),
                phase: pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default(),
                session_id: marks.session.map(|id| id.to_string()).unwrap_or_default(),
            });
        }
    }
    let size = match request.page_size as usize {
        0 => DEFAULT_PAGE,
        n => n.min(MAX_PAGE),
    };
    let more = all.len() > size;
    let next = if more { all.keys().nth(size - 1).copied() } else { None };
    Page { connections: all.into_values().take(size).collect(), next }
}
