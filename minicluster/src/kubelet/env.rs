//! A container's environment and command line, from the pod's spec and the image.

use crate::image::{Image, PATH};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod};
use std::collections::BTreeMap;

/// Variables in order; a later one of the same name replaces an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Env(Vec<(String, String)>);

impl Env {
    pub fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn into_vec(self) -> Vec<(String, String)> {
        self.0
    }

    /// `$(NAME)` becomes the variable's value if it is set, `$$` becomes `$` (Kubernetes' dependent variables).
    pub fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            rest = after;
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
                match self.get(name) {
                    Some(value) => out.push_str(value),
                    None => out.extend(["$(", name, ")"]),
                }
                rest = after;
            } else {
                out.push('$');
            }
        }
        out.push_str(rest);
        out
    }
}

/// The container's variables; `Err` with what is missing (for CreateContainerConfigError).
pub(crate) fn environment(pod: &Pod, container: &Container, image: &Image, home: &str) -> Result<Env, String> {
    let mut env = Env::default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    env.set("PATH", PATH.into());
    // A pod's host name is the first 63 characters of its name.
    env.set("HOSTNAME", name.chars().take(63).collect());
    env.set("HOME", home.into());
    if container.tty == Some(true) {
        env.set("TERM", "xterm".into());
    }
    for (name, value) in &image.env {
        env.set(name, value.clone());
    }
    for source in container.env_from.iter().flatten() {
        let config_map = source.config_map_ref.as_ref().filter(|from| from.optional != Some(true));
        let secret = source.secret_ref.as_ref().filter(|from| from.optional != Some(true));
        if let Some(from) = config_map {
            return Err(format!("configmap \"{}\" not found", from.name));
        }
        if let Some(from) = secret {
            return Err(format!("secret \"{}\" not found", from.name));
        }
    }
    for EnvVar { name, value, value_from } in container.env.iter().flatten() {
        match (value, value_from) {
            (_, Some(source)) => {
                if let Some(value) = from_source(pod, source)? {
                    env.set(name, value);
                }
            }
            (value, None) => {
                let value = env.expand(value.as_deref().unwrap_or_default());
                env.set(name, value);
            }
        }
    }
    Ok(env)
}

/// `None`: optional, and not there.
fn from_source(pod: &Pod, source: &EnvVarSource) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return match field_value(pod, &field.field_path) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("unsupported fieldPath: {}", field.field_path)),
        };
    }
    match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(from), _) if from.optional != Some(true) => Err(format!("configmap \"{}\" not found", from.name)),
        (_, Some(from)) if from.optional != Some(true) => Err(format!("secret \"{}\" not found", from.name)),
        // Limits don't exist here; a resourceFieldRef then is the node's capacity: say nothing rather than a wrong number.
        _ => Ok(None),
    }
}

fn field_value(pod: &Pod, path: &str) -> Option<String> {
    let metadata = &pod.metadata;
    let entry = |map: &Option<BTreeMap<String, String>>, rest: &str| {
        let key = rest.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "spec.nodeName" => Some(super::NODE.into()),
        "spec.serviceAccountName" => Some(
            pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".into()),
        ),
        "status.podIP" | "status.hostIP" => Some(super::ADDRESS.into()),
        _ => match path.strip_prefix("metadata.labels") {
            Some(rest) => entry(&metadata.labels, rest),
            None => entry(&metadata.annotations, path.strip_prefix("metadata.annotations")?),
        },
    }
}

/// The container's argv: `command` over ENTRYPOINT, `args` over CMD; a `command` alone drops the image's CMD.
pub(crate) fn argv(container: &Container, image: &Image, env: &Env) -> Vec<String> {
    let command = container.command.as_deref().filter(|command| !command.is_empty());
    let args = container.args.as_deref().filter(|args| !args.is_empty());
    let head = command.unwrap_or(&image.entrypoint);
    let tail = match (command, args) {
        (_, Some(args)) => args,
        (Some(_), None) => &[],
        (None, None) => &image.cmd,
    };
    // The image's own words are not expanded.
    let expand = |words: &[String], ours: bool| -> Vec<String> {
        words.iter().map(|word| if ours { env.expand(word) } else { word.clone() }).collect()
    };
    let mut argv = expand(head, command.is_some());
    argv.extend(expand(tail, args.is_some()));
    argv
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dependent_variables() {
        let mut env = Env::default();
        env.set("A", "1".into());
        assert_eq!(env.expand("$(A) $$(A) $(B) $A $"), "1 $(A) $(B) $A $");
        assert_eq!(env.expand("$(A"), "$(A");
    }

    #[test]
    fn command_and_args_over_the_images() {
        let image = Image { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..Image::default() };
        let argv = |container: serde_json::Value| {
            let container: Container = serde_json::from_value(container).expect("a container");
            argv(&container, &image, &Env::default())
        };
        assert_eq!(argv(json!({"name": "a"})), ["e", "c"]);
        assert_eq!(argv(json!({"name": "a", "args": ["x"]})), ["e", "x"]);
        assert_eq!(argv(json!({"name": "a", "command": ["x"]})), ["x"]);
        assert_eq!(argv(json!({"name": "a", "command": ["x"], "args": ["y"]})), ["x", "y"]);
    }

    #[test]
    fn fields_of_the_pod_and_what_is_missing() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"a/b": "c"}}})).expect("a pod");
        let container = |env: serde_json::Value| -> Container {
            serde_json::from_value(json!({"name": "a", "env": [env]})).expect("a container")
        };
        let label = container(json!({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}}));
        let env = environment(&pod, &label, &Image::default(), "/home").expect("complete");
        assert_eq!((env.get("X"), env.get("HOSTNAME"), env.get("HOME")), (Some("c"), Some("p"), Some("/home")));
        let secret = container(json!({"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}));
        let missing = environment(&pod, &secret, &Image::default(), "/home").expect_err("missing");
        assert_eq!(missing, "secret \"s\" not found");
    }
}
