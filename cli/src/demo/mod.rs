//! `podbay demo`: all three parts in one process, from the same configuration file that separate processes would read.
//!
//! The backend speaks to the embedded cluster through the same kube client, TLS and WebSockets as to a real one.

mod activity;
mod credentials;
mod files;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use files::{Plan, State};
use podbay_frontend::Parts;
use podbay_minicluster::{Minicluster, Options};
use podbay_runtime::{admin::Readiness, config::Document, reload::Source, shutdown::Shutdown};
use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::TcpListener;

/// How long sessions may go on after the first Ctrl-C.
const DRAIN: Duration = Duration::from_secs(2);

/// What `podbay demo` takes. What it does is told in `main.rs`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where credentials and configuration go; made if missing, and cleaned up at the end
    /// [default: podbay-demo-UID in the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Port for SSH; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    ssh_port: u16,
    /// Port for gRPC; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    grpc_port: u16,
    /// One pod per connection, one per program, or one per user that outlives connections.
    #[arg(long, value_enum, default_value_t = Mode::Connection)]
    mode: Mode,
    /// Use this real cluster in place of the embedded one, with the rights of this kubeconfig's user: to make, list, watch,
    /// change and delete pods, to exec (and attach) in them, to list events, and all of leases, in the namespace
    /// (deploy/rbac.yaml). They are tried at the start.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the pods and leases, which must be there [with --kubeconfig].
    #[arg(long, default_value = "default", requires = "kubeconfig")]
    namespace: String,
    /// Image of the pods; it needs /bin/sh [default: busybox:1.36 with --kubeconfig].
    #[arg(long, requires = "kubeconfig")]
    image: Option<String>,
    /// Run the pods as this user id, and as Pod Security restricted asks for: images that run as root need it in such a
    /// namespace [with --kubeconfig].
    #[arg(long, value_name = "UID", requires = "kubeconfig", value_parser = clap::value_parser!(u32).range(1..))]
    run_as: Option<u32>,
    /// What owns the programs in the pods; podbay needs it in the image, at /usr/bin/containerssh-agent (`podbay agent-binary`)
    /// [default: podbay with the embedded cluster, none with --kubeconfig]
    #[arg(long, value_enum)]
    agent: Option<Agent>,
    /// Only write credentials and configuration, for the three programs as separate processes, and say how to run them.
    #[arg(long)]
    files_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Agent {
    /// podbay-agent: programs outlive every connection but the user's own.
    Podbay,
    /// Nothing: any image with a shell will do.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Connection,
    Session,
    Persistent,
}

impl Mode {
    const fn word(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Session => "session",
            Self::Persistent => "persistent",
        }
    }
}

/// Runs the demo to its end.
pub fn main(arguments: Arguments) -> anyhow::Result<()> {
    activity::init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(Box::pin(run(arguments)))
}

async fn bind(port: u16, what: &str, flag: &str) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen for {what} on {address}; choose another port with {flag}"))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // First, so that a signal from now on ends the demo in order.
    let shutdown = Shutdown::on_signals_and_hangup()?;
    let ssh = bind(arguments.ssh_port, "SSH", "--ssh-port").await?;
    let grpc = bind(arguments.grpc_port, "gRPC", "--grpc-port").await?;
    let state = State::prepare(arguments.state_dir.as_deref())?;
    let embedded = arguments.kubeconfig.is_none();
    let plan = Plan {
        ssh: ssh.local_addr()?,
        grpc: grpc.local_addr()?,
        mode: arguments.mode.word(),
        kubeconfig: match &arguments.kubeconfig {
            Some(file) => std::path::absolute(file)?,
            None => state.path("kubeconfig"),
        },
        namespace: arguments.namespace,
        image: arguments.image.unwrap_or_else(|| if embedded { "podbay/demo:1" } else { "busybox:1.36" }.to_owned()),
        shell: if embedded && Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" },
        sftp_server: files::sftp_server(embedded),
        agent: arguments.agent.map_or(embedded, |agent| agent == Agent::Podbay),
        drain: DRAIN,
        run_as: arguments.run_as,
        embedded,
    };
    state.write(&plan)?;
    if arguments.files_only {
        drop((ssh, grpc));
        print!("{}", state.how_to_run_apart(embedded, plan.agent));
        state.keep();
        return Ok(());
    }
    if !embedded {
        try_cluster(&state, &plan).await?;
    }
    let cluster = if embedded { Some(start_cluster(&state, plan.agent).await?) } else { None };
    let result = Box::pin(serve(&state, &plan, ssh, grpc, shutdown)).await;
    if let Some(cluster) = cluster {
        cluster.shutdown().await;
    }
    result
}

