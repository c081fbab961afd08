//! `configserver`: the config webhook over HTTP.

use async_trait::async_trait;
use podbay_backend_core::{
    config::Settings,
    connections::{Ask, ConfigWebhook},
};
use podbay_runtime::{
    config::Section,
    webhook::{Client, endpoint},
};
use serde_json::Value;
use std::{sync::Arc, time::Duration};

/// All calls together, unless given. Frontends wait for a connection's `Accepted` for 10 s (`frontend.acceptTimeout`), and the refusal must reach
/// them before they give up.
const BUDGET: Duration = Duration::from_secs(8);

#[derive(Debug)]
struct Http(Client);

#[async_trait]
impl Ask for Http {
    async fn ask(&self, question: &Value) -> Result<Value, String> {
        let failed = |error: &podbay_runtime::webhook::CallError, tries| {
            tracing::debug!(code = "CONFIG_BACKEND_ERROR", reason = error.code(), tries, "the config webhook {error}");
        };
        self.0.ask("", question, failed).await.map_err(|error| format!("{error}, at {}", self.0.endpoint().url))
    }
}

/// Reads the section; where there is a `url`, pods may also be in its `namespaces`.
pub(crate) fn read(section: &mut Section, settings: Option<&mut Settings>) -> Option<ConfigWebhook> {
    let sensitive = section.or("transmitSensitiveMetadata", false);
    let namespaces: Vec<String> = section.get("namespaces").unwrap_or_default();
    if namespaces.iter().any(String::is_empty) {
        section.mistake("namespaces", "names an empty one; * stands for all");
    }
    let client = Client::new(endpoint(section, BUDGET)?);
    if let Some(settings) = settings {
        settings.namespaces.add(&namespaces);
    }
    Some(ConfigWebhook::new(Arc::new(Http(client)), sensitive))
}
