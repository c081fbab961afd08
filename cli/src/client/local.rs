//! This process's own ends: stdin, outputs and signals.
//!
//! Each stream is a thread that blocks, so that a terminal or pipe which is slow makes nothing else wait: what is read waits for
//! credit, and what is written was granted before.

use bytes::Bytes;
use podbay::v1::Stream;
use std::{
    io::{self, ErrorKind, Read as _, Write},
    thread,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// What this process is told by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// INT: for the program, where there is one.
    Interrupt,
    /// The terminal has another size.
    Resized,
    /// TERM or HUP, by its number: leave.
    Leave(u8),
}

/// Signals to this process; from now on none of them ends it by itself.
pub struct Signals {
    interrupt: Signal,
    resized: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl Signals {
    /// Catches them.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            resized: signal(SignalKind::window_change())?,
            terminated: signal(SignalKind::terminate())?,
            hung_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next one. Cancel safe.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Interrupt,
            _ = self.resized.recv() => Told::Resized,
            _ = self.terminated.recv() => Told::Leave(15),
            _ = self.hung_up.recv() => Told::Leave(1),
        }
    }

    /// The next that asks this process to leave where there is no program to pass INT to: its number. Cancel safe.
    pub async fn leave(&mut self) -> u8 {
        loop {
            match self.next().await {
                Told::Interrupt => return 2,
                Told::Leave(number) => return number,
                Told::Resized => {}
            }
        }
    }
}

/// What came of a write: how many bytes more are out.
pub type Written = (Stream, io::Result<usize>);

/// The streams.
pub struct Streams {
    /// Pieces of stdin; `None` where it is not read, or has ended.
    pub stdin: Option<mpsc::Receiver<io::Result<Bytes>>>,
    pub stdout: mpsc::UnboundedSender<Bytes>,
    pub stderr: mpsc::UnboundedSender<Bytes>,
    /// Ends when both outputs' threads have.
    pub written: mpsc::UnboundedReceiver<Written>,
}

impl Streams {
    /// Begins; stdin is read where it is wanted.
    pub fn start(reads: bool) -> Self {
        let (told, written) = mpsc::unbounded_channel();
        Self {
            stdin: reads.then(stdin),
            stdout: output(Stream::Stdout, io::stdout(), told.clone()),
            stderr: output(Stream::Stderr, io::stderr(), told),
            written,
        }
    }
}

/// The next piece of stdin; `None`: its end. Waits for ever where it is not read. Cancel safe.
pub async fn piece(stdin: &mut Option<mpsc::Receiver<io::Result<Bytes>>>) -> Option<io::Result<Bytes>> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads stdin piece by piece; the channel ends with it, or with an error.
fn stdin() -> mpsc::Receiver<io::Result<Bytes>> {
    let (send, receive) = mpsc::channel(1);
    thread::spawn(move || {
        let mut buffer = vec![0; podbay::FRAME];
        loop {
            let piece = match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => Ok(Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default())),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if send.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    receive
}

/// Writes one output. What waits in its queue is bounded by the credit that was given.
fn output(
    stream: Stream,
    mut to: impl Write + Send + 'static,
    written: mpsc::UnboundedSender<Written>,
) -> mpsc::UnboundedSender<Bytes> {
    let (send, mut receive) = mpsc::unbounded_channel::<Bytes>();
    thread::spawn(move || {
        while let Some(data) = receive.blocking_recv() {
            let result = to.write_all(&data).and_then(|()| to.flush()).map(|()| data.len());
            let failed = result.is_err();
            if written.send((stream, result)).is_err() || failed {
                return;
            }
        }
    });
    send
}
