//! `kubernetes.pod`: what pods look like.

use super::{Expose, Injection, NameTemplate, Persistent, injection};
use crate::{inject, pod_security};
use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use podbay_runtime::config::{FromNode as _, Kind, Section};
use std::{collections::BTreeMap, fmt, time::Duration};

/// The idle command of pods without agent, where none is configured: waits for TERM or INT, and ends at once on either.
/// (`sleep` alone would ignore TERM as process 1 and hold the pod for its whole grace period.)
pub const IDLE: [&str; 3] = ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done"];

/// Where images have the agent, if `agentPath` does not say otherwise.
pub const AGENT: &str = "/usr/bin/containerssh-agent";

const DEFAULT_IMAGE: &str = "containerssh/containerssh-guest-image";
const GENERATE_NAME: &str = "containerssh-";

/// The longest name prefix: prefix, 32 digits and session digest stay within the 253 bytes of a pod's name.
const MAX_PREFIX: usize = 200;

/// How pods and programs belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Mode {
    /// One pod per connection.
    Connection,
    /// One pod per program.
    Session,
    /// In a pod that outlives the connection, and that several connections may share.
    Persistent,
}

impl From<Mode> for podbay::v1::ExecutionMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Connection => Self::Connection,
            Mode::Session => Self::Session,
            Mode::Persistent => Self::Persistent,
        }
    }
}

/// What pods get of Pod Security `restricted` ([`crate::pod_security`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityProfile {
    /// As configured; where the namespace refuses that, what it asks for is filled.
    Auto,
    /// What it asks for is always filled.
    Restricted,
    /// As configured, whatever the namespace says.
    None,
}

/// What pods look like: checked, complete. `Debug` leaves the objects out: environment variables may be secrets.
#[derive(Clone, PartialEq)]
pub struct PodConfig {
    /// With namespace; in mode persistent without a name.
    pub metadata: ObjectMeta,
    /// With at least one container, all with images.
    pub spec: PodSpec,
    /// The name of the container that programs run in.
    pub console: String,
    /// Its place in the list: so it is found in pods that others made (mode persistent).
    pub console_number: usize,
    /// The command of a connection's pod; not empty where pods are made that wait for programs.
    pub idle_command: Vec<String>,
    /// The shell; may be empty in session mode only (the image's own command).
    pub shell_command: Vec<String>,
    /// Program paths by subsystem.
    pub subsystems: BTreeMap<String, String>,
    /// How pods and programs belong together.
    pub mode: Mode,
    /// Which pod, in mode persistent and only there.
    pub persistent: Option<Persistent>,
    /// The path of the guest agent in the console container; `None` = it is off.
    pub agent: Option<String>,
    /// What of the users' metadata is shown on pods.
    pub expose: Expose,
    /// What brings the agent into pods that we make; then `agent` is where it puts it.
    pub injection: Option<Injection>,
    /// What is filled of Pod Security.
    pub security_profile: SecurityProfile,
}

