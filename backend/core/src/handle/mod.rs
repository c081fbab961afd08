//! Connection handles: what any replica needs to serve a connection's sessions, sealed, kept by the client.
//!
//! Layout: version (1 byte), length of the key's id (1 byte), the key's id, nonce (12 bytes), ciphertext with tag. All
//! before the nonce and the caller's service are bound as additional data: a handle of one caller opens for no other. Inside:
//! JSON, compressed. The ids and names are not secret from the caller; that it can't *make* a handle is the point.

mod keys;

pub use keys::{KeyError, KeyRing};

use crate::{
    cluster::PodRef,
    config::{Mode, Settings, Timeouts},
    identity::{Identity, User},
    policy::Security,
};
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId, MAX_HANDLE, OwnerId,
    v1::{Reason, Refusal},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
};

/// More than this is never unpacked.
const MAX_CONTENTS: u64 = 2 * 1024 * 1024;

/// What a handle holds. The caller's service is bound to it and not inside.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Contents {
    /// The connection.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub connection: ConnectionId,
    /// Its owner.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub owner: OwnerId,
    /// For whom.
    pub user: User,
    /// The bounds.
    pub timeouts: Timeouts,
    /// The container that programs run in.
    pub console: String,
    /// The shell; empty in session mode = the image's own command.
    pub shell: Vec<String>,
    /// Program paths by subsystem.
    pub subsystems: BTreeMap<String, String>,
    /// The connection's environment; a session's own comes after it.
    pub environment: BTreeMap<String, String>,
    /// The path of the guest agent in the console container; `None` = it is off.
    #[serde(default)]
    pub agent: Option<String>,
    /// The policy. Absent in handles from before there was one, when all of it was refused at start.
    #[serde(default)]
    pub security: Security,
    /// kuberun's `disableCommand`: only shells.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_shells: bool,
    /// The pod outlives the connection (mode `persistent`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays: bool,
    /// Where programs run.
    pub target: Target,
}

/// Where a connection's programs run.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// In this pod (modes `connection` and `persistent`).
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
        /// What its console container runs; the key for what is known of an image.
        image_id: String,
    },
    /// Each in a pod made of this (mode `session`; [`crate::template::session_pod`]).
    Template(Box<Pod>),
}

impl Contents {
    /// For a connection that is open.
    pub fn new(
        settings: &Settings,
        timeouts: Timeouts,
        who: &Identity,
        environment: BTreeMap<String, String>,
        target: Target,
    ) -> Self {
        let config = &settings.pod;
        Self {
            connection: who.connection,
            owner: who.owner,
            user: who.user.clone(),
            timeouts,
            console: config.console.clone(),
            shell: config.shell_command.clone(),
            subsystems: config.subsystems.clone(),
            environment,
            agent: config.agent.clone(),
            security: settings.security.clone(),
            only_shells: settings.kuberun.is_some_and(|kuberun| kuberun.disable_command),
            stays: config.mode == Mode::Persistent,
            target,
        }
    }

    /// How pods and programs belong together.
    pub fn mode(&self) -> Mode {
        match self.target {
            Target::Pod { .. } if self.stays => Mode::Persistent,
            Target::Pod { .. } => Mode::Connection,
            Target::Template(_) => Mode::Session,
        }
    }

    /// The connection's pod (modes `connection` and `persistent`).
    pub fn pod(&self) -> Option<PodRef> {
        match &self.target {
            Target::Pod { namespace, name, uid, .. } => {
                Some(PodRef { namespace: namespace.clone(), name: name.clone(), uid: Some(uid.clone()) })
            }
            Target::Template(_) => None,
        }
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod { name, .. } => write!(f, "Pod({name})"),
            Self::Template(_) => f.write_str("Template"),
        }
    }
}

/// Environment and template may hold secrets.
impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents")
            .field("connection", &self.connection)
            .field("owner", &self.owner)
            .field("user", &self.user)
            .field("mode", &self.mode())
            .finish_non_exhaustive()
    }
}

fn as_text<T: ToString, S: Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&id.to_string())
}

fn from_text<'de, T: std::str::FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(|_| serde::de::Error::custom("not an id"))
}

impl KeyRing {
    /// Seals for this caller, with the first key.
    ///
    /// # Errors
    /// `CONFIG_TOO_LARGE` beyond 64 KiB.
    pub fn seal(&self, contents: &Contents, caller: &str) -> Result<Vec<u8>, Refusal> {
        let packed = pack(contents).map_err(|error| internal(&error))?;
        let handle = self.encrypt(packed, caller).map_err(|error| internal(&error))?;
        if handle.len() > MAX_HANDLE {
            let text = format!(
                "this connection's configuration does not fit in a handle ({} bytes, at most {MAX_HANDLE}): shorten the \
                 environment or the pod template",
                handle.len()
            );
            return Err(Refusal::new(Reason::ConfigTooLarge, text));
        }
        Ok(handle)
    }

    /// Opens a handle of this caller.
    ///
    /// # Errors
    /// `HANDLE_INVALID` where it is not one: changed, of another caller, or its key is retired.
    pub fn open(&self, handle: &[u8], caller: &str) -> Result<Contents, Refusal> {
        let invalid =
            || Refusal::new(Reason::HandleInvalid, "this connection's handle is not valid here: log in again");
        if handle.len() > MAX_HANDLE {
            return Err(invalid());
        }
        let packed = self.decrypt(handle, caller).ok_or_else(invalid)?;
        // Authentic, and still not readable: sealed by another version of this program.
        unpack(&packed).map_err(|error| {
            tracing::warn!(%error, "a handle of another version");
            invalid()
        })
    }

    /// The handle sealed anew, where its key is not the first one any more.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn renew(&self, handle: &[u8], caller: &str) -> Result<Option<Vec<u8>>, Refusal> {
        let contents = self.open(handle, caller)?;
        if self.is_current(handle) { Ok(None) } else { self.seal(&contents, caller).map(Some) }
    }
}

fn internal(error: &dyn std::fmt::Display) -> Refusal {
    tracing::error!(%error, "a handle can't be made");
    Refusal::new(Reason::Internal, "a handle can't be made; the server's log says why")
}

fn pack(contents: &Contents) -> Result<Vec<u8>, std::io::Error> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    serde_json::to_writer(&mut encoder, contents)?;
    encoder.flush()?;
    encoder.finish()
}

fn unpack(packed: &[u8]) -> Result<Contents, serde_json::Error> {
    serde_json::from_reader(std::io::BufReader::new(DeflateDecoder::new(packed).take(MAX_CONTENTS)))
}

#[cfg(test)]
mod tests;
