//! The supervisor and `attach` as real programs, driven by the wire's client.

mod lives;
mod pod;
mod streams;
mod trouble;
