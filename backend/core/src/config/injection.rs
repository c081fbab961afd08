//! `kubernetes.pod.agentInjection`: whether pods bring podbay-agent along, and from which image.

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use podbay_runtime::config::Section;
use std::collections::BTreeMap;

/// What the init container may use, where nothing is said. Requests equal limits, so that a pod of class Guaranteed stays
/// one; a pod's effective request is the greater of its init containers' and its containers', so this rarely costs anything.
const RESOURCES: [(&str, &str); 2] = [("cpu", "100m"), ("memory", "32Mi")];

/// The image that brings the agent, and how it is run. Checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Injection {
    /// Has our agent at [`crate::inject::IN_IMAGE`].
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`; `None` = Kubernetes decides by the image's tag.
    pub pull_policy: Option<String>,
    /// Names of secrets, added to the pod's `imagePullSecrets`.
    pub pull_secrets: Vec<String>,
    /// Of the init container.
    pub resources: ResourceRequirements,
}

/// What a section says.
pub(super) enum Read {
    /// Nothing is injected.
    Off,
    On(Injection),
    /// A mistake was recorded.
    Wrong,
}

impl Injection {
    /// With Kubernetes' own pull policy, and small resources.
    pub fn new(image: impl Into<String>) -> Self {
        let few: BTreeMap<_, _> =
            RESOURCES.iter().map(|(name, much)| ((*name).to_owned(), Quantity((*much).to_owned()))).collect();
        let resources = ResourceRequirements { requests: Some(few.clone()), limits: Some(few), claims: None };
        Self { image: image.into(), pull_policy: None, pull_secrets: Vec::new(), resources }
    }

    pub(super) fn read(section: &mut Section) -> Read {
        let enabled = section.or("enabled", false);
        let image = section.or("image", String::new());
        let policy = section.or("imagePullPolicy", String::new());
        let pull_secrets: Vec<String> = section.or("imagePullSecrets", Vec::new());
        let has_resources = section.has("resources");
        let resources: Option<ResourceRequirements> = section.serde("resources");
        let mut good = !(has_resources && resources.is_none());
        let mut wrong = |key: &str, text: &str| {
            section.mistake(key, text);
            good = false;
        };
        if !matches!(policy.as_str(), "" | "Always" | "IfNotPresent" | "Never") {
            wrong("imagePullPolicy", &format!("{policy:?} is none of Always, IfNotPresent, Never"));
        }
        if pull_secrets.iter().any(String::is_empty) {
            wrong("imagePullSecrets", "holds an empty name");
        }
        if resources.as_ref().is_some_and(|resources| resources.claims.is_some()) {
            wrong("resources", "claims are not for the agent's container");
        }
        if enabled && (image.is_empty() || image.trim() != image) {
            wrong("image", "must name the image that has the agent (deploy/agent-image makes one)");
        }
        match (good, enabled) {
            (false, _) => Read::Wrong,
            (true, false) => Read::Off,
            (true, true) => {
                let default = Self::new(image);
                let resources = resources.unwrap_or_else(|| default.resources.clone());
                Read::On(Self {
                    pull_policy: Some(policy).filter(|policy| !policy.is_empty()),
                    pull_secrets,
                    resources,
                    ..default
                })
            }
        }
    }
}
