//! The backend's whole configuration: core's settings, and `grpc` (listener, TLS, callers, handle keys).

use crate::{
    callers::{Callers, Rule},
    configserver, files,
};
use podbay_backend_core::{config::Settings, connections::ConfigWebhook, handle::KeyRing};
use podbay_runtime::{
    config::{Document, Mistake, Mistakes, Section},
    telemetry::Log,
    tls,
};
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Checked and complete.
#[derive(Debug)]
pub struct Config {
    /// `kubernetes`, `ownership` and `security`.
    pub settings: Settings,
    /// `configserver`; absent = the file holds for everybody.
    pub webhook: Option<ConfigWebhook>,
    /// `grpc`.
    pub grpc: Grpc,
    /// `log`.
    pub log: Log,
    /// What is no mistake, and yet most likely not what is meant.
    pub warnings: Vec<Mistake>,
}

/// The gRPC side.
#[derive(Debug)]
pub struct Grpc {
    /// `listen`: where the bin binds; [`crate::run`] takes a bound listener.
    pub listen: SocketAddr,
    /// `adminListen`: metrics and health over HTTP; absent = none.
    pub admin_listen: Option<SocketAddr>,
    /// `tls`.
    pub tls: Tls,
    /// `callers`: who may call, by certificate.
    pub callers: Callers,
    /// `handleKeys`; absent = a key of this process alone.
    pub keys: Option<KeyRing>,
    /// `maxConnections`: TCP connections at once; more are cut.
    pub max_connections: usize,
    /// `drainTimeout`: how long sessions may go on after the first SIGTERM.
    pub drain_timeout: Duration,
}

/// PEM files.
#[derive(Debug)]
pub struct Tls {
    /// Our certificate, with its chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CAs of the callers' certificates.
    pub client_ca: PathBuf,
    /// `reloadInterval`: the files are looked at for changes this often.
    pub reload_interval: Duration,
}

/// Sections that belong to the frontend, which serves `metrics` and `health` too; the backend's are `grpc.adminListen`'s.
const FRONTENDS: [&str; 8] = ["ssh", "users", "frontend", "auth", "audit", "geoip", "metrics", "health"];

/// ContainerSSH's other backends. Their sections stand in files that it has dumped; which backend counts, `backend` says.
const OTHER_BACKENDS: [&str; 3] = ["docker", "dockerrun", "sshproxy"];

const DEFAULT_PORT: u16 = 8443;

impl Config {
    /// Reads the backend's part of a configuration; the frontend's is ignored.
    ///
    /// # Errors
    /// All mistakes of the document, with their places.
    pub fn from_document(document: Document) -> Result<Self, Mistakes> {
        let read = Self::from_section(&mut document.root());
        let warnings = document.warnings();
        Ok(Self { warnings, ..document.finish_with(read)? })
    }

    /// The same for a document that others read too: its mistakes and warnings are told by the document. `None` where there are
    /// mistakes that leave no configuration.
    pub fn from_section(root: &mut Section) -> Option<Self> {
        let mut settings = Settings::read(root);
        let webhook = configserver::read(&mut root.section("configserver"), settings.as_mut());
        let grpc = Grpc::read(&mut root.section("grpc"));
        let log = Log::from_section(&mut root.section("log"));
        for key in FRONTENDS.into_iter().chain(OTHER_BACKENDS) {
            root.ignore(key);
        }
        root.refuse("authz", "it is auth.authz");
        root.refuse("listen", "it has been ssh.listen since ContainerSSH 0.4: move it there");
        let config = Self { settings: settings?, webhook, grpc: grpc?, log, warnings: Vec::new() };
        files::check(&config, root);
        Some(config)
    }
}

impl Grpc {
    fn read(section: &mut Section) -> Option<Self> {
        let listen = section.or("listen", SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), DEFAULT_PORT));
        let admin_listen = section.get("adminListen");
        let tls = Tls::read(&mut section.section("tls"));
        let callers = callers(section);
        let had_keys = section.has("handleKeys");
        let keys = KeyRing::read(section);
        let max_connections = section.or("maxConnections", 1024_usize);
        if max_connections == 0 {
            section.mistake("maxConnections", "must be positive");
        }
        let drain_timeout = section.or("drainTimeout", Duration::from_secs(25));
        if had_keys && keys.is_none() {
            return None;
        }
        Some(Self { listen, admin_listen, tls: tls?, callers: callers?, keys, max_connections, drain_timeout })
    }
}

impl Tls {
    fn read(section: &mut Section) -> Option<Self> {
        let cert = section.required("certFile");
        let key = section.required("keyFile");
        let client_ca = section.required("clientCAFile");
        let reload_interval = tls::reload_interval(section);
        Some(Self { cert: cert?, key: key?, client_ca: client_ca?, reload_interval })
    }
}

