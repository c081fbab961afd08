//! The gRPC services over the in-memory cluster, through mTLS: callers and their rights, two replicas, garbage, draining.
#![allow(clippy::wildcard_imports)] // of what all of them tell their stories with

mod calls;
mod operation;
mod protocol;
mod world;
