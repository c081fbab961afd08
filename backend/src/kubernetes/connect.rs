//! From configuration to kube clients.
//!
//! The stack is kube's own but for its connector, which leaves Nagle's algorithm on: a key press that follows another waited 40 ms
//! for the acknowledgement of the first where the program answered only the second.

use super::{proxy, token::TokenFile};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, header::USER_AGENT};
use hyper_util::{client::legacy, rt::TokioExecutor};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt as _},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use podbay_backend_core::config::{Connection, Explicit, Pem};
use podbay_runtime::config::Secret;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Map, Value};
use std::{path::Path, time::Duration};
use tower::{
    BoxError, ServiceExt as _,
    timeout::Timeout,
    util::{BoxCloneSyncService, MapRequestLayer, option_layer},
};

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
#[error("kubernetes.connection: {0}")]
pub struct ConnectError(String);

fn wrong(error: impl std::fmt::Display) -> ConnectError {
    ConnectError(error.to_string())
}

/// Two clients of one configuration.
#[derive(Clone)]
pub(super) struct Clients {
    /// For requests and watches; the caller brings the deadline.
    pub unary: Client,
    /// For exec and attach: a write may wait as long as the program doesn't read.
    pub streams: Client,
    /// Where they go.
    pub server: http::Uri,
}

/// Reads the files and makes the clients; connects to nothing yet.
pub(super) async fn clients(connection: &Connection) -> Result<Clients, ConnectError> {
    let mut token = None;
    let mut config = match connection {
        Connection::InCluster => Config::incluster().map_err(wrong)?,
        Connection::Kubeconfig { file, context } => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(wrong)?;
            if let Some(told) = proxy::asked_for(&kubeconfig, context.as_deref(), file, |name| std::env::var(name).ok())
            {
                return Err(wrong(told));
            }
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(wrong)?
        }
        Connection::Explicit(explicit) => {
            token = explicit.bearer_token_file.as_deref().map(token_file).transpose()?;
            explicit_config(explicit)?
        }
    };
    let agent = concat!("podbay/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
    let (unary, streams) = (client(&config, token.as_ref())?, client(&config, token.as_ref())?);
    Ok(Clients { unary, streams, server: config.cluster_url })
}

/// No timeouts but for connecting: the caller brings those. No retries either: what may be repeated is decided by whoever asks, and
/// a repeated create is not harmless.
fn client(config: &Config, token: Option<&TokenFile>) -> Result<Client, ConnectError> {
    if config.proxy_url.is_some() {
        // Not reached: told by name before.
        return Err(wrong("proxies are not supported"));
    }
    let mut tcp = legacy::connect::HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let tls = config.rustls_https_connector_with_connector(tcp).map_err(wrong)?;
    let connector = BoxCloneSyncService::new(Timeout::new(tls, CONNECT_TIMEOUT));
    let http: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let stack = ClientBuilder::new(http.map_err(BoxError::from), config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer().map_err(wrong)?)
        .with_layer(&option_layer(config.auth_layer().map_err(wrong)?))
        .with_layer(&config.base_uri_layer());
    let authorize =
        token.cloned().map(|token| MapRequestLayer::new(move |request: http::Request<Body>| token.authorize(request)));
    Ok(stack.with_layer(&option_layer(authorize)).build())
}

fn explicit_config(explicit: &Explicit) -> Result<Config, ConnectError> {
    let url = explicit.url().parse().map_err(|error| wrong(format!("host {:?}: {error}", explicit.host)))?;
    let mut config = Config::new(url);
    config.auth_info = auth_info(explicit)?;
    config.tls_server_name.clone_from(&explicit.server_name);
    config.accept_invalid_certs = explicit.insecure;
    match &explicit.cacert {
        None => {}
        Some(Pem::File(file)) => {
            // Read now so that a wrong file is told at the start; kube reads it again as it changes.
            std::fs::read(file).map_err(|error| wrong(format!("cacertFile {}: {error}", file.display())))?;
            config.root_cert_file = Some(file.clone());
        }
        Some(Pem::Inline(pem)) => {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.expose().as_bytes()).collect();
            let found = found.map_err(|error| wrong(format!("cacert: {error}")))?;
            if found.is_empty() {
                return Err(wrong("cacert holds no PEM certificate"));
            }
            config.root_cert = Some(found.iter().map(|certificate| certificate.to_vec()).collect());
        }
    }
    Ok(config)
}

/// kube's secrets can only be made by reading them, so this goes by its kubeconfig form.
fn auth_info(explicit: &Explicit) -> Result<AuthInfo, ConnectError> {
    let mut user = Map::new();
    let mut set = |key: &str, value: String| user.insert(key.to_owned(), Value::String(value));
    if let Some(username) = &explicit.username {
        set("username", username.clone());
        // An empty one is sent too.
        set("password", explicit.password.as_ref().map(Secret::expose).unwrap_or_default().to_owned());
    }
    // With a file as well the file counts, as in ContainerSSH's client.
    if let (Some(token), None) = (&explicit.bearer_token, &explicit.bearer_token_file) {
        set("token", token.expose().to_owned());
    }
    for (name, pem) in [("client-certificate", &explicit.cert), ("client-key", &explicit.key)] {
        match pem {
            None => {}
            Some(Pem::Inline(pem)) => drop(set(&format!("{name}-data"), STANDARD.encode(pem.expose()))),
            Some(Pem::File(file)) => drop(set(name, text(file)?)),
        }
    }
    // The error could show what it read.
    serde_json::from_value(Value::Object(user)).map_err(|_| wrong("the credentials can't be used"))
}

fn token_file(path: &Path) -> Result<TokenFile, ConnectError> {
    TokenFile::new(path).map_err(|error| wrong(format!("bearerTokenFile {}: {error}", path.display())))
}

fn text(path: &Path) -> Result<String, ConnectError> {
    path.to_str().map(str::to_owned).ok_or_else(|| wrong(format!("{} is not UTF-8", path.display())))
}
