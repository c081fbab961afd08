//! Pods that outlive connections (mode `persistent`): who may enter one, and who uses it. Pure.
//!
//! A pod that we made carries a **claim** for each connection that uses it: a label (so that it can be selected) and an
//! annotation, both named by the connection. A claim lives as long as its owner's lease. Pods that others made are never
//! changed.

use crate::{
    config::NameTemplate,
    identity::{
        AUTHENTICATED_USER, CALLER, CLAIM, CLAIMED, CONNECTION, Identity, LAST_USED, MANAGED_BY, Marks, OWNER,
        PERSISTENT, PERSISTENT_YES, PODBAY, REMOTE, USER, User, kept_until,
    },
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podbay::{
    ConnectionId, OwnerId,
    v1::{Reason, Refusal},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Connections at once on one pod: its annotations may have 256 KiB in all, and a claim has up to 1 KiB.
pub const MAX_CLAIMS: usize = 200;

/// Whose a pod is that somebody may enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// We made it: it has claims, and may be deleted.
    ByUs,
    /// Somebody else did: it is used as it is.
    ByOthers,
}

/// A connection that uses a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The connection.
    pub connection: ConnectionId,
    /// Whose lease keeps the claim.
    pub owner: OwnerId,
    /// The calling service.
    pub caller: String,
    /// For whom.
    pub user: User,
    /// From where, as text; empty where it is not known.
    pub remote: String,
}

/// A claim's annotation.
#[derive(Serialize, Deserialize)]
struct Note {
    caller: String,
    user: User,
    #[serde(default)]
    remote: String,
}

/// Makes a pod's marks those of a pod that stays, with this connection's claim.
pub(crate) fn mark(meta: &mut ObjectMeta, name: &NameTemplate, who: &Identity) {
    let labels = meta.labels.get_or_insert_default();
    // These mean that the pod ends with them.
    labels.remove(CONNECTION);
    labels.remove(OWNER);
    labels.insert(PERSISTENT.into(), PERSISTENT_YES.into());
    labels.insert(claim_key(who.connection), who.owner.to_string());
    let notes = meta.annotations.get_or_insert_default();
    notes.remove(REMOTE);
    if let NameTemplate::Fixed(_) = name {
        // Of nobody in particular.
        for key in [USER, AUTHENTICATED_USER, CALLER] {
            notes.remove(key);
        }
    }
    notes.insert(claim_key(who.connection), note(who));
    notes.insert(CLAIMED.into(), stamp());
    notes.insert(LAST_USED.into(), Timestamp::now().to_string());
}

/// Whether this user of this service may enter a pod that has the right name, and whose it is.
///
/// # Errors
/// `CALLER_NOT_ALLOWED` where it is another user's, or something else of ours.
pub fn admit(meta: &ObjectMeta, name: &NameTemplate, who: &Identity) -> Result<Made, Refusal> {
    let refused = |why: &str| {
        let text = format!("the pod {} {why}; tell the operator", meta.name.as_deref().unwrap_or_default());
        Err(Refusal::new(Reason::CallerNotAllowed, text))
    };
    let note = |key| meta.annotations.as_ref().and_then(|notes| notes.get(key)).map(String::as_str);
    let marked = note(AUTHENTICATED_USER).or_else(|| note(USER));
    let is_its_user = marked == Some(who.user.authenticated.as_str());
    if label(meta, MANAGED_BY) != Some(PODBAY) {
        // An operator may say whose it is in the same way.
        return if marked.is_none() || is_its_user { Ok(Made::ByOthers) } else { refused("is another user's") };
    }
    if label(meta, PERSISTENT) != Some(PERSISTENT_YES) {
        return refused("was made for something else");
    }
    match name {
        NameTemplate::PerUser { .. } if !is_its_user => refused("is another user's"),
        // Another service's users may be other people of the same names.
        NameTemplate::PerUser { .. } if note(CALLER) != Some(who.caller.as_str()) => refused("is another service's"),
        NameTemplate::Fixed(_) if marked.is_some() && !is_its_user => refused("is another user's"),
        NameTemplate::PerUser { .. } | NameTemplate::Fixed(_) => Ok(Made::ByUs),
    }
}

