//! The program `podbay-agent`, static, for the machine's own kind of processor, as bytes: to hand out, and to put into pods.
//!
//! It is built by this crate's build script for the musl target where that is installed (`rustup target add
//! x86_64-unknown-linux-musl`), else for glibc, which makes it some 0.8 MB larger. Both run in any image.

/// The program.
pub const BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podbay-agent"));

/// The target that it was built for, for example `x86_64-unknown-linux-musl`.
pub const TARGET: &str = env!("PODBAY_AGENT_TARGET");

/// Where the build left the same program as a file: for the tests of the tree that it was built in, and for nothing else.
pub const BUILT_AT: &str = concat!(env!("OUT_DIR"), "/podbay-agent");
