//! The backend's configuration: ContainerSSH's `kubernetes` and `security` sections as they are, and our
//! `ownership`.
//!
//! Reading finds every mistake with its position (`podbay_runtime::config`); what comes out is checked and complete, so
//! nothing below asks again. What isn't built yet is refused by name.

mod connection;
mod expose;
mod injection;
mod kuberun;
mod namespaces;
mod overlay;
mod ownership;
mod persistent;
mod pod;
mod security;
mod timeouts;

pub use crate::policy::Security;
pub(crate) use connection::UNREADABLE;
pub use connection::{Connection, Explicit, Pem};
pub use expose::Expose;
pub use injection::Injection;
pub use kuberun::{DEPRECATED, DEPRECATED_TEXT, EXEC_DISABLED, INSECURE, Kuberun};
pub use namespaces::{EVERYWHERE, Namespaces};
pub use overlay::Base;
pub use ownership::Ownership;
pub use persistent::{NameTemplate, Persistent};
pub(crate) use pod::agent_idle;
pub use pod::{IDLE, Mode, PodConfig, SecurityProfile};
pub use timeouts::Timeouts;
pub use timeouts::duration_proto;

use podbay_runtime::config::{Kind, Section};

/// What the backend's core runs by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach the API (for the adapter).
    pub connection: Connection,
    /// The pods.
    pub pod: PodConfig,
    /// The bounds.
    pub timeouts: Timeouts,
    /// Leases.
    pub ownership: Ownership,
    /// The policy.
    pub security: Security,
    /// Where pods may be.
    pub namespaces: Namespaces,
    /// What answers of the config webhook are put over.
    pub base: Base,
    /// The settings came of the deprecated section `kuberun`.
    pub kuberun: Option<Kuberun>,
}

/// ContainerSSH's backends, as `backend` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Kubernetes,
    Kuberun,
}

impl Backend {
    /// The one of this name, which is its section's too.
    fn named(name: &str) -> Option<Self> {
        match name {
            "kubernetes" => Some(Self::Kubernetes),
            "kuberun" => Some(Self::Kuberun),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Kuberun => "kuberun",
        }
    }
}

impl Settings {
    /// Reads `backend`, `kubernetes` or `kuberun`, `ownership` and `security` of a document's root. `None` where a mistake was
    /// recorded that leaves no usable value; the document's `finish` tells all mistakes either way.
    pub fn read(root: &mut Section) -> Option<Self> {
        let backend = backend(root);
        let (kuberun, connection, pod, timeouts) = match backend {
            Some(Backend::Kuberun) if !root.describing() => {
                root.ignore("kubernetes");
                match kuberun::read(root.section("kuberun")) {
                    Some((kuberun, connection, pod, timeouts)) => {
                        (Some(kuberun), Some(connection), Some(pod), timeouts)
                    }
                    None => (None, None, None, Timeouts::default()),
                }
            }
            Some(_) | None => {
                if root.describing() {
                    drop(kuberun::read(root.section("kuberun")));
                }
                root.ignore("kuberun");
                let (connection, pod, timeouts) = kubernetes(root.section("kubernetes"));
                (None, connection, pod, timeouts)
            }
        };
        let namespace = pod.as_ref().map_or("default", PodConfig::namespace).to_owned();
        let ownership = Ownership::read(&mut root.section("ownership"), &namespace);
        let security = Security::read(&mut root.section("security"));
        backend?;
        let (namespaces, base) = (Namespaces::only(namespace), Base::of(root));
        Some(Self {
            connection: connection?,
            pod: pod?,
            timeouts,
            ownership: ownership?,
            security,
            namespaces,
            base,
            kuberun,
        })
    }
}

/// Reads a section `kuberun` by itself, whichever backend counts.
pub(crate) fn kuberun_settings(section: Section) -> Option<(Kuberun, Connection, PodConfig, Timeouts)> {
    kuberun::read(section)
}

fn kubernetes(mut kubernetes: Section) -> (Option<Connection>, Option<PodConfig>, Timeouts) {
    let connection = Connection::read(&mut kubernetes.section("connection"));
    let (pod, timeouts) = pods(&mut kubernetes);
    (connection, pod, timeouts)
}

