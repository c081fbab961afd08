//! `podbay-frontend --config FILE`: the SSH server as a process of its own.

use clap::Parser;
use podbay_frontend::{
    Config, Metrics, Parts,
    config::{MetricsConfig, ServerAt},
    run,
};
use podbay_runtime::{
    admin::{self, Door, Readiness},
    codes,
    reload::{Source, interval},
    shutdown::Shutdown,
    telemetry,
    tls::{Followed, RELOAD_INTERVAL},
};
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use std::{error::Error, io, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// The SSH frontend of Podbay.
///
/// It reads ssh, users, auth, frontend, metrics, health and log of the configuration, and reads them again on SIGHUP and when the
/// file changes. The first TERM or INT drains (frontend.drainTimeout), a second one ends at once.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER)]
struct Arguments {
    /// The configuration file (YAML or JSON).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only read the configuration, and say what is wrong with it.
    #[arg(long)]
    check: bool,
    /// Ask a running frontend whether it is healthy, as `health.client` says, and exit 0 or 1; 0 without asking where `health` is not enabled.
    #[arg(long, conflicts_with = "check")]
    healthcheck: bool,
    /// How often the configuration and the files that it names are looked at for changes; 0 = only on SIGHUP.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    reload_interval: Duration,
}

const AFTER: &str = "\
Exit status: 0 ended in order, --check found nothing, or healthy; 1 can't start or serve, or not healthy; 2 mistakes in the
configuration or the flags.
Every key: docs/configuration.md, or `podbay schema --keys`. A new file: `podbay demo --files-only --state-dir DIR`.
What is logged follows log.level, or RUST_LOG.";

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
    if let Err(error) = telemetry::init(&config.log) {
        eprintln!("podbay-frontend: log: {error}");
        return ExitCode::FAILURE;
    }
    if arguments.healthcheck {
        return healthcheck(&config).await;
    }
    match serve(config, source.every(arguments.reload_interval)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(code = codes::SERVICE_CRASHED, "the process ends: {error}");
            eprintln!("podbay-frontend: {error}");
            ExitCode::FAILURE
        }
    }
}

/// For an orchestrator that runs a command in the container.
async fn healthcheck(config: &Config) -> ExitCode {
    let Some(health) = &config.operations.health else { return ExitCode::SUCCESS };
    let url = &health.client.endpoint().url;
    match health.client.get().await {
        Ok(_) => {
            tracing::info!(code = codes::CORE_HEALTH_CHECK_SUCCESSFUL, url, "healthy");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(code = codes::CORE_HEALTH_CHECK_FAILED, url, %error, "not healthy");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config, source: Source) -> Result<(), Box<dyn Error>> {
    let shutdown = Shutdown::on_signals()?;
    let source = source.on_hangup()?;
    telemetry::reopen_on_hangup()?;
    tracing::info!(code = codes::SERVICE_POOL_STARTING, "starting");
    let listener = bind(codes::SSH_START_FAILED, config.ssh.listen).await?;
    let mut registry = Registry::default();
    let source = source.counted(&mut registry);
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::default();
    let (registry, hard) = (Arc::new(registry), shutdown.hard.clone());
    // They end with the process; until then the last words of a drain can be read.
    let mut served = JoinSet::new();
    if let Some(address) = config.frontend.admin {
        let listener = bind(codes::HTTP_LISTEN_FAILED, address).await?;
        tracing::info!(address = listener.local_addr().ok().map(tracing::field::display), "serving frontend.admin");
        served.spawn(admin::serve(listener, Arc::clone(&registry), readiness.clone(), hard.clone()));
    }
    if let Some(MetricsConfig { server, path }) = config.operations.metrics.clone() {
        let (listener, tls) = open(&mut served, &server, &metrics, &hard).await?;
        tracing::info!(
            code = codes::METRICS_AVAILABLE,
            address = listener.local_addr().ok().map(tracing::field::display),
            tls = tls.is_some(),
            "serving metrics"
        );
        let (door, hard) = (Door::new(listener, tls), hard.clone());
        served.spawn(async move { admin::serve_metrics(door, &path, registry, hard).await });
    }
    if let Some(health) = &config.operations.health {
        let (listener, tls) = open(&mut served, &health.server, &metrics, &hard).await?;
        tracing::info!(
            code = codes::HEALTH_AVAILABLE,
            address = listener.local_addr().ok().map(tracing::field::display),
            tls = tls.is_some(),
            "serving health"
        );
        served.spawn(admin::serve_health(Door::new(listener, tls), readiness.clone(), hard));
    }
    let parts = Parts { metrics: Some(metrics), readiness, shutdown, backend: None, source: Some(source) };
    Ok(run(config, listener, parts).await?)
}

/// Binds; changed certificate files are followed from now on.
async fn open(
    served: &mut JoinSet<io::Result<()>>,
    at: &ServerAt,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<(TcpListener, Option<Arc<Followed<ServerConfig>>>), String> {
    let listener = bind(codes::HTTP_LISTEN_FAILED, at.listen).await?;
    if let Some(tls) = at.tls.clone() {
        let (metrics, stop) = (metrics.clone(), stop.clone());
        served.spawn(async move {
            tls.follow(RELOAD_INTERVAL, stop, move |good| metrics.reloaded(good)).await;
            Ok(())
        });
    }
    Ok((listener, at.tls.clone()))
}

async fn bind(code: &'static str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        tracing::error!(code, %address, %error, "can't listen");
        format!("can't listen on {address}: {error}")
    })
}
