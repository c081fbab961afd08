//! The SSH side: the server's socket and its gate, russh's callbacks, and what a connection's channels share.

mod channels;
mod connection;
mod gate;
mod handler;
mod input;
mod late;
mod login;
mod options;
mod prompt;
mod shared;
mod signal;
mod watch;

pub(crate) use channels::{Slot, TOO_MANY};
pub(crate) use connection::serve;
pub(crate) use gate::{Gate, Hold};
pub(crate) use input::Input;
pub(crate) use late::LateAnswer;
pub(crate) use options::russh_config;
pub(crate) use shared::{Admitted, Conn};
pub(crate) use signal::signal_of;
