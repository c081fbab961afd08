//! One TCP (and TLS) connection to a replica.

use hyper_util::rt::TokioIo;
use podbay_runtime::tls::Followed;
use rustls::{CertificateError, pki_types::ServerName};
use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::Status;

/// Connect and handshake, each.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Unacknowledged data fails a connection after this (limits.md 3.5).
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// How replicas are spoken to.
#[derive(Clone)]
pub enum Security {
    /// Without TLS: tests, and a backend on the same host.
    Plaintext,
    /// With TLS; `name` replaces the address's host name in the check of certificates.
    Tls {
        /// Roots and our own certificate, as the files have them.
        config: Arc<Followed<rustls::ClientConfig>>,
        /// The name that certificates must have, where it is not the host's.
        name: Option<ServerName<'static>>,
        /// How often the files are looked at.
        reload_interval: Duration,
    },
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plaintext => f.write_str("Plaintext"),
            Self::Tls { name, .. } => f.debug_struct("Tls").field("name", name).finish_non_exhaustive(),
        }
    }
}

/// A stream of either kind.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// The mark of a call that never left: its connection could not be made.
#[derive(Debug, thiserror::Error)]
#[error("can't connect: {0}")]
pub struct ConnectFailed(io::Error);

/// Connects to a replica whose host was `host`.
pub async fn connect(
    address: SocketAddr,
    host: String,
    security: Security,
) -> Result<TokioIo<Box<dyn Transport>>, ConnectFailed> {
    dial(address, host, security).await.map(TokioIo::new).map_err(ConnectFailed)
}

async fn dial(address: SocketAddr, host: String, security: Security) -> io::Result<Box<dyn Transport>> {
    let stream = timeout(TIMEOUT, TcpStream::connect(address)).await.map_err(|_| too_slow("connecting"))??;
    stream.set_nodelay(true)?;
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    match security {
        Security::Plaintext => Ok(Box::new(stream)),
        Security::Tls { config, name, .. } => {
            let name = match name {
                Some(name) => name,
                None => ServerName::try_from(host).map_err(io::Error::other)?,
            };
            let handshake = TlsConnector::from(config.load()).connect(name, stream);
            let stream = timeout(TIMEOUT, handshake).await.map_err(|_| too_slow("the TLS handshake"))??;
            Ok(Box::new(stream))
        }
    }
}

fn too_slow(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} took longer than {TIMEOUT:?}"))
}

/// Why a call's connection was not to be had, for the log: what happened, and what to look at.
pub fn why(status: &Status) -> String {
    let error = causes(status).find_map(|cause| {
        cause.downcast_ref::<ConnectFailed>().map(|failed| &failed.0).or_else(|| cause.downcast_ref::<io::Error>())
    });
    let text = match error {
        Some(error) => error.to_string(),
        None => causes(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string),
    };
    let tls = error.and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let advice = match tls {
        Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
            CertificateError::UnknownIssuer => {
                "the CA in frontend.backend.tls.ca did not sign the backend's certificate"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "give a name that is in the backend's certificate as frontend.backend.tls.serverName"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "renew the backend's certificate",
            _ => "look at the backend's grpc.tls.certFile",
        },
        Some(rustls::Error::InvalidMessage(_)) => {
            "what listens there speaks no TLS: look at frontend.backend.addresses"
        }
        // Which of the two comes is a race between its alert and its end.
        _ if text.contains("fatal alert") || text == "connection closed" => {
            "the backend refuses our certificate: look at frontend.backend.tls.cert and the backend's grpc.tls.clientCAFile"
        }
        _ if error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) => {
            "is podbay-backend running there? The address is of frontend.backend.addresses"
        }
        _ => return text,
    };
    format!("{text}: {advice}")
}

/// Whether the call that ended with this status never reached its peer.
pub fn never_sent(status: &Status) -> bool {
    causes(status).any(<dyn std::error::Error + 'static>::is::<ConnectFailed>)
}

/// Whether the transport made this status; else the peer sent it.
pub fn transport_broke(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |cause| cause.source())
}
