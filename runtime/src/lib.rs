//! What every Podbay process needs: configuration with positions, durations, TLS, telemetry, the admin listener, and an
//! ordered shutdown. Knows nothing of SSH, gRPC services or Kubernetes.

pub mod admin;
pub mod codes;
pub mod config;
pub mod files;
pub mod reload;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod webhook;
