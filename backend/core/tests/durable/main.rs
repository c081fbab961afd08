//! Programs that podbay-agent owns, in virtual time: how their ends are told, and what a broken link costs.
#![allow(clippy::wildcard_imports)] // of what all of them tell their stories with

#[path = "../agent/mod.rs"]
mod agent;
mod agents;
mod ends;
mod outages;
mod resumed;
mod world;
