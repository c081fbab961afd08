//! `podbay check FILE…`: everything that is wrong with configurations, for both processes at once.

mod cluster;

pub(crate) use cluster::try_cluster;

use podbay_backend_core::config::Settings;
use podbay_runtime::config::{Document, Mistake, Notes, nested, to_yaml};
use std::{path::PathBuf, process::ExitCode};

/// Which processes a file is for: by the sections in it.
const FRONTENDS: [&str; 6] = ["ssh", "users", "auth", "frontend", "metrics", "health"];
const BACKENDS: [&str; 7] = ["kubernetes", "kuberun", "backend", "grpc", "ownership", "security", "configserver"];

/// The exit status of mistakes, as of the two processes' `--check`.
const WRONG: u8 = 2;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Configuration files (YAML or JSON) of either process or of both.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the configuration as it takes effect: with defaults, secrets masked.
    #[arg(long)]
    effective: bool,
    /// Try the cluster: whether it answers, whether the namespace and its pods may be used, and whether it would take the pod.
    #[arg(long)]
    cluster: bool,
    /// Also make one pod, wait until it runs (at most timeouts.podStart), ask which guest agent its image has, and delete it
    /// (at most timeouts.podStop). Implies --cluster.
    #[arg(long)]
    try_pod: bool,
}

/// What a file holds.
#[derive(Debug)]
pub struct Checked {
    /// What is wrong with it.
    pub mistakes: Vec<Mistake>,
    /// What may be.
    pub warnings: Vec<Mistake>,
    /// What was read.
    pub notes: Notes,
    /// The backend's part, where it is one of a backend and has no mistake.
    pub settings: Option<Settings>,
}

/// Reads a document as both processes would. A file of ContainerSSH has neither `grpc` nor `frontend`: then a process would need
/// those in addition, which is a warning here.
pub fn check(document: Document) -> Checked {
    let root = document.root();
    let any = |keys: &[&str]| keys.iter().any(|key| root.has(key));
    let (mut frontend, mut backend) = (any(&FRONTENDS), any(&BACKENDS));
    if !frontend && !backend {
        (frontend, backend) = (true, true);
    }
    let (has_frontend, has_grpc, has_users) =
        (root.has("frontend"), root.has("grpc"), root.has("users") || root.has("auth"));
    root.leave();
    let mut settings = None;
    if backend {
        drop(podbay_backend::Config::from_section(&mut document.root()));
        // Once more: what the whole gives is nothing without grpc. The same mistakes are told once.
        let mut root = document.root();
        settings = Settings::read(&mut root);
        root.leave();
    }
    if frontend {
        drop(podbay_frontend::Config::from_section(document.root()));
    }
    let (mut warnings, notes) = (document.warnings(), document.notes());
    let mut mistakes = document.finish().err().map(|mistakes| mistakes.0).unwrap_or_default();
    let file = |mistakes: &[Mistake]| mistakes.first().map(|mistake| mistake.file.clone()).unwrap_or_default();
    let mut lacks = |there: bool, part: &str, process: &str| {
        let missing = |mistake: &Mistake| mistake.path == part || mistake.path.starts_with(&format!("{part}."));
        if !there && mistakes.iter().any(missing) {
            let message = format!("{part} is not there: {process} needs it in addition (docs/configuration.md)");
            warnings.push(Mistake { file: file(&mistakes), line: 0, column: 0, path: String::new(), message });
            mistakes.retain(|mistake| !missing(mistake));
        }
    };
    lacks(has_grpc, "grpc", "podbay-backend");
    lacks(has_frontend, "frontend", "podbay-frontend");
    lacks(has_users, "users", "podbay-frontend");
    Checked { settings: settings.filter(|_| mistakes.is_empty()), mistakes, warnings, notes }
}

/// Checks all, tells all, and gives the status.
pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut good = true;
    for path in &arguments.files {
        let checked = match Document::read(path) {
            Ok(document) => check(document),
            Err(mistakes) => {
                eprintln!("{mistakes}");
                good = false;
                continue;
            }
        };
        for warning in &checked.warnings {
            eprintln!("warning: {warning}");
        }
        for mistake in &checked.mistakes {
            eprintln!("{mistake}");
        }
        if !checked.mistakes.is_empty() {
            good = false;
            continue;
        }
        if arguments.effective {
            print!("{}", to_yaml(&nested(&checked.notes)));
        } else {
            println!("{}: no mistakes", path.display());
        }
        if arguments.cluster || arguments.try_pod {
            match &checked.settings {
                Some(settings) => {
                    good &= runtime()?.block_on(Box::pin(cluster::try_cluster(settings, arguments.try_pod)));
                }
                None => eprintln!("{}: no part of it is a backend's, so there is no cluster to try", path.display()),
            }
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
