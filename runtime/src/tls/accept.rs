//! Accepted connections: after their TLS handshake, and after they have shown that they speak HTTP/2.

use super::Followed;
use futures::Stream;
use rustls::ServerConfig;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};

/// What every HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Unacknowledged data fails a connection after this (limits.md 3.5): a peer that vanished while we wrote. Idle ones are
/// found by HTTP/2's pings.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds of [`incoming`].
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Handshakes under way at once; a peer beyond that waits in the listener's backlog.
    pub handshakes: usize,
    /// The time that a peer has from its connection to the end of HTTP/2's preface.
    pub handshake_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { handshakes: 64, handshake_timeout: Duration::from_secs(10) }
    }
}

/// What peers are to speak once their handshake is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    /// A peer that sends anything but its preface is cut.
    Http2,
    /// Whatever the server makes of it.
    Anything,
}

/// Who did not get in.
#[derive(Debug)]
pub enum Refused {
    /// The accept itself failed.
    Accept,
    /// No TLS, none of ours, or too slow.
    Handshake(SocketAddr),
    /// TLS was right, but what came then is no HTTP/2, or nothing came.
    Garbage(SocketAddr),
}

/// Accepts connections and does their handshakes, each in a task of its own, until `stop`. The stream yields only finished
/// ones, and never an error: what fails is given to `refused` (for a log line and a counter), and an accept that fails
/// (out of file descriptors …) is tried again after a pause. Each handshake uses the certificates of its moment.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<Followed<ServerConfig>>,
    limits: Limits,
    stop: CancellationToken,
    refused: impl Fn(Refused, &io::Error) + Send + Sync + 'static,
) -> impl Stream<Item = io::Result<Accepted>> + Send + 'static {
    ReceiverStream::new(spawned(listener, tls, (limits, Spoken::Http2), stop, Arc::new(refused)))
}

/// The same for HTTP/1.1: what comes after the handshake is not looked at.
pub fn incoming_web(
    listener: TcpListener,
    tls: Arc<Followed<ServerConfig>>,
    limits: Limits,
    stop: CancellationToken,
    refused: impl Fn(Refused, &io::Error) + Send + Sync + 'static,
) -> mpsc::Receiver<io::Result<Accepted>> {
    spawned(listener, tls, (limits, Spoken::Anything), stop, Arc::new(refused))
}

fn spawned(
    listener: TcpListener,
    tls: Arc<Followed<ServerConfig>>,
    how: (Limits, Spoken),
    stop: CancellationToken,
    refused: Tell,
) -> mpsc::Receiver<io::Result<Accepted>> {
    let (ready, stream) = mpsc::channel(1);
    tokio::spawn(accept(listener, tls, how, stop, refused, ready));
    stream
}

type Tell = Arc<dyn Fn(Refused, &io::Error) + Send + Sync>;

/// Owns the handshakes; ends, and ends them, when `stop` is cancelled or the stream is dropped.
async fn accept(
    listener: TcpListener,
    tls: Arc<Followed<ServerConfig>>,
    (limits, spoken): (Limits, Spoken),
    stop: CancellationToken,
    refused: Tell,
    ready: mpsc::Sender<io::Result<Accepted>>,
) {
    let permits = Arc::new(Semaphore::new(limits.handshakes));
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
                refused(Refused::Accept, &error);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, ready, refused) = (TlsAcceptor::from(tls.load()), ready.clone(), Arc::clone(&refused));
        let deadline = Instant::now() + limits.handshake_timeout;
        handshakes.spawn(async move {
            if let Err(error) = options(&stream) {
                tracing::debug!(%peer, %error, "socket options");
            }
            let late = || io::Error::new(io::ErrorKind::TimedOut, "took too long");
            let stream = match timeout_at(deadline, acceptor.accept(stream)).await.unwrap_or_else(|_| Err(late())) {
                Ok(stream) => stream,
                Err(error) => return refused(Refused::Handshake(peer), &error),
            };
            let checked = timeout_at(deadline, Accepted::check(stream, spoken)).await;
            drop(permit);
            match checked.unwrap_or_else(|_| Err(late())) {
                Ok(stream) => drop(ready.send(Ok(stream)).await),
                Err(error) => refused(Refused::Garbage(peer), &error),
            }
        });
    }
}

fn options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// A connection whose peer speaks what it should.
#[derive(Debug)]
pub struct Accepted {
    stream: TlsStream<TcpStream>,
    /// How much of the preface was given again to who reads.
    given: usize,
}

impl Accepted {
    /// Reads the preface; ends at the first byte that is another.
    async fn check(mut stream: TlsStream<TcpStream>, spoken: Spoken) -> io::Result<Self> {
        if spoken == Spoken::Anything {
            return Ok(Self { stream, given: PREFACE.len() });
        }
        let mut preface = PREFACE.as_slice();
        let mut read = [0; PREFACE.len()];
        while !preface.is_empty() {
            // Never more than the preface: what follows is the server's.
            let Some(room) = read.get_mut(..preface.len()) else { break };
            let n = stream.read(room).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            preface = match (room.get(..n), preface.split_at_checked(n)) {
                (Some(got), Some((wanted, rest))) if got == wanted => rest,
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP/2")),
            };
        }
        Ok(Self { stream, given: 0 })
    }

    /// The connection below.
    pub fn get_ref(&self) -> &TlsStream<TcpStream> {
        &self.stream
    }
}

impl Connected for Accepted {
    type ConnectInfo = TlsConnectInfo<TcpConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match PREFACE.get(self.given..) {
            Some(left) if !left.is_empty() => {
                let n = left.len().min(buf.remaining());
                buf.put_slice(left.get(..n).unwrap_or_default());
                self.given += n;
                Poll::Ready(Ok(()))
            }
            _ => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
