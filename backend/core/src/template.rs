//! Pods as they are given to the API: configuration and connection in, object out. Pure.

use crate::{
    config::{self, Mode, PodConfig},
    identity::{self, Identity},
    inject::inject,
    persistent, pod_security,
};
use k8s_openapi::{
    api::core::v1::{Container, EnvVar, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use podbay::{ConnectionId, SessionId};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// The grace period of pods whose spec names none. Kubernetes' own 30 s would hold every pod whose shell ignores TERM.
const GRACE_SECONDS: i64 = 5;

/// A pod of this configuration for this connection; not yet named, no command of ours yet. Session mode keeps it in the
/// handle and makes each program's pod of it ([`session_pod`]).
pub fn base_pod(config: &PodConfig, who: &Identity, environment: &BTreeMap<String, String>) -> Pod {
    let mut spec = config.spec.clone();
    spec.termination_grace_period_seconds.get_or_insert(GRACE_SECONDS);
    let account = spec.service_account_name.is_some() || spec.service_account.is_some();
    if spec.automount_service_account_token.is_none() && !account {
        spec.automount_service_account_token = Some(false);
    }
    match config.mode {
        Mode::Connection | Mode::Persistent => {}
        Mode::Session => spec.restart_policy = Some("Never".into()),
    }
    add_environment(&mut spec, environment);
    let mut metadata = config.metadata.clone();
    metadata.namespace = Some(config.namespace().to_owned());
    metadata.name = None;
    // Names are ours and whole: a lost answer must not make a second pod.
    metadata.generate_name = Some(config.prefix());
    mark(&mut metadata, who, config.mode);
    let mut pod = Pod { metadata, spec: Some(spec), status: None };
    if let Some(injection) = &config.injection {
        inject(&mut pod, &config.console, injection);
    }
    pod_security::apply(&mut pod, config.security_profile);
    pod
}

/// The pod of a connection (mode `connection`).
pub fn connection_pod(config: &PodConfig, who: &Identity, environment: &BTreeMap<String, String>) -> Pod {
    let mut pod = base_pod(config, who, environment);
    name(&mut pod.metadata, &who.connection.to_string());
    if let Some(container) = console(&mut pod, &config.console) {
        container.command = Some(config.idle_command.clone());
    }
    pod
}

/// The pod of a user, or of all of them, that outlives this connection (mode `persistent`), with this connection's claim.
///
/// It has no variables of the connection's: the next one's may be others, and a pod may be shared. Programs get theirs with
/// their start.
pub fn persistent_pod(config: &PodConfig, which: &config::Persistent, who: &Identity) -> Pod {
    let mut pod = base_pod(config, who, &BTreeMap::new());
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(which.name.of(&who.user.authenticated));
    persistent::mark(&mut pod.metadata, &which.name, who);
    if let Some(container) = console(&mut pod, &config.console) {
        container.command = Some(config.idle_command.clone());
    }
    pod
}

/// What one program adds to its pod (mode `session`).
#[derive(Debug, Clone)]
pub struct SessionProgram<'a> {
    /// The connection.
    pub connection: ConnectionId,
    /// The session.
    pub session: SessionId,
    /// The console container's name.
    pub console: &'a str,
    /// What the container runs; `None` = the image's own command.
    pub command: Option<Vec<String>>,
    /// A terminal.
    pub tty: bool,
    /// The session's environment, added to the connection's.
    pub environment: &'a BTreeMap<String, String>,
}

/// The pod of a program (mode `session`), made of the handle's template. Its name follows from connection and session: a
/// second start of one session meets the first one's pod.
pub fn session_pod(base: &Pod, program: SessionProgram<'_>) -> Pod {
    let mut pod = base.clone();
    let digest = Sha256::digest([program.connection.as_bytes().as_slice(), program.session.as_bytes()].concat());
    name(&mut pod.metadata, &format!("{}-{}", program.connection, hex::encode(digest.get(..8).unwrap_or_default())));
    pod.metadata.labels.get_or_insert_default().insert(identity::SESSION.into(), program.session.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.restart_policy = Some("Never".into());
        add_environment(spec, program.environment);
    }
    if let Some(container) = console(&mut pod, program.console) {
        container.command = program.command.map(|argv| argv.iter().map(|word| literal(word)).collect());
        container.stdin = Some(true);
        container.stdin_once = Some(true);
        container.tty = Some(program.tty);
    }
    pod
}

fn name(metadata: &mut ObjectMeta, id: &str) {
    let prefix = metadata.generate_name.take().unwrap_or_default();
    metadata.name = Some(format!("{prefix}{id}"));
}

fn console<'a>(pod: &'a mut Pod, name: &str) -> Option<&'a mut Container> {
    pod.spec.as_mut()?.containers.iter_mut().find(|container| container.name == name)
}