impl fmt::Debug for PodConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodConfig")
            .field("namespace", &self.namespace())
            .field("console", &self.console)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl PodConfig {
    /// Where pods are made.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// What pod names begin with.
    pub fn prefix(&self) -> String {
        match self.metadata.name.as_deref() {
            Some(name) => format!("{name}-"),
            None => self.metadata.generate_name.clone().unwrap_or_else(|| GENERATE_NAME.into()),
        }
    }

    pub(super) fn read(section: &mut Section) -> Option<Self> {
        let given = section.serde("metadata").unwrap_or_default();
        let mode = mode(section);
        let mut metadata = metadata(given);
        if mode != Some(Mode::Persistent) {
            // There it is the name of a pod, which others may have made.
            metadata = lowered(section, metadata);
        }
        let spec_wrong = section.has("spec");
        let spec: Option<PodSpec> = section.serde("spec");
        let spec = if spec.is_none() && spec_wrong { None } else { Some(merge(spec.unwrap_or_default())) };
        let given = section.get("consoleContainerNumber");
        let console: Option<usize> = if section.has("consoleContainerNumber") { given } else { Some(0) };
        section.effective("consoleContainerNumber", usize::kind(), console.unwrap_or_default().into());
        let injection = Injection::read(&mut section.section("agentInjection"));
        let injects = matches!(injection, injection::Read::On(_));
        let agent = agent(section, injects);
        let idle_command: Vec<String> = section.or("idleCommand", idle(agent.as_deref()));
        let shell_command: Vec<String> = section.or("shellCommand", vec!["/bin/bash".into()]);
        let mut subsystems = BTreeMap::from([("sftp".to_owned(), "/usr/lib/openssh/sftp-server".to_owned())]);
        subsystems.extend(section.get::<BTreeMap<String, String>>("subsystems").unwrap_or_default());
        section.effective("subsystems", BTreeMap::<String, String>::kind(), subsystems.shown());
        section.effective("metadata", Kind::Object("ObjectMeta"), serde_json::to_value(&metadata).unwrap_or_default());
        if let Some(spec) = &spec {
            section.effective("spec", Kind::Object("PodSpec"), masked(spec));
        }
        let create_missing = section.or("createMissingPods", false);
        let idle_timeout = Some(section.or("persistentIdleTimeout", Duration::ZERO)).filter(|idle| !idle.is_zero());
        let expose = Expose::read(section);
        let profiles = [
            ("auto", SecurityProfile::Auto),
            ("restricted", SecurityProfile::Restricted),
            ("none", SecurityProfile::None),
        ];
        let security_profile = section.word("securityProfile", &profiles, "auto");

        let path_given = section.has("agentPath");
        let mut good = true;
        let mut wrong = |key: &str, text: String| {
            section.mistake(key, text);
            good = false;
        };
        let persistent = if mode == Some(Mode::Persistent) {
            let template = metadata.name.take().map(|name| NameTemplate::parse(&name));
            match template {
                Some(Ok(name)) => Some(Persistent { name, create_missing, idle_timeout }),
                Some(Err(problem)) => {
                    wrong("metadata", format!("name: {problem}"));
                    None
                }
                None => {
                    wrong("metadata", "name is missing: mode persistent needs it, for example shell-{username}".into());
                    None
                }
            }
        } else {
            None
        };
        if create_missing && mode.is_some_and(|mode| mode != Mode::Persistent) {
            wrong("createMissingPods", "is only for mode persistent".into());
        }
        if idle_timeout.is_some() && !(create_missing && mode == Some(Mode::Persistent)) && mode.is_some() {
            let text = "is only for mode persistent with createMissingPods: pods that others made are never deleted";
            wrong("persistentIdleTimeout", text.into());
        }
        for problem in metadata_problems(&metadata) {
            wrong("metadata", problem);
        }
        for problem in spec.iter().flat_map(|spec| spec_problems(spec, mode)) {
            wrong("spec", problem);
        }
        if security_profile == Some(SecurityProfile::Restricted) {
            for problem in spec.iter().flat_map(pod_security::against) {
                wrong("spec", format!("{problem}, which securityProfile: restricted forbids"));
            }
        }
        let waits = match mode {
            Some(Mode::Connection) => Some("in mode connection"),
            Some(Mode::Persistent) if create_missing => Some("in mode persistent with createMissingPods"),
            Some(Mode::Persistent | Mode::Session) | None => None,
        };
        // A shell that nobody could start is a mistake even where the pod is there already.
        let shell = waits.or((mode == Some(Mode::Persistent)).then_some("in mode persistent"));
        for (key, command, when) in [("idleCommand", &idle_command, waits), ("shellCommand", &shell_command, shell)] {
            if let Some(when) = when.filter(|_| command.first().is_none_or(String::is_empty)) {
                wrong(key, format!("must not be empty {when}"));
            }
        }
        if injects {
            if mode == Some(Mode::Persistent) && !create_missing {
                let text = "changes pods that we make: set createMissingPods: true, or leave it out";
                wrong("agentInjection", text.into());
            }
            if agent.is_none() {
                wrong("disableAgent", "contradicts agentInjection.enabled: true".into());
            }
            if path_given {
                let text = format!("agentInjection puts the agent at {}: leave agentPath out", inject::AGENT);
                wrong("agentPath", text);
            }
        }
        if let Some(path) = &agent {
            if !path.starts_with('/') {
                wrong(
                    "agentPath",
                    format!("{path:?} is not an absolute path; set disableAgent: true where there is none"),
                );
            }
            if mode == Some(Mode::Session) && shell_command.is_empty() {
                wrong("shellCommand", "must not be empty in mode session with the agent".into());
            }
        }
        for (name, path) in &subsystems {
            if path.is_empty() {
                wrong("subsystems", format!("{name} has no program"));
            }
        }
        let count = spec.as_ref().map_or(0, |spec| spec.containers.len());
        let console_number = console.unwrap_or_default();
        let console = console.and_then(|n| {
            let found = spec.as_ref()?.containers.get(n).map(|container| container.name.clone());
            if found.is_none() {
                wrong("consoleContainerNumber", format!("there is no container {n}: spec.containers has {count}"));
            }
            found
        });
        let mounts = spec.iter().flat_map(|spec| &spec.containers).filter(|c| Some(&c.name) == console.as_ref());
        for mount in mounts.flat_map(|container| container.volume_mounts.iter().flatten()) {
            if injects && inject::is_taken(&mount.mount_path) {
                wrong("spec", format!("volumeMounts: {} is where agentInjection mounts its own", mount.mount_path));
            }
        }
        let (spec, mode, console, security_profile) = (spec?, mode?, console?, security_profile?);
        let injection = match injection {
            injection::Read::On(injection) => Some(injection),
            injection::Read::Off => None,
            injection::Read::Wrong => return None,
        };
        good.then_some(Self {
            metadata,
            spec,
            console,
            console_number,
            idle_command,
            shell_command,
            subsystems,
            mode,
            persistent,
            agent,
            expose,
            injection,
            security_profile,
        })
    }
}

fn mode(section: &mut Section) -> Option<Mode> {
    let words = [("connection", Mode::Connection), ("session", Mode::Session), ("persistent", Mode::Persistent)];
    section.word("mode", &words, "connection")
}

