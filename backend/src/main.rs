//! The backend as a process: reads its configuration, binds, runs.

use clap::Parser;
use podbay_backend::{Config, RunError};
use podbay_runtime::{
    codes,
    reload::{Source, interval},
    shutdown::Shutdown,
    telemetry,
};
use std::{path::PathBuf, process::ExitCode, time::Duration};
use tokio::net::TcpListener;

/// Podbay's backend: the gRPC service in front of Kubernetes.
///
/// It reads backend, kubernetes, security, ownership, configserver, grpc and log of the configuration, and reads them again on SIGHUP
/// and when the file changes. The first TERM or INT drains (grpc.drainTimeout), a second one ends at once.
#[derive(Parser)]
#[command(version, after_help = AFTER)]
struct Arguments {
    /// The configuration file (YAML or JSON).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only read the configuration, and say what is wrong with it.
    #[arg(long)]
    check: bool,
    /// How often the configuration and the files that it names are looked at for changes; 0 = only on SIGHUP.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    reload_interval: Duration,
}

const AFTER: &str = "\
Exit status: 0 ended in order, or --check found nothing; 1 can't start or serve; 2 mistakes in the configuration or the flags.
Every key: docs/configuration.md, or `podbay schema --keys`. A new file: `podbay demo --files-only --state-dir DIR`.
Does the cluster take it: `podbay check --cluster FILE`. What is logged follows log.level, or RUST_LOG.";

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
        println!("{}: no mistakes", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = telemetry::init(&config.log) {
        eprintln!("podbay-backend: log: {error}");
        return ExitCode::FAILURE;
    }
    match serve(config, source.every(arguments.reload_interval)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = match error.downcast_ref() {
                Some(RunError::Kubernetes(_)) => codes::KUBERNETES_CONFIG_ERROR,
                Some(_) | None => codes::SERVICE_CRASHED,
            };
            tracing::error!(code, "the process ends: {error}");
            eprintln!("podbay-backend: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(config: Config, source: Source) -> Result<(), Box<dyn std::error::Error>> {
    let shutdown = Shutdown::on_signals()?;
    let source = source.on_hangup()?;
    telemetry::reopen_on_hangup()?;
    tracing::info!(code = codes::SERVICE_POOL_STARTING, "starting");
    let bind = |address| async move {
        TcpListener::bind(address).await.map_err(|error| {
            tracing::error!(code = codes::HTTP_LISTEN_FAILED, %address, %error, "can't listen");
            format!("can't listen on {address}: {error}")
        })
    };
    let listener = bind(config.grpc.listen).await?;
    let admin = match config.grpc.admin_listen {
        Some(address) => {
            let listener = bind(address).await?;
            tracing::info!(
                address = listener.local_addr().ok().map(tracing::field::display),
                "serving grpc.adminListen"
            );
            Some(listener)
        }
        None => None,
    };
    Ok(Box::pin(podbay_backend::run(config, Some(source), listener, admin, shutdown)).await?)
}
