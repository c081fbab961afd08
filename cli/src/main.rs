//! `podbay`: the demo, and a gRPC client: `run`, `shell`, `attach`, `sessions` (later `check` and `migrate`).

mod agent_binary;
mod client;
mod demo;

use clap::{Parser, Subcommand};

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
    /// Run a program in a new pod, by gRPC, and pass its exit status on.
    ///
    /// COMMAND is run as it is, without a shell: for pipes and variables, run `sh -c '…'`. Its stdin, stdout and stderr are
    /// this process's; INT goes to it as a signal. Where podbay-agent is in the pod, a backend that is lost costs a moment.
    /// The pod is deleted at the end.
    ///
    /// With --detach it runs on alone: the session's id is printed, and `podbay attach ID` collects its output and exit status,
    /// from this machine or, with the user's rights, another one.
    ///
    /// Exit status: the program's; 128 + n if signal n ended it; 255 for everything else, with a line on stderr.
    Run(client::Run),
    /// Open a shell in a new pod, by gRPC.
    ///
    /// The configured one (kubernetes.pod.shellCommand), on a terminal where stdin is one. Exit status as for run.
    Shell(client::Shell),
    /// Come back to a session that runs detached: the rest of its output, then its exit status.
    ///
    /// Whoever has the session is superseded. TERM or HUP to this process leaves the session running again. Once it has ended and
    /// all was delivered, its exit is acknowledged and, if it was begun by `podbay run`, its pod deleted.
    Attach(client::Attach),
    /// List the sessions that a user can attach to.
    Sessions(client::Sessions),
}

fn main() {
    // The embedded cluster starts its pods' supervisors from this very program; before any thread is there.
    podbay_minicluster::helper::maybe_run();
    let Arguments { command } = Arguments::parse();
    let (result, failure) = match command {
        Command::Demo(arguments) => (demo::main(arguments).map(|()| 0), 1),
        Command::AgentBinary => (agent_binary::main().map(|()| 0), 1),
        Command::Run(arguments) => (client::main(arguments.run()), client::FAILED),
        Command::Shell(arguments) => (client::main(arguments.run()), client::FAILED),
        Command::Attach(arguments) => (client::main(arguments.run()), client::FAILED),
        Command::Sessions(arguments) => (client::main(arguments.run()), client::FAILED),
    };
    let status = result.unwrap_or_else(|error| {
        eprintln!("podbay: {error:#}");
        failure
    });
    // Not by returning: a thread that reads stdin may never end.
    std::process::exit(status.into())
}
