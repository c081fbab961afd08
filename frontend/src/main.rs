//! `podbay-frontend --config FILE`: the SSH server as a process of its own.

use clap::Parser;
use podbay_frontend::{Config, Metrics, Parts, run};
use podbay_runtime::{
    admin::{self, Readiness},
    reload::{Source, interval},
    shutdown::Shutdown,
    telemetry,
};
use prometheus_client::registry::Registry;
use std::{error::Error, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
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
    /// How often the configuration and the files that it names are looked at for changes; 0 = only on SIGHUP.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    reload_interval: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
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
    telemetry::init(&config.log);
    match serve(config, source.every(arguments.reload_interval)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podbay-frontend: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config, source: Source) -> Result<(), Box<dyn Error>> {
    let shutdown = Shutdown::on_signals()?;
    let source = source.on_hangup()?;
    let listener = bind(config.ssh.listen).await?;
    let mut registry = Registry::default();
    let source = source.counted(&mut registry);
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
    let parts = Parts { metrics: Some(metrics), readiness, shutdown, backend: None, source: Some(source) };
    Ok(run(config, listener, parts).await?)
}

async fn bind(address: std::net::SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| format!("can't listen on {address}: {error}"))
}
