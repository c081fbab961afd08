//! The read gate: the stream that russh reads from, and the means to make it wait.
//!
//! Closing the gate delays *reading* only: output, timers and queued messages of the connection go on. It paces a stuck
//! channel's trickle, keeps tiny grants apart, stops reading at the cap, and holds everything back while a request
//! waits for its late answer. It is also how a connection is cut, because russh's task can't be aborted from outside.

use bytes::{Buf as _, BytesMut};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// russh makes two reads for a packet, one of them of a few bytes; this makes one system call of several packets.
const BUFFER: usize = 64 * 1024;

/// After a strict hold the connection's task is polled this often before it reads: so that the queued answer goes out
/// before the next request arrives and changes what the answer means.
const SETTLE: u8 = 2;

#[derive(Debug, Default)]
struct State {
    /// Nothing is read from the socket before this.
    pause_until: Option<Instant>,
    /// Nothing is read at all before this.
    hold_until: Option<Instant>,
    /// Late answers under way.
    holds: usize,
    capped: bool,
    settle: u8,
    cut: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The gate of one connection. All clones are one.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Mutex<State>>);

/// What keeps a reader waiting.
enum Verdict {
    Read,
    Until(Instant),
    Wait,
    Cut,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.state();
            change(&mut state);
            (state.reader.take(), if state.cut { state.writer.take() } else { None })
        };
        for waker in [wakers.0, wakers.1].into_iter().flatten() {
            waker.wake();
        }
    }

    /// Reads nothing from the socket before `at`; bytes already in memory pass. The latest call counts.
    pub fn pause_until(&self, at: Instant) {
        self.state().pause_until = Some(at);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.change(|state| state.pause_until = None);
    }

    /// Reads nothing at all before `at`.
    pub fn hold_until(&self, at: Instant) {
        let mut state = self.state();
        state.hold_until = state.hold_until.max(Some(at));
    }

    /// Reads nothing from the socket while the connection has too much queued.
    pub fn cap(&self, capped: bool) {
        self.change(|state| state.capped = capped);
    }

    /// Reads nothing at all until the guard is dropped.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.state().holds += 1;
        Hold(self.clone())
    }

    /// Ends the connection: every read and write fails from now on.
    pub fn cut(&self) {
        self.change(|state| state.cut = true);
    }

    fn may_read(&self, buffered: bool, cx: &Context<'_>) -> Verdict {
        let mut state = self.state();
        if state.cut {
            return Verdict::Cut;
        }
        let now = Instant::now();
        state.hold_until = state.hold_until.filter(|at| *at > now);
        state.pause_until = state.pause_until.filter(|at| *at > now);
        if state.holds == 0 && state.settle > 0 {
            state.settle -= 1;
            cx.waker().wake_by_ref();
            return Verdict::Wait;
        }
        let verdict = if state.holds > 0 || (state.capped && !buffered) {
            Verdict::Wait
        } else if let Some(at) = state.hold_until.or_else(|| state.pause_until.filter(|_| !buffered)) {
            Verdict::Until(at)
        } else {
            Verdict::Read
        };
        // Also while waiting for the socket: a cut must reach it.
        state.reader = Some(cx.waker().clone());
        verdict
    }

    fn may_write(&self, cx: &Context<'_>) -> io::Result<()> {
        let mut state = self.state();
        if state.cut {
            return Err(cut());
        }
        if !state.writer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.writer = Some(cx.waker().clone());
        }
        Ok(())
    }
}

/// Keeps the gate strictly closed. Dropping it opens the gate.
#[derive(Debug)]
pub struct Hold(Gate);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.change(|state| {
            state.holds -= 1;
            state.settle = SETTLE;
        });
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut")
}

