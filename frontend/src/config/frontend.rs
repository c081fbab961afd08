//! The `frontend` section: what ContainerSSH has no key for.

use crate::backend::pool::Addresses;
use podbay_frontend_core::Startups;
use podbay_runtime::{config::Section, tls};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use crate::backend::connector::Security;

/// Where the backend is.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// Addresses, and how they are kept.
    pub addresses: Addresses,
    /// TLS, or none.
    pub security: Security,
}

/// The frontend's own settings.
#[derive(Debug, Clone)]
pub struct FrontendConfig {
    /// The backend.
    pub backend: BackendConfig,
    /// Where the host key is kept. Default `/var/lib/podbay-frontend`.
    pub state_dir: PathBuf,
    /// Metrics and health; absent = not served.
    pub admin: Option<SocketAddr>,
    /// In this time a client must have logged in. Default 120 s.
    pub login_grace_time: Duration,
    /// In this time it must have exchanged keys. Default 20 s.
    pub handshake_timeout: Duration,
    /// In this time the backend must accept a connection. Default 10 s.
    pub accept_timeout: Duration,
    /// So long sessions may go on after a first SIGTERM. Default 30 s.
    pub drain_timeout: Duration,
    /// Connections at once. Default 10,000.
    pub max_connections: usize,
    /// Connections at once from one IPv4 address or IPv6 /64. Default 200.
    pub max_connections_per_address: usize,
    /// Connections that have not logged in. Default 50:30:200.
    pub startups: Startups,
    /// Session channels at once on one connection. Default 64.
    pub max_sessions_per_connection: usize,
    /// Session channels in a connection's life: each leaves some 4 KiB behind. Default 10,000.
    pub max_channels_per_connection: usize,
    /// Input that programs have not taken, over the process; above it, connections get a smaller share. Default 1 GiB.
    pub max_queued_input: usize,
    /// A start that takes longer shows what it waits for. Default 2 s.
    pub progress_after: Duration,
}

impl FrontendConfig {
    /// The defaults, with this backend.
    pub fn new(backend: BackendConfig) -> Self {
        Self {
            backend,
            state_dir: PathBuf::from("/var/lib/podbay-frontend"),
            admin: None,
            login_grace_time: Duration::from_mins(2),
            handshake_timeout: Duration::from_secs(20),
            accept_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            max_connections_per_address: 200,
            startups: Startups::default(),
            max_sessions_per_connection: 64,
            max_channels_per_connection: 10_000,
            max_queued_input: 1 << 30,
            progress_after: Duration::from_secs(2),
        }
    }

    pub(super) fn from_section(mut section: Section) -> Option<Self> {
        let backend = backend(section.section("backend"));
        // The defaults are needed to read the rest, whatever the backend's section holds.
        let nowhere = BackendConfig {
            addresses: Addresses { names: Vec::new(), every: Duration::from_secs(5), connections: 2 },
            security: Security::Plaintext,
        };
        let usable = backend.is_some();
        let mut config = Self::new(backend.unwrap_or(nowhere));
        config.state_dir = section.or("stateDir", config.state_dir);
        config.admin = section.get("admin");
        config.login_grace_time = positive(&mut section, "loginGraceTime", config.login_grace_time);
        config.handshake_timeout = positive(&mut section, "handshakeTimeout", config.handshake_timeout);
        config.accept_timeout = positive(&mut section, "acceptTimeout", config.accept_timeout);
        config.drain_timeout = section.or("drainTimeout", config.drain_timeout);
        config.progress_after = section.or("progressAfter", config.progress_after);
        for (key, value) in [
            ("maxConnections", &mut config.max_connections),
            ("maxConnectionsPerAddress", &mut config.max_connections_per_address),
            ("maxSessionsPerConnection", &mut config.max_sessions_per_connection),
            ("maxChannelsPerConnection", &mut config.max_channels_per_connection),
            ("maxQueuedInput", &mut config.max_queued_input),
        ] {
            *value = section.or(key, *value);
            if *value == 0 {
                section.mistake(key, "must be at least 1");
            }
        }
        let Startups { begin, rate, full } = config.startups;
        match startups(&section.or("maxStartups", format!("{begin}:{rate}:{full}"))) {
            Some(startups) => config.startups = startups,
            None => section.mistake("maxStartups", "must be BEGIN:PERCENT:FULL, for example 50:30:200"),
        }
        usable.then_some(config)
    }
}

