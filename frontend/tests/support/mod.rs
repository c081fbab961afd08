//! The world of the frontend's tests: the library in process, the stock `ssh` client, and a backend that runs local
//! processes and does what a test tells it.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod backend;
pub mod program;
pub mod tls;
pub mod world;

pub use backend::Replica;
pub use world::World;

use std::time::Duration;

/// A test fails rather than hang.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Waits for a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}
