//! `podbay run`, `shell`, `attach` and `sessions`: a gRPC client of the contract, for CI and for people without SSH.
//!
//! What a session's streams carry, and what is said again when one breaks, is `podbay-frontend-core`'s session machine, as in the
//! SSH frontend; here are the command line, this process's own ends, and what is remembered in files.

mod args;
mod attach;
mod begin;
mod connection;
mod dialogue;
mod exit;
mod local;
mod pump;
mod server;
mod sessions;
mod store;
mod terminal;

pub use args::{Attach, Run, Sessions, Shell};

/// The exit status of everything that is neither the program's end nor a signal's to this process.
pub const FAILED: u8 = 255;

/// Runs one of them; gives the exit status.
pub fn main(what: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(Box::pin(what))
}

/// A line for the user. In raw mode a terminal needs the carriage return, and elsewhere it does no harm at a line's end. Where
/// nobody reads stderr, nobody is told: that ends nothing.
pub fn say(text: impl std::fmt::Display) {
    use std::io::{IsTerminal as _, Write as _, stderr};
    let end = if stderr().is_terminal() { "\r\n" } else { "\n" };
    let _ = stderr().write_all(format!("podbay: {text}{end}").as_bytes());
}
