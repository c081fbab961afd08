//! The frontend's configuration: the sections `ssh`, `auth`, `users`, `frontend` and `log` of a file that the backend may share.

mod algorithms;
mod auth;
mod frontend;
mod operations;
mod penalties;
mod ssh;
mod users;

pub use algorithms::Algorithms;
pub use frontend::{BackendConfig, FrontendConfig};
pub use operations::{MetricsConfig, Operations, ServerAt};
pub use penalties::PenaltyConfig;
pub use ssh::{HostKeys, SshConfig};

use crate::auth::{AuthConfig, Users};
use podbay_runtime::{
    config::{Document, Mistake, Mistakes, Section},
    telemetry::Log,
};

/// Sections that belong to the backend.
const BACKENDS: [&str; 7] = ["kubernetes", "kuberun", "grpc", "ownership", "security", "backend", "configserver"];

/// ContainerSSH's other backends. Their sections stand in files that it has dumped; which backend counts, `backend` says.
const OTHER_BACKENDS: [&str; 3] = ["docker", "dockerrun", "sshproxy"];

/// Sections that nobody has built yet.
const NOT_BUILT: [&str; 1] = ["authz"];

/// Everything the frontend is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `ssh`
    pub ssh: SshConfig,
    /// `auth`
    pub auth: AuthConfig,
    /// `users`
    pub users: Users,
    /// `frontend`
    pub frontend: FrontendConfig,
    /// `metrics` and `health`
    pub operations: Operations,
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
        for section in BACKENDS.into_iter().chain(OTHER_BACKENDS) {
            root.ignore(section);
        }
        for section in NOT_BUILT {
            root.refuse(section, "this version has not built it yet");
        }
        root.refuse("listen", "it has been ssh.listen since ContainerSSH 0.4: move it there");
        let operations = Operations::from_root(&mut root);
        let log = Log::from_section(&mut root.section("log"));
        let ssh = SshConfig::from_section(root.section("ssh"));
        let auth = auth::from_section(root.section("auth"));
        let users = users::from_root(&mut root, auth.lets_anybody_in());
        let frontend = FrontendConfig::from_section(root.section("frontend"));
        Some(Self { ssh, auth, users, frontend: frontend?, operations, log, warnings: Vec::new() })
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
  clientAliveCountMax: -1
  bannr: x
users:
  - name: alice
    passwordHash: secret
    authorizedKeys: ['command=\"x\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti']
  - name: alice
frontend:
  backend: {addresses: [], tls: {ca: /nonexistent/ca}}
  drainTimeout: soon
audit: {enable: true}
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

    #[test]
    fn containersshs_operations_are_served_or_refused_by_name() {
        let good = read(&format!(
            "metrics: {{enable: true, listen: '127.0.0.1:9', path: /m}}\nhealth: {{enable: true}}\n{MINIMAL}"
        ));
        let operations = good.expect("a configuration").operations;
        let metrics = operations.metrics.expect("enabled");
        assert_eq!((metrics.server.listen.to_string().as_str(), metrics.path.as_str()), ("127.0.0.1:9", "/m"));
        assert!(metrics.server.tls.is_none());
        assert_eq!(operations.health.map(|health| health.server.listen.to_string()).as_deref(), Some("0.0.0.0:7000"));
        // As ContainerSSH dumps its defaults.
        let dumped = "
log: {level: 5, format: ljson, destination: stdout, file: /var/log/containerssh/containerssh.log,
  syslog: {destination: /dev/log, facility: auth, tag: ContainerSSH, pid: false}}
metrics: {enable: false, path: /metrics, listen: '0.0.0.0:9100', cert: '', key: '', clientcacert: '', tlsVersion: '1.3',
  curves: [x25519, secp256r1], cipher: 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384'}
health: {enable: false, listen: '0.0.0.0:7000', client: {url: 'http://127.0.0.1:7000/', timeout: 2000000000, allowRedirects: false,
  cacert: '', cert: '', key: '', tlsVersion: '1.3', curves: [], cipher: []}}
geoip: {provider: dummy, maxmind-geoip2-file: /var/lib/GeoIP/GeoIP2-Country.mmdb}
audit: {enable: false, format: none, storage: none, intercept: {stdin: false, stdout: false, stderr: false, passwords: false, forwarding: false},
  file: {directory: /var/log/audit}, s3: {local: /var/lib/audit, accessKey: '', secretKey: '', bucket: '', region: '', endpoint: '', acl: '',
  cacert: '', pathStyleAccess: false, uploadPartSize: 5242880, parallelUploads: 20, metadata: {ip: false, username: false}}}
docker: {anything: goes}
sshproxy: {anything: goes}
";
        let config = read(&format!("{dumped}{MINIMAL}")).expect("a configuration");
        assert!(config.operations.metrics.is_none() && config.operations.health.is_none());
        for (text, wanted) in [
            ("metrics: {enable: true, cert: x}", "t.yaml:1:31: metrics.cert: cert and key belong together"),
            ("metrics: {enable: true, cert: /nosuch, key: /nosuch}", "metrics.cert: /nosuch: "),
            ("metrics: {enable: true, cert: '-----BEGIN X', key: '-----BEGIN X'}", "metrics.cert: TLS: "),
            ("health: {enable: true, tlsVersion: '1.1'}", "health.tlsVersion: \"1.1\" is none of 1.2, 1.3"),
            ("metrics: {enable: true, path: m}", "metrics.path: must begin with /"),
            ("metrics: {enabled: true}", "metrics.enabled: unknown key; did you mean enable?"),
            (
                "health: {enable: true, clientcacert: x}",
                "health.clientcacert: asks for clients' certificates, which takes TLS",
            ),
            ("audit: {enable: true}", "t.yaml:1:17: audit.enable: there is no audit log yet"),
            ("audit: {format: audit}", "audit.format: \"audit\" is none of none, binary, asciinema"),
            ("geoip: {provider: maxmind}", "geoip.provider: maxmind is not built: use dummy"),
            (
                "log: {destination: file, file: /nosuch/x}",
                "log.file: there is no directory for /nosuch/x: make it first",
            ),
            ("log: {format: xml}", "log.format: \"xml\" is none of plain, json, ljson, text"),
            ("listen: '0.0.0.0:22'", "listen: is not supported: it has been ssh.listen"),
        ] {
            let told = read(&format!("{text}\n{MINIMAL}")).expect_err(text);
            assert!(told.len() == 1 && told[0].contains(wanted), "{text}: {told:?}");
        }
    }
}
