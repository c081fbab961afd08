//! `podbay-minicluster`: a minicluster as a process of its own.

use clap::Parser;
use podbay_minicluster::{Minicluster, Options, helper, image};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// A Kubernetes API on loopback whose pods are local processes. It isolates nobody.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address to listen on; loopback only. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where pods get their directories [default: a new temporary directory]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Write a kubeconfig here (mode 0600); removed at the end.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Add a program to the image podbay/demo:1: its path there, and the host's file. May be repeated.
    #[arg(long, value_name = "PATH=FILE", value_parser = program)]
    program: Vec<(PathBuf, PathBuf)>,
    /// First pause between image pulls and between restarts, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    backoff_ms: u64,
}

fn main() -> ExitCode {
    helper::maybe_run();
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let run = || -> Result<(), Box<dyn std::error::Error>> {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(args))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podbay-minicluster: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    // Before `ready`, so that a signal after it finds its handler.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(args.listen).await.map_err(|error| format!("{}: {error}", args.listen))?;
    let mut options = Options::new(listener);
    options.state_dir = args.state_dir;
    if let Some(image) = options.images.get_mut(image::DEMO) {
        image.programs.extend(args.program);
    }
    options.backoff = Duration::from_millis(args.backoff_ms);
    let cluster = Minicluster::start(options).await?;
    let written = match &args.kubeconfig {
        Some(path) => write_secret(path, cluster.kubeconfig()).map_err(|error| format!("{}: {error}", path.display())),
        None => Ok(()),
    };
    if written.is_ok() {
        println!("ready");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    cluster.shutdown().await;
    written?;
    if let Some(path) = &args.kubeconfig {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn program(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (path, file) = text.split_once('=').ok_or("write it as PATH=FILE")?;
    if !path.starts_with('/') || !Path::new(file).is_file() {
        return Err(format!("{path:?} must be absolute, and {file:?} a file"));
    }
    Ok((path.into(), file.into()))
}

/// Never readable by others, and never half written for whoever waits for it to appear.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(new, path)
}
