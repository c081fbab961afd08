//! Pod Security `restricted`: what a pod lacks of it, and what it has against it. Pure.
//!
//! Only what is not set is filled, and only what every non-root image can live with: the user id is the image's or the
//! operator's, never ours. Why by default only where a namespace asks for it: docs/design/0015.

use crate::{cluster::ClusterError, config::SecurityProfile};
use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, PodSpec, SeccompProfile, SecurityContext, Volume};

/// Annotation: how the pod was made, where it is not as configured and not to be changed either.
pub const PROFILE: &str = "podbay.dev/security-profile";

const RESTRICTED: &str = "restricted";
const NONE: &str = "none";

/// Does to a pod what the configuration says.
pub fn apply(pod: &mut Pod, profile: SecurityProfile) {
    match profile {
        SecurityProfile::Auto => {}
        SecurityProfile::Restricted => restrict(pod),
        SecurityProfile::None => mark(pod, NONE),
    }
}

/// After a create that was refused: makes the pod one that the namespace may take. `false`: there is nothing to try.
pub fn comply(pod: &mut Pod, error: &ClusterError) -> bool {
    let asked =
        matches!(error, ClusterError::Forbidden { message } if message.contains("violates PodSecurity \"restricted"));
    if !asked || marked(pod).is_some() {
        return false;
    }
    restrict(pod);
    true
}

/// What to do about a refusal by Pod Security, for those who configure; empty for any other error.
pub fn hint(pod: &Pod, error: &ClusterError) -> &'static str {
    match error {
        ClusterError::Forbidden { message } if message.contains("violates PodSecurity") => match marked(pod) {
            Some(NONE) => " (kubernetes.pod.securityProfile: auto or restricted sets what it asks for)",
            Some(_) | None => " (kubernetes.pod.spec says otherwise)",
        },
        _ => "",
    }
}

fn marked(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(PROFILE).map(String::as_str)
}

fn mark(pod: &mut Pod, profile: &str) {
    pod.metadata.annotations.get_or_insert_default().insert(PROFILE.to_owned(), profile.to_owned());
}

/// Sets what `restricted` asks for, where nothing is set.
fn restrict(pod: &mut Pod) {
    mark(pod, RESTRICTED);
    let Some(spec) = &mut pod.spec else { return };
    let context = spec.security_context.get_or_insert_default();
    context.run_as_non_root.get_or_insert(true);
    context
        .seccomp_profile
        .get_or_insert_with(|| SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None });
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let context = container.security_context.get_or_insert_default();
        if context.privileged == Some(true) {
            // Together with what follows the API would call it invalid, which says less than Pod Security does.
            continue;
        }
        context.allow_privilege_escalation.get_or_insert(false);
        let drop = context.capabilities.get_or_insert_with(Capabilities::default).drop.get_or_insert_default();
        if !drop.iter().any(|name| name == "ALL") {
            drop.push("ALL".to_owned());
        }
    }
}

/// What of a spec `restricted` forbids, with its place; what is merely missing is filled.
pub fn against(spec: &PodSpec) -> Vec<String> {
    let mut all = Vec::new();
    for (name, is_set) in [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)] {
        if is_set == Some(true) {
            all.push(format!("{name}: true"));
        }
    }
    if let Some(context) = &spec.security_context {
        let seccomp = context.seccomp_profile.as_ref();
        all.extend(user("securityContext", context.run_as_non_root, context.run_as_user, seccomp));
    }
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        if !is_allowed(volume) {
            all.push(format!("volumes[{i}] is of a kind that only some clusters' nodes should mount"));
        }
    }
    for (i, found) in spec.containers.iter().enumerate() {
        all.extend(container(&format!("containers[{i}]"), found));
    }
    for (i, found) in spec.init_containers.iter().flatten().enumerate() {
        all.extend(container(&format!("initContainers[{i}]"), found));
    }
    all
}

fn user(at: &str, non_root: Option<bool>, id: Option<i64>, seccomp: Option<&SeccompProfile>) -> Vec<String> {
    let mut all = Vec::new();
    if non_root == Some(false) {
        all.push(format!("{at}.runAsNonRoot: false"));
    }
    if id == Some(0) {
        all.push(format!("{at}.runAsUser: 0"));
    }
    if seccomp.is_some_and(|profile| profile.type_ == "Unconfined") {
        all.push(format!("{at}.seccompProfile.type: Unconfined"));
    }
    all
}

fn container(at: &str, container: &Container) -> Vec<String> {
    let mut all = Vec::new();
    for port in container.ports.iter().flatten().filter(|port| port.host_port.is_some_and(|port| port != 0)) {
        all.push(format!("{at}.ports: hostPort {}", port.host_port.unwrap_or_default()));
    }
    let Some(context) = &container.security_context else { return all };
    let at = format!("{at}.securityContext");
    all.extend(user(&at, context.run_as_non_root, context.run_as_user, context.seccomp_profile.as_ref()));
    all.extend(powers(&at, context));
    all
}

