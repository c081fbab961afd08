//! Requests, parsed once at the door.

use crate::identity::{Identity, User};
use bytes::Bytes;
use podbay::{
    ConnectionId, OwnerId,
    v1::{self, Reason, Refusal},
};
use std::{
    collections::{BTreeMap, HashSet},
    str::FromStr,
};

/// The longest user name in bytes.
const MAX_USER: usize = 256;
/// The contract's bounds of metadata.
const MAX_METADATA: (usize, usize) = (64, 16 * 1024);
/// The contract's bounds of an environment.
const MAX_ENVIRONMENT: (usize, usize) = (256, 64 * 1024);
/// Connections and handles in one heartbeat.
const MAX_BEAT: usize = 100_000;

/// Asks for a connection.
#[derive(Clone, PartialEq, Eq)]
pub struct OpenRequest {
    /// Who.
    pub who: Identity,
    /// For all programs of the connection.
    pub environment: BTreeMap<String, String>,
    /// What authentication learnt about the user.
    pub metadata: BTreeMap<String, String>,
}

/// The environment may hold secrets.
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
        bounded(&message.metadata, "metadata", MAX_METADATA)?;
        environment(&message.environment)?;
        Ok(Self {
            who: Identity {
                connection,
                owner: id(&message.owner_id, "owner_id")?,
                caller: caller.into(),
                user: parse_user(user)?,
                remote,
            },
            environment: message.environment.into_iter().collect(),
            metadata: message.metadata.into_iter().collect(),
        })
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

fn bounded<'a>(
    map: impl IntoIterator<Item = (&'a String, &'a String)>,
    field: &str,
    (entries, bytes): (usize, usize),
) -> Result<(), Refusal> {
    let (count, size) = map.into_iter().fold((0, 0), |(n, size), (key, value)| (n + 1, size + key.len() + value.len()));
    if count > entries || size > bytes {
        return Err(invalid(format!("{field}: at most {entries} entries and {bytes} bytes in all")));
    }
    Ok(())
}

/// An environment within the contract's bounds, with names that every shell takes.
fn environment<'a, M>(map: &'a M) -> Result<(), Refusal>
where
    &'a M: IntoIterator<Item = (&'a String, &'a String)>,
{
    bounded(map, "environment", MAX_ENVIRONMENT)?;
    for (name, value) in map {
        let good = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !good || value.contains('\0') {
            return Err(invalid("environment: names match [A-Za-z_][A-Za-z0-9_]*, values hold no NUL"));
        }
    }
    Ok(())
}
