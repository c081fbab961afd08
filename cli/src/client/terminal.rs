//! This process's own ends: stdin, outputs and the terminal.
//!
//! Each is a thread that blocks, so that a terminal or pipe which is slow makes nothing else wait: what is read waits for credit, and
//! what is written was granted before.

use bytes::Bytes;
use podbay::v1::{Stream, WindowSize};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::{
    io::{self, Read as _, Write},
    thread,
};
use tokio::sync::mpsc;

/// A terminal in raw mode; as it was before when this is dropped.
pub struct Raw(Termios);

impl Raw {
    /// `None` where stdin is no terminal.
    pub fn enter() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Whether stdin is a terminal.
pub fn is_terminal() -> bool {
    isatty(io::stdin())
}

/// Its size; zeros where it has none.
pub fn size() -> WindowSize {
    tcgetwinsize(io::stdin()).map_or_else(
        |_| WindowSize::default(),
        |size| WindowSize {
            columns: size.ws_col.into(),
            rows: size.ws_row.into(),
            width_pixels: size.ws_xpixel.into(),
            height_pixels: size.ws_ypixel.into(),
        },
    )
}

/// Reads stdin piece by piece; the channel ends with it.
pub fn stdin() -> mpsc::Receiver<Bytes> {
    let (send, receive) = mpsc::channel(1);
    thread::spawn(move || {
        let mut buffer = vec![0; podbay::FRAME];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    let piece = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
                    if send.blocking_send(piece).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receive
}

/// What was written: the offset behind it and its length; an error: nobody reads there any more.
pub type Written = (Stream, Result<(u64, u64), io::Error>);

/// Writes one output. What waits in its queue is bounded by the credit that was given.
pub fn output(
    stream: Stream,
    mut to: impl Write + Send + 'static,
    written: mpsc::UnboundedSender<Written>,
) -> mpsc::UnboundedSender<(u64, Bytes)> {
    let (send, mut receive) = mpsc::unbounded_channel::<(u64, Bytes)>();
    thread::spawn(move || {
        while let Some((end, data)) = receive.blocking_recv() {
            let result = to.write_all(&data).and_then(|()| to.flush()).map(|()| (end, data.len() as u64));
            let failed = result.is_err();
            if written.send((stream, result)).is_err() || failed {
                return;
            }
        }
    });
    send
}
