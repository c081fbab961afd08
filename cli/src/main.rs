//! `podbay`: the demo, `check`, `migrate` and `schema`, and a gRPC client: `run`, `shell`, `attach`, `sessions`.

mod agent_binary;
mod check;
mod client;
mod demo;
mod migrate;
mod schema;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// ssh into Kubernetes: each user lands in a pod of their own.
#[derive(Debug, Parser)]
#[command(name = "podbay", version, after_help = AFTER)]
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
    ///
    /// With --kubeconfig the pods are on a real cluster, and frontend and backend still here. Ctrl-C closes the connections, which
    /// deletes their pods, and the lease; pods of --mode persistent stay. A demo that was killed leaves its pods until the next
    /// one, or another podbay-backend of that namespace, finds that its lease was not renewed.
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
    /// Run a program in a new pod, by gRPC, and pass its exit status on.
    ///
    /// COMMAND is run as it is, without a shell: for pipes and variables, run `sh -c '…'`. Its stdin, stdout and stderr are
    /// this process's; INT goes to it as a signal. Where podbay-agent is in the pod, a backend that is lost costs a moment.
    /// The pod is deleted at the end.
    ///
    /// With --detach it runs on alone: the session's id is printed, and `podbay attach ID` collects its output and exit status,
    /// from this machine or, with the user's rights, another one.
    ///
    /// Exit status: the program's; 128 + n if signal n ended it, or this process (141: nobody reads its output); 255 for everything
    /// else, with a line on stderr.
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

const AFTER: &str = "\
Begin with `podbay demo`: it says what to type next. `podbay COMMAND --help` has the details and exit statuses.";

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
        Command::Run(arguments) => of_client(arguments.run()),
        Command::Shell(arguments) => of_client(arguments.run()),
        Command::Attach(arguments) => of_client(arguments.run()),
        Command::Sessions(arguments) => of_client(arguments.run()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("podbay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the gRPC client and ends the process with its status: not by returning, for a thread that reads stdin may never end.
fn of_client(what: impl Future<Output = anyhow::Result<u8>>) -> ! {
    let status = client::main(what).unwrap_or_else(|error| {
        eprintln!("podbay: {error:#}");
        client::FAILED
    });
    std::process::exit(status.into())
}
