//! The whole backend below gRPC on the minicluster: kube client, TLS, WebSockets, the wrapper in real shells, real terminals.
//! (Needs the `podbay-minicluster` program: built with the workspace, or by `cargo build -p podbay-minicluster`.)
#![allow(clippy::wildcard_imports)] // of what all of them tell their stories with

mod port;
mod programs;
mod transfers;
mod world;