/// A stream behind a [`Gate`], with a read buffer that exists only while bytes flow.
#[derive(Debug)]
pub struct Gated<S> {
    inner: S,
    gate: Gate,
    buffer: BytesMut,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Gated<S> {
    /// Puts the gate before the stream.
    pub fn new(inner: S, gate: Gate) -> Self {
        Self { inner, gate, buffer: BytesMut::new(), timer: None }
    }

    /// Ready once it is `at`.
    fn poll_timer(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gated<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        loop {
            match me.gate.may_read(!me.buffer.is_empty(), cx) {
                Verdict::Read => break,
                Verdict::Until(at) => ready!(me.poll_timer(at, cx)),
                Verdict::Wait => return Poll::Pending,
                Verdict::Cut => return Poll::Ready(Err(cut())),
            }
        }
        if me.buffer.is_empty() {
            if out.remaining() >= BUFFER {
                return Pin::new(&mut me.inner).poll_read(cx, out);
            }
            me.buffer.reserve(BUFFER);
            match tokio_util::io::poll_read_buf(Pin::new(&mut me.inner), cx, &mut me.buffer) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // An idle connection keeps no buffer.
                    me.buffer = BytesMut::new();
                    return Poll::Pending;
                }
            }
        }
        let len = out.remaining().min(me.buffer.len());
        if let Some(bytes) = me.buffer.get(..len) {
            out.put_slice(bytes);
        }
        me.buffer.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.gate.may_write(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.gate.may_write(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    async fn is_pending(future: impl Future) -> bool {
        tokio::time::timeout(Duration::from_millis(1), future).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_lets_buffered_bytes_pass_and_a_hold_does_not() {
        let (mut peer, stream) = duplex(1 << 20);
        let gate = Gate::default();
        let mut gated = Gated::new(stream, gate.clone());
        peer.write_all(b"abcd").await.expect("writes");
        assert_eq!(gated.read_u8().await.expect("reads"), b'a');
        gate.pause_until(Instant::now() + Duration::from_secs(10));
        assert_eq!(gated.read_u8().await.expect("reads"), b'b');
        let hold = gate.hold();
        assert!(is_pending(gated.read_u8()).await);
        drop(hold);
        assert_eq!(gated.read_u8().await.expect("reads"), b'c');
        gate.cap(true);
        assert_eq!(gated.read_u8().await.expect("reads"), b'd');
        peer.write_all(b"ef").await.expect("writes");
        assert!(is_pending(gated.read_u8()).await);
        gate.cap(false);
        assert!(is_pending(gated.read_u8()).await, "still paused");
        let before = Instant::now();
        assert_eq!(gated.read_u8().await.expect("reads"), b'e');
        assert!(before.elapsed() > Duration::from_secs(9));
        gate.hold_until(Instant::now() + Duration::from_secs(3));
        let before = Instant::now();
        assert_eq!(gated.read_u8().await.expect("reads"), b'f');
        assert!(before.elapsed() >= Duration::from_secs(3), "the next read waits");
    }

    #[tokio::test(start_paused = true)]
    async fn opening_wakes_a_waiting_reader() {
        let (mut peer, stream) = duplex(64);
        let gate = Gate::default();
        let mut gated = Gated::new(stream, gate.clone());
        peer.write_all(b"xy").await.expect("writes");
        let hold = gate.hold();
        let reader = tokio::spawn(async move { (gated.read_u8().await, gated) });
        tokio::task::yield_now().await;
        assert!(!reader.is_finished());
        drop(hold);
        let (byte, mut gated) = reader.await.expect("no panic");
        assert_eq!(byte.expect("reads"), b'x');
        assert_eq!(gated.read_u8().await.expect("reads"), b'y');
        gate.pause_until(Instant::now() + Duration::from_hours(1));
        peer.write_all(b"z").await.expect("writes");
        let reader = tokio::spawn(async move { gated.read_u8().await });
        tokio::task::yield_now().await;
        gate.resume();
        assert_eq!(reader.await.expect("no panic").expect("reads"), b'z');
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_reaches_a_blocked_reader_and_writer() {
        let (_peer, stream) = duplex(8);
        let gate = Gate::default();
        let (mut reader, mut writer) = tokio::io::split(Gated::new(stream, gate.clone()));
        let reading = tokio::spawn(async move { reader.read_u8().await });
        let writing = tokio::spawn(async move { writer.write_all(&[0; 100]).await });
        tokio::task::yield_now().await;
        gate.cut();
        assert!(reading.await.expect("no panic").is_err());
        assert!(writing.await.expect("no panic").is_err());
    }
}