/// All containers get the variables, as in ContainerSSH. Unlike there, an earlier entry of the same name is replaced:
/// with two of a name, what a program sees is the runtime's choice.
fn add_environment(spec: &mut PodSpec, environment: &BTreeMap<String, String>) {
    if environment.is_empty() {
        return;
    }
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let variables = container.env.get_or_insert_default();
        variables.retain(|variable| !environment.contains_key(&variable.name));
        variables.extend(environment.iter().map(|(name, value)| EnvVar {
            name: name.clone(),
            value: Some(literal(value)),
            value_from: None,
        }));
    }
}

/// Text that Kubernetes hands on as it is: in commands and variables it expands `$(NAME)` and turns `$$` into `$`, so a
/// user's `echo $$` would lose one. (ContainerSSH loses it.)
fn literal(text: &str) -> String {
    if text.contains("$(") || text.contains("$$") { text.replace('$', "$$") } else { text.to_owned() }
}

fn mark(metadata: &mut ObjectMeta, who: &Identity, mode: Mode) {
    let labels = metadata.labels.get_or_insert_default();
    labels.insert(identity::MANAGED_BY.into(), identity::PODBAY.into());
    labels.insert(identity::CONNECTION.into(), who.connection.to_string());
    labels.insert(identity::OWNER.into(), who.owner.to_string());
    labels.insert("containerssh_connection_id".into(), who.connection.to_string());
    match label_value(&who.user.authenticated) {
        Some(user) => labels.insert("containerssh_username".into(), user),
        None => labels.remove("containerssh_username"),
    };
    labels.remove(identity::SESSION);

    let notes = metadata.annotations.get_or_insert_default();
    notes.insert(identity::CALLER.into(), who.caller.clone());
    notes.insert(identity::USER.into(), who.user.name.clone());
    if who.user.authenticated == who.user.name {
        notes.remove(identity::AUTHENTICATED_USER);
    } else {
        notes.insert(identity::AUTHENTICATED_USER.into(), who.user.authenticated.clone());
    }
    let mode = match mode {
        Mode::Connection => "connection",
        Mode::Session => "session",
        Mode::Persistent => "persistent",
    };
    notes.insert(identity::MODE.into(), mode.into());
    if let Some(remote) = who.remote {
        notes.insert("containerssh_ip".into(), remote.to_string().replace(':', "-"));
        notes.insert(identity::REMOTE.into(), remote.to_string());
    } else {
        notes.remove("containerssh_ip");
        notes.remove(identity::REMOTE);
    }
}

