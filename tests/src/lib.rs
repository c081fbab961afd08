//! A whole Podbay for a scenario: cluster, backends, frontend, and users with the stock OpenSSH client.
//!
//! Processes are the real programs, found beside the test's own executable (built with the workspace). Everything of a
//! [`World`] ends with it, and [`World::ends_clean`] proves that nothing is left.

// A scenario that can't be set up fails by a panic, at its own line.
#![allow(clippy::missing_panics_doc)]

pub mod cluster;
mod echo;
mod master;
pub mod ours;
mod process;
mod terminal;
mod way;
mod world;

pub use cluster::connection;
pub use echo::Loop;
pub use master::Master;
pub use nix::sys::signal::Signal;
pub use process::{Answered, Running, faketime, finish, program, program_of_tests, python, wait_so_long, wait_until};
pub use terminal::Terminal;
pub use world::{Setup, World, image, image_with_agent, only_embedded};

use sha2::{Digest as _, Sha256};
use std::time::Duration;

/// How long a scenario waits for anything that must happen; far above what it takes, since machines are shared.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Bytes that no two places share, cheap to make.
pub fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut all = Vec::with_capacity(len + 8);
    while all.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(len);
    all
}

/// SHA-256 in hex, as `sha256sum` writes it.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
