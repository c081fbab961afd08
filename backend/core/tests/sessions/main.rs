//! Sessions over the in-memory cluster, in virtual time: starts, both ways of data, answers, ends, and what each deadline undoes.
#![allow(clippy::wildcard_imports)] // of what all of them tell their stories with

mod agents;
mod control;
mod limits;
mod own_pod;
mod programs;
mod terminated;
mod world;
