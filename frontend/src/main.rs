//! `podbay-frontend --config FILE`: the SSH server as a process of its own.

use clap::Parser;
use podbay_frontend::{Config, Metrics, Parts, run};
use podbay_runtime::{
    admin::{self, Readiness},
    config::Document,
    shutdown::Shutdown,
    telemetry,
};
use prometheus_client::registry::Registry;
use std::{error::Error, path::PathBuf, process::ExitCode, sync::Arc};
use tokio::{net::TcpListener, task::JoinSet};

/// The SSH frontend of Podbay.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (YAML); docs/configuration.md describes it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only read the configuration and say what is wrong with it.
    #[arg(long)]
    check: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Document::read(&arguments.config).and_then(Config::from_document) {
        Ok(config) => config,
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
        eprintln!("podbay-frontend: log: {error}");
        return ExitCode::FAILURE;
    }
    match serve(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podbay-frontend: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), Box<dyn Error>> {
    let shutdown = Shutdown::on_signals()?;
    let listener = bind(config.ssh.listen).await?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::default();
    let (registry, hard) = (Arc::new(registry), shutdown.hard.clone());
    // They end with the process; until then the last words of a drain can be read.
    let mut served = JoinSet::new();
    if let Some(address) = config.frontend.admin {
        served.spawn(admin::serve(bind(address).await?, Arc::clone(&registry), readiness.clone(), hard.clone()));
    }
    if let Some(metrics) = &config.operations.metrics {
        let (listener, path) = (bind(metrics.listen).await?, metrics.path.clone());
        let hard = hard.clone();
        served.spawn(async move { admin::serve_metrics(listener, &path, registry, hard).await });
    }
    if let Some(address) = config.operations.health {
        served.spawn(admin::serve_health(bind(address).await?, readiness.clone(), hard));
    }
    let parts = Parts { metrics: Some(metrics), readiness, shutdown, backend: None };
    Ok(run(config, listener, parts).await?)
}

async fn bind(address: std::net::SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| format!("can't listen on {address}: {error}"))
}
