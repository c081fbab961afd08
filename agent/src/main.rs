//! `podbay-agent`: a porch; the house is the library.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    podbay_agent::command::run(env::args_os().skip(1)).into()
}
