//! How a world comes up: what is written for each setup and mode, and the processes that are started from it, and again.

use super::{Setup, World, grpc::grpc_address};
use crate::{
    cluster::{RealCluster, agent_image, containerssh_agent, injected_image},
    process::{Running, finish, program},
    way::Way,
};
use std::{
    collections::BTreeMap,
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::AtomicU32,
    thread::sleep,
    time::{Duration, Instant},
};

/// What of a configuration lets pods bring the agent along, and where it is in them (`backend/core/src/inject.rs`).
const INJECTED: &str = "/opt/podbay-agent/podbay-agent";

impl World {
    pub(super) fn made(
        setup: Setup,
        mode: &str,
        cuttable: bool,
        namespaces: &[&str],
        change: impl Fn(String, &[String]) -> String,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("podbay-scenario-").tempdir().expect("a directory");
        let state = dir.path().join("state");
        let (real, others) = (RealCluster::from_env(), Vec::new());
        let mut world = Self { state, parts: BTreeMap::new(), real, others, way: None, dir, names: AtomicU32::new(0) };
        let mut demo = Command::new(program("podbay"));
        // `MODE` or `MODE+AGENT`.
        let (mode, agent) = mode.split_once('+').unwrap_or((mode, "none"));
        // The double stands where the image would have ContainerSSH's own.
        let (containerssh, injected) = (agent == "containerssh", agent == "injected");
        let agent = if containerssh || injected { "podbay" } else { agent };
        demo.arg("demo").arg("--state-dir").arg(&world.state).args(["--mode", mode, "--agent", agent]);
        if let Some(real) = &world.real {
            // The demo is its user's; a backend that runs for others has no more rights than it needs.
            let least = world.file("backend.kubeconfig");
            let kubeconfig = match setup {
                Setup::Together => &real.kubeconfig,
                Setup::Apart => {
                    real.least_privilege(&least);
                    &least
                }
            };
            let image = if agent == "none" || injected { real.image.clone() } else { agent_image() };
            demo.arg("--kubeconfig").arg(kubeconfig).args(["--namespace", &real.namespace, "--image", &image]);
        }
        match setup {
            Setup::Together => {
                let mut demo = Running::start("demo", &mut demo);
                demo.says("ready\n");
                world.parts.insert("demo", demo);
            }
            Setup::Apart => {
                let written = finish(demo.arg("--files-only"), b"");
                assert!(written.status.success(), "{written:?}");
                let keys = if containerssh {
                    // By its own path, where the wrapper's shell finds it, too.
                    format!("    agentPath: {}\n", containerssh_agent())
                } else if injected {
                    format!("    agentInjection: {{enabled: true, image: \"{}\"}}\n", injected_image())
                } else {
                    String::new()
                };
                let agent = if injected { INJECTED } else { "/usr/bin/containerssh-agent" };
                world.start_apart(agent, cuttable, namespaces, |config, others| {
                    change(config.replacen("    metadata:\n", &format!("{keys}    metadata:\n"), 1), others)
                });
            }
        }
        world
    }

    fn start_apart(
        &mut self,
        agent_path: &str,
        cuttable: bool,
        namespaces: &[&str],
        change: impl Fn(String, &[String]) -> String,
    ) {
        if self.real.is_none() {
            let mut cluster = Command::new(program("podbay-minicluster"));
            cluster.arg("--kubeconfig").arg(self.kubeconfig()).arg("--state-dir").arg(self.file("cluster"));
            let agent = self.state.join("podbay-agent");
            if agent.exists() {
                cluster.arg("--program").arg(format!("{agent_path}={}", agent.display()));
            }
            let mut cluster = Running::start("cluster", cluster.args(["--backoff-ms", "50"]));
            cluster.says("ready");
            self.parts.insert("cluster", cluster);
        }
        for name in namespaces {
            let made = match &mut self.real {
                Some(real) => real.another(name),
                None => self.namespace(name),
            };
            self.others.push(made);
        }
        let mut text = fs::read_to_string(self.state.join("podbay.yaml")).expect("a configuration");
        if cuttable {
            let path = text.lines().find_map(|line| line.trim().strip_prefix("kubeconfig: ")).expect("a kubeconfig");
            let (straight, by_way) = (path.trim_matches('"').to_owned(), self.file("way.kubeconfig"));
            self.way = Some(Way::open(Path::new(&straight), &by_way));
            text = text.replace(&straight, by_way.to_str().expect("text"));
        }
        let first = text.lines().find_map(|line| line.trim().strip_prefix("addresses: [\"")).expect("an address");
        let first = first.trim_end_matches("\"]").to_owned();
        let second = free_address();
        let text = text.replace(&format!("[\"{first}\"]"), &format!("[\"{first}\", \"{second}\"]"));
        let text = change(text, &self.others);
        fs::write(self.state.join("podbay.yaml"), &text).expect("writes");
        let text = text.replace(&format!("listen: {first}"), &format!("listen: {second}"));
        fs::write(self.state.join("second.yaml"), text).expect("writes");
        self.start_part("backend", "podbay-backend", "podbay.yaml", &first);
        self.start_part("backend-2", "podbay-backend", "second.yaml", &second);
        self.start_frontend();
    }

    fn start_frontend(&mut self) {
        let ssh = fs::read_to_string(self.ssh_config()).expect("ssh_config");
        let port = ssh.lines().find_map(|line| line.trim().strip_prefix("Port ")).expect("a port");
        self.start_part("frontend", "podbay-frontend", "podbay.yaml", &format!("127.0.0.1:{port}"));
    }

    /// Starts the frontend, or a replica of the backend, again that was taken out.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self, name: &'static str) {
        self.restart_by(name, &[]);
    }

    /// The same for a replica of the backend, by a program that becomes it (`faketime`).
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart_by(&mut self, name: &'static str, by: &[&str]) {
        if name == "frontend" {
            return self.start_frontend();
        }
        let config = if name == "backend" { "podbay.yaml" } else { "second.yaml" };
        let text = fs::read_to_string(self.state.join(config)).expect("a configuration");
        let address = grpc_address(&text);
        self.start_part_by(name, by, "podbay-backend", config, &address);
    }

    /// Starts a process from a configuration of the state directory, and waits until it listens there.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_part(&mut self, name: &'static str, bin: &str, config: &str, address: &str) {
        self.start_part_by(name, &[], bin, config, address);
    }

    fn start_part_by(&mut self, name: &'static str, by: &[&str], bin: &str, config: &str, address: &str) {
        let mut command = Command::new(by.first().map_or_else(|| program(bin), PathBuf::from));
        if let Some((_, more)) = by.split_first() {
            command.args(more).arg(program(bin));
        }
        command.arg("--config").arg(self.state.join(config));
        let mut part = Running::start(name, &mut command);
        let deadline = Instant::now() + crate::PATIENCE;
        while TcpStream::connect(address).is_err() {
            // A port that was free may be some outgoing connection's for a moment.
            if !part.is_running() && part.said().contains("Address already in use") {
                part = Running::start(name, &mut command);
            }
            assert!(part.is_running() && Instant::now() < deadline, "{name}: {}", part.said());
            sleep(Duration::from_millis(10));
        }
        self.parts.insert(name, part);
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.local_addr().expect("an address").to_string()
}
