//! ContainerSSH's `metrics`, `health`, `audit` and `geoip`. The first two are served, over TLS where they name a certificate; of the others what is switched off is read and
//! has no effect, as in ContainerSSH, and what is switched on is refused, for it would not be there.

use podbay_runtime::{
    config::{Secret, Section},
    tls::{Choice, Followed, PemSource, WebServer},
    webhook::{Client, endpoint_at},
};
use rustls::ServerConfig;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// `metrics`.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsConfig {
    /// Where.
    pub server: ServerAt,
    /// Under which path.
    pub path: String,
}

/// An HTTP server.
#[derive(Debug, Clone)]
pub struct ServerAt {
    /// `listen`
    pub listen: SocketAddr,
    /// `cert`, `key`, `clientcacert`, `tlsVersion`; `None` = HTTP without TLS.
    pub tls: Option<Arc<Followed<ServerConfig>>>,
    /// What `tls` was made of.
    made_of: Option<WebServer>,
}

impl PartialEq for ServerAt {
    fn eq(&self, other: &Self) -> bool {
        (self.listen, &self.made_of) == (other.listen, &other.made_of)
    }
}

/// What operators see.
#[derive(Debug, Clone, Default)]
pub struct Operations {
    /// `metrics`; `None` = not enabled.
    pub metrics: Option<MetricsConfig>,
    /// `health`; `None` = not enabled.
    pub health: Option<HealthConfig>,
}

/// `health`.
#[derive(Debug, Clone)]
pub struct HealthConfig {
    /// Where it is served.
    pub server: ServerAt,
    /// How `--healthcheck` asks.
    pub client: Client,
}

impl Operations {
    pub(super) fn from_root(root: &mut Section) -> Self {
        audit(root.section("audit"));
        geoip(root.section("geoip"));
        Self { metrics: metrics(root.section("metrics")), health: health(root.section("health")) }
    }
}

fn anywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

fn metrics(mut section: Section) -> Option<MetricsConfig> {
    let enable = section.or("enable", false);
    let path = section.filled("path", "/metrics".to_owned());
    if !path.starts_with('/') {
        section.mistake("path", "must begin with /");
    }
    let server = server(&mut section, enable, 9100);
    enable.then_some(MetricsConfig { server, path })
}

fn health(mut section: Section) -> Option<HealthConfig> {
    let enable = section.or("enable", false);
    let server = server(&mut section, enable, 7000);
    let mut client = section.section("client");
    if !enable && !client.describing() {
        unread(&mut client);
        return None;
    }
    let client = endpoint_at(&mut client, "http://127.0.0.1:7000/").map(Client::new)?;
    Some(HealthConfig { server, client })
}

/// Knows the keys of an HTTP client that is not used.
fn unread(client: &mut Section) {
    for key in ["url", "cacert", "cert", "key"] {
        client.get::<Secret>(key);
    }
    client.filled("timeout", Duration::from_secs(2));
    client.or("allowRedirects", false);
    tuning(client);
}

/// The keys of ContainerSSH's HTTP servers. As there, they are looked at only where the server is enabled, and those of TLS only where there is a
/// certificate; but a CA without one is no TLS at all, where somebody wants to know who asks.
fn server(section: &mut Section, enable: bool, port: u16) -> ServerAt {
    let listen = section.or("listen", anywhere(port));
    let mut pem = |key: &str| section.get::<Secret>(key).and_then(|text| PemSource::parse(text.expose()));
    let (cert, key, client_ca) = (pem("cert"), pem("key"), pem("clientcacert"));
    let old = tuning(section);
    let plain = ServerAt { listen, tls: None, made_of: None };
    if !enable || section.describing() {
        return plain;
    }
    match (cert, key) {
        (Some(cert), Some(key)) => {
            let made_of = WebServer { cert, key, client_ca, old, choice: Choice::read(section) };
            match Followed::web_server(made_of.clone()) {
                Ok(tls) => ServerAt { listen, tls: Some(tls), made_of: Some(made_of) },
                Err(error) => {
                    section.mistake("cert", error.to_string());
                    plain
                }
            }
        }
        (None, None) => {
            if client_ca.is_some() {
                section.mistake("clientcacert", "asks for clients' certificates, which takes TLS: give cert and key");
            }
            plain
        }
        (Some(_), None) | (None, Some(_)) => {
            section.mistake("cert", "cert and key belong together");
            plain
        }
    }
}

/// Whether TLS 1.2 is taken.
fn tuning(section: &mut Section) -> bool {
    let old = section.word("tlsVersion", &[("1.2", true), ("1.3", false)], "1.3");
    section.words("curves");
    section.words("cipher");
    old.unwrap_or(false)
}

fn audit(mut section: Section) {
    let enable = section.or("enable", false);
    section.word("format", &[("none", ()), ("binary", ()), ("asciinema", ())], "none");
    section.word("storage", &[("none", ()), ("file", ()), ("s3", ())], "none");
    let mut intercept = section.section("intercept");
    for key in ["stdin", "stdout", "stderr", "passwords", "forwarding"] {
        intercept.or(key, false);
    }
    drop(intercept);
    section.section("file").filled("directory", "/var/log/audit".to_owned());
    let mut s3 = section.section("s3");
    s3.filled("local", "/var/lib/audit".to_owned());
    for key in ["accessKey", "secretKey"] {
        s3.get::<Secret>(key);
    }
    for key in ["bucket", "region", "endpoint", "acl", "cacert"] {
        s3.get::<String>(key);
    }
    s3.or("pathStyleAccess", false);
    s3.filled("uploadPartSize", 5_242_880_u64);
    s3.filled("parallelUploads", 20_u32);
    let mut metadata = s3.section("metadata");
    for key in ["ip", "username"] {
        metadata.or(key, false);
    }
    drop((metadata, s3));
    if enable {
        section.mistake(
            "enable",
            "there is no audit log yet, and a session that nobody records must not look like one: set it to false",
        );
    }
}

fn geoip(mut section: Section) {
    let provider = section.word("provider", &[("dummy", false), ("maxmind", true)], "dummy");
    section.filled("maxmind-geoip2-file", "/var/lib/GeoIP/GeoIP2-Country.mmdb".to_owned());
    if provider == Some(true) {
        section.mistake(
            "provider",
            "maxmind is not built: use dummy; the label country is XX, as ContainerSSH's is without a database",
        );
    }
}