fn positive(section: &mut Section, key: &str, default: Duration) -> Duration {
    let value = section.or(key, default);
    if value.is_zero() {
        section.mistake(key, "must be more than 0");
    }
    value
}

fn startups(text: &str) -> Option<Startups> {
    let mut parts = text.split(':');
    let startups = Startups {
        begin: parts.next()?.parse().ok()?,
        rate: parts.next()?.parse().ok().filter(|rate| *rate <= 100)?,
        full: parts.next()?.parse().ok()?,
    };
    (parts.next().is_none() && startups.begin <= startups.full).then_some(startups)
}

fn backend(mut section: Section) -> Option<BackendConfig> {
    let names: Option<Vec<String>> = section.required("addresses");
    let empty = names.as_ref().is_some_and(Vec::is_empty);
    let names = names.unwrap_or_default();
    if empty {
        section.mistake("addresses", "names no backend");
    }
    for name in &names {
        let sound = name.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !sound {
            section.mistake("addresses", format!("{name:?} is not host:port"));
        }
    }
    let every = section.or("resolveInterval", Duration::from_secs(5));
    if every < Duration::from_millis(100) {
        section.mistake("resolveInterval", "must be at least 100ms");
    }
    let connections = section.or("connectionsPerReplica", 2usize);
    if !(1..=64).contains(&connections) {
        section.mistake("connectionsPerReplica", "must be 1 to 64");
    }
    let plaintext = section.or("plaintext", false);
    let has_tls = section.has("tls");
    let security = tls_client(section.section("tls"), has_tls);
    if plaintext == has_tls {
        section.mistake("tls", "give either tls (ca, cert, key) or plaintext: true");
    }
    let addresses = Addresses { names, every, connections };
    let security = if plaintext { Some(Security::Plaintext) } else { security };
    security.map(|security| BackendConfig { addresses, security })
}

fn tls_client(mut section: Section, present: bool) -> Option<Security> {
    let (ca, cert, key): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>) = (
        if present || section.describing() { section.required("ca") } else { section.get("ca") },
        section.get("cert"),
        section.get("key"),
    );
    let name: Option<String> = section.get("serverName");
    let reload_interval = tls::reload_interval(&mut section);
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            section.mistake("key", "cert and key belong together");
            return None;
        }
    };
    section.names_files(ca.iter().chain(identity.iter().flat_map(|(cert, key)| [cert, key])));
    let ca = ca?;
    let cert = identity.as_ref().map(|(cert, _)| cert.clone());
    for (name, file) in [("ca", Some(&ca)), ("cert", cert.as_ref())] {
        if let Some(why) = file.and_then(|file| tls::out_of_time(file)) {
            section.warn(name, why);
        }
    }
    let key = identity.as_ref().map(|(_, key)| key.clone());
    let config = match tls::Followed::client(ca, identity) {
        Ok(config) => config,
        Err(error) => {
            let at = match &error {
                tls::TlsError::File { path, .. } if Some(path) == key.as_ref() => "key",
                tls::TlsError::File { path, .. } if Some(path) == cert.as_ref() => "cert",
                tls::TlsError::File { .. } | tls::TlsError::Config(_) => "ca",
            };
            section.mistake(at, error.to_string());
            return None;
        }
    };
    let name = match name.map(rustls::pki_types::ServerName::try_from).transpose() {
        Ok(name) => name,
        Err(error) => {
            section.mistake("serverName", error.to_string());
            return None;
        }
    };
    Some(Security::Tls { config, name, reload_interval })
}
