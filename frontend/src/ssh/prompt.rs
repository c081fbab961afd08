//! A client's socket that acknowledges at once while the client logs in.
//!
//! OpenSSH's client sends KEXINIT and then its half of the key exchange in two small writes, with Nagle's algorithm on. The second
//! waits for the acknowledgement of the first, and Linux holds that back for 40 ms where we have nothing to send with it: our own
//! KEXINIT is out by then. Half of all logins waited so.

use socket2::SockRef;
use std::sync::{Arc, OnceLock};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A login and the first requests take about ten reads.
const READS: u8 = 16;

/// The socket.
#[derive(Debug)]
pub struct Prompt {
    stream: TcpStream,
    /// Reads that are still to be acknowledged at once.
    left: u8,
    /// What the client has said before its version is whole.
    heard: Vec<u8>,
    version: Arc<OnceLock<String>>,
}

/// RFC 4253 section 4.2: with CR and LF.
const MAX_VERSION: usize = 255;

impl Prompt {
    /// A socket that was just accepted.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, left: READS, heard: Vec::new(), version: Arc::default() }
    }

    /// The same; the client's identification goes there as soon as it is read.
    #[must_use]
    pub fn telling(mut self, version: Arc<OnceLock<String>>) -> Self {
        self.version = version;
        self
    }

    /// Listens for the client's first line.
    fn hear(&mut self, bytes: &[u8]) {
        let room = MAX_VERSION.saturating_sub(self.heard.len());
        self.heard.extend(bytes.iter().take(room));
        let end = self.heard.iter().position(|byte| *byte == b'\n');
        if let Some(line) = self.heard.get(..end.unwrap_or(self.heard.len()))
            && (end.is_some() || self.heard.len() >= MAX_VERSION)
        {
            let line: String = line
                .iter()
                .filter(|byte| byte.is_ascii_graphic() || **byte == b' ')
                .map(|byte| char::from(*byte))
                .collect();
            // Only the first one counts.
            let _ = self.version.set(line);
            self.heard = Vec::new();
        }
    }
}

impl AsyncRead for Prompt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        if self.version.get().is_none() && matches!(read, Poll::Ready(Ok(()))) {
            self.hear(out.filled().get(before..).unwrap_or_default());
        }
        if self.left > 0 && matches!(read, Poll::Ready(Ok(()))) {
            self.left -= 1;
            // The kernel forgets it with our next answer. Without it a login is only slower.
            let _ = SockRef::from(&self.stream).set_tcp_quickack(true);
        }
        read
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    #[tokio::test]
    async fn each_of_the_first_reads_is_acknowledged_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut prompt = Prompt::new(listener.accept().await.unwrap().0);
        for read in 1..=READS {
            // As our own answers do it. (Later the kernel decides, and may turn it on by itself.)
            SockRef::from(&prompt.stream).set_tcp_quickack(false).unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(prompt.read_u8().await.unwrap(), b'x');
            assert!(SockRef::from(&prompt.stream).tcp_quickack().unwrap(), "read {read}");
        }
        assert_eq!(prompt.left, 0);
    }

    #[tokio::test]
    async fn the_clients_version_is_heard_however_it_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let version = Arc::default();
        let mut prompt = Prompt::new(listener.accept().await.unwrap().0).telling(Arc::clone(&version));
        for byte in b"SSH-2.0-OpenSSH_9.6 x\r\nmore" {
            client.write_all(&[*byte]).await.unwrap();
            assert_eq!(prompt.read_u8().await.unwrap(), *byte);
        }
        assert_eq!(version.get().map(String::as_str), Some("SSH-2.0-OpenSSH_9.6 x"));
        assert!(prompt.heard.is_empty());
    }
}
