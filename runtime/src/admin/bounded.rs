//! A listener whose clients have bounds: they are nobody in particular, and file descriptors are everybody's.

use axum::serve::Listener;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};

/// Clients at once; more wait in the listener's backlog. Monitoring is a few, and each asks for a moment.
pub(super) const MOST: usize = 64;

/// A connection's whole life. Who asks again after it connects again; who says nothing, or reads nothing, is gone.
pub(super) const LIFE: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Bounded<L> {
    listener: L,
    places: Arc<Semaphore>,
    life: Duration,
}

impl<L> Bounded<L> {
    pub(super) fn new(listener: L, most: usize, life: Duration) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(most)), life }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Guest<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // It is never closed, so there is a place always.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, address) = self.listener.accept().await;
        (Guest { stream, end: Box::pin(sleep(self.life)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A client's connection.
pub(super) struct Guest<S> {
    stream: S,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<S> Guest<S> {
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.end.as_mut().poll(cx).is_ready() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guest<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guest<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, routing::get};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_out_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let at = listener.local_addr().expect("bound");
        let bounded = Bounded::new(listener, 1, Duration::from_millis(200));
        let server =
            tokio::spawn(async move { axum::serve(bounded, Router::new().route("/", get(|| async { "ok" }))).await });
        let mut silent = TcpStream::connect(at).await.expect("connects");
        silent.write_all(b"GET / HT").await.expect("writes");
        let mut next = TcpStream::connect(at).await.expect("connects");
        next.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("writes");
        let (mut answer, mut rest) = (String::new(), Vec::new());
        let whole = Duration::from_secs(20);
        let told = timeout(whole, next.read_to_string(&mut answer)).await.expect("an answer in time");
        assert!(told.is_ok() && answer.ends_with("ok"), "{answer}");
        // Its end may be a reset.
        let _ = timeout(whole, silent.read_to_end(&mut rest)).await.expect("it was cut");
        server.abort();
    }
}
