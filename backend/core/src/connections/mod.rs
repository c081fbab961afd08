//! Connections: opened, kept, listed and closed in terms of the port. What the gRPC service calls.
//!
//! Who may call is decided before: the caller's service comes in as a name, and its rights (operator, which users) are the
//! service's to check.

mod closing;
mod files;
mod found;
mod heartbeat;
mod kept;
mod list;
mod opening;
mod reach;
mod request;
mod webhook;

pub use found::FoundPod;
pub use list::{ListRequest, Page};
pub use opening::OpenEvent;
pub use request::{Heartbeat, OpenRequest};
pub use webhook::{Ask, ConfigWebhook};

use crate::{
    config::Settings,
    handle::KeyRing,
    lifecycle::Lifecycle,
    link::Links,
    ownership::{Leases, Sweep},
};
use podbay_runtime::webhook::{CallMetrics, Service};
use reach::Reach;
use std::sync::Arc;

/// Opens, keeps and closes connections. Clones share everything.
#[derive(Debug, Clone)]
pub struct Connections {
    lifecycle: Lifecycle,
    leases: Leases,
    settings: Arc<Settings>,
    keys: Arc<KeyRing>,
    sweep: Arc<Sweep>,
    webhook: Option<ConfigWebhook>,
    /// Of the webhook.
    calls: CallMetrics,
    links: Links,
    reach: Reach,
}

impl Connections {
    /// By these settings; handles are sealed with these keys.
    pub fn new(lifecycle: Lifecycle, leases: Leases, settings: Arc<Settings>, keys: Arc<KeyRing>) -> Self {
        let spare = lifecycle.timeouts().pod_start + lifecycle.timeouts().pod_stop;
        let links = Links::new(Arc::clone(lifecycle.cluster()));
        let reach = Reach::of(&settings, false);
        let calls = CallMetrics::new(Service::Config);
        Self {
            lifecycle,
            leases,
            settings,
            keys,
            sweep: Arc::new(Sweep::new(spare)),
            webhook: None,
            calls,
            links,
            reach,
        }
    }

    /// The same; the webhook is asked for each connection's settings.
    #[must_use]
    pub fn with_webhook(mut self, webhook: Option<ConfigWebhook>) -> Self {
        self.reach = Reach::of(&self.settings, webhook.is_some());
        self.webhook = webhook;
        self
    }

    /// The same; the webhook's calls are counted there.
    #[must_use]
    pub fn with_calls(mut self, calls: CallMetrics) -> Self {
        self.calls = calls;
        self
    }

    /// The same; files go over these links, which sessions use too.
    #[must_use]
    pub fn with_links(mut self, links: Links) -> Self {
        self.links = links;
        self
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Opens handles for sessions.
    pub fn keys(&self) -> &Arc<KeyRing> {
        &self.keys
    }

    /// The leases, for session mode's [`Leases::admit`].
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Starts and stops pods.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }
}
