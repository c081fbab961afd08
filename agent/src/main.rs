//! `podbay-agent`: a porch; the house is the library.

use podbay_agent::exec_child;
use std::{env, process::ExitCode};

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    match args.next() {
        Some(command) if command == exec_child::NAME => exec_child::run(args).into(),
        _ => {
            eprintln!("podbay-agent: the command line is being built");
            ExitCode::from(1)
        }
    }
}
