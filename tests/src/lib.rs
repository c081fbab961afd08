//! A whole Podbay for a scenario: cluster, backends, frontend, and users with the stock OpenSSH client.
//!
//! Processes are the real programs, found beside the test's own executable (built with the workspace). Everything of a
//! [`World`] ends with it, and [`World::ends_clean`] proves that nothing is left.

// A scenario that can't be set up fails by a panic, at its own line.
#![allow(clippy::missing_panics_doc)]

pub mod cluster;
mod master;
mod process;
mod terminal;
mod world;

pub use master::Master;
pub use process::{Answered, Running, finish, program, wait_until};
pub use terminal::Terminal;
pub use world::{Setup, World, image, only_embedded};

use std::time::Duration;

/// How long a scenario waits for anything that must happen; far above what it takes, since machines are shared.
pub const PATIENCE: Duration = Duration::from_mins(1);