/// Whether we made this pod, for this mode.
pub fn is_ours(meta: &ObjectMeta) -> bool {
    label(meta, MANAGED_BY) == Some(PODBAY) && label(meta, PERSISTENT) == Some(PERSISTENT_YES)
}

/// The claims on a pod; what can't be read as one is left out.
pub fn claims(meta: &ObjectMeta) -> Vec<Claim> {
    let notes = meta.annotations.as_ref();
    let claims = meta.labels.iter().flatten().filter_map(|(key, owner)| {
        let note: Option<Note> = notes.and_then(|notes| serde_json::from_str(notes.get(key)?).ok());
        let note = note.unwrap_or_else(|| Note { caller: String::new(), user: User::named(""), remote: String::new() });
        Some(Claim {
            connection: key.strip_prefix(CLAIM)?.parse().ok()?,
            owner: owner.parse().ok()?,
            caller: note.caller,
            user: note.user,
            remote: note.remote,
        })
    });
    claims.collect()
}

/// What differs after every claim, and whenever it was seen in use.
pub fn version(meta: &ObjectMeta) -> String {
    let note = |key| meta.annotations.as_ref().and_then(|notes| notes.get(key)).map_or("", String::as_str);
    format!("{} {}", note(CLAIMED), note(LAST_USED))
}

/// When it was last in use, as far as its annotations say.
pub fn last_used(meta: &ObjectMeta) -> Option<Timestamp> {
    meta.annotations.as_ref()?.get(LAST_USED)?.parse().ok()
}

/// The patch that says that it is in use now.
pub fn used_patch() -> Value {
    patch(&json!({}), &json!({ LAST_USED: Timestamp::now().to_string() }))
}

/// Whose a pod of ours is, for those who look for their sessions in it; `None` where it is nobody's in particular. It belongs to no
/// connection: the one told stands for the pod, and nothing can be started with it.
pub fn marks(meta: &ObjectMeta) -> Option<Marks> {
    let note = |key| meta.annotations.as_ref()?.get(key).cloned();
    let name = note(USER).filter(|_| is_ours(meta))?;
    let digest = Sha256::digest(meta.uid.as_deref()?);
    let id = <[u8; 16]>::try_from(digest.get(..16)?).ok()?;
    Some(Marks {
        connection: ConnectionId::from_bytes(id),
        owner: OwnerId::from_bytes(id),
        caller: note(CALLER).unwrap_or_default(),
        user: User { authenticated: note(AUTHENTICATED_USER).unwrap_or_else(|| name.clone()), name },
        remote: String::new(),
        session: None,
        session_mode: false,
        kept_until: kept_until(meta),
    })
}

/// The patch that claims a pod.
pub fn claim_patch(who: &Identity) -> Value {
    let key = claim_key(who.connection);
    patch(
        &json!({ &key: who.owner.to_string() }),
        &json!({ &key: note(who), CLAIMED: stamp(), LAST_USED: Timestamp::now().to_string() }),
    )
}

/// The patch that releases claims.
pub fn release_patch(connections: impl IntoIterator<Item = ConnectionId>) -> Value {
    let mut gone: BTreeMap<String, Option<String>> =
        connections.into_iter().map(|connection| (claim_key(connection), None)).collect();
    let labels = json!(gone);
    gone.insert(LAST_USED.into(), Some(Timestamp::now().to_string()));
    patch(&labels, &json!(gone))
}

fn patch(labels: &Value, annotations: &Value) -> Value {
    json!({ "metadata": { "labels": labels, "annotations": annotations } })
}

fn claim_key(connection: ConnectionId) -> String {
    format!("{CLAIM}{connection}")
}

fn note(who: &Identity) -> String {
    let remote = who.remote.map(|remote| remote.to_string()).unwrap_or_default();
    json!({ "caller": who.caller, "user": who.user, "remote": remote }).to_string()
}

