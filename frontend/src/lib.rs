//! The SSH frontend of Podbay: authentication, channels, and the pump between SSH and gRPC.
//!
//! [`run`] serves SSH on a bound listener. What decides without I/O lives in `podbay-frontend-core`; this crate is the
//! adapter to russh on one side ([`ssh`] and [`session`]) and to the backend on the other ([`backend`]).

pub mod auth;
pub mod backend;
pub mod config;
mod containerssh;
mod hostkey;
mod listen;
pub mod metrics;
mod reload;
mod server;
mod session;
mod ssh;

pub use config::Config;
pub use hostkey::{HostKeyError, ensure_key};
pub use metrics::Metrics;
pub use server::{Parts, StartError, run};
