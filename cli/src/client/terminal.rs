//! This process's terminal: its size and its mode.

use podbay::v1::WindowSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io;

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
