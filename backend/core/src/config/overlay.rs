//! A configuration that holds for one connection only: what the config webhook answers, over what the file says.
//!
//! ContainerSSH's rules: what is empty in the answer (`null`, `false`, `0`, `""`, `[]`, `{}`) changes nothing, maps are merged key by
//! key, and everything else replaces what the file says. The result is read and checked like a file.

use super::{Backend, Kuberun, Mode, PodConfig, Security, Settings, Timeouts, kuberun, pods};
use podbay_runtime::{
    config::{Document, Section},
    webhook::as_named,
};
use serde_json::{Map, Value};
use std::fmt;

/// Sections that ContainerSSH's answers may hold, and that have no effect on a connection there either: servers made with its library
/// send them with their defaults.
const WITHOUT_EFFECT: [&str; 13] = [
    "audit",
    "auth",
    "configserver",
    "debug",
    "docker",
    "dockerrun",
    "geoip",
    "health",
    "listen",
    "log",
    "metrics",
    "ssh",
    "sshproxy",
];

/// `kubernetes` and `kuberun` of the file, as they were written: answers are put over them. May hold secrets.
#[derive(Clone, Default)]
pub struct Base {
    kubernetes: Value,
    kuberun: Value,
    /// Their `connection`.
    connections: (Value, Value),
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Base(***)")
    }
}

impl Base {
    /// Of a document's root.
    pub(super) fn of(root: &Section) -> Self {
        let section = |key| {
            let mut section = root.value(key).unwrap_or_default();
            let connection = section.as_object_mut().and_then(|section| section.remove("connection"));
            (section, connection.unwrap_or_default())
        };
        let ((kubernetes, first), (kuberun, second)) = (section("kubernetes"), section("kuberun"));
        Self { kubernetes, kuberun, connections: (first, second) }
    }

    const fn connection(&self, backend: Backend) -> &Value {
        match backend {
            Backend::Kubernetes => &self.connections.0,
            Backend::Kuberun => &self.connections.1,
        }
    }

    fn section(&self, backend: Backend) -> &Value {
        match backend {
            Backend::Kubernetes => &self.kubernetes,
            Backend::Kuberun => &self.kuberun,
        }
    }
}

impl Settings {
    const fn backend(&self) -> Backend {
        if self.kuberun.is_some() { Backend::Kuberun } else { Backend::Kubernetes }
    }

    /// These settings with an answer's `config` over them.
    ///
    /// # Errors
    /// What is wrong with it, for the log: the values in it may be the operator's secrets, and are not repeated.
    pub fn overlaid(&self, config: Map<String, Value>) -> Result<Self, String> {
        let mut config = pruned(config);
        as_named(&mut config, &["backend", "security", "kubernetes", "kuberun"]);
        for section in WITHOUT_EFFECT {
            if config.remove(section).is_some() {
                tracing::debug!(
                    section,
                    "the config webhook's answer holds a section that has no effect on a connection"
                );
            }
        }
        let backend = match config.remove("backend").map(|name| Backend::named(name.as_str().unwrap_or_default())) {
            None => self.backend(),
            Some(Some(backend)) => backend,
            Some(None) => {
                let file = self.backend().name();
                return Err(format!(
                    "config.backend: must be kubernetes or kuberun; left out, it is the file's {file}"
                ));
            }
        };
        let security = match config.remove("security") {
            None => self.security.clone(),
            Some(security) => overlaid_security(self.security.clone(), &security)?,
        };
        let name = backend.name();
        let mut over = config.remove(name);
        if let Some(other) = config.keys().find(|key| Backend::named(key).is_some()) {
            return Err(format!("config.{other}: the backend is {name}: leave it out, or give backend: {other} too"));
        }
        if let Some(key) = config.keys().next() {
            return Err(format!("config.{key}: unknown key"));
        }
        if over.is_none() && backend == self.backend() {
            return Ok(Self { security, ..self.clone() });
        }
        // Servers that send a whole section repeat how the API is reached.
        let repeated = over.as_mut().and_then(|over| over.as_object_mut()?.remove("connection"));
        if repeated.is_some_and(|given| !is_part(&given, self.base.connection(backend))) {
            return Err(format!("config.{name}.connection: is the same for all connections: leave it out"));
        }
        let merged = merged(self.base.section(backend).clone(), over.unwrap_or_default());
        let document = Document::from_value("config", &Value::Object(Map::from_iter([(name.to_owned(), merged)])));
        let read = self.read_answer(backend, document.root().section(name));
        for warning in document.warnings() {
            tracing::info!(
                code = podbay_runtime::codes::BACKEND_CONFIG_WARNING,
                "the config webhook's answer: {warning}"
            );
        }
        let (kuberun, pod, timeouts) = document.finish_with(read).map_err(|mistakes| mistakes.to_string())?;
        // Who owns such pods, and when they go, is decided for all of them together.
        if (pod.mode == Mode::Persistent) != (self.pod.mode == Mode::Persistent)
            || pod.persistent.as_ref().map(|which| which.idle_timeout)
                != self.pod.persistent.as_ref().map(|which| which.idle_timeout)
        {
            return Err(format!("config.{name}.pod: mode persistent and persistentIdleTimeout are the file's to say"));
        }
        if !self.namespaces.allow(pod.namespace()) {
            let namespace = pod.namespace();
            return Err(format!("the namespace {namespace:?} is none of configserver.namespaces"));
        }
        Ok(Self { pod, timeouts, security, kuberun, ..self.clone() })
    }

