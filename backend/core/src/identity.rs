//! Who a connection belongs to, parsed once, and how that stands on pods and leases.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podbay::{ConnectionId, OwnerId, SessionId, v1};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// Label: the program that made the object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`].
pub const PODBAY: &str = "podbay";
/// Label: the connection's id.
pub const CONNECTION: &str = "podbay.dev/connection";
/// Label: the owner's id.
pub const OWNER: &str = "podbay.dev/owner";
/// Label: the session's id (mode `session`).
pub const SESSION: &str = "podbay.dev/session";
/// Label: an operator ended the connection ([`TERMINATED_YES`]); on the lease that marks it as closed.
pub const TERMINATED: &str = "podbay.dev/terminated";
/// The value of [`TERMINATED`].
pub const TERMINATED_YES: &str = "true";
/// Annotation: the operator's words for the user, on the same lease; absent where there are none.
pub const MESSAGE: &str = "podbay.dev/message";
/// Annotation: the caller's service.
pub const CALLER: &str = "podbay.dev/caller";
/// Annotation: the user as the client named it.
pub const USER: &str = "podbay.dev/user";
/// Annotation: the authenticated user, where it differs.
pub const AUTHENTICATED_USER: &str = "podbay.dev/authenticated-user";
/// Annotation: the client's address.
pub const REMOTE: &str = "podbay.dev/remote-address";
/// Annotation: a session of the pod was detached, and until this time (RFC 3339) no owner's end is the pod's.
pub const KEPT_UNTIL: &str = "podbay.dev/kept-until";
/// Label: the pod outlives connections ([`PERSISTENT_YES`]); then it names neither connection nor owner.
pub const PERSISTENT: &str = "podbay.dev/persistent";
/// The value of [`PERSISTENT`].
pub const PERSISTENT_YES: &str = "true";
/// Label (the value is the owner's id) and annotation (see [`crate::persistent`]): that prefix, and the id of a connection that
/// uses the pod.
pub const CLAIM: &str = "claim.podbay.dev/";
/// Annotation: differs after every claim.
pub const CLAIMED: &str = "podbay.dev/claimed";
/// Annotation: the connection's policy (JSON), where the config webhook or the user's credentials made it another than the file's.
pub const POLICY: &str = "podbay.dev/policy";
/// Annotation: when a pod that outlives connections was last seen to be used (RFC 3339): claimed, released, or with a program that ran.
pub const LAST_USED: &str = "podbay.dev/last-used";
/// Annotation: `connection`, `session` or `persistent`.
pub const MODE: &str = "podbay.dev/mode";

/// Selects everything that Podbay made.
pub fn all() -> String {
    format!("{MANAGED_BY}={PODBAY}")
}

/// Selects a connection's pods.
pub fn of_connection(id: ConnectionId) -> String {
    format!("{MANAGED_BY}={PODBAY},{CONNECTION}={id}")
}

/// Selects an owner's pods and its lease.
pub fn of_owner(id: OwnerId) -> String {
    format!("{MANAGED_BY}={PODBAY},{OWNER}={id}")
}

/// Selects the pods that outlive connections.
pub fn of_persistent() -> String {
    format!("{MANAGED_BY}={PODBAY},{PERSISTENT}={PERSISTENT_YES}")
}

/// Selects the pod that a connection claims.
pub fn of_claim(id: ConnectionId) -> String {
    format!("{},{CLAIM}{id}", of_persistent())
}

/// Selects the marks of connections that operators ended.
pub fn of_terminated() -> String {
    format!("{MANAGED_BY}={PODBAY},{TERMINATED}={TERMINATED_YES}")
}

/// The authenticated person a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// As the client named it; 1 to 256 bytes.
    pub name: String,
    /// As authentication established it; the same where nothing else is known.
    pub authenticated: String,
}

impl User {
    /// A user whose authenticated name is the given one.
    pub fn named(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { authenticated: name.clone(), name }
    }

    /// As the contract writes it.
    pub fn to_proto(&self) -> v1::User {
        let authenticated = if self.authenticated == self.name { String::new() } else { self.authenticated.clone() };
        v1::User { name: self.name.clone(), authenticated_name: authenticated }
    }
}

/// Until when a pod of any kind is kept for sessions that were detached.
pub fn kept_until(meta: &ObjectMeta) -> Option<Timestamp> {
    meta.annotations.as_ref()?.get(KEPT_UNTIL)?.parse().ok()
}

/// Who a connection belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The connection.
    pub connection: ConnectionId,
    /// Whose lease keeps it.
    pub owner: OwnerId,
    /// The calling service, from its certificate.
    pub caller: String,
    /// For whom.
    pub user: User,
    /// From where.
    pub remote: Option<IpAddr>,
}

/// What the labels and annotations of one of our pods say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// The connection.
    pub connection: ConnectionId,
    /// The owner.
    pub owner: OwnerId,
    /// The calling service; empty where the annotation was removed.
    pub caller: String,
    /// For whom.
    pub user: User,
    /// From where, as text.
    pub remote: String,
    /// The session (mode `session`).
    pub session: Option<SessionId>,
    /// Whether it was made in mode `session`.
    pub session_mode: bool,
    /// Until when it is kept without an owner.
    pub kept_until: Option<Timestamp>,
}

impl Marks {
    /// Whether it is kept now, whatever becomes of its owner.
    pub fn is_kept(&self) -> bool {
        self.kept_until.is_some_and(|until| until > Timestamp::now())
    }

    /// `None` where it isn't one of our pods, or its labels were damaged.
    pub fn read(meta: &ObjectMeta) -> Option<Self> {
        let text = |map: &Option<BTreeMap<String, String>>, key| map.as_ref()?.get(key).cloned();
        let label = |key| text(&meta.labels, key);
        let note = |key| text(&meta.annotations, key);
        if label(MANAGED_BY).as_deref() != Some(PODBAY) {
            return None;
        }
        let name = note(USER).unwrap_or_default();
        Some(Self {
            connection: label(CONNECTION)?.parse().ok()?,
            owner: label(OWNER)?.parse().ok()?,
            caller: note(CALLER).unwrap_or_default(),
            user: User { authenticated: note(AUTHENTICATED_USER).unwrap_or_else(|| name.clone()), name },
            remote: note(REMOTE).unwrap_or_default(),
            session: label(SESSION).and_then(|id| id.parse().ok()),
            session_mode: note(MODE).as_deref() == Some("session"),
            kept_until: kept_until(meta),
        })
    }
}