/// `kubernetes` without `connection`: what an answer of the config webhook may change.
fn pods(kubernetes: &mut Section) -> (Option<PodConfig>, Timeouts) {
    for (key, hint) in [
        ("spec", "it belongs into kubernetes.pod.spec (ContainerSSH's page on kuberun shows it beside pod by mistake)"),
        ("podSpec", "it is kuberun's; here it is kubernetes.pod.spec"),
        ("metadata", "it belongs into kubernetes.pod.metadata"),
        ("namespace", "it belongs into kubernetes.pod.metadata.namespace"),
        ("timeout", "it is kuberun's; here kubernetes.timeouts has one for each purpose"),
    ] {
        kubernetes.refuse(key, hint);
    }
    let timeouts = Timeouts::read(&mut kubernetes.section("timeouts"));
    // ContainerSSH reads this part as JSON, whose keys Go takes in any case.
    let mut pod = kubernetes.section("pod").in_any_case();
    for (key, hint) in [
        ("podSpec", "it is kuberun's name; here it is spec"),
        ("namespace", "it is kuberun's; here it is metadata.namespace"),
        (
            "disableCommand",
            "it is kuberun's; here it is security.command.mode: disable, and security.subsystem.mode: disable",
        ),
        ("enableAgent", "no version has it; the agent is on unless disableAgent is true"),
    ] {
        pod.refuse(key, hint);
    }
    let config = PodConfig::read(&mut pod);
    if let Some(image) = config.as_ref().and_then(bare_image)
        && !pod.has("agentInjection")
    {
        let text = format!(
            "the image {image} has no guest agent, unless yours differs: set disableAgent: true, or use an image with the agent"
        );
        pod.warn("spec", text);
    }
    (config, timeouts)
}

/// The console container's image, where the agent is asked for and the image is one of those that everybody knows, none of
/// which has an agent.
fn bare_image(config: &PodConfig) -> Option<&str> {
    const BARE: [&str; 10] =
        ["busybox", "alpine", "debian", "ubuntu", "fedora", "centos", "rockylinux", "almalinux", "archlinux", "bash"];
    config.agent.as_ref()?;
    let image = config.spec.containers.iter().find(|container| container.name == config.console)?.image.as_deref()?;
    let name = image.rsplit('/').next()?.split([':', '@']).next()?;
    let official = !image.contains('/') || image.starts_with("docker.io/library/") || image.starts_with("library/");
    (official && BARE.contains(&name)).then_some(image)
}

/// Which backend is meant; a mistake where that can't be told.
fn backend(root: &mut Section) -> Option<Backend> {
    let both = root.has("kubernetes") && root.has("kuberun");
    let given = root.get::<String>("backend").filter(|name| !name.is_empty());
    root.effective(
        "backend",
        Kind::Words(vec!["kubernetes", "kuberun"]),
        given.as_deref().unwrap_or("kubernetes").into(),
    );
    match given.as_deref() {
        Some("kubernetes") => {
            if root.has("kuberun") {
                root.warn("kuberun", "is not used: backend is kubernetes; take it out once nothing of it is missed");
            }
            Some(Backend::Kubernetes)
        }
        Some("kuberun") => {
            if both {
                root.warn(
                    "kubernetes",
                    "is not used: backend is kuberun; podbay migrate writes this section of kuberun's",
                );
            }
            if !root.has("kuberun") {
                root.warn("kuberun", "is not there, and backend asks for it: its defaults count");
            }
            root.warn(
                "backend",
                format!("kuberun is deprecated ({DEPRECATED}); podbay migrate FILE writes the same for kubernetes"),
            );
            Some(Backend::Kuberun)
        }
        Some("docker" | "dockerrun" | "sshproxy") => {
            root.mistake("backend", "only kubernetes is built, and kuberun for old configurations: use ContainerSSH for docker and sshproxy");
            None
        }
        Some(other) => {
            root.mistake("backend", format!("{other:?} is no backend; use kubernetes"));
            None
        }
        None if both => {
            root.mistake("kuberun", "kubernetes is there too, and backend does not say which counts: give backend: kubernetes or backend: kuberun");
            None
        }
        None if root.has("kuberun") => {
            root.mistake("kuberun", "is there, and backend is not: give backend: kuberun, or run podbay migrate");
            None
        }
        None => Some(Backend::Kubernetes),
    }
}

#[cfg(test)]
mod tests;