    /// The merged section of a backend. How the API is reached stays the file's.
    fn read_answer(&self, backend: Backend, mut section: Section) -> Option<(Option<Kuberun>, PodConfig, Timeouts)> {
        match backend {
            Backend::Kubernetes => {
                let (pod, timeouts) = pods(&mut section);
                Some((None, pod?, timeouts))
            }
            Backend::Kuberun => {
                let (kuberun, _, pod, timeouts) = kuberun::read(section)?;
                let insecure = self.kuberun.is_some_and(|file| file.insecure);
                let timeouts = Timeouts { http: self.timeouts.http, ..timeouts };
                Some((Some(Kuberun { insecure, ..kuberun }), pod, timeouts))
            }
        }
    }
}

/// `security` of an answer over the file's.
fn overlaid_security(file: Security, answer: &Value) -> Result<Security, String> {
    let document =
        Document::from_value("config", &Value::Object(Map::from_iter([("security".to_owned(), answer.clone())])));
    let over = Security::read(&mut document.root().section("security"));
    let over = document.finish_with(Some(over)).map_err(|mistakes| mistakes.to_string())?;
    Ok(file.merged(over))
}

/// Without what is empty. Items of lists stay as they are: a list counts as a whole.
fn pruned(map: Map<String, Value>) -> Map<String, Value> {
    let prune = |value| match value {
        Value::Null | Value::Bool(false) => None,
        Value::Number(number) if number.as_f64() == Some(0.0) => None,
        Value::String(text) if text.is_empty() => None,
        Value::Array(items) if items.is_empty() => None,
        Value::Object(map) => Some(pruned(map)).filter(|map| !map.is_empty()).map(Value::Object),
        other => Some(other),
    };
    map.into_iter().filter_map(|(key, value)| Some((key, prune(value)?))).collect()
}

/// Whether the file says all of it, in the same words.
fn is_part(given: &Value, file: &Value) -> bool {
    let says = |(key, value): (&String, &Value)| file.get(key).is_some_and(|said| said == value);
    given.as_object().is_some_and(|given| given.iter().all(says))
}

