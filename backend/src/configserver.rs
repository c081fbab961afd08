//! `configserver`: the config webhook over HTTP.

use async_trait::async_trait;
use podbay_backend_core::{
    config::Settings,
    connections::{Ask, ConfigWebhook},
};
use podbay_runtime::{
    codes,
    config::Section,
    webhook::{CallError, CallMetrics, Client, endpoint},
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
    async fn ask(&self, question: &Value, calls: &CallMetrics) -> Result<Value, String> {
        let counted = calls.plain();
        let connection = question.get("connectionId").and_then(Value::as_str);
        let failed = |error: &CallError, tries| {
            let (code, reason) = (codes::CONFIG_BACKEND_ERROR, counted.reason(error));
            tracing::debug!(connection, code, reason, tries, "the config webhook {error}");
        };
        tracing::debug!(connection, code = codes::CONFIG_REQUEST, "asking the config webhook");
        let answer = self.0.ask("", question, counted, Ok, failed).await;
        let answer = answer.map_err(|error| format!("{error}, at {}", self.0.endpoint().url))?;
        tracing::debug!(
            connection,
            code = codes::CONFIG_RESPONSE,
            tries = answer.tries,
            "the config webhook has answered"
        );
        Ok(answer.value)
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
