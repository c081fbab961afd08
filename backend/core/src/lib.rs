//! What the backend decides, without I/O: configuration, lifecycle, ownership, sessions, and the port to a cluster.

pub mod cluster;
pub mod config;
pub mod connections;
pub mod failure;
pub mod fake;
pub mod handle;
pub mod identity;
mod images;
pub mod inject;
pub mod lifecycle;
pub mod link;
pub mod migrate;
pub mod ownership;
pub mod persistent;
pub mod pod_security;
pub mod policy;
pub mod probe;
pub mod session;
pub mod template;
pub mod wrapper;
