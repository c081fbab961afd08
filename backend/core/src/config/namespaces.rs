//! Where pods may be.

/// The pods' own namespace, and those that the config webhook may name. Pods are looked for in all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces(Vec<String>);

/// The cluster port's word for all namespaces.
pub const EVERYWHERE: &str = "";

impl Namespaces {
    /// Only this one.
    pub fn only(namespace: impl Into<String>) -> Self {
        Self(vec![namespace.into()])
    }

    /// And these; `*` = any.
    pub fn add(&mut self, more: &[String]) {
        if more.iter().any(|namespace| namespace == "*") {
            self.0 = vec![EVERYWHERE.to_owned()];
            return;
        }
        for namespace in more {
            if !self.0.contains(namespace) {
                self.0.push(namespace.clone());
            }
        }
    }

    /// Whether a pod may be there.
    pub fn allow(&self, namespace: &str) -> bool {
        !namespace.is_empty() && self.0.iter().any(|known| known == EVERYWHERE || known == namespace)
    }

    /// Where to look, for [`crate::cluster::Cluster::list_pods`].
    pub fn places(&self) -> &[String] {
        &self.0
    }
}
