//! TLS as gRPC needs it: configurations from PEM files, a bounded stream of accepted connections, and the names in
//! a peer's certificate. One stack: rustls with ring.

use futures::Stream;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

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
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| TlsError::File { path: path.to_owned(), error: error.to_string() })
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
    let mut server = builder.with_single_cert(certificates(cert)?, key(key_file)?).map_err(config)?;
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
        Some((cert, key_file)) => builder.with_client_auth_cert(certificates(cert)?, key(key_file)?).map_err(config)?,
        None => builder.with_no_client_auth(),
    };
    client.alpn_protocols = vec![b"h2".to_vec()];
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

/// Bounds of [`incoming`].
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Handshakes under way at once; a peer beyond that waits in the listener's backlog.
    pub handshakes: usize,
    /// The time one handshake may take.
    pub handshake_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { handshakes: 64, handshake_timeout: Duration::from_secs(10) }
    }
}

/// Accepts connections and does their handshakes, each in a task of its own, until `stop`. The stream yields only finished
/// ones, and never an error: what fails is given to `refused` (for a log line and a counter), and an accept that fails
/// (out of file descriptors …) is tried again after a pause.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    limits: Limits,
    stop: CancellationToken,
    refused: impl Fn(Option<SocketAddr>, &io::Error) + Send + Sync + 'static,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> + Send + 'static {
    let (ready, stream) = mpsc::channel(1);
    tokio::spawn(accept(listener, tls, limits, stop, Arc::new(refused), ready));
    ReceiverStream::new(stream)
}

type Refused = Arc<dyn Fn(Option<SocketAddr>, &io::Error) + Send + Sync>;

/// Owns the handshakes; ends, and ends them, when `stop` is cancelled or the stream is dropped.
async fn accept(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    limits: Limits,
    stop: CancellationToken,
    refused: Refused,
    ready: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let (acceptor, permits) = (TlsAcceptor::from(tls), Arc::new(Semaphore::new(limits.handshakes)));
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let permit = tokio::select! {
            () = stop.cancelled() => return,
            () = ready.closed() => return,
            Ok(permit) = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            () = ready.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                refused(None, &error);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, ready, refused) = (acceptor.clone(), ready.clone(), Arc::clone(&refused));
        handshakes.spawn(async move {
            let _ = stream.set_nodelay(true);
            let done = tokio::time::timeout(limits.handshake_timeout, acceptor.accept(stream)).await;
            drop(permit);
            match done.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake took too long"))) {
                Ok(stream) => drop(ready.send(Ok(stream)).await),
                Err(error) => refused(Some(peer), &error),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        /// A CA and one certificate for both sides.
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let ca_key = KeyPair::generate().expect("a key");
            let mut ca = CertificateParams::default();
            ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let ca_cert = ca.self_signed(&ca_key).expect("a CA");
            let key = KeyPair::generate().expect("a key");
            let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
            leaf.subject_alt_names.push(SanType::URI("spiffe://x/frontend".try_into().expect("a URI")));
            leaf.distinguished_name.push(rcgen::DnType::CommonName, "frontend");
            let leaf = leaf.signed_by(&key, &Issuer::new(ca, &ca_key)).expect("a certificate");
            std::fs::write(dir.path().join("ca"), ca_cert.pem()).expect("writes");
            std::fs::write(dir.path().join("cert"), leaf.pem()).expect("writes");
            std::fs::write(dir.path().join("key"), key.serialize_pem()).expect("writes");
            Self { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }
    }

    #[tokio::test]
    async fn garbage_hurts_nobody_and_names_are_read() {
        let files = Files::new();
        let server = server(&files.path("cert"), &files.path("key"), Some(&files.path("ca"))).expect("a server");
        let client = client(&files.path("ca"), Some((&files.path("cert"), &files.path("key")))).expect("a client");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let (refused, mut refusals) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let limits = Limits { handshakes: 2, handshake_timeout: Duration::from_secs(30) };
        let mut incoming = std::pin::pin!(incoming(listener, server, limits, stop.clone(), move |peer, _| {
            let _ = refused.send(peer);
        }));
        let mut garbage = TcpStream::connect(address).await.expect("connects");
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("writes");
        let dial = tokio::spawn(async move {
            let stream = TcpStream::connect(address).await.expect("connects");
            let name = "localhost".try_into().expect("a name");
            let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, stream).await.expect("handshake");
            stream.write_all(b"x").await.expect("writes");
            let _ = stream.read(&mut [0]).await;
        });
        let mut stream = incoming.next().await.expect("a connection").expect("no error");
        let names = peer_names(stream.get_ref().1.peer_certificates().expect("a certificate"));
        assert_eq!(names, ["dns:localhost", "uri:spiffe://x/frontend", "cn:frontend"]);
        assert_eq!(stream.read_u8().await.expect("reads"), b'x');
        drop(stream);
        dial.await.expect("the client ends");
        assert_eq!(refusals.recv().await.expect("a refusal"), Some(garbage.local_addr().expect("an address")));
        stop.cancel();
        assert!(incoming.next().await.is_none());
    }

    #[test]
    fn a_missing_or_wrong_file_is_named() {
        let files = Files::new();
        let error = client(&files.path("nosuch"), None).expect_err("no file").to_string();
        assert!(error.contains("nosuch"), "{error}");
        let error = client(&files.path("key"), None).expect_err("no certificate").to_string();
        assert!(error.contains("key: "), "{error}");
        assert_eq!(peer_names(&[]), Vec::<String>::new());
        assert_eq!(peer_names(&[CertificateDer::from(vec![1, 2, 3])]), Vec::<String>::new());
    }
}