fn stamp() -> String {
    hex::encode(rand::random::<[u8; 8]>())
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: &str, caller: &str) -> Identity {
        Identity {
            connection: ConnectionId::from_bytes([1; 16]),
            owner: OwnerId::from_bytes([2; 16]),
            caller: caller.into(),
            user: User { name: "x".into(), authenticated: user.into() },
            remote: "192.0.2.1".parse().ok(),
        }
    }

    fn meta(labels: &[(&str, &str)], notes: &[(&str, &str)]) -> ObjectMeta {
        let map = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        ObjectMeta {
            name: Some("shell-x".into()),
            labels: map(labels),
            annotations: map(notes),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn who_may_enter() {
        let ours = [(MANAGED_BY, PODBAY), (PERSISTENT, "true")];
        let keyed = NameTemplate::parse("shell-{username}").expect("good");
        let fixed = NameTemplate::parse("shell-x").expect("good");
        let alices = [(USER, "x"), (AUTHENTICATED_USER, "alice"), (CALLER, "a")];
        let cases = [
            (&keyed, meta(&ours, &alices), Some(Made::ByUs)),
            (&keyed, meta(&ours, &[(USER, "alice"), (CALLER, "a")]), Some(Made::ByUs)),
            // Another's, whatever the client called itself.
            (&keyed, meta(&ours, &[(USER, "alice"), (AUTHENTICATED_USER, "bob"), (CALLER, "a")]), None),
            (&keyed, meta(&ours, &[(USER, "alice"), (CALLER, "b")]), None),
            // Ours, and whose is not known.
            (&keyed, meta(&ours, &[]), None),
            // A connection's, whose name is such by accident or intent.
            (&keyed, meta(&[(MANAGED_BY, PODBAY)], &alices), None),
            (&fixed, meta(&[(MANAGED_BY, PODBAY)], &alices), None),
            // One that was there.
            (&keyed, meta(&[], &[]), Some(Made::ByOthers)),
            (&keyed, meta(&[], &[(USER, "alice")]), Some(Made::ByOthers)),
            (&keyed, meta(&[], &[(USER, "bob")]), None),
            (&fixed, meta(&[], &[(USER, "bob")]), None),
            (&fixed, meta(&ours, &[]), Some(Made::ByUs)),
            (&fixed, meta(&ours, &[(USER, "bob"), (CALLER, "a")]), None),
        ];
        for (name, meta, expected) in cases {
            assert_eq!(admit(&meta, name, &who("alice", "a")).ok(), expected, "{name:?} {meta:?}");
        }
    }

    #[test]
    fn a_claim_stands_on_the_pod_until_it_is_released() {
        let who = who("alice", "a");
        let name = NameTemplate::parse("shell-{username}").expect("good");
        let mut pod = meta(&[(OWNER, "o"), (CONNECTION, "c")], &[(USER, "x")]);
        mark(&mut pod, &name, &who);
        assert_eq!(label(&pod, OWNER).or(label(&pod, CONNECTION)), None, "no reaper takes it with its owner");
        let found = claims(&pod);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].connection, found[0].owner, found[0].caller.as_str()), (who.connection, who.owner, "a"));
        assert_eq!((&found[0].user, found[0].remote.as_str()), (&who.user, "192.0.2.1"));
        let key = claim_key(who.connection);
        let claim = claim_patch(&who);
        assert_eq!(claim["metadata"]["labels"][&key], who.owner.to_string());
        assert_eq!(claim["metadata"]["annotations"][&key], pod.annotations.as_ref().expect("notes")[&key]);
        let release = release_patch([who.connection]);
        for map in ["labels", "annotations"] {
            assert!(release["metadata"][map].get(&key).is_some_and(Value::is_null), "{release}");
        }
        assert_ne!(
            claim["metadata"]["annotations"][CLAIMED].as_str(),
            version(&pod).split(' ').next(),
            "each claim leaves its stamp"
        );
        assert!(last_used(&pod).is_some() && release["metadata"]["annotations"][LAST_USED].is_string());
    }

    #[test]
    fn what_somebody_wrote_by_hand_does_no_harm() {
        let pod = meta(
            &[("claim.podbay.dev/x", "y"), (&format!("{CLAIM}{}", "0".repeat(32)), "z"), ("other", "")],
            &[(&format!("{CLAIM}{}", "0".repeat(32)), "{")],
        );
        assert!(claims(&pod).is_empty());
    }
}
