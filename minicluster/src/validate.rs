//! What the API refuses in an object (422), and the values that it fills in. The obvious rules only; see docs/minicluster.md.

use crate::{
    kinds::Kind,
    status::{ApiError, Mistake},
    store::text,
};
use serde_json::{Map, Value, json};

const MAX_ANNOTATIONS: usize = 256 * 1024;

/// RFC 1123 label: lower case letters, digits, `-`; at most 63.
pub(crate) fn is_dns_label(name: &str) -> bool {
    let fine = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(fine) && !name.starts_with('-') && !name.ends_with('-')
}

/// RFC 1123 subdomain: labels with dots between; at most 253.
fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(|part| !part.is_empty() && is_dns_part(part))
}

fn is_dns_part(part: &str) -> bool {
    let fine = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    part.bytes().all(fine) && !part.starts_with('-') && !part.ends_with('-')
}

/// At most 63 of `[A-Za-z0-9._-]`, alphanumeric at both ends.
fn is_qualified_name(name: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= 63
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && ends(name.chars().next())
        && ends(name.chars().last())
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_qualified_name(name),
        None => is_qualified_name(key),
    }
}

/// Checks an object as it is to be stored.
pub(crate) fn check(kind: Kind, object: &Value) -> Result<(), ApiError> {
    let mut mistakes = Vec::new();
    metadata(kind, object, &mut mistakes);
    match kind {
        Kind::Pod => pod(object, &mut mistakes),
        Kind::Lease => {
            let seconds = object.pointer("/spec/leaseDurationSeconds").and_then(Value::as_i64);
            if let Some(seconds) = seconds.filter(|seconds| *seconds <= 0) {
                mistakes.push(Mistake::invalid(
                    "spec.leaseDurationSeconds",
                    &seconds.to_string(),
                    "must be greater than 0",
                ));
            }
        }
        Kind::Namespace | Kind::Event => {}
    }
    if mistakes.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, text(object, "/metadata/name"), &mistakes)) }
}