/// What the first login would find out.
async fn try_cluster(state: &State, plan: &Plan) -> anyhow::Result<()> {
    let document = Document::read(&state.path(files::CONFIG))?;
    let settings = podbay_backend_core::config::Settings::read(&mut document.root());
    let settings = settings.context("the demo's own configuration is wrong")?;
    if !crate::check::try_cluster(&settings, false).await {
        bail!(
            "the cluster of {} does not do what is needed in namespace {}: see above; deploy/rbac.yaml has the rights",
            plan.kubeconfig.display(),
            plan.namespace
        );
    }
    Ok(())
}

async fn start_cluster(state: &State, agent: bool) -> anyhow::Result<Minicluster> {
    let mut options = Options::new(bind(0, "the embedded Kubernetes", "nothing").await?);
    options.state_dir = Some(state.path("pods"));
    if let Some(image) = options.images.get_mut(podbay_minicluster::image::DEMO).filter(|_| agent) {
        image.programs.insert(files::AGENT_IN_IMAGE.into(), state.path(files::AGENT));
    }
    let cluster = Minicluster::start(options).await.context("the embedded Kubernetes did not start")?;
    state.secret("kubeconfig", cluster.kubeconfig())?;
    Ok(cluster)
}

/// Frontend and backend until a signal; the frontend ends first, so that it can close its connections at the backend.
async fn serve(
    state: &State,
    plan: &Plan,
    ssh: TcpListener,
    grpc: TcpListener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let file = state.path(files::CONFIG);
    // By change of the file alone: a hangup means that the terminal is gone, and ends it.
    let (backend, of_backend) = Source::read(&file, podbay_backend::Config::from_document)?;
    let (frontend, of_frontend) = Source::read(&file, podbay_frontend::Config::from_document)?;
    let backend_ends = Shutdown { hard: shutdown.hard.clone(), ..Shutdown::new() };
    let mut backend =
        tokio::spawn(Box::pin(podbay_backend::run(backend, Some(of_backend), grpc, None, backend_ends.clone())));
    let readiness = Readiness::default();
    let parts = Parts {
        metrics: None,
        readiness: readiness.clone(),
        shutdown: shutdown.clone(),
        backend: None,
        source: Some(of_frontend),
    };
    let mut frontend = tokio::spawn(Box::pin(podbay_frontend::run(frontend, ssh, parts)));
    // The sockets are bound already: a client that comes early waits in the backlog.
    print!("{}", state.welcome(plan));
    println!("ready");
    tokio::select! {
        ended = &mut backend => {
            shutdown.soft.cancel();
            let _ = frontend.await;
            ended?.context("the backend failed")?;
            bail!("the backend ended by itself");
        }
        ended = &mut frontend => {
            let by_signal = shutdown.soft.is_cancelled();
            backend_ends.soft.cancel();
            backend.await?.context("the backend failed")?;
            ended?.context("the frontend failed")?;
            if !by_signal {
                bail!("the frontend ended by itself");
            }
        }
    }
    // Where the terminal is gone there is nobody to tell, and that is no failure.
    let _ = writeln!(std::io::stdout(), "{}", plan.ended());
    Ok(())
}
