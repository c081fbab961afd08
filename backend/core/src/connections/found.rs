//! Pods of a user that may have sessions to come back to, and handles for them.

use super::Connections;
use crate::{
    handle::{Contents, Target},
    identity::{self, Identity, Marks},
    lifecycle::{image_id, reference},
    link::Place,
    persistent,
    policy::Security,
    template,
};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use podbay::v1::{Reason, Refusal};
use serde_json::json;
use std::collections::BTreeMap;
use tokio::time::Instant;

/// A pod with podbay-agent, perhaps, and what a client needs to go on in it.
#[derive(Debug, Clone)]
pub struct FoundPod {
    /// What its labels say.
    pub marks: Marks,
    /// For the handle. The connection's own environment is not known any more: a later program gets it where the container has it.
    pub contents: Contents,
    /// Where its agent is.
    pub place: Place,
}

impl Connections {
    /// The user's pods that run, of any calling service, by name; only those after `after`. Without an agent there are none.
    ///
    /// # Errors
    /// `INVALID_REQUEST` without a user, `KUBERNETES_UNAVAILABLE` where pods can't be listed within `timeouts.http`.
    pub async fn pods_of(&self, user: &str, after: &str) -> Result<Vec<FoundPod>, Refusal> {
        if user.is_empty() {
            return Err(Refusal::new(Reason::InvalidRequest, "user is empty"));
        }
        let Some(agent) = &self.settings().pod.agent else { return Ok(Vec::new()) };
        let deadline = Instant::now() + self.lifecycle().timeouts().http;
        let all = identity::all();
        let places = self.places().iter();
        let lists = places.map(|place| self.lifecycle().list_all(place, &all, deadline));
        let mut pods = futures::future::try_join_all(lists).await?.concat();
        pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let later = pods.iter().filter(|pod| pod.metadata.name.as_deref().is_some_and(|name| name > after));
        Ok(later.filter(|pod| runs(pod)).filter_map(|pod| self.found(pod, user, agent)).collect())
    }

    fn found(&self, pod: &Pod, user: &str, agent: &str) -> Option<FoundPod> {
        let marks = Marks::read(&pod.metadata).or_else(|| persistent::marks(&pod.metadata))?;
        let reference = reference(pod)?;
        // By the authenticated name alone: that is what rights are about.
        if marks.user.authenticated != user {
            return None;
        }
        let security = self.noted_policy(&pod.metadata)?;
        let config = &self.settings().pod;
        let who = Identity {
            connection: marks.connection,
            owner: marks.owner,
            caller: marks.caller.clone(),
            user: marks.user.clone(),
            remote: marks.remote.parse().ok(),
        };
        let image = image_id(pod, &config.console);
        let target = if marks.session_mode {
            let mut base = template::base_pod(config, &who, &BTreeMap::new());
            self.note_policy(&security, &mut base.metadata);
            Target::Template(Box::new(base))
        } else {
            Target::Pod {
                namespace: reference.namespace.clone(),
                name: reference.name.clone(),
                uid: reference.uid.clone()?,
                image_id: image.clone(),
            }
        };
        let mut contents = Contents::new(self.settings(), *self.lifecycle().timeouts(), &who, BTreeMap::new(), target);
        contents.security = security;
        contents.stays = persistent::is_ours(&pod.metadata);
        let place = Place { pod: reference, container: config.console.clone(), agent: agent.to_owned(), image };
        Some(FoundPod { marks, contents, place })
    }

    /// Puts a policy that is not the file's on the connection's pod: whoever finds its sessions later is held to it.
    pub(super) fn note_policy(&self, security: &Security, meta: &mut ObjectMeta) {
        if *security != self.settings().security {
            meta.annotations.get_or_insert_default().insert(identity::POLICY.to_owned(), json!(security).to_string());
        }
    }

    /// The policy of the connection that made a pod; `None` = it can't be read, and then nobody gets in.
    fn noted_policy(&self, meta: &ObjectMeta) -> Option<Security> {
        let Some(note) = meta.annotations.as_ref().and_then(|notes| notes.get(identity::POLICY)) else {
            return Some(self.settings().security.clone());
        };
        serde_json::from_str(note)
            .inspect_err(|error| tracing::warn!(pod = meta.name, %error, "a pod's policy can't be read: its sessions are not listed"))
            .ok()
    }
}

fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}
