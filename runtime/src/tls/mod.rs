//! TLS as gRPC needs it: configurations from PEM files that are followed as they change, a bounded stream of accepted
//! connections, and the names in a peer's certificate. One stack: rustls with ring.

mod accept;
mod choice;
mod follow;

pub use accept::{Accepted, Limits, Refused, incoming, incoming_web};
pub use choice::Choice;
pub use follow::{Checked, Followed};

use crate::config::Section;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::WebPkiClientVerifier,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};
use zeroize::Zeroizing;

/// How often certificate files are looked at for changes, where nothing else is configured.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(30);

/// `reloadInterval` of a `tls` section: how often certificate files are looked at for changes; [`RELOAD_INTERVAL`] unless given.
pub fn reload_interval(section: &mut Section) -> Duration {
    let every = section.or("reloadInterval", RELOAD_INTERVAL);
    if every < Duration::from_millis(100) {
        section.mistake("reloadInterval", "must be at least 100ms");
    }
    every
}

/// A certificate, key or CA file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file can't be read or holds no PEM of the wanted kind.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: String,
    },
    /// The parts do not fit together.
    #[error("TLS: {0}")]
    Config(String),
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |error: String| TlsError::File { path: path.to_owned(), error };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| file(error.to_string()))?;
    if found.is_empty() { Err(file("holds no PEM certificate".to_owned())) } else { Ok(found) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        let error = match error {
            pem::Error::NoItemsFound => "holds no private key in PEM (or one with a passphrase)".to_owned(),
            error => error.to_string(),
        };
        TlsError::File { path: path.to_owned(), error }
    })
}

/// What stands against a key, whose certificate is in another file.
fn pair(cert: &Path, key_file: &Path) -> impl FnOnce(rustls::Error) -> TlsError {
    let (cert, path) = (cert.display().to_string(), key_file.to_owned());
    move |error| {
        let error = match error {
            rustls::Error::InconsistentKeys(_) => format!("is not the key of the certificate in {cert}"),
            error => error.to_string(),
        };
        TlsError::File { path, error }
    }
}

/// Why the first certificate in a file counts for nobody at this time, where that is so: it has expired, or is not valid yet. A file
/// that can't be read has no such reason.
pub fn out_of_time(path: &Path) -> Option<String> {
    let found = certificates(path).ok()?;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(found.first()?).ok()?;
    let (validity, now) = (certificate.validity(), x509_parser::time::ASN1Time::now());
    let path = path.display();
    if now > validity.not_after {
        return Some(format!("{path}: the certificate has expired on {}: renew it", validity.not_after));
    }
    (now < validity.not_before)
        .then(|| format!("{path}: the certificate is not valid before {}: is the clock right?", validity.not_before))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::File { path: path.to_owned(), error: error.to_string() })?;
    }
    Ok(roots)
}

fn config<E: std::fmt::Display>(error: E) -> TlsError {
    TlsError::Config(error.to_string())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server's side, ALPN `h2`. With `client_ca`, clients must show a certificate that it signed.
pub fn server(cert: &Path, key_file: &Path, client_ca: Option<&Path>) -> Result<Arc<ServerConfig>, TlsError> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(config)?;
    let builder = match client_ca {
        Some(ca) => {
            let roots = Arc::new(roots(ca)?);
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(config)?,
            )
        }
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_single_cert(certificates(cert)?, key(key_file)?).map_err(pair(cert, key_file))?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(server))
}

/// A client's side, ALPN `h2`: servers must show a certificate that `ca` signed; `identity` is our own certificate and key.
pub fn client(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(config)?
        .with_root_certificates(roots(ca)?);
    let mut client = match identity {
        Some((cert, key_file)) => {
            builder.with_client_auth_cert(certificates(cert)?, key(key_file)?).map_err(pair(cert, key_file))?
        }
        None => builder.with_no_client_auth(),
    };
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(client))
}

/// PEM as a configuration gives it: the text itself, or what was in the file that it names.
#[derive(Clone, PartialEq, Eq)]
pub struct PemText(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for PemText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PemText(***)")
    }
}

impl PemText {
    /// The file that such text names.
    pub fn file(text: &str) -> Option<PathBuf> {
        Some(text.trim()).filter(|text| !text.is_empty() && !text.starts_with("-----")).map(PathBuf::from)
    }

    /// Text that begins with `-----` is the PEM, other text the name of a file; empty = not given.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn read(text: &str) -> Result<Option<Self>, String> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if text.starts_with("-----") {
            return Ok(Some(Self(Zeroizing::new(text.as_bytes().to_owned()))));
        }
        let read = std::fs::read(text).map_err(|error| format!("{text}: {error}"))?;
        Ok(Some(Self(Zeroizing::new(read))))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Vec<_> = CertificateDer::pem_slice_iter(&self.0).collect::<Result<_, _>>().map_err(config)?;
        if found.is_empty() { Err(config("holds no PEM certificate")) } else { Ok(found) }
    }
}

