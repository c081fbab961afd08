//! The backend: the gRPC services over `podbay-backend-core`, and the adapter to Kubernetes.

mod callers;
mod config;
mod configserver;
mod files;
mod health;
mod io;
pub mod kubernetes;
pub mod metrics;
mod process;
mod reload;
mod service;

pub use callers::{Caller, Callers, Rule};
pub use config::{Config, Grpc, Tls};
pub use health::KUBERNETES;
pub use process::{RunError, run, run_on};
