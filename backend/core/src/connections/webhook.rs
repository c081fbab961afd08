//! The config webhook: asked once for each connection, before it is accepted. Nothing of its answer is kept but what the connection
//! itself needs.

use super::OpenRequest;
use crate::config::Settings;
use async_trait::async_trait;
use podbay::v1::{Reason, Refusal};
use podbay_runtime::{
    codes,
    webhook::{CallMetrics, Facts, Json, as_named},
};
use serde_json::{Map, Value};
use std::{fmt::Debug, sync::Arc};

/// The way to the webhook: HTTP, or a test.
#[async_trait]
pub trait Ask: Debug + Send + Sync + 'static {
    /// Asks, within its own deadline, retries included; calls are counted in `calls`.
    ///
    /// # Errors
    /// Why there is no answer, for the log.
    async fn ask(&self, question: &Value, calls: &CallMetrics) -> Result<Value, String>;
}

/// The webhook.
#[derive(Debug, Clone)]
pub struct ConfigWebhook {
    ask: Arc<dyn Ask>,
    /// `configserver.transmitSensitiveMetadata`
    sensitive: bool,
}

impl ConfigWebhook {
    /// Asked this way; with `sensitive`, entries that authentication marked so are told too.
    pub fn new(ask: Arc<dyn Ask>, sensitive: bool) -> Self {
        Self { ask, sensitive }
    }

    /// Settings for this connection; what the answer says about the user is added to the request.
    ///
    /// # Errors
    /// `CONFIG_WEBHOOK`, without details: those are the operator's, and in the log.
    pub(super) async fn settings(
        &self,
        request: &mut OpenRequest,
        file: &Settings,
        calls: &CallMetrics,
    ) -> Result<Settings, Refusal> {
        let (connection, user) = (request.who.connection, request.who.user.name.clone());
        let answer = self.ask.ask(&question(request, self.sensitive), calls).await.map_err(|why| {
            tracing::error!(%connection, user, code = codes::CONFIG_BACKEND_ERROR, "the config webhook {why}");
            refusal("your configuration can't be asked for at the moment: try again later")
        })?;
        let unusable = |why: String| {
            tracing::error!(%connection, user, code = codes::BACKEND_CONFIG_ERROR, "the config webhook's answer can't be used: {why}");
            refusal("the configuration that was found for you can't be used: tell your administrator")
        };
        let (facts, config) = read(answer).map_err(unusable)?;
        let settings = file.overlaid(config).map_err(unusable)?;
        request.facts.merge(facts);
        request.facts.check().map_err(|error| unusable(error.to_string()))?;
        if let Some(name) = &request.facts.authenticated {
            request.who.user.authenticated.clone_from(name);
        }
        Ok(settings)
    }
}

fn refusal(text: &str) -> Refusal {
    Refusal::new(Reason::ConfigWebhook, text)
}

/// ContainerSSH's fields: those of 0.5, and those that only 0.4 sends (`remoteAddr`, without port, and `sessionId`), so that a server of either
/// finds its own.
fn question(request: &OpenRequest, sensitive: bool) -> Value {
    let who = &request.who;
    let mut question = Map::new();
    let remote = who.remote.map(|address| std::net::SocketAddr::new(address, request.remote_port).to_string());
    for (key, value) in [
        ("username", who.user.name.clone()),
        ("remoteAddress", remote.unwrap_or_default()),
        ("remoteAddr", who.remote.map(|address| address.to_string()).unwrap_or_default()),
        ("connectionId", who.connection.to_string()),
        ("sessionId", who.connection.to_string()),
        ("clientVersion", request.client_version.clone()),
        ("authenticatedUsername", who.user.authenticated.clone()),
    ] {
        question.insert(key.to_owned(), Value::String(value));
    }
    request.facts.put(&mut question, sensitive);
    Value::Object(question)
}

/// An answer, strictly.
fn read(answer: Value) -> Result<(Facts, Map<String, Value>), String> {
    let Value::Object(mut object) = answer else { return Err("it is no JSON object".to_owned()) };
    as_named(&mut object, &["config"]);
    let config = match object.remove("config") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(config)) => config,
        Some(_) => return Err("config is no object".to_owned()),
    };
    let facts = Json::take(&mut object)?;
    if let Some(key) = object.keys().next() {
        return Err(format!("unknown key {:?}", key.chars().take(60).collect::<String>()));
    }
    Ok((facts.into_facts().map_err(|error| error.to_string())?, config))
}
