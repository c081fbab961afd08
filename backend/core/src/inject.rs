//! The guest agent brought into any pod: an init container copies it into a volume, which the console container has
//! mounted read-only. A pure mutation of the pod.
//!
//! Nothing of it needs anything of the console container's image, user or file system. What is added meets Pod Security
//! `restricted` (numeric user, no capabilities, read-only root, seccomp) whatever the pod around it is.

use crate::config::Injection;
use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, EmptyDirVolumeSource, LocalObjectReference, Pod, SeccompProfile, SecurityContext,
        Volume, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};

/// Where the image that brings it has the agent (`deploy/agent-image`).
pub const IN_IMAGE: &str = "/podbay-agent";
/// Where the volume with the agent is.
pub const MOUNTED: &str = "/opt/podbay-agent";
/// Where the console container then has it.
pub const AGENT: &str = "/opt/podbay-agent/podbay-agent";
/// Where supervisor and `attach` look for a folder to meet in first (`agent/src/supervisor/socket.rs`).
pub const SOCKETS: &str = "/run/podbay-agent";

/// The names of what is added; with a number behind where a pod uses them for something else.
const NAME: &str = "podbay-agent";
const RUN: &str = "podbay-agent-run";

/// Nobody's in particular; any number but 0 will do.
const USER: i64 = 65532;
/// The agent has 0.5 to 1.2 MiB; during an update in place there would be two.
const VOLUME_SIZE: &str = "16Mi";

/// Whether a path is one that [`inject`] mounts, or below it.
pub fn is_taken(path: &str) -> bool {
    [MOUNTED, SOCKETS].iter().any(|ours| {
        let path = path.trim_end_matches('/');
        path == *ours || path.starts_with(&format!("{ours}/"))
    })
}

/// Adds the agent to a pod, for its container `console`. What is there already stays; a second time changes nothing.
pub fn inject(pod: &mut Pod, console: &str, injection: &Injection) {
    let Some(spec) = &mut pod.spec else { return };
    let volumes = spec.volumes.get_or_insert_default();
    let agent = volume(volumes, NAME, Some(VOLUME_SIZE));
    // Without a bound: a detached program's output may be spilled here, and its bound is the session's own. Beyond a
    // volume's bound the kubelet evicts the whole pod.
    let run = volume(volumes, RUN, None);

    let containers = spec.containers.iter().map(|container| container.name.clone()).collect::<Vec<_>>();
    let inits = spec.init_containers.get_or_insert_default();
    let wanted = |name: String| init_container(name, &agent, injection);
    let taken = |name: &str| {
        containers.iter().any(|other| other == name)
            || inits.iter().any(|other| other.name == name && *other != wanted(name.to_owned()))
    };
    let name = free(NAME, taken);
    if !inits.iter().any(|other| other.name == name) {
        // First: it needs nothing, and others may take long, or never end (sidecars).
        inits.insert(0, wanted(name));
    }

    if let Some(container) = spec.containers.iter_mut().find(|container| container.name == console) {
        let mounts = container.volume_mounts.get_or_insert_default();
        for mount in [mount(&agent, MOUNTED, true), mount(&run, SOCKETS, false)] {
            if !mounts.contains(&mount) {
                mounts.push(mount);
            }
        }
    }

    if !injection.pull_secrets.is_empty() {
        let secrets = spec.image_pull_secrets.get_or_insert_default();
        for name in &injection.pull_secrets {
            if !secrets.iter().any(|secret| secret.name == *name) {
                secrets.push(LocalObjectReference { name: name.clone() });
            }
        }
    }
}

/// The name of a volume like this, added where there is none.
fn volume(volumes: &mut Vec<Volume>, base: &str, size: Option<&str>) -> String {
    let wanted = |name: String| {
        let size_limit = size.map(|size| Quantity(size.to_owned()));
        let empty_dir = EmptyDirVolumeSource { size_limit, ..EmptyDirVolumeSource::default() };
        Volume { name, empty_dir: Some(empty_dir), ..Volume::default() }
    };
    let name = free(base, |name| volumes.iter().any(|other| other.name == name && *other != wanted(name.to_owned())));
    if !volumes.iter().any(|other| other.name == name) {
        volumes.push(wanted(name.clone()));
    }
    name
}