/// PEM that is looked at again: the text itself, or the file that a configuration names.
#[derive(Clone, PartialEq, Eq)]
pub enum PemSource {
    /// It stays.
    Text(PemText),
    /// It may change.
    File(PathBuf),
}

impl std::fmt::Debug for PemSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => text.fmt(f),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl PemSource {
    /// Text that begins with `-----` is the PEM, other text the name of a file; empty = not given.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() {
            None
        } else if text.starts_with("-----") {
            Some(Self::Text(PemText(Zeroizing::new(text.as_bytes().to_owned()))))
        } else {
            Some(Self::File(text.into()))
        }
    }

    fn text(&self) -> Result<PemText, TlsError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => {
                let file = |error: std::io::Error| TlsError::File { path: path.clone(), error: error.to_string() };
                std::fs::read(path).map(|bytes| PemText(Zeroizing::new(bytes))).map_err(file)
            }
        }
    }

    fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Text(_) => None,
            Self::File(path) => Some(path.clone()),
        }
    }
}

/// What an HTTPS server shows and asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebServer {
    /// Our certificate, with its chain.
    pub cert: PemSource,
    /// Its key.
    pub key: PemSource,
    /// Clients must show a certificate that this signed; absent = they need none.
    pub client_ca: Option<PemSource>,
    /// TLS 1.2 is spoken too.
    pub old: bool,
    /// Groups and suites.
    pub choice: Choice,
}

impl WebServer {
    fn files(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).filter_map(PemSource::file).collect()
    }

    /// A server's side of HTTP/1.1.
    fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(chosen(&self.choice))
            .with_protocol_versions(&versions(self.old))
            .map_err(config)?;
        let builder = match &self.client_ca {
            Some(ca) => {
                let roots = Arc::new(root_store(&ca.text()?)?);
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(config)?,
                )
            }
            None => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::from_pem_slice(&self.key.text()?.0).map_err(config)?;
        let mut server = builder.with_single_cert(self.cert.text()?.certificates()?, key).map_err(config)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(server))
    }
}

fn chosen(choice: &Choice) -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    choice.narrow(&mut provider);
    Arc::new(provider)
}

fn versions(old: bool) -> Vec<&'static rustls::SupportedProtocolVersion> {
    if old { vec![&rustls::version::TLS12, &rustls::version::TLS13] } else { vec![&rustls::version::TLS13] }
}

fn root_store(ca: &PemText) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in ca.certificates()? {
        roots.add(certificate).map_err(config)?;
    }
    Ok(roots)
}

/// A client's side of HTTP/1.1: servers must show a certificate that `ca` signed, or, without it, one that the system trusts.
/// `old` takes TLS 1.2 too, `choice` some groups and suites only.
///
/// # Errors
/// What is wrong with the certificates and keys, or that the system trusts nobody.
pub fn web_client(
    ca: Option<&PemText>,
    identity: Option<(&PemText, &PemText)>,
    old: bool,
    choice: &Choice,
) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = if let Some(ca) = ca {
        root_store(ca)?
    } else {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(config("the system has no trusted CAs: give cacert"));
        }
        roots
    };
    let builder = ClientConfig::builder_with_provider(chosen(choice))
        .with_protocol_versions(&versions(old))
        .map_err(config)?
        .with_root_certificates(roots);
    let client = match identity {
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_slice(&key.0).map_err(config)?;
            builder.with_client_auth_cert(cert.certificates()?, key).map_err(config)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(client))
}

/// The names a peer's (verified) certificate gives it: `dns:…` and `uri:…` of the subject alternative names, `cn:…` of the subject.
/// No certificate or one that can't be read: no names, which is never "trusted".
pub fn peer_names(certificates: &[CertificateDer<'_>]) -> Vec<String> {
    let Some(leaf) = certificates.first() else { return Vec::new() };
    let Ok((_, leaf)) = x509_parser::certificate::X509Certificate::from_der(leaf) else { return Vec::new() };
    let mut names = Vec::new();
    if let Ok(Some(alternative)) = leaf.subject_alternative_name() {
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push(format!("dns:{name}")),
                GeneralName::URI(name) => names.push(format!("uri:{name}")),
                _ => {}
            }
        }
    }
    names.extend(
        leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(|name| format!("cn:{name}")),
    );
    names
}

#[cfg(test)]
mod tests;
