//! Requests, parsed once at the door.

use crate::{
    identity::{Identity, User},
    policy::{MAX_FORCED, Restrictions},
};
use bytes::Bytes;
use podbay::{
    ConnectionId, OwnerId,
    v1::{self, Reason, Refusal},
};
use podbay_runtime::webhook::{Entry, Facts};
use std::{
    collections::{BTreeMap, HashSet},
    str::FromStr,
};

/// The longest user name in bytes.
const MAX_USER: usize = 256;
/// RFC 4253 section 4.2.
const MAX_VERSION: usize = 255;
/// Connections and handles in one heartbeat.
const MAX_BEAT: usize = 100_000;

/// Asks for a connection.
#[derive(Clone, PartialEq, Eq)]
pub struct OpenRequest {
    /// Who.
    pub who: Identity,
    /// What authentication has learnt, and, once it was asked, the config webhook: metadata, environment, files.
    pub facts: Facts,
    /// What the user's own credentials restrict it to.
    pub restrictions: Restrictions,
    /// The client's identification; may be empty.
    pub client_version: String,
    /// The client's port; 0 = not known.
    pub remote_port: u16,
    /// Whom the caller may act for; empty = everybody. Held against who the user is in the end, whoever said so.
    pub users: Vec<String>,
}

/// The facts may hold secrets.
impl std::fmt::Debug for OpenRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenRequest").field("who", &self.who).finish_non_exhaustive()
    }
}

impl OpenRequest {
    /// From the contract's message and the caller's service.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the field.
    pub fn parse(message: v1::OpenConnectionRequest, caller: impl Into<String>) -> Result<Self, Refusal> {
        let connection: ConnectionId = id(&message.connection_id, "connection_id")?;
        let user = message.user.ok_or_else(|| invalid("user is missing"))?;
        let remote = match message.remote_address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| invalid("remote_address is not an IP address"))?),
        };
        if message.client_version.len() > MAX_VERSION || message.client_version.contains(char::is_control) {
            return Err(invalid("client_version is longer than 255 bytes or holds control characters"));
        }
        let facts = Facts {
            authenticated: None,
            metadata: entries(message.metadata, &message.sensitive_metadata),
            environment: entries(message.environment, &message.sensitive_environment),
            files: entries(
                message.files.into_iter().map(|(path, bytes)| (path, bytes.to_vec())),
                &message.sensitive_files,
            ),
        };
        facts.check().map_err(|error| invalid(error.to_string()))?;
        Ok(Self {
            who: Identity {
                connection,
                owner: id(&message.owner_id, "owner_id")?,
                caller: caller.into(),
                user: parse_user(user)?,
                remote,
            },
            facts,
            restrictions: restrictions(message.restrictions.unwrap_or_default())?,
            client_version: message.client_version,
            remote_port: u16::try_from(message.remote_port).map_err(|_| invalid("remote_port is none"))?,
            users: Vec::new(),
        })
    }

    /// # Errors
    /// `CALLER_NOT_ALLOWED` where the caller may not act for this user.
    pub(super) fn check_user(&self) -> Result<(), Refusal> {
        let user = &self.who.user.authenticated;
        if self.users.is_empty() || self.users.iter().any(|allowed| allowed == user) {
            return Ok(());
        }
        let text = format!("{} may not open connections for {user:?}", self.who.caller);
        Err(Refusal::new(Reason::CallerNotAllowed, text))
    }
}

/// An owner's sign of life.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// The owner.
    pub owner: OwnerId,
    /// The calling service.
    pub caller: String,
    /// Its connections.
    pub known: HashSet<ConnectionId>,
    /// Whether these are all.
    pub complete: bool,
    /// To be looked at.
    pub handles: Vec<Bytes>,
    /// It ends now.
    pub leaving: bool,
}

impl Heartbeat {
    /// From the contract's message and the caller's service.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the field.
    pub fn parse(message: v1::HeartbeatRequest, caller: impl Into<String>) -> Result<Self, Refusal> {
        if message.connection_ids.len() > MAX_BEAT || message.handles.len() > MAX_BEAT {
            return Err(invalid("too many connections or handles in one heartbeat"));
        }
        let known = message.connection_ids.iter().map(|text| id(text, "connection_ids")).collect::<Result<_, _>>()?;
        Ok(Self {
            owner: id(&message.owner_id, "owner_id")?,
            caller: caller.into(),
            known,
            complete: message.complete,
            handles: message.handles,
            leaving: message.leaving,
        })
    }
}

fn invalid(text: impl Into<String>) -> Refusal {
    Refusal::new(Reason::InvalidRequest, text)
}

fn id<T: FromStr>(text: &str, field: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| invalid(format!("{field}: an id is 32 lower-case hex digits")))
}

fn parse_user(user: v1::User) -> Result<User, Refusal> {
    let v1::User { name, authenticated_name } = user;
    for (field, text) in [("user.name", &name), ("user.authenticated_name", &authenticated_name)] {
        if text.len() > MAX_USER || text.contains('\0') {
            return Err(invalid(format!("{field} is longer than {MAX_USER} bytes or holds a NUL")));
        }
    }
    if name.is_empty() {
        return Err(invalid("user.name is empty"));
    }
    let authenticated = if authenticated_name.is_empty() { name.clone() } else { authenticated_name };
    Ok(User { name, authenticated })
}

fn restrictions(message: v1::Restrictions) -> Result<Restrictions, Refusal> {
    let v1::Restrictions { force_command, no_terminal } = message;
    if force_command
        .as_ref()
        .is_some_and(|line| line.trim().is_empty() || line.len() > MAX_FORCED || line.contains('\0'))
    {
        return Err(invalid(format!(
            "restrictions.force_command is blank, longer than {MAX_FORCED} bytes, or holds a NUL"
        )));
    }
    Ok(Restrictions { force_command, no_terminal })
}

/// Values with their marks.
fn entries<T>(map: impl IntoIterator<Item = (String, T)>, sensitive: &[String]) -> BTreeMap<String, Entry<T>> {
    map.into_iter()
        .map(|(name, value)| {
            let is = sensitive.contains(&name);
            (name, Entry::new(value, is))
        })
        .collect()
}
