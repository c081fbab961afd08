//! The guest agent's parts. What runs is the program `podbay-agent`; this library is for it and for its tests.

pub mod command;
pub mod environment;
pub mod exec;
pub mod exec_child;
pub mod process;
pub mod pty;
pub mod signal;
