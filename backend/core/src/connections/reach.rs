//! Connections of several settings at once: what one reading of the configuration changes, and where those of earlier ones still are.

use super::{ConfigWebhook, Connections};
use crate::{
    config::{Mode, Namespaces, Settings},
    handle::KeyRing,
    lifecycle::Lifecycle,
};
use std::sync::Arc;

/// Where connections may be that are open now, those of earlier settings included.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    namespaces: Namespaces,
    /// The mode of all of them; `None` = they may differ.
    pub mode: Option<Mode>,
    /// Some may be in pods that stay.
    pub persistent: bool,
}

impl Reach {
    pub fn of(settings: &Settings, webhook: bool) -> Self {
        let mode = settings.pod.mode;
        Self {
            namespaces: settings.namespaces.clone(),
            // The webhook may choose another mode than the file's.
            mode: Some(mode).filter(|_| !webhook),
            persistent: mode == Mode::Persistent,
        }
    }

    fn and(self, earlier: &Self) -> Self {
        Self {
            namespaces: self.namespaces.and(&earlier.namespaces),
            mode: self.mode.filter(|mode| earlier.mode == Some(*mode)),
            persistent: self.persistent || earlier.persistent,
        }
    }
}

impl Connections {
    /// The same with other settings, for connections that are opened from now on. Those that are open are found, kept and closed as
    /// before: what they were opened with is in their handles. `lifecycle` is of the same cluster; ownership stays as it is.
    #[must_use]
    pub fn changed(
        &self,
        lifecycle: Lifecycle,
        settings: Arc<Settings>,
        keys: Arc<KeyRing>,
        webhook: Option<ConfigWebhook>,
    ) -> Self {
        self.sweep.spare_at_least(lifecycle.timeouts().pod_start + lifecycle.timeouts().pod_stop);
        let reach = Reach::of(&settings, webhook.is_some()).and(&self.reach);
        Self { lifecycle, settings, keys, webhook, reach, ..self.clone() }
    }

    /// Where pods are looked for: wherever connections may be, those of earlier settings included.
    pub fn places(&self) -> &[String] {
        self.reach.namespaces.places()
    }

    /// Whether pods of this place, of [`Namespaces::places`], are looked for.
    pub fn looks_in(&self, place: &str) -> bool {
        self.reach.namespaces.cover(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podbay_runtime::config::Document;

    fn reach(pod: &str, webhook: bool) -> Reach {
        let text = format!("kubernetes: {{pod: {{disableAgent: true, {pod}}}}}");
        let document = Document::parse("t", &text).expect("YAML");
        let settings = Settings::read(&mut document.root());
        document.finish().expect("no mistakes");
        Reach::of(&settings.expect("settings"), webhook)
    }

    #[test]
    fn what_was_once_possible_stays_so() {
        let (session, connection) = (reach("mode: session", false), reach("mode: connection", false));
        assert_eq!(connection.clone().and(&connection).mode, Some(Mode::Connection));
        assert_eq!(connection.clone().and(&session).mode, None);
        // Not known is not known any more, whatever comes then.
        assert_eq!(connection.clone().and(&session).and(&connection).mode, None);
        assert_eq!(connection.clone().and(&reach("mode: connection", true)).mode, None);
        let staying = reach("mode: persistent, metadata: {name: x, namespace: other}, createMissingPods: true", false);
        let after = connection.and(&staying);
        assert!(after.persistent && !session.persistent);
        assert_eq!(after.namespaces.places(), ["default", "other"]);
    }
}
