//! The same cases over ContainerSSH's agent (the double) and over ours, with the same bytes expected; and one by one what is
//! meant to differ.

mod agents;
mod console;
mod differences;
mod others;
