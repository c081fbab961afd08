//! `exposeAuthMetadataAs…`: what authentication learnt about a user, put on pods. Pure.

use crate::{template::label_value, wrapper::is_name};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podbay_runtime::config::Section;
use std::collections::BTreeMap;

/// Which entries of the metadata are shown, each as what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expose {
    /// Variables of all programs.
    pub env: BTreeMap<String, String>,
    /// Labels of the pods.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods.
    pub annotations: BTreeMap<String, String>,
}

impl Expose {
    pub(super) fn read(section: &mut Section) -> Self {
        let mut map = |key: &str, good: fn(&str) -> bool, what: &str| {
            let map: BTreeMap<String, String> = section.or(key, BTreeMap::new());
            for (entry, name) in &map {
                if !good(name) {
                    section.mistake(key, format!("{entry}: {name:?} is no {what}"));
                }
            }
            map
        };
        Self {
            env: map("exposeAuthMetadataAsEnv", is_name, "name of a variable ([A-Za-z_][A-Za-z0-9_]*)"),
            labels: map("exposeAuthMetadataAsLabels", is_key, "key of a label, or is one that Podbay sets itself"),
            annotations: map(
                "exposeAuthMetadataAsAnnotations",
                is_key,
                "key of an annotation, or is one that Podbay sets itself",
            ),
        }
    }

    /// Adds the variables; they win over others of the same name. A value that no variable can have (with a NUL) is left out.
    pub fn add_environment(&self, metadata: &BTreeMap<String, String>, environment: &mut BTreeMap<String, String>) {
        environment.extend(found(&self.env, metadata).filter(|(_, value)| !value.contains('\0')));
    }

    /// Adds labels and annotations. A label's value is made one that the API takes, by the rule for users' names; what is left of
    /// nothing is left out.
    pub fn mark(&self, metadata: &BTreeMap<String, String>, pod: &mut ObjectMeta) {
        let labels = found(&self.labels, metadata);
        let labels: Vec<_> = labels.filter_map(|(key, value)| Some((key, label_value(&value)?))).collect();
        if !labels.is_empty() {
            pod.labels.get_or_insert_default().extend(labels);
        }
        let annotations: Vec<_> = found(&self.annotations, metadata).collect();
        if !annotations.is_empty() {
            pod.annotations.get_or_insert_default().extend(annotations);
        }
    }
}

fn found<'a>(
    names: &'a BTreeMap<String, String>,
    metadata: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = (String, String)> + 'a {
    names.iter().filter_map(|(entry, name)| Some((name.clone(), metadata.get(entry)?.clone())))
}

/// Kubernetes' rule for keys: a name of at most 63, and perhaps a DNS name and `/` before it. Ours are kept out: they say
/// who a pod belongs to.
fn is_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let edge = |c: char| c.is_ascii_alphanumeric();
    let good_name = (1..=63).contains(&name.len())
        && name.starts_with(edge)
        && name.ends_with(edge)
        && name.chars().all(|c| edge(c) || "-_.".contains(c));
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good_prefix = prefix.is_none_or(|prefix| {
        (1..=253).contains(&prefix.len())
            && prefix.starts_with(lower)
            && prefix.ends_with(lower)
            && prefix.chars().all(|c| lower(c) || c == '-' || c == '.')
    });
    let ours = prefix == Some("podbay.dev")
        || key == crate::identity::MANAGED_BY
        || ["containerssh_connection_id", "containerssh_username", "containerssh_ip"].contains(&key);
    good_name && good_prefix && !ours
}

#[cfg(test)]
mod tests {
    use super::*;
    use podbay_runtime::config::Document;

    fn read(text: &str) -> Result<Expose, String> {
        let document = Document::parse("f", text).expect("YAML");
        let expose = Expose::read(&mut document.root());
        document.finish_with(Some(expose)).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn what_is_named_and_there_is_shown() {
        let expose = read(
            "{exposeAuthMetadataAsEnv: {TEAM: USER_TEAM, gone: GONE, nul: NUL}, exposeAuthMetadataAsLabels: {TEAM: x.io/team, at: at},
              exposeAuthMetadataAsAnnotations: {TEAM: team}}",
        )
        .expect("good");
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let metadata =
            BTreeMap::from([pair("TEAM", "red & blue"), pair("at", "@"), pair("nul", "a\0"), pair("other", "x")]);
        let mut environment = BTreeMap::from([pair("USER_TEAM", "old"), pair("A", "a")]);
        expose.add_environment(&metadata, &mut environment);
        assert_eq!(environment, BTreeMap::from([pair("USER_TEAM", "red & blue"), pair("A", "a")]));
        let mut pod = ObjectMeta::default();
        expose.mark(&metadata, &mut pod);
        assert_eq!(pod.labels, Some(BTreeMap::from([pair("x.io/team", "red---blue")])));
        assert_eq!(pod.annotations, Some(BTreeMap::from([pair("team", "red & blue")])));
        let mut pod = ObjectMeta::default();
        Expose::default().mark(&metadata, &mut pod);
        assert_eq!(pod, ObjectMeta::default());
    }

    #[test]
    fn keys_are_ones_that_kubernetes_takes_and_not_ours() {
        for bad in
            ["", "a b", "-a", "UPPER.io/a", "podbay.dev/owner", "app.kubernetes.io/managed-by", "containerssh_username"]
        {
            let told = read(&format!("exposeAuthMetadataAsLabels: {{t: '{bad}'}}")).expect_err(bad);
            assert!(told.contains("exposeAuthMetadataAsLabels: t: "), "{told}");
        }
        assert!(read("exposeAuthMetadataAsEnv: {t: a-b}").is_err());
    }
}