/// A user's name as a label's value: ContainerSSH's replacement of foreign characters by `-`, then trimmed so that the
/// API always takes it. `None` where nothing is left or it is longer than 63 bytes; the annotation has the whole name.
pub(crate) fn label_value(name: &str) -> Option<String> {
    if name.len() > 63 {
        return None;
    }
    let value: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let value = value.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::Marks, identity::User};
    use podbay::OwnerId;
    use podbay_runtime::config::Document;
    use proptest::prelude::*;

    fn config(pod: &str) -> PodConfig {
        let text = format!("kubernetes: {{pod: {{disableAgent: true, {pod}}}}}");
        let document = Document::parse("f", &text).expect("YAML");
        let settings = config::Settings::read(&mut document.root());
        document.finish().expect("no mistake");
        settings.expect("settings").pod
    }

    fn who(user: &str) -> Identity {
        Identity {
            connection: ConnectionId::from_bytes([0xab; 16]),
            owner: OwnerId::from_bytes([0xcd; 16]),
            caller: "dns:frontend".into(),
            user: User::named(user),
            remote: "2001:db8::1".parse().ok(),
        }
    }

    fn environment() -> BTreeMap<String, String> {
        BTreeMap::from([("A".to_owned(), "$(HOME) $x".to_owned())])
    }

    #[test]
    fn a_connections_pod_is_named_marked_and_hardened() {
        let config = config("spec: {containers: [{image: i, args: [z], env: [{name: A, value: old}, {name: B}]}]}");
        let pod = connection_pod(&config, &who("bob@"), &environment());
        assert_eq!(pod.metadata.name, Some(format!("containerssh-{}", "ab".repeat(16))));
        assert_eq!(pod.metadata.generate_name, None);
        let labels = pod.metadata.labels.as_ref().expect("labels");
        assert_eq!(labels["containerssh_username"], "bob");
        assert_eq!(labels["containerssh_connection_id"], "ab".repeat(16));
        assert_eq!(pod.metadata.annotations.as_ref().expect("annotations")["containerssh_ip"], "2001-db8--1");
        let marks = Marks::read(&pod.metadata).expect("one of ours");
        assert_eq!((marks.connection, marks.owner), (who("").connection, who("").owner));
        assert_eq!((marks.user, marks.remote.as_str()), (User::named("bob@"), "2001:db8::1"));
        let spec = pod.spec.expect("a spec");
        assert_eq!(spec.termination_grace_period_seconds, Some(5));
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!(spec.restart_policy, None);
        let container = &spec.containers[0];
        assert_eq!(container.command, Some(config.idle_command));
        assert_eq!(container.args.as_deref(), Some(["z".to_owned()].as_slice()));
        let env: Vec<_> = container.env.iter().flatten().map(|v| (v.name.as_str(), v.value.as_deref())).collect();
        assert_eq!(env, [("B", None), ("A", Some("$$(HOME) $$x"))]);
    }

    #[test]
    fn what_the_operator_set_stays() {
        let spec =
            "spec: {terminationGracePeriodSeconds: 60, serviceAccountName: s}, metadata: {name: ws, labels: {a: b}}";
        let pod = connection_pod(&config(spec), &who("u"), &BTreeMap::new());
        assert_eq!(pod.metadata.name, Some(format!("ws-{}", "ab".repeat(16))));
        assert_eq!(pod.metadata.labels.expect("labels")["a"], "b");
        let spec = pod.spec.expect("a spec");
        assert_eq!((spec.termination_grace_period_seconds, spec.automount_service_account_token), (Some(60), None));
    }

    #[test]
    fn a_sessions_pod_is_the_programs() {
        let config = config("mode: session");
        let base = base_pod(&config, &who("u"), &environment());
        let session = SessionId::from_bytes([1; 16]);
        let program = SessionProgram {
            connection: who("u").connection,
            session,
            console: "shell",
            command: Some(vec!["/bin/sh".into(), "-c".into(), "echo $$ $(id)".into()]),
            tty: true,
            environment: &BTreeMap::from([("A".to_owned(), "session".to_owned())]),
        };
        let pod = session_pod(&base, program.clone());
        let name = pod.metadata.name.clone().expect("a name");
        assert!(name.len() <= 63 && name.starts_with(&format!("containerssh-{}-", "ab".repeat(16))), "{name}");
        assert_eq!(session_pod(&base, program.clone()).metadata.name, pod.metadata.name);
        let other = SessionProgram { session: SessionId::from_bytes([2; 16]), ..program };
        assert_ne!(session_pod(&base, other).metadata.name, pod.metadata.name);
        assert_eq!(Marks::read(&pod.metadata).expect("ours").session, Some(session));
        let spec = pod.spec.expect("a spec");
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        let container = &spec.containers[0];
        assert_eq!(
            container.command.as_deref(),
            Some(["/bin/sh".to_owned(), "-c".to_owned(), "echo $$$$ $$(id)".to_owned()].as_slice())
        );
        assert_eq!((container.stdin, container.stdin_once, container.tty), (Some(true), Some(true), Some(true)));
        assert_eq!(container.env.as_ref().expect("env")[0].value.as_deref(), Some("session"));
    }

    #[test]
    fn pods_are_restricted_where_the_configuration_says_so() {
        let context = |keys: &str| {
            let pod = base_pod(&config(keys), &who("u"), &BTreeMap::new());
            pod.spec.expect("a spec").containers[0].security_context.clone()
        };
        assert_eq!(context("mode: connection"), None, "as ContainerSSH's");
        assert_eq!(context("securityProfile: none"), None);
        let filled = context("securityProfile: restricted").expect("a context");
        assert_eq!(filled.allow_privilege_escalation, Some(false));
    }

    #[test]
    fn a_pod_that_stays_names_no_connection_that_it_would_end_with() {
        let config =
            config("mode: persistent, metadata: {name: 'ws-{username}', labels: {a: b}}, createMissingPods: true");
        let which = config.persistent.clone().expect("persistent");
        let pod = persistent_pod(&config, &which, &who("Bob"));
        assert_eq!(pod.metadata.name.as_deref(), Some(which.name.of("Bob").as_str()));
        assert_eq!(Marks::read(&pod.metadata), None);
        assert_eq!(persistent::claims(&pod.metadata).len(), 1);
        let labels = pod.metadata.labels.expect("labels");
        assert_eq!((labels["a"].as_str(), labels["containerssh_username"].as_str()), ("b", "Bob"));
        let spec = pod.spec.expect("a spec");
        assert_eq!((spec.restart_policy, spec.containers[0].command.clone()), (None, Some(config.idle_command)));
        assert_eq!(spec.containers[0].env, None, "the next connection's variables may be others");
    }

    #[test]
    fn every_mode_brings_the_agent_where_it_is_to_be_injected() {
        for mode in ["connection", "session", "persistent, createMissingPods: true"] {
            let text = format!(
                "kubernetes: {{pod: {{mode: {mode}, metadata: {{name: p}}, agentInjection: {{enabled: true, image: i}}}}}}"
            );
            let document = Document::parse("f", &text).expect("YAML");
            let settings = config::Settings::read(&mut document.root());
            document.finish().expect("no mistake");
            let config = settings.expect("settings").pod;
            let pod = match (config.mode, &config.persistent) {
                (Mode::Connection, _) => connection_pod(&config, &who("u"), &environment()),
                (Mode::Session, _) => {
                    let program = SessionProgram {
                        connection: who("u").connection,
                        session: SessionId::from_bytes([1; 16]),
                        console: "shell",
                        command: None,
                        tty: false,
                        environment: &BTreeMap::new(),
                    };
                    session_pod(&base_pod(&config, &who("u"), &environment()), program)
                }
                (Mode::Persistent, which) => persistent_pod(&config, which.as_ref().expect("which"), &who("u")),
            };
            let spec = pod.spec.expect("a spec");
            let init = &spec.init_containers.as_ref().expect("an init container")[0];
            assert_eq!((init.image.as_deref(), &init.env), (Some("i"), &None), "{mode}");
            assert_eq!(spec.containers[0].volume_mounts.as_ref().map(Vec::len), Some(2), "{mode}");
        }
    }

    #[test]
    fn the_names_that_containerssh_fails_on() {
        for (name, label) in [
            ("alice", Some("alice")),
            ("a_b@c", Some("a-b-c")),
            ("_svc", Some("svc")),
            (".x", Some("x")),
            ("a|b", Some("a-b")),
            ("ünï", Some("n")),
            ("@", None),
            ("", None),
        ] {
            assert_eq!(label_value(name).as_deref(), label, "{name}");
        }
        assert_eq!(label_value(&"a".repeat(63)).map(|label| label.len()), Some(63));
        assert_eq!(label_value(&"a".repeat(64)), None);
    }

    proptest! {
        #[test]
        fn a_label_is_always_one_that_the_api_takes(name in "\\PC{0,80}") {
            if let Some(label) = label_value(&name) {
                prop_assert!(!label.is_empty() && label.len() <= 63);
                prop_assert!(label.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)));
                prop_assert!(label.starts_with(|c: char| c.is_ascii_alphanumeric()));
                prop_assert!(label.ends_with(|c: char| c.is_ascii_alphanumeric()));
            }
        }
    }
}
