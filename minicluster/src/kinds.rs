//! The kinds of objects that the minicluster keeps, and how JSON that a client sent becomes an object of such a kind.

use crate::status::ApiError;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Event, Namespace, Pod},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Namespace,
    Pod,
    Lease,
    Event,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Namespace, Self::Pod, Self::Lease, Self::Event];

    pub fn kind(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Lease => "Lease",
            Self::Event => "Event",
        }
    }

    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
            Self::Lease => "leases",
            Self::Event => "events",
        }
    }

    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Pod | Self::Event => "",
            Self::Lease => "coordination.k8s.io",
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Pod | Self::Event => "v1",
            Self::Lease => "coordination.k8s.io/v1",
        }
    }

    pub fn namespaced(self) -> bool {
        self != Self::Namespace
    }

    /// `pods`, `leases.coordination.k8s.io`: as error texts name a resource.
    pub fn qualified(self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }
}

/// What became of a client's JSON.
#[derive(Debug)]
pub(crate) struct Read {
    pub object: Value,
    /// Paths of fields that are not known and were dropped, and what else a strict reader objects to.
    pub unknown: Vec<String>,
}

/// Reads a client's object: known fields are kept, unknown ones are dropped and named.
pub(crate) fn read(kind: Kind, sent: &Value) -> Result<Read, ApiError> {
    match kind {
        Kind::Namespace => typed::<Namespace>(kind, sent),
        Kind::Pod => typed::<Pod>(kind, sent),
        Kind::Lease => typed::<Lease>(kind, sent),
        Kind::Event => typed::<Event>(kind, sent),
    }
}

fn typed<T: DeserializeOwned + Serialize>(kind: Kind, sent: &Value) -> Result<Read, ApiError> {
    let cannot = |why: &str| {
        let version = kind.api_version();
        let version = version.rsplit('/').next().unwrap_or(version);
        ApiError::bad_request(format!("{0} in version {version:?} cannot be handled as a {0}: {why}", kind.kind()))
    };
    if !sent.is_object() {
        return Err(cannot("json: cannot unmarshal a value that is no object"));
    }
    let object: T = T::deserialize(sent).map_err(|error| cannot(&format!("json: cannot unmarshal: {error}")))?;
    let object = serde_json::to_value(&object).map_err(|error| cannot(&error.to_string()))?;
    let mut unknown = Vec::new();
    compare(sent, &object, "", &mut unknown);
    Ok(Read { object, unknown })
}

/// Names what stands in `sent` and not in `kept`.
fn compare(sent: &Value, kept: &Value, path: &str, unknown: &mut Vec<String>) {
    match (sent, kept) {
        (Value::Object(sent), Value::Object(kept)) => {
            for (key, value) in sent {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match kept.get(key) {
                    Some(kept) => compare(value, kept, &path, unknown),
                    None if is_empty(value) => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(sent), Value::Array(kept)) => {
            for (index, (sent, kept)) in sent.iter().zip(kept).enumerate() {
                compare(sent, kept, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// Values that a known field may lose on the way: null is "not set".
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_are_named_and_dropped() {
        let sent = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null},
            "spec": {"containers": [{"name": "a", "image": "b", "comand": ["x"]}], "restartPolic": "Never"},
        });
        let read = read(Kind::Pod, &sent).expect("readable");
        assert_eq!(read.unknown, ["spec.containers[0].comand", "spec.restartPolic"]);
        assert_eq!(read.object.pointer("/spec/restartPolic"), None);
        assert_eq!(read.object.pointer("/spec/containers/0/image"), Some(&json!("b")));
    }

    #[test]
    fn another_kind_and_a_wrong_type_are_refused() {
        let other = json!({"apiVersion": "v1", "kind": "Service"});
        assert_eq!(read(Kind::Pod, &other).expect_err("refused").code, 400);
        let wrong = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": "x"}});
        assert_eq!(read(Kind::Pod, &wrong).expect_err("refused").code, 400);
    }
}