fn powers(at: &str, context: &SecurityContext) -> Vec<String> {
    let mut all = Vec::new();
    for (name, is_set) in
        [("privileged", context.privileged), ("allowPrivilegeEscalation", context.allow_privilege_escalation)]
    {
        if is_set == Some(true) {
            all.push(format!("{at}.{name}: true"));
        }
    }
    let added = context.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
    for name in added.filter(|name| *name != "NET_BIND_SERVICE") {
        all.push(format!("{at}.capabilities.add: {name}"));
    }
    if context.proc_mount.as_deref().is_some_and(|mount| mount != "Default") {
        all.push(format!("{at}.procMount"));
    }
    all
}

/// The kinds of volumes that `restricted` lists.
fn is_allowed(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.csi.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.is_some()
        || volume.ephemeral.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.projected.is_some()
        || volume.secret.is_some()
        // Neither is one without a source, which is an emptyDir.
        || *volume == Volume { name: volume.name.clone(), ..Volume::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: &Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).expect("a pod")
    }

    fn forbidden(message: &str) -> ClusterError {
        ClusterError::Forbidden { message: format!("pods \"p\" is forbidden: violates PodSecurity {message}") }
    }

    #[test]
    fn only_what_is_not_set_is_filled() {
        let mut plain = pod(&json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}));
        restrict(&mut plain);
        let spec = serde_json::to_value(plain.spec.expect("a spec")).expect("JSON");
        let container = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        assert_eq!(
            spec["securityContext"],
            json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}),
            "no user of ours"
        );
        assert_eq!(spec["containers"][0]["securityContext"], container);
        assert_eq!(spec["initContainers"][0]["securityContext"], container);

        let own = json!({
            "securityContext": {"runAsNonRoot": false, "runAsUser": 7, "seccompProfile": {"type": "Localhost", "localhostProfile": "x"}},
            "containers": [{
                "name": "a",
                "securityContext": {"allowPrivilegeEscalation": true, "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}},
            }],
        });
        let mut set = pod(&own);
        restrict(&mut set);
        assert_eq!(serde_json::to_value(set.spec.expect("a spec")).expect("JSON"), own);
        let privileged = json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}]});
        let mut set = pod(&privileged);
        restrict(&mut set);
        let spec = serde_json::to_value(set.spec.expect("a spec")).expect("JSON");
        assert_eq!(spec["containers"], privileged["containers"]);
    }

    #[test]
    fn a_pod_complies_once_and_only_with_restricted() {
        let spec = || json!({"containers": [{"name": "a"}]});
        let error = forbidden("\"restricted:latest\": allowPrivilegeEscalation != false");
        let mut auto = pod(&spec());
        apply(&mut auto, SecurityProfile::Auto);
        assert_eq!(auto, pod(&spec()), "as configured");
        assert!(!comply(&mut auto, &forbidden("\"baseline:latest\": privileged")));
        assert!(!comply(&mut auto, &ClusterError::Forbidden { message: "exceeded quota".into() }));
        assert!(comply(&mut auto, &error));
        assert!(!comply(&mut auto, &error), "a second time it is told");
        let mut restricted = pod(&spec());
        apply(&mut restricted, SecurityProfile::Restricted);
        assert_eq!(restricted, auto);
        let mut none = pod(&spec());
        apply(&mut none, SecurityProfile::None);
        assert!(!comply(&mut none, &error));
        assert_eq!(none.spec, pod(&spec()).spec);
        assert!(hint(&none, &error).contains("securityProfile"));
        assert_eq!(hint(&none, &ClusterError::Forbidden { message: "exceeded quota".into() }), "");
    }

    #[test]
    fn what_it_forbids_is_named() {
        let good = json!({
            "securityContext": {"runAsUser": 1000},
            "volumes": [{"name": "a"}, {"name": "b", "emptyDir": {}}, {"name": "c", "secret": {"secretName": "s"}}],
            "containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["NET_BIND_SERVICE"]}}}],
        });
        assert_eq!(against(&pod(&good).spec.expect("a spec")), Vec::<String>::new());
        let bad = json!({
            "hostNetwork": true, "hostPID": true, "hostIPC": true,
            "securityContext": {"runAsNonRoot": false, "runAsUser": 0, "seccompProfile": {"type": "Unconfined"}},
            "volumes": [{"name": "a", "hostPath": {"path": "/"}}],
            "initContainers": [{"name": "i", "securityContext": {"privileged": true}}],
            "containers": [{
                "name": "a", "ports": [{"containerPort": 1, "hostPort": 2}],
                "securityContext": {
                    "allowPrivilegeEscalation": true, "runAsUser": 0, "procMount": "Unmasked",
                    "capabilities": {"add": ["SYS_PTRACE"]},
                },
            }],
        });
        let found = against(&pod(&bad).spec.expect("a spec"));
        for words in [
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "securityContext.runAsNonRoot: false",
            "securityContext.runAsUser: 0",
            "securityContext.seccompProfile.type: Unconfined",
            "volumes[0]",
            "initContainers[0].securityContext.privileged",
            "containers[0].ports: hostPort 2",
            "containers[0].securityContext.allowPrivilegeEscalation",
            "containers[0].securityContext.runAsUser: 0",
            "containers[0].securityContext.procMount",
            "containers[0].securityContext.capabilities.add: SYS_PTRACE",
        ] {
            assert!(found.iter().any(|one| one.contains(words)), "{words} is not told: {found:?}");
        }
        assert_eq!(found.len(), 13);
    }
}
