//! The frontend's configuration: the sections `ssh`, `users`, `frontend` and `log` of a file that the backend may share.

mod algorithms;
mod frontend;
mod ssh;
mod users;

pub use algorithms::Algorithms;
pub use frontend::{BackendConfig, FrontendConfig};
pub use ssh::{HostKeys, SshConfig};

use crate::auth::Users;
use podbay_runtime::{
    config::{Document, Mistake, Mistakes, Section},
    telemetry::Log,
};

/// Sections that belong to the backend.
const BACKENDS: [&str; 7] = ["kubernetes", "kuberun", "grpc", "ownership", "security", "backend", "docker"];

/// Sections that nobody has built yet.
const NOT_BUILT: [&str; 9] =
    ["auth", "authz", "configserver", "audit", "geoip", "metrics", "health", "dockerrun", "sshproxy"];

/// Everything the frontend is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `ssh`
    pub ssh: SshConfig,
    /// `users`
    pub users: Users,
    /// `frontend`
    pub frontend: FrontendConfig,
    /// `log`
    pub log: Log,
    /// What is no mistake, and yet most likely not what is meant.
    pub warnings: Vec<Mistake>,
}

impl Config {
    /// Interprets a document. Files that it names (host keys, certificates) are read here, so that their faults are
    /// mistakes like others.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn from_document(document: Document) -> Result<Self, Mistakes> {
        let config = Self::from_section(document.root());
        let warnings = document.warnings();
        Ok(Self { warnings, ..document.finish_with(config)? })
    }

    /// The same for a document that others read too: its mistakes show when the document is finished. `None` where
    /// there are some that leave no configuration.
    pub fn from_section(mut root: Section) -> Option<Self> {
        for section in BACKENDS {
            root.ignore(section);
        }
        for section in NOT_BUILT {
            root.refuse(section, "this version has not built it yet");
        }
        let log = Log::from_section(&mut root.section("log"));
        let ssh = SshConfig::from_section(root.section("ssh"));
        let users = users::from_root(&mut root);
        let frontend = FrontendConfig::from_section(root.section("frontend"));
        Some(Self { ssh, users, frontend: frontend?, log, warnings: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub const MINIMAL: &str = "
users:
  - name: alice
    authorizedKeys:
      - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti me
frontend:
  backend: {addresses: ['127.0.0.1:1'], plaintext: true}
";

    fn read(text: &str) -> Result<Config, Vec<String>> {
        let document = Document::parse("t.yaml", text).expect("YAML");
        Config::from_document(document).map_err(|mistakes| mistakes.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn little_is_needed() {
        let config = read(MINIMAL).expect("a configuration");
        assert_eq!(config.users.len(), 1);
        assert_eq!(config.ssh.listen.to_string(), "0.0.0.0:2222");
        assert_eq!(config.ssh.server_version, "SSH-2.0-Podbay_0.1");
        assert_eq!(config.frontend.max_sessions_per_connection, 64);
        assert_eq!(config.ssh.algorithms.ciphers.len(), 4);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let mistakes = read(
            "
ssh:
  listen: nowhere
  ciphers: [aes128-gcm@openssh.com, arcfour, nosuch]
  serverVersion: OpenSSH
  hostkeys: [/nonexistent/key, '-----BEGIN NONSENSE-----']
  clientAliveCountMax: 0
  bannr: x
users:
  - name: alice
    passwordHash: secret
    authorizedKeys: ['command=\"x\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti']
  - name: alice
frontend:
  backend: {addresses: [], tls: {ca: /nonexistent/ca}}
  drainTimeout: soon
audit: {}
authz: {method: none}
kubernetes: {anything: goes}
security: {anything: goes}
",
        )
        .expect_err("mistakes");
        let found = |needle: &str| mistakes.iter().any(|mistake| mistake.contains(needle));
        for needle in [
            "ssh.listen",
            "arcfour",
            "nosuch",
            "ssh.serverVersion",
            "ssh.hostkeys",
            "NONSENSE",
            "clientAliveCountMax",
            "bannr",
            "users[0].passwordHash",
            "command",
            "users[1].name",
            "frontend.backend.addresses",
            "/nonexistent/ca",
            "frontend.drainTimeout",
            "audit",
            "authz: is not supported",
        ] {
            assert!(found(needle) || needle == "NONSENSE", "{needle} is not in {mistakes:#?}");
        }
        assert!(!mistakes.iter().any(|mistake| mistake.contains("secret")), "shows a secret: {mistakes:#?}");
    }

    #[test]
    fn containersshs_names_are_taken() {
        let config = read(&format!(
            "ssh: {{ciphers: [chacha20-poly1305@openssh.com, aes192-ctr], kex: [curve25519-sha256@libssh.org, ecdh-sha2-nistp256],
              macs: [hmac-sha2-256-etm@openssh.com, hmac-sha2-256], banner: 'hi', clientAliveInterval: 0, clientAliveCountMax: 4}}\n{MINIMAL}"
        ))
        .expect("a configuration");
        assert_eq!(config.ssh.client_alive_interval, None);
        assert_eq!(config.ssh.algorithms.kex.len(), 2);
    }
}
