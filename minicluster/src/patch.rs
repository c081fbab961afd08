//! Patches: JSON merge patch (RFC 7396, also used for strategic merge patches) and JSON patch (RFC 6902).

use crate::status::ApiError;
use serde_json::{Map, Value};

/// Applies a merge patch.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

/// Applies a JSON patch; 422 if an operation can't be done, as the real server answers.
pub(crate) fn json_patch(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let Value::Array(operations) = patch else {
        return Err(ApiError::bad_request("error decoding patch: a JSON patch is a list of operations"));
    };
    for operation in operations {
        apply(target, operation).map_err(|why| {
            ApiError::new(
                422,
                "Invalid",
                format!("the server rejected our request due to an error in our request: {why}"),
            )
        })?;
    }
    Ok(())
}

fn apply(target: &mut Value, operation: &Value) -> Result<(), String> {
    let field = |name: &str| operation.get(name).and_then(Value::as_str).ok_or(format!("{name} is missing"));
    let value = || operation.get("value").cloned().ok_or("value is missing".to_owned());
    let path = field("path")?;
    let find = |target: &Value, path: &str| target.pointer(path).cloned().ok_or(format!("no such path: {path}"));
    match field("op")? {
        "add" => add(target, path, value()?),
        "remove" => remove(target, path).map(drop),
        "replace" => {
            let value = value()?;
            *target.pointer_mut(path).ok_or(format!("no such path: {path}"))? = value;
            Ok(())
        }
        "move" => {
            let value = remove(target, field("from")?)?;
            add(target, path, value)
        }
        "copy" => {
            let value = find(target, field("from")?)?;
            add(target, path, value)
        }
        "test" if find(target, path)? == value()? => Ok(()),
        "test" => Err(format!("testing path {path} failed")),
        other => Err(format!("unknown operation {other}")),
    }
}

/// The parent of what a pointer names, and its last token, unescaped.
fn parent<'a>(target: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let (parent, last) = path.rsplit_once('/').ok_or(format!("not a path: {path}"))?;
    let found = target.pointer_mut(parent).ok_or(format!("no such path: {parent}"))?;
    Ok((found, last.replace("~1", "/").replace("~0", "~")))
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    match parent(target, path)? {
        (Value::Object(map), last) => {
            map.insert(last, value);
            Ok(())
        }
        (Value::Array(list), last) => {
            let index = if last == "-" { Some(list.len()) } else { last.parse().ok() };
            match index {
                Some(index) if index <= list.len() => {
                    list.insert(index, value);
                    Ok(())
                }
                _ => Err(format!("no such index: {path}")),
            }
        }
        _ => Err(format!("no such path: {path}")),
    }
}

fn remove(target: &mut Value, path: &str) -> Result<Value, String> {
    let gone = match parent(target, path)? {
        (Value::Object(map), last) => map.remove(&last),
        (Value::Array(list), last) => {
            last.parse().ok().filter(|index| *index < list.len()).map(|index: usize| list.remove(index))
        }
        _ => None,
    };
    gone.ok_or(format!("no such path: {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merge_sets_and_removes() {
        let mut target = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        merge(&mut target, &json!({"a": {"b": null, "c": [3], "e": {"f": null, "g": 1}}, "d": {"x": 1}}));
        assert_eq!(target, json!({"a": {"c": [3], "e": {"g": 1}}, "d": {"x": 1}}));
    }

    #[test]
    fn operations_in_order() {
        let mut target = json!({"a": {"x/y": 1}, "l": [1, 3]});
        let patch = json!([
            {"op": "test", "path": "/a/x~1y", "value": 1},
            {"op": "add", "path": "/l/1", "value": 2},
            {"op": "add", "path": "/l/-", "value": 4},
            {"op": "remove", "path": "/a/x~1y"},
            {"op": "copy", "from": "/l/0", "path": "/a/first"},
            {"op": "move", "from": "/l/0", "path": "/moved"},
            {"op": "replace", "path": "/a/first", "value": "one"},
        ]);
        json_patch(&mut target, &patch).expect("applies");
        assert_eq!(target, json!({"a": {"first": "one"}, "l": [2, 3, 4], "moved": 1}));
        for bad in [
            json!({}),
            json!([{"op": "test", "path": "/moved", "value": 2}]),
            json!([{"op": "remove", "path": "/l/9"}]),
        ] {
            assert!(json_patch(&mut target, &bad).is_err(), "{bad}");
        }
    }
}
