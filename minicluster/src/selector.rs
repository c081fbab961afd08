//! Label and field selectors.

use crate::{kinds::Kind, status::ApiError, store::text};
use serde_json::Value;

/// What a list or a watch asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<(String, Label)>,
    /// JSON pointer, wanted value, whether it is to be equal.
    fields: Vec<(String, String, bool)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Label {
    Exists,
    Absent,
    In(Vec<String>),
    /// True for objects without that label too.
    NotIn(Vec<String>),
}

impl Selector {
    pub fn parse(kind: Kind, labels: &str, fields: &str) -> Result<Self, ApiError> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(kind, fields)? })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.labels.iter().all(|(key, wanted)| {
            let value = labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
            match wanted {
                Label::Exists => value.is_some(),
                Label::Absent => value.is_none(),
                Label::In(values) => value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
                Label::NotIn(values) => value.is_none_or(|value| values.iter().all(|wanted| wanted != value)),
            }
        }) && self.fields.iter().all(|(pointer, value, equal)| (text(object, pointer) == value) == *equal)
    }
}

fn parse_labels(selector: &str) -> Result<Vec<(String, Label)>, ApiError> {
    split_outside_parentheses(selector)
        .into_iter()
        .map(str::trim)
        .filter(|term| !term.is_empty())
        .map(|term| {
            label(term).ok_or_else(|| {
                ApiError::bad_request(format!("unable to parse requirement: found {term:?} in a label selector"))
            })
        })
        .collect()
}

fn label(term: &str) -> Option<(String, Label)> {
    let (key, wanted) = if let Some((key, value)) = term.split_once("!=") {
        (key, Label::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Label::In(vec![value.trim().to_owned()]))
    } else if let Some((head, values)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        match (words.next(), words.next()) {
            (Some(key), Some("in")) => (key, Label::In(values)),
            (Some(key), Some("notin")) => (key, Label::NotIn(values)),
            _ => return None,
        }
    } else if let Some(key) = term.strip_prefix('!') {
        (key, Label::Absent)
    } else {
        (term, Label::Exists)
    };
    let key = key.trim();
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (!key.is_empty() && key.chars().all(fine)).then(|| (key.to_owned(), wanted))
}

fn split_outside_parentheses(selector: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    selector
        .split(|c| {
            match c {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            c == ',' && depth == 0
        })
        .collect()
}

fn parse_fields(kind: Kind, selector: &str) -> Result<Vec<(String, String, bool)>, ApiError> {
    let mut fields = Vec::new();
    for term in selector.split(',').map(str::trim).filter(|term| !term.is_empty()) {
        let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
            (field, value, false)
        } else if let Some((field, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            (field, value, true)
        } else {
            return Err(ApiError::bad_request(format!("invalid selector: {term:?}; can't understand it")));
        };
        let known: &[&str] = match kind {
            Kind::Namespace => &["status.phase"],
            Kind::Pod => &["status.phase", "spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName"],
            Kind::Lease => &[],
            Kind::Event => &[
                "involvedObject.kind",
                "involvedObject.namespace",
                "involvedObject.name",
                "involvedObject.uid",
                "involvedObject.apiVersion",
                "involvedObject.resourceVersion",
                "involvedObject.fieldPath",
                "reason",
                "type",
                "reportingComponent",
            ],
        };
        if !["metadata.name", "metadata.namespace"].contains(&field) && !known.contains(&field) {
            return Err(ApiError::bad_request(format!("field label not supported: {field}")));
        }
        fields.push((format!("/{}", field.replace('.', "/")), value.to_owned(), equal));
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selects(labels: &str, fields: &str) -> bool {
        let pod =
            json!({"metadata": {"name": "a", "labels": {"x/y": "1", "tier": "web"}}, "status": {"phase": "Running"}});
        Selector::parse(Kind::Pod, labels, fields).expect("parses").matches(&pod)
    }

    #[test]
    fn labels() {
        for yes in
            ["", "tier", "tier=web", "tier==web,x/y=1", "tier in (db, web)", "!none", "a!=b", "a notin (b,c),tier"]
        {
            assert!(selects(yes, ""), "{yes}");
        }
        for no in ["none", "tier=db", "tier!=web", "!tier", "tier in (db)", "tier notin (web),x/y"] {
            assert!(!selects(no, ""), "{no}");
        }
        assert!(Selector::parse(Kind::Pod, "a b", "").is_err());
    }

    #[test]
    fn fields() {
        assert!(selects("", "metadata.name=a,status.phase!=Pending"));
        assert!(!selects("", "metadata.name=b"));
        assert_eq!(Selector::parse(Kind::Pod, "", "spec.color=red").expect_err("unknown").code, 400);
    }
}