fn merged(base: Value, over: Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            for (key, over) in over {
                let value = match base.remove(&key) {
                    Some(below) => merged(below, over),
                    None => over,
                };
                base.insert(key, value);
            }
            Value::Object(base)
        }
        (_, over) => over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file() -> Settings {
        let text = "
kubernetes:
  pod:
    disableAgent: true
    metadata: {namespace: ns, labels: {a: file, b: file}}
    spec: {containers: [{name: one, image: i}, {name: two, image: j}], nodeSelector: {disk: ssd}}
    idleCommand: [sleep]
    subsystems: {x: /x}
  timeouts: {podStart: 7s, signal: 3s}
security: {maxSessions: 3}
configserver: {url: 'http://c', namespaces: [users]}
";
        let document = Document::parse("f", text).expect("YAML");
        let settings = Settings::read(&mut document.root());
        document.root().ignore("configserver");
        let _ = document.finish();
        let mut settings = settings.expect("settings");
        settings.namespaces.add(&["users".to_owned()]);
        settings
    }

    fn over(config: Value) -> Result<Settings, String> {
        let Value::Object(config) = config else { panic!("an object") };
        file().overlaid(config)
    }

    #[test]
    fn what_is_not_empty_replaces_and_maps_are_merged() {
        let settings = over(json!({
            "backend": "kubernetes", "ssh": {"listen": "0.0.0.0:22"}, "auth": {"url": ""},
            "kubernetes": {
                "pod": {
                    "metadata": {"namespace": "users", "labels": {"b": "user", "c": "user"}, "creationTimestamp": null},
                    "spec": {"containers": [{"name": "mine", "image": "k", "resources": {}}], "nodeSelector": {}},
                    "idleCommand": [], "disableAgent": false, "subsystems": {"y": "/y"},
                },
                "timeouts": {"podStart": 9_000_000_000_i64, "signal": 0},
            },
        }))
        .expect("settings");
        assert_eq!(settings.pod.namespace(), "users");
        let labels = settings.pod.metadata.labels.as_ref().expect("labels");
        assert_eq!((labels["a"].as_str(), labels["b"].as_str(), labels["c"].as_str()), ("file", "user", "user"));
        let names: Vec<_> = settings.pod.spec.containers.iter().map(|container| container.name.as_str()).collect();
        assert_eq!((names, settings.pod.console.as_str()), (vec!["mine"], "mine"));
        assert_eq!(settings.pod.spec.node_selector.as_ref().expect("kept")["disk"], "ssd");
        assert_eq!(
            (settings.pod.idle_command.as_slice(), &settings.pod.agent),
            (["sleep".to_owned()].as_slice(), &None)
        );
        assert!(["x", "y", "sftp"].iter().all(|name| settings.pod.subsystems.contains_key(*name)));
        assert_eq!((settings.timeouts.pod_start.as_secs(), settings.timeouts.signal.as_secs()), (9, 3));
        assert_eq!(settings.security, file().security);
    }

    #[test]
    fn an_empty_answer_changes_nothing() {
        let settings =
            over(json!({"kubernetes": {"pod": {"spec": {"containers": []}}}, "security": {}})).expect("settings");
        assert_eq!((settings.pod.namespace(), settings.pod.spec.containers.len()), ("ns", 2));
    }

    #[test]
    fn a_policy_is_put_over_the_files() {
        let answer = json!({"security": {"maxSessions": 3, "shell": {"mode": "disable"}, "env": {"allow": []}}});
        let settings = over(answer).expect("settings");
        assert_eq!(settings.security.max_sessions().map(u32::from), Some(3));
        assert_eq!(settings.security.shell, Some(crate::policy::Mode::Disable));
    }

    #[test]
    fn kuberun_may_come_of_an_answer_and_may_be_left_by_one() {
        let answer = json!({"backend": "kuberun", "kuberun": {
            "timeout": "9s", "pod": {"namespace": "users", "disableCommand": true, "podSpec": {"containers": [{"image": "k"}]}},
        }});
        let settings = over(answer).expect("settings");
        assert_eq!(settings.kuberun, Some(Kuberun { disable_command: true, insecure: false }));
        assert_eq!((settings.pod.mode, settings.pod.namespace()), (Mode::Session, "users"));
        assert_eq!((settings.timeouts.pod_start.as_secs(), settings.timeouts.http), (9, file().timeouts.http));
        // Its defaults are enough.
        let settings = over(json!({"backend": "kuberun"})).expect_err("the namespace default");
        assert!(settings.contains("\"default\" is none of configserver.namespaces"), "{settings}");

        let text = "
backend: kuberun
kuberun: {connection: {host: h, insecure: true, timeout: 4s}, timeout: 5s, pod: {namespace: ns, disableCommand: true}}
";
        let document = Document::parse("f", text).expect("YAML");
        let file = Settings::read(&mut document.root()).expect("settings");
        let over = |config: Value| file.overlaid(config.as_object().cloned().expect("an object")).expect("settings");
        let settings = over(json!({"kuberun": {"pod": {"consoleContainerNumber": 0, "subsystems": {"x": "/x"}}}}));
        assert_eq!(settings.kuberun, Some(Kuberun { disable_command: true, insecure: true }));
        assert!(settings.pod.subsystems.contains_key("x") && settings.pod.namespace() == "ns");
        assert_eq!((settings.timeouts.signal.as_secs(), settings.timeouts.http.as_secs()), (5, 4));
        let answer = json!({"backend": "kubernetes", "kubernetes": {"pod": {"metadata": {"namespace": "ns"}}}});
        let settings = over(answer);
        assert_eq!((settings.kuberun, settings.pod.mode), (None, Mode::Connection));
    }

    /// A server that sends its whole section says how the API is reached too.
    #[test]
    fn what_the_file_says_of_the_connection_may_be_repeated() {
        let text = "kubernetes: {connection: {host: h, bearerToken: t, qps: 5}, pod: {disableAgent: true, metadata: {labels: {year: 2026}}}}";
        let document = Document::parse("f", text).expect("YAML");
        let settings = Settings::read(&mut document.root()).expect("settings");
        let over = |connection: Value| {
            let config = json!({"Kubernetes": {"connection": connection, "pod": {"shellCommand": ["/bin/zsh"]}}});
            settings.overlaid(config.as_object().expect("an object").clone())
        };
        let read = over(json!({"host": "h", "bearerToken": "t", "qps": 5, "cert": ""})).expect("the same");
        assert_eq!(read.pod.shell_command.first().map(String::as_str), Some("/bin/zsh"));
        for other in [json!({"host": "i"}), json!({"host": "h", "cacert": "c"})] {
            assert!(over(other.clone()).expect_err("another").contains("config.kubernetes.connection"), "{other}");
        }
    }

    #[test]
    fn what_cant_be_used_is_told() {
        for (config, told) in [
            (json!({"kubernetes": {"pod": {"sepc": {"a": 1}}}}), "unknown key"),
            (json!({"kubernetes": {"pod": {"spec": {"containers": [{"image": [1]}]}}}}), "containers[0].image"),
            (
                json!({"kubernetes": {"pod": {"metadata": {"namespace": "kube-system"}}}}),
                "none of configserver.namespaces",
            ),
            (json!({"kubernetes": {"connection": {"host": "x"}}}), "config.kubernetes.connection"),
            (json!({"kubernetes": {"pod": "x"}}), "expected a map"),
            (json!({"kubernetes": 1}), "expected a map"),
            (json!({"security": {"maxSessions": -5}}), "security.maxSessions: must be"),
            (json!({"security": {"shell": {"mode": "off"}}}), "security.shell.mode: must be"),
            (json!({"kubernetes": {"pod": {"mode": "persistent"}}}), "mode"),
            (json!({"backend": "docker"}), "config.backend: must be kubernetes or kuberun"),
            (json!({"backend": 1}), "config.backend: must be kubernetes or kuberun"),
            (
                json!({"kuberun": {"pod": {"namespace": "ns"}}}),
                "config.kuberun: the backend is kubernetes: leave it out, or",
            ),
            (
                json!({"backend": "kuberun", "kuberun": {"connection": {"insecure": true}}}),
                "config.kuberun.connection: is the same for all connections",
            ),
            (
                json!({"backend": "kuberun", "kuberun": {"pod": {"namespace": "kube-system"}}}),
                "none of configserver.namespaces",
            ),
            (json!({"backend": "kuberun", "kuberun": {"timeout": "soon"}}), "config: kuberun.timeout: not a duration"),
            (
                json!({"kubernetes": {"pod": {"podSpec": {"hostNetwork": true}}}}),
                "config: kubernetes.pod.podSpec: is not supported: it is kuberun's name; here it is spec",
            ),
            (json!({"nonsense": 1}), "config.nonsense: unknown key"),
        ] {
            let error = over(config.clone()).expect_err(&config.to_string());
            assert!(error.contains(told), "{config}: {error}");
        }
    }
}