/// For showing: values of variables are masked, for they may be secrets.
fn masked(spec: &PodSpec) -> serde_json::Value {
    let mut spec = spec.clone();
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for variable in containers.flat_map(|container| container.env.iter_mut().flatten()) {
        if variable.value.is_some() {
            variable.value = Some("***".into());
        }
    }
    serde_json::to_value(&spec).unwrap_or_default()
}

/// The agent's path, where it is not off.
fn agent(section: &mut Section, injected: bool) -> Option<String> {
    let disabled = section.or("disableAgent", false);
    // Without meaning when the agent is off, as in ContainerSSH.
    let path = section.or("agentPath", if injected { inject::AGENT } else { AGENT }.to_owned());
    (!disabled).then_some(path)
}

/// The idle command, where none is configured.
fn idle(agent: Option<&str>) -> Vec<String> {
    match agent {
        Some(path) => agent_idle(path),
        None => IDLE.map(Into::into).into(),
    }
}

/// ContainerSSH's idle command, for an agent there.
pub(crate) fn agent_idle(path: &str) -> Vec<String> {
    [path, "wait-signal", "--signal", "INT", "--signal", "TERM"].map(Into::into).into()
}

/// Names of pods have no capitals, and ContainerSSH's manual shows a prefix that has some: they are lowered, with a warning.
fn lowered(section: &Section, mut metadata: ObjectMeta) -> ObjectMeta {
    for (key, name) in [("name", &mut metadata.name), ("generateName", &mut metadata.generate_name)] {
        if let Some(name) = name.as_mut().filter(|name| name.contains(|c: char| c.is_ascii_uppercase())) {
            section
                .warn("metadata", format!("{key} {name:?}: pod names have no capitals, so it is taken in lower case"));
            name.make_ascii_lowercase();
        }
    }
    metadata
}

fn metadata(mut metadata: ObjectMeta) -> ObjectMeta {
    let fill = |value: &mut Option<String>, default: &str| {
        if value.as_ref().is_none_or(String::is_empty) {
            *value = Some(default.to_owned());
        }
    };
    fill(&mut metadata.namespace, "default");
    fill(&mut metadata.generate_name, GENERATE_NAME);
    metadata.name = metadata.name.filter(|name| !name.is_empty());
    metadata
}

/// ContainerSSH's merge: containers index by index over the default list of one. An empty list counts as not given.
fn merge(mut spec: PodSpec) -> PodSpec {
    if spec.containers.is_empty() {
        spec.containers.push(Container::default());
    }
    if let Some(first) = spec.containers.first_mut() {
        if first.name.is_empty() {
            first.name = "shell".into();
        }
        if first.image.as_ref().is_none_or(String::is_empty) {
            first.image = Some(DEFAULT_IMAGE.into());
        }
    }
    spec
}

fn metadata_problems(metadata: &ObjectMeta) -> Vec<String> {
    let mut problems = Vec::new();
    let prefix = metadata.name.as_ref().or(metadata.generate_name.as_ref()).map_or("", String::as_str);
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !prefix.starts_with(letter) || !prefix.chars().all(|c| letter(c) || c == '-' || c == '.') {
        problems.push(format!(
            "name or generateName {prefix:?}: pod names begin with a-z or 0-9 and hold only a-z, 0-9, '-' and '.'"
        ));
    }
    if prefix.len() > MAX_PREFIX {
        problems.push(format!(
            "name or generateName is longer than {MAX_PREFIX} bytes; the connection's id is added to it"
        ));
    }
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let label = |c: char| letter(c) || c == '-';
    if namespace.len() > 63 || !namespace.chars().all(label) || namespace.starts_with('-') || namespace.ends_with('-') {
        problems.push(format!(
            "namespace {namespace:?}: names of namespaces hold only a-z, 0-9 and '-' (not first or last), at most 63"
        ));
    }
    for (what, is_set) in [
        ("uid", metadata.uid.is_some()),
        ("resourceVersion", metadata.resource_version.is_some()),
        ("creationTimestamp", metadata.creation_timestamp.is_some()),
        ("deletionTimestamp", metadata.deletion_timestamp.is_some()),
        ("managedFields", metadata.managed_fields.is_some()),
    ] {
        if is_set {
            problems.push(format!("{what} is set by the cluster, not by a configuration"));
        }
    }
    problems
}

fn spec_problems(spec: &PodSpec, mode: Option<Mode>) -> Vec<String> {
    let mut problems = Vec::new();
    for (i, container) in spec.containers.iter().enumerate() {
        if container.image.as_ref().is_none_or(String::is_empty) {
            problems.push(format!("containers[{i}] has no image"));
        }
        if container.name.is_empty() {
            problems.push(format!("containers[{i}] has no name"));
        }
    }
    let policy = spec.restart_policy.as_deref().unwrap_or_default();
    if mode == Some(Mode::Session) && !matches!(policy, "" | "Never") {
        problems.push(format!("restartPolicy {policy:?}: only Never is possible in mode session"));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        problems.push("os: only linux is supported".into());
    }
    problems
}
