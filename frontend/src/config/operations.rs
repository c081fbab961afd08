//! ContainerSSH's `metrics`, `health`, `audit` and `geoip`. The first two are served; of the others what is switched off is read and
//! has no effect, as in ContainerSSH, and what is switched on is refused, for it would not be there.

use podbay_runtime::config::{Secret, Section};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

/// `metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Where.
    pub listen: SocketAddr,
    /// Under which path.
    pub path: String,
}

/// What operators see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operations {
    /// `metrics`; `None` = not enabled.
    pub metrics: Option<MetricsConfig>,
    /// `health`: where; `None` = not enabled.
    pub health: Option<SocketAddr>,
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
    let listen = section.or("listen", anywhere(9100));
    server(&mut section, enable);
    enable.then_some(MetricsConfig { listen, path })
}

fn health(mut section: Section) -> Option<SocketAddr> {
    let enable = section.or("enable", false);
    let listen = section.or("listen", anywhere(7000));
    server(&mut section, enable);
    let mut client = section.section("client");
    // For ContainerSSH's --healthcheck, which is not there: whatever asks is told where to.
    client.filled("url", "http://127.0.0.1:7000/".to_owned());
    client.or("allowRedirects", false);
    client.filled("timeout", Duration::from_secs(2));
    tls(&mut client);
    client.get::<String>("cacert");
    enable.then_some(listen)
}

/// The keys of ContainerSSH's HTTP servers: TLS is not built, and its fine tuning has no meaning without.
fn server(section: &mut Section, enable: bool) {
    let given = |section: &Section, key| enable && section.has(key);
    let secret =
        |section: &mut Section, key: &str| section.get::<Secret>(key).is_some_and(|text| !text.expose().is_empty());
    for key in ["cert", "key", "clientcacert"] {
        if secret(section, key) && given(section, key) {
            section.mistake(key, "TLS is not built here: listen on loopback or behind a proxy, and leave this out");
        }
    }
    tuning(section);
}

fn tls(section: &mut Section) {
    section.get::<Secret>("cert");
    section.get::<Secret>("key");
    tuning(section);
}

fn tuning(section: &mut Section) {
    section.word("tlsVersion", &[("1.2", ()), ("1.3", ())], "1.3");
    section.words("curves");
    section.words("cipher");
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
