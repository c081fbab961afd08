//! The backend as a process: reads its configuration, binds, runs.

use clap::Parser;
use podbay_backend::Config;
use podbay_runtime::{
    reload::{Source, interval},
    shutdown::Shutdown,
    telemetry,
};
use std::{path::PathBuf, process::ExitCode, time::Duration};
use tokio::net::TcpListener;

/// Podbay's backend: the gRPC service in front of Kubernetes.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (YAML).
    #[arg(long)]
    config: PathBuf,
    /// Only check the configuration: exit 0 if it is good, 2 if not.
    #[arg(long)]
    check: bool,
    /// How often the configuration and the files that it names are looked at for changes; 0 = only on SIGHUP.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    reload_interval: Duration,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (config, source) = match Source::read(&arguments.config, Config::from_document) {
        Ok(read) => read,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(2);
        }
    };
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    if arguments.check {
        return ExitCode::SUCCESS;
    }
    telemetry::init(&config.log);
    match serve(config, source.every(arguments.reload_interval)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podbay-backend: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(config: Config, source: Source) -> Result<(), Box<dyn std::error::Error>> {
    let shutdown = Shutdown::on_signals()?;
    let source = source.on_hangup()?;
    let bind = |address| async move {
        TcpListener::bind(address).await.map_err(|error| format!("can't listen on {address}: {error}"))
    };
    let listener = bind(config.grpc.listen).await?;
    let admin = match config.grpc.admin_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    Ok(Box::pin(podbay_backend::run(config, Some(source), listener, admin, shutdown)).await?)
}
