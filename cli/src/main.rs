//! `podbay`: the demo, `check`, `migrate`, and (later) the gRPC client.

mod agent_binary;
mod check;
mod demo;
mod migrate;
mod schema;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// ssh into Kubernetes: each user lands in a pod of their own.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run frontend, backend and a small embedded Kubernetes in this process, and say how to ssh into it.
    ///
    /// Everything listens on loopback only, with fresh credentials. Pods of the embedded cluster are processes of
    /// this machine and user: it isolates nobody. Ctrl-C ends all of it and leaves nothing behind.
    Demo(demo::Arguments),
    /// Write the guest agent, a static program, to stdout: to put it into an image.
    ///
    /// For example: podbay agent-binary >podbay-agent && chmod 0755 podbay-agent
    AgentBinary,
    /// Say everything that is wrong with configurations; exit 0 where nothing is, else 2.
    Check(check::Arguments),
    /// Rewrite a configuration for ContainerSSH's old backend kuberun for kubernetes, so that it means the same.
    Migrate(migrate::Arguments),
    /// Print the configuration's JSON Schema, for editors, or the table of all its keys.
    Schema(schema::Arguments),
}

fn main() -> ExitCode {
    // The embedded cluster starts its pods' supervisors from this very program; before any thread is there.
    podbay_minicluster::helper::maybe_run();
    let Arguments { command } = Arguments::parse();
    let result = match command {
        Command::Demo(arguments) => demo::main(arguments).map(|()| ExitCode::SUCCESS),
        Command::AgentBinary => agent_binary::main().map(|()| ExitCode::SUCCESS),
        Command::Check(arguments) => check::main(&arguments),
        Command::Migrate(arguments) => migrate::main(&arguments),
        Command::Schema(arguments) => Ok(schema::main(&arguments)),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("podbay: {error:#}");
            ExitCode::FAILURE
        }
    }
}