/// The first of `base`, `base-2`, `base-3`, … that is not taken.
fn free(base: &str, taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2_u64..).map(|n| format!("{base}-{n}"));
    std::iter::once(base.to_owned()).chain(numbered).find(|name| !taken(name)).unwrap_or_else(|| base.to_owned())
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn init_container(name: String, volume: &str, injection: &Injection) -> Container {
    Container {
        name,
        image: Some(injection.image.clone()),
        image_pull_policy: injection.pull_policy.clone(),
        command: Some([IN_IMAGE, "install", AGENT].map(str::to_owned).to_vec()),
        resources: Some(injection.resources.clone()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_group: Some(USER),
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![mount(volume, MOUNTED, false)]),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;

    fn pod(spec: &str) -> Pod {
        let spec: PodSpec = serde_json::from_str(spec).expect("a spec");
        Pod { spec: Some(spec), ..Pod::default() }
    }

    fn injected(pod: &Pod, injection: &Injection) -> PodSpec {
        let mut once = pod.clone();
        inject(&mut once, "shell", injection);
        let mut twice = once.clone();
        inject(&mut twice, "shell", injection);
        assert_eq!(once, twice, "a second time changes nothing");
        once.spec.expect("a spec")
    }

    #[test]
    fn the_whole_of_it() {
        let pod = pod(r#"{"containers": [{"name": "shell", "image": "gcr.io/distroless/static"}]}"#);
        let injection = Injection {
            pull_policy: Some("IfNotPresent".into()),
            pull_secrets: vec!["registry".into()],
            ..Injection::new("example.org/podbay-agent:1")
        };
        let spec = serde_json::to_value(injected(&pod, &injection)).expect("JSON");
        let expected = serde_json::json!({
            "containers": [{
                "name": "shell",
                "image": "gcr.io/distroless/static",
                "volumeMounts": [
                    {"name": "podbay-agent", "mountPath": "/opt/podbay-agent", "readOnly": true},
                    {"name": "podbay-agent-run", "mountPath": "/run/podbay-agent"},
                ],
            }],
            "imagePullSecrets": [{"name": "registry"}],
            "initContainers": [{
                "name": "podbay-agent",
                "image": "example.org/podbay-agent:1",
                "imagePullPolicy": "IfNotPresent",
                "command": ["/podbay-agent", "install", "/opt/podbay-agent/podbay-agent"],
                "resources": {
                    "limits": {"cpu": "100m", "memory": "32Mi"},
                    "requests": {"cpu": "100m", "memory": "32Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                    "privileged": false,
                    "readOnlyRootFilesystem": true,
                    "runAsGroup": 65532,
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "volumeMounts": [{"name": "podbay-agent", "mountPath": "/opt/podbay-agent"}],
            }],
            "volumes": [
                {"name": "podbay-agent", "emptyDir": {"sizeLimit": "16Mi"}},
                {"name": "podbay-agent-run", "emptyDir": {}},
            ],
        });
        assert_eq!(spec, expected);
    }

    #[test]
    fn what_the_user_has_stays_and_names_do_not_clash() {
        let pod = pod(r#"{
            "containers": [
                {"name": "podbay-agent", "image": "a"},
                {"name": "shell", "image": "b", "volumeMounts": [{"name": "podbay-agent", "mountPath": "/data"}]}
            ],
            "initContainers": [{"name": "podbay-agent-2", "image": "c"}, {"name": "wait", "image": "d"}],
            "imagePullSecrets": [{"name": "mine"}],
            "volumes": [{"name": "podbay-agent", "emptyDir": {"medium": "Memory"}}, {"name": "podbay-agent-2"}]
        }"#);
        let before = pod.spec.clone().expect("a spec");
        let injection = Injection { pull_secrets: vec!["mine".into()], ..Injection::new("i") };
        let spec = injected(&pod, &injection);
        let inits = spec.init_containers.expect("init containers");
        assert_eq!(
            inits.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
            ["podbay-agent-3", "podbay-agent-2", "wait"]
        );
        assert_eq!(inits[0].volume_mounts.as_ref().expect("mounts")[0].name, "podbay-agent-3");
        assert_eq!(inits[1..], before.init_containers.expect("there")[..]);
        let volumes = spec.volumes.expect("volumes");
        assert_eq!(volumes[..2], before.volumes.expect("there")[..]);
        assert_eq!(volumes[2].name, "podbay-agent-3");
        assert_eq!(spec.containers[0], before.containers[0], "only the console container has it");
        let mounts = spec.containers[1].volume_mounts.as_ref().expect("mounts");
        let mounts: Vec<_> = mounts.iter().map(|mount| (mount.name.as_str(), mount.mount_path.as_str())).collect();
        assert_eq!(mounts, [("podbay-agent", "/data"), ("podbay-agent-3", MOUNTED), ("podbay-agent-run", SOCKETS)]);
        assert_eq!(spec.image_pull_secrets.expect("secrets").len(), 1);
    }

    #[test]
    fn paths_that_are_ours_are_known() {
        for taken in ["/opt/podbay-agent", "/opt/podbay-agent/", "/opt/podbay-agent/x", "/run/podbay-agent"] {
            assert!(is_taken(taken), "{taken}");
        }
        for free in ["/opt/podbay-agents", "/opt", "/run/secrets", "/data"] {
            assert!(!is_taken(free), "{free}");
        }
    }
}
