//! The backend: the gRPC services over `podbay-backend-core`, and the adapter to Kubernetes.

pub mod kubernetes;
pub mod metrics;