fn callers(section: &mut Section) -> Option<Callers> {
    if !section.has("callers") {
        section.mistake("callers", "is missing: without it nobody may call");
    }
    let mut rules = Vec::new();
    let mut good = true;
    for mut entry in section.list("callers") {
        let name: Option<String> = entry.required("name");
        let service: Option<String> = entry.required("service");
        let users: Vec<String> = entry.or("users", Vec::new());
        let operator = entry.or("operator", false);
        let (Some(name), Some(service)) = (name, service) else {
            good = false;
            continue;
        };
        let kind = name.split_once(':').filter(|(kind, rest)| ["dns", "uri", "cn"].contains(kind) && !rest.is_empty());
        if kind.is_none() {
            entry.mistake("name", "must be dns:NAME, uri:URI or cn:NAME, as in the caller's certificate");
            good = false;
        }
        if service.is_empty() {
            entry.mistake("service", "must not be empty");
            good = false;
        }
        rules.push(Rule { name, service, users, operator });
    }
    good.then(|| Callers::new(rules))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
kubernetes: {pod: {disableAgent: true}}
grpc:
  listen: 127.0.0.1:0
  tls: {certFile: DIR/cert.pem, keyFile: DIR/key.pem, clientCAFile: DIR/cert.pem}
  callers: [{name: 'dns:frontend.podbay', service: frontend, users: ['*']}]
ssh: {anything: true}
users: []
";

    /// `DIR` is a directory with a certificate and its key.
    fn read(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).expect("written");
        std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).expect("written");
        let text = &text.replace("DIR", &dir.path().display().to_string());
        let document = Document::parse("test.yaml", text).map_err(|mistakes| mistakes.to_string())?;
        Config::from_document(document).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn a_shared_file_is_read() {
        let config = read(GOOD).expect("good");
        assert_eq!(config.grpc.drain_timeout, Duration::from_secs(25));
        assert!(config.grpc.keys.is_none());
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let text = "
kubernetes: {pod: {disableAgent: true}}
grpc:
  listn: x
  tls: {certFile: /c}
  callers: [{name: frontend, service: ''}]
  handleKeys: [{id: a, key: tooshort}]
security: {forwarding: {forwardingMode: enable}, maxSessions: -2}
backend: docker
";
        let told = read(text).expect_err("mistakes");
        for wanted in [
            "grpc.listn",
            "did you mean listen",
            "grpc.tls.keyFile",
            "grpc.tls.clientCAFile",
            "grpc.callers[0].name",
            "grpc.callers[0].service",
            "handleKeys[0].key",
            "security.forwarding.forwardingMode: forwarding is not built",
            "security.maxSessions: must be -1",
            "only kubernetes is built",
            "test.yaml:6:",
        ] {
            assert!(told.contains(wanted), "{wanted} is not in:\n{told}");
        }
        let told = read(&GOOD.replace("\nssh:", "\n  handleKeys: []\nssh:")).expect_err("no key");
        assert_eq!(
            told,
            "test.yaml:7:15: grpc.handleKeys: names no key: give at least one, or leave it out where there is one replica"
        );
        let told = read("kubernetes: {pod: {disableAgent: true}}").expect_err("no grpc");
        assert!(told.contains("grpc.callers") && told.contains("grpc.tls.certFile"), "{told}");
    }

    #[test]
    fn files_that_cant_be_used_are_mistakes() {
        let pod = "kubernetes: {pod: {disableAgent: true}";
        for (what, with, told) in [
            ("DIR/key.pem", "DIR/nosuch.pem", "test.yaml:5:54: grpc.tls.keyFile: "),
            ("certFile: DIR/cert.pem", "certFile: DIR/nosuch.pem", "grpc.tls.certFile: "),
            ("clientCAFile: DIR/cert.pem", "clientCAFile: DIR/key.pem", "grpc.tls.clientCAFile: "),
            (pod, &format!("{pod}, connection: {{kubeconfig: DIR/nosuch}}"), "kubernetes.connection.kubeconfig: "),
            (pod, &format!("{pod}, connection: {{kubeconfig: DIR/cert.pem}}"), "kubernetes.connection.kubeconfig: "),
            (pod, &format!("{pod}, connection: {{cacertFile: DIR/key.pem}}"), "kubernetes.connection.cacertFile: "),
            (
                pod,
                &format!("{pod}, connection: {{certFile: DIR/nosuch, keyFile: DIR/cert.pem}}"),
                "kubernetes.connection.certFile: ",
            ),
            (
                pod,
                &format!("{pod}, connection: {{certFile: DIR/cert.pem, keyFile: DIR/cert.pem}}"),
                "kubernetes.connection.keyFile: ",
            ),
        ] {
            let error = read(&GOOD.replace(what, with)).expect_err(with);
            assert!(error.contains(told), "{told} is not in: {error}");
        }
        let connection = "connection: {cacertFile: DIR/cert.pem, certFile: DIR/cert.pem, keyFile: DIR/key.pem}";
        read(&GOOD.replace(pod, &format!("{pod}, {connection}"))).expect("good");
    }
}
