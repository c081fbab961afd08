//! One Podbay, as one process or as several: its parts, its files, and its user with the stock client.
//!
//! How it comes up, what is seen of its cluster, and what is called over gRPC are rooms of their own.

mod grpc;
mod kubernetes;
mod start;

use super::{
    cluster::{RealCluster, agent_image, is_real},
    process::{Answered, Running, finish, processes_naming, wait_until},
    way::Way,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// What the demo's configuration names.
const EMBEDDED_IMAGE: &str = "podbay/demo:1";

/// The image of the pods, wherever scenarios run.
pub fn image() -> String {
    super::cluster::image().unwrap_or_else(|| EMBEDDED_IMAGE.to_owned())
}

/// The image of pods with podbay-agent at `/usr/bin/containerssh-agent`, wherever scenarios run.
pub fn image_with_agent() -> String {
    if is_real() { agent_image() } else { EMBEDDED_IMAGE.to_owned() }
}

/// Whether a scenario can't be told on the cluster that the environment names; says so.
pub fn only_embedded(why: &str) -> bool {
    if is_real() {
        eprintln!("not on a real cluster: {why}");
    }
    is_real()
}

/// How the parts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// `podbay demo`: all in one process.
    Together,
    /// A cluster, two backend replicas and a frontend, each a process, from configuration files.
    Apart,
}

/// All of it.
#[derive(Debug)]
pub struct World {
    state: PathBuf,
    parts: BTreeMap<&'static str, Running>,
    /// Behind the parts, so that these end first.
    real: Option<RealCluster>,
    others: Vec<String>,
    way: Option<Way>,
    dir: tempfile::TempDir,
    names: AtomicU32,
}

impl World {
    /// With the demo's own configuration, mode `connection`.
    pub fn new(setup: Setup) -> Self {
        Self::with(setup, "connection", |config| config)
    }

    /// With this mode (`MODE` without agent, `MODE+podbay`, or `MODE+containerssh` and `MODE+injected` with [`Setup::Apart`]), and the configuration changed before it is read ([`Setup::Apart`] only).
    ///
    /// On the embedded cluster no init container runs, so there the agent is where one would have put it.
    pub fn with(setup: Setup, mode: &str, change: impl Fn(String) -> String) -> Self {
        Self::made(setup, mode, false, &[], |config, _| change(config))
    }

    /// The same with further namespaces, where backends have the same rights as in the first; `change` is told their names, which
    /// [`Self::others`] gives too ([`Setup::Apart`] only).
    pub fn with_namespaces(
        setup: Setup,
        mode: &str,
        namespaces: &[&str],
        change: impl Fn(String, &[String]) -> String,
    ) -> Self {
        Self::made(setup, mode, false, namespaces, change)
    }

    /// The same as [`Self::with`], each part a process, and backends whose every connection to the API can be [cut](Self::cuts_streams).
    pub fn cuttable(mode: &str, change: impl Fn(String) -> String) -> Self {
        Self::made(Setup::Apart, mode, true, &[], |config, _| change(config))
    }

    /// The client's configuration.
    pub fn ssh_config(&self) -> PathBuf {
        self.state.join("ssh_config")
    }

    /// A file of the scenario's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// One of the processes.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn part(&self, name: &str) -> &Running {
        &self.parts[name]
    }

    /// Takes a part out, to end it.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn take(&mut self, name: &str) -> Running {
        self.parts.remove(name).expect("that part")
    }

    /// The stock client, with these arguments before the host.
    pub fn ssh(&self, options: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(self.ssh_config()).args(options).arg("demo");
        ssh
    }

    /// Runs a command by the stock client.
    #[track_caller]
    pub fn run(&self, command: &str) -> Answered {
        self.run_with(command, b"")
    }

    /// The same with this on its stdin.
    #[track_caller]
    pub fn run_with(&self, command: &str, stdin: &[u8]) -> Answered {
        finish(self.ssh(&[]).arg(command), stdin)
    }

    /// The further namespaces' names.
    pub fn others(&self) -> &[String] {
        &self.others
    }

    /// Cuts whatever connects backends with the API now, streams above all ([`World::cuttable`] only).
    ///
    /// # Panics
    /// In another world.
    pub fn cuts_streams(&self) {
        self.way.as_ref().expect("a way that can be cut").cuts();
    }

    /// The real cluster that this runs on.
    pub fn real(&self) -> Option<&RealCluster> {
        self.real.as_ref()
    }

    /// A number that no other call gets.
    pub fn unique(&self) -> u32 {
        self.names.fetch_add(1, Ordering::Relaxed)
    }

    /// An administrator's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.real.as_ref().map_or_else(|| self.state.join("kubeconfig"), |real| real.kubeconfig.clone())
    }

    /// Ends everything in order and sees that nothing is left: no pod, no process, no file.
    #[track_caller]
    pub fn ends_clean(mut self) {
        wait_until("no pod is left", || self.pods().is_empty());
        for name in ["demo", "frontend", "backend", "backend-2", "cluster"] {
            if let Some(part) = self.parts.remove(name) {
                part.stop();
            }
        }
        let dir = self.dir.path().to_owned();
        wait_until("no process is left", || processes_naming(&dir).is_empty());
        assert!(!self.state.join("pods").exists(), "pods' files are left");
    }
}
