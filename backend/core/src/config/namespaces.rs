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

    /// These and those.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        let mut all = self.clone();
        let everywhere = others.0.iter().any(|namespace| namespace == EVERYWHERE);
        if everywhere || self.0.iter().any(|namespace| namespace == EVERYWHERE) {
            all.0 = vec![EVERYWHERE.to_owned()];
        } else {
            all.add(&others.0);
        }
        all
    }

    /// Whether all pods of that place, one of [`Self::places`], are in these.
    pub fn cover(&self, place: &str) -> bool {
        self.0.iter().any(|known| known == EVERYWHERE || known == place)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_ones_stay_and_everywhere_is_all_there_is() {
        let mut one = Namespaces::only("a");
        one.add(&["b".to_owned()]);
        let both = Namespaces::only("c").and(&one).and(&one);
        assert_eq!(both.places(), ["c", "a", "b"]);
        assert!(both.cover("a") && !both.cover("d") && !both.cover(EVERYWHERE));
        let mut all = Namespaces::only("d");
        all.add(&["*".to_owned()]);
        for joined in [both.and(&all), all.and(&both)] {
            assert_eq!(joined.places(), [EVERYWHERE]);
            assert!(joined.cover("d") && joined.cover(EVERYWHERE));
        }
    }
}
