//! A configuration that changes while the process runs: what counts at once for new connections, and what needs a restart.

use crate::{
    backend::{connector::Security, pool::Addresses},
    config::{BackendConfig, Config, FrontendConfig, Operations, SshConfig},
    server::{Current, Server},
};
use podbay_runtime::{
    config::{Document, Mistakes},
    reload::{Refused, Reload},
    telemetry::{self, Log},
};
use std::{net::SocketAddr, sync::Arc};
use tracing::warn;

/// What was bound, connected or begun at the start, and stays.
#[derive(Debug, Clone)]
struct Fixed {
    listen: SocketAddr,
    admin: Option<SocketAddr>,
    backend: BackendConfig,
    operations: Operations,
    log: Log,
}

impl Fixed {
    /// Taken apart in full: of a new key somebody has to say whether it is fixed.
    fn of(config: &Config) -> Self {
        let Config { ssh, auth: _, users: _, frontend, operations, log, warnings: _ } = config;
        let SshConfig {
            listen,
            server_version: _,
            banner: _,
            host_keys: _,
            algorithms: _,
            client_alive_interval: _,
            client_alive_count_max: _,
            penalties: _,
        } = ssh;
        let FrontendConfig {
            backend,
            state_dir: _,
            admin,
            login_grace_time: _,
            handshake_timeout: _,
            accept_timeout: _,
            drain_timeout: _,
            max_connections: _,
            max_connections_per_address: _,
            startups: _,
            max_sessions_per_connection: _,
            max_channels_per_connection: _,
            max_queued_input: _,
            progress_after: _,
        } = frontend;
        let (listen, admin) = (*listen, *admin);
        Self { listen, admin, backend: backend.clone(), operations: operations.clone(), log: log.clone() }
    }

    /// The keys in which a new configuration differs. In the order of docs/configuration.md's table.
    fn differs(&self, new: &Self) -> Vec<&'static str> {
        let Addresses { names, every, connections } = &self.backend.addresses;
        let to = &new.backend.addresses;
        let Log { level: _, format, destination } = &self.log;
        let Operations { metrics, health } = &self.operations;
        [
            ("ssh.listen", self.listen != new.listen),
            ("frontend.admin", self.admin != new.admin),
            ("frontend.backend.addresses", *names != to.names),
            ("frontend.backend.resolveInterval", *every != to.every),
            ("frontend.backend.connectionsPerReplica", *connections != to.connections),
            ("frontend.backend.tls", !same(&self.backend.security, &new.backend.security)),
            ("metrics", *metrics != new.operations.metrics),
            (
                "health",
                health.as_ref().map(|health| &health.server)
                    != new.operations.health.as_ref().map(|health| &health.server),
            ),
            ("log.format", *format != new.log.format),
            ("log.destination", *destination != new.log.destination),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// By the names of the files: what is in them is followed anyway.
fn same(one: &Security, other: &Security) -> bool {
    match (one, other) {
        (Security::Plaintext, Security::Plaintext) => true,
        (
            Security::Tls { config, name, reload_interval },
            Security::Tls { config: new, name: new_name, reload_interval: new_interval },
        ) => config.files() == new.files() && name == new_name && reload_interval == new_interval,
        (Security::Plaintext, Security::Tls { .. }) | (Security::Tls { .. }, Security::Plaintext) => false,
    }
}

/// The server, as its configuration sees it.
pub(crate) struct Reloading {
    server: Arc<Server>,
    fixed: Fixed,
}

impl Reloading {
    /// Before anything was read again.
    pub(crate) fn new(server: &Arc<Server>) -> Self {
        Self { server: Arc::clone(server), fixed: Fixed::of(&server.current().config) }
    }
}

impl Reload for Reloading {
    type Config = Config;

    fn read(document: Document) -> Result<Config, Mistakes> {
        Config::from_document(document)
    }

    async fn take(&self, mut config: Config) -> Result<Vec<&'static str>, Refused> {
        let waiting = self.fixed.differs(&Fixed::of(&config));
        config.users.share_bounds(&self.server.current().config.users);
        // It may read, or even make, the key that is kept.
        let made = tokio::task::spawn_blocking(move || Current::new(config)).await;
        let current = made.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        for warning in &current.config.warnings {
            warn!("{warning}");
        }
        telemetry::set_level(&current.config.log);
        self.server.change(current);
        if let Security::Tls { config, .. } = &self.fixed.backend.security {
            let metrics = &self.server.metrics;
            Arc::clone(config).look(|good| metrics.reloaded(good)).await;
        }
        Ok(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(text: &str) -> Fixed {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
        let backend =
            if text.contains("frontend:") { "" } else { "frontend: {backend: {addresses: ['b:1'], plaintext: true}}" };
        let text = format!("{text}\n{backend}\nusers: [{{name: alice, authorizedKeys: ['{key}']}}]\n");
        Fixed::of(&Config::from_document(Document::parse("t", &text).expect("YAML")).expect("a configuration"))
    }

    #[test]
    fn what_needs_a_restart_is_named_and_nothing_else() {
        let started = fixed("");
        let backend = |text: &str| format!("frontend: {{backend: {{addresses: ['b:1'], plaintext: true{text}}}}}");
        for (text, keys) in [
            (String::new(), &[][..]),
            ("ssh: {listen: '127.0.0.1:1'}".to_owned(), &["ssh.listen"]),
            ("metrics: {enable: true}\nhealth: {enable: true}".to_owned(), &["metrics", "health"]),
            ("metrics: {path: /m}".to_owned(), &[]),
            ("log: {level: debug, format: json, destination: stdout}".to_owned(), &["log.format", "log.destination"]),
            (backend("").replace("'b:1'", "'c:1'"), &["frontend.backend.addresses"]),
            (backend(", resolveInterval: 1s"), &["frontend.backend.resolveInterval"]),
            (backend(", connectionsPerReplica: 3"), &["frontend.backend.connectionsPerReplica"]),
            (backend("").replace("}}", "}, admin: '127.0.0.1:1', drainTimeout: 1s, maxConnections: 1}"), &["frontend.admin"]),
            (
                "ssh: {banner: x, serverVersion: SSH-2.0-x, clientAliveInterval: 1s, perSourcePenalties: {enabled: false}}".to_owned(),
                &[],
            ),
        ] {
            assert_eq!(started.differs(&fixed(&text)), keys, "{text}");
        }
    }
}