fn metadata(kind: Kind, object: &Value, mistakes: &mut Vec<Mistake>) {
    let name = text(object, "/metadata/name");
    if kind == Kind::Namespace {
        if !is_dns_label(name) {
            mistakes.push(Mistake::invalid("metadata.name", name, "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character"));
        }
    } else if !is_dns_subdomain(name) {
        mistakes.push(Mistake::invalid("metadata.name", name, "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"));
    }
    for (key, value) in entries(object.pointer("/metadata/labels")) {
        if !is_key(key) {
            mistakes.push(Mistake::invalid("metadata.labels", key, "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, and be no more than 63 characters"));
        }
        let value = value.as_str().unwrap_or_default();
        if !value.is_empty() && !is_qualified_name(value) {
            mistakes.push(Mistake::invalid("metadata.labels", value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, and be no more than 63 characters"));
        }
    }
    let mut total = 0;
    for (key, value) in entries(object.pointer("/metadata/annotations")) {
        total += key.len() + value.as_str().map_or(0, str::len);
        if !is_key(&key.to_ascii_lowercase()) {
            mistakes.push(Mistake::invalid("metadata.annotations", key, "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"));
        }
    }
    if total > MAX_ANNOTATIONS {
        mistakes.push(Mistake {
            field: "metadata.annotations".into(),
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes"),
        });
    }
}

fn entries(map: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    map.and_then(Value::as_object).into_iter().flatten()
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn pod(pod: &Value, mistakes: &mut Vec<Mistake>) {
    if list(pod, "/spec/containers").is_empty() {
        mistakes.push(Mistake::required("spec.containers"));
    }
    let mut names = Vec::new();
    let volumes: Vec<_> = list(pod, "/spec/volumes").iter().map(|volume| text(volume, "/name")).collect();
    for (field, pointer) in [("containers", "/spec/containers"), ("initContainers", "/spec/initContainers")] {
        for (index, container) in list(pod, pointer).iter().enumerate() {
            container_mistakes(&format!("spec.{field}[{index}]"), container, &volumes, mistakes);
            let name = text(container, "/name");
            if names.contains(&name) {
                mistakes.push(Mistake::duplicate(format!("spec.{field}[{index}].name"), name));
            }
            names.push(name);
        }
    }
    let policy = text(pod, "/spec/restartPolicy");
    if !["Always", "OnFailure", "Never"].contains(&policy) {
        mistakes.push(Mistake::unsupported("spec.restartPolicy", policy, &["Always", "Never", "OnFailure"]));
    }
    for (field, least, why) in [
        ("terminationGracePeriodSeconds", 0, "must be greater than or equal to 0"),
        ("activeDeadlineSeconds", 1, "must be between 1 and 2147483647, inclusive"),
    ] {
        let value = pod.pointer(&format!("/spec/{field}")).and_then(Value::as_i64);
        if let Some(value) = value.filter(|value| *value < least) {
            mistakes.push(Mistake::invalid(format!("spec.{field}"), &value.to_string(), why));
        }
    }
}

fn container_mistakes(field: &str, container: &Value, volumes: &[&str], mistakes: &mut Vec<Mistake>) {
    match text(container, "/name") {
        "" => mistakes.push(Mistake::required(format!("{field}.name"))),
        name if !is_dns_label(name) => mistakes.push(Mistake::invalid(format!("{field}.name"), name, "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character")),
        _ => {}
    }
    let image = text(container, "/image");
    if image.is_empty() {
        mistakes.push(Mistake::required(format!("{field}.image")));
    } else if image.trim() != image {
        mistakes.push(Mistake::invalid(
            format!("{field}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    let policy = text(container, "/imagePullPolicy");
    if !["Always", "IfNotPresent", "Never"].contains(&policy) {
        mistakes.push(Mistake::unsupported(
            format!("{field}.imagePullPolicy"),
            policy,
            &["Always", "IfNotPresent", "Never"],
        ));
    }
    for (index, variable) in list(container, "/env").iter().enumerate() {
        match text(variable, "/name") {
            "" => mistakes.push(Mistake::required(format!("{field}.env[{index}].name"))),
            name if name.contains(['=', '\0']) => mistakes.push(Mistake::invalid(
                format!("{field}.env[{index}].name"),
                name,
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            )),
            _ => {}
        }
    }
    for (index, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let name = text(mount, "/name");
        if !volumes.contains(&name) {
            mistakes.push(Mistake::not_found(format!("{field}.volumeMounts[{index}].name"), name));
        }
    }
}

/// Fills in what the API fills in, as far as anybody here looks at it. `grace` in seconds.
pub(crate) fn set_defaults(kind: Kind, object: &mut Value, grace: i64) {
    match kind {
        Kind::Pod => pod_defaults(object, grace),
        Kind::Namespace => {
            default(object, "spec", json!({ "finalizers": ["kubernetes"] }));
            default(object, "status", json!({ "phase": "Active" }));
        }
        Kind::Lease | Kind::Event => {}
    }
}

fn pod_defaults(pod: &mut Value, grace: i64) {
    let Some(spec) = pod.get_mut("spec") else { return };
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(grace)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("serviceAccountName", json!("default")),
        ("securityContext", json!({})),
        ("enableServiceLinks", json!(true)),
    ] {
        default(spec, field, value);
    }
    for containers in ["containers", "initContainers"] {
        for container in spec.get_mut(containers).and_then(Value::as_array_mut).into_iter().flatten() {
            let image = text(container, "/image");
            let tag = image.rsplit_once('/').map_or(image, |(_, last)| last).split_once(':').map(|(_, tag)| tag);
            let latest = tag.is_none_or(|tag| tag == "latest") && !image.contains('@');
            default(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
            default(container, "terminationMessagePath", json!("/dev/termination-log"));
            default(container, "terminationMessagePolicy", json!("File"));
            default(container, "resources", json!({}));
        }
    }
}

fn default(object: &mut Value, field: &str, value: Value) {
    if let Value::Object(object) = object
        && object.get(field).is_none_or(Value::is_null)
    {
        object.insert(field.into(), value);
    }
}

/// What may change in a pod's spec: the containers' images and three numbers (`ValidatePodUpdate`).
pub(crate) fn check_pod_update(before: &Value, after: &Value) -> Result<(), ApiError> {
    let fixed = |pod: &Value| {
        let mut spec = pod.get("spec").cloned().unwrap_or(Value::Object(Map::new()));
        if let Value::Object(spec) = &mut spec {
            for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations"] {
                spec.remove(field);
            }
            for containers in ["containers", "initContainers"] {
                for container in spec.get_mut(containers).and_then(Value::as_array_mut).into_iter().flatten() {
                    if let Value::Object(container) = container {
                        container.remove("image");
                    }
                }
            }
        }
        spec
    };
    if fixed(before) == fixed(after) {
        return Ok(());
    }
    let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    Err(ApiError::invalid(Kind::Pod, text(before, "/metadata/name"), &[Mistake::forbidden("spec", why)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Value {
        let mut pod = json!({
            "metadata": {"name": "a.b-1", "labels": {"example.com/x": "Y_1", "empty": ""}},
            "spec": {"containers": [{"name": "main", "image": "x:1"}]},
        });
        set_defaults(Kind::Pod, &mut pod, 30);
        pod
    }

    #[test]
    fn a_sound_pod_passes() {
        check(Kind::Pod, &valid()).expect("valid");
        assert_eq!(text(&valid(), "/spec/containers/0/imagePullPolicy"), "IfNotPresent");
    }

    #[test]
    fn each_mistake_is_named_by_its_field() {
        for (pointer, value, field) in [
            ("/metadata/name", json!("Bad_Name"), "metadata.name"),
            ("/metadata/labels", json!({"a": "no spaces"}), "metadata.labels"),
            ("/metadata/labels", json!({"-a": "b"}), "metadata.labels"),
            ("/spec/containers", json!([]), "spec.containers"),
            ("/spec/containers/0/name", json!("Main"), "spec.containers[0].name"),
            ("/spec/containers/0/image", json!(""), "spec.containers[0].image"),
            ("/spec/restartPolicy", json!("Sometimes"), "spec.restartPolicy"),
            ("/spec/terminationGracePeriodSeconds", json!(-1), "spec.terminationGracePeriodSeconds"),
        ] {
            let mut pod = valid();
            *pod.pointer_mut(pointer).expect("is there") = value;
            let error = check(Kind::Pod, &pod).expect_err(field);
            assert_eq!(error.code, 422);
            assert_eq!(text(&error.details, "/causes/0/field"), field);
        }
    }

    #[test]
    fn a_pods_command_can_not_change_and_its_image_can() {
        let mut after = valid();
        *after.pointer_mut("/spec/containers/0/image").expect("is there") = json!("x:2");
        check_pod_update(&valid(), &after).expect("allowed");
        *after.pointer_mut("/spec/containers/0/name").expect("is there") = json!("other");
        assert_eq!(check_pod_update(&valid(), &after).expect_err("refused").code, 422);
    }
}
