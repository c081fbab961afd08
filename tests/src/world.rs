//! One Podbay, as one process or as several.

use super::{
    cluster::{RealCluster, agent_image, containerssh_agent, injected_image, is_real, with_client},
    process::{Answered, Running, finish, processes_naming, program, wait_until},
    way::Way,
};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use podbay::v1::{self, connection_service_client::ConnectionServiceClient};
use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

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

/// What of a configuration lets pods bring the agent along, and where it is in them (`backend/core/src/inject.rs`).
const INJECTED: &str = "/opt/podbay-agent/podbay-agent";

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

    fn made(
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
        let mut text = std::fs::read_to_string(self.state.join("podbay.yaml")).expect("a configuration");
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
        std::fs::write(self.state.join("podbay.yaml"), &text).expect("writes");
        let text = text.replace(&format!("listen: {first}"), &format!("listen: {second}"));
        std::fs::write(self.state.join("second.yaml"), text).expect("writes");
        self.start_part("backend", "podbay-backend", "podbay.yaml", &first);
        self.start_part("backend-2", "podbay-backend", "second.yaml", &second);
        self.start_frontend();
    }

    fn start_frontend(&mut self) {
        let ssh = std::fs::read_to_string(self.ssh_config()).expect("ssh_config");
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
        let text = std::fs::read_to_string(self.state.join(config)).expect("a configuration");
        let grpc = text.split("\ngrpc:\n").nth(1).expect("a section grpc");
        let address =
            grpc.lines().find_map(|line| line.trim().strip_prefix("listen: ")).expect("an address").to_owned();
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
        let mut command = Command::new(by.first().map_or_else(|| program(bin), std::path::PathBuf::from));
        if let Some((_, more)) = by.split_first() {
            command.args(more).arg(program(bin));
        }
        command.arg("--config").arg(self.state.join(config));
        let mut part = Running::start(name, &mut command);
        let deadline = std::time::Instant::now() + super::PATIENCE;
        while std::net::TcpStream::connect(address).is_err() {
            // A port that was free may be some outgoing connection's for a moment.
            if !part.is_running() && part.said().contains("Address already in use") {
                part = Running::start(name, &mut command);
            }
            assert!(part.is_running() && std::time::Instant::now() < deadline, "{name}: {}", part.said());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        self.parts.insert(name, part);
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

    /// Podbay's own client over gRPC: `command`, and what follows it. It knows every replica.
    ///
    /// # Panics
    /// If the configuration can't be read.
    pub fn podbay(&self, command: &str, arguments: &[&str]) -> Command {
        let mut podbay = Command::new(program("podbay"));
        let addresses: Vec<String> = ["podbay.yaml", "second.yaml"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(self.state.join(name)).ok())
            .map(|text| {
                let grpc = text.split("\ngrpc:\n").nth(1).expect("a section grpc");
                let listen = grpc.lines().find_map(|line| line.trim().strip_prefix("listen: "));
                listen.expect("an address").to_owned()
            })
            .collect();
        podbay.arg(command).arg("--server").arg(self.state.join("grpc.env")).args(["--address", &addresses.join(",")]);
        podbay.args(["--user", "demo"]).arg("--state-dir").arg(self.file("client")).args(arguments);
        podbay
    }

    /// Names of the pods there are now.
    pub fn pods(&self) -> Vec<String> {
        self.on_cluster(async |pods| {
            let list = pods.list(&ListParams::default()).await.expect("lists");
            list.items.into_iter().filter_map(|pod| pod.metadata.name).collect()
        })
    }

    /// Names of the leases there are now: of owners, and marks of ended connections.
    pub fn leases(&self) -> Vec<String> {
        let namespace = self.real.as_ref().map_or("default", |real| &real.namespace);
        let leases = async |client| Api::<Lease>::namespaced(client, namespace).list(&ListParams::default()).await;
        let items = self.with_client(leases).expect("lists").items;
        items.into_iter().filter_map(|lease| lease.metadata.name).collect()
    }

    /// The further namespaces' names.
    pub fn others(&self) -> &[String] {
        &self.others
    }

    /// Makes a namespace in the embedded cluster, and gives its name.
    pub fn namespace(&self, name: &str) -> String {
        self.with_client(async |client| {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let namespace = Namespace { metadata, ..Namespace::default() };
            Api::all(client).create(&PostParams::default(), &namespace).await.expect("a namespace");
        });
        name.to_owned()
    }

    /// The pods there are in another namespace now.
    pub fn pods_in(&self, namespace: &str) -> Vec<Pod> {
        let pods = async |client| Api::<Pod>::namespaced(client, namespace).list(&ListParams::default()).await;
        self.with_client(pods).expect("lists").items
    }

    /// Deletes a pod with a grace period of one second, as `kubectl delete --now` does.
    pub fn deletes(&self, pod: &str) {
        self.on_cluster(async |pods| {
            pods.delete(pod, &DeleteParams::default().grace_period(1)).await.expect("deletes");
        });
    }

    /// Tells the embedded cluster of a fault, as docs/minicluster.md writes them ([`Setup::Apart`] only).
    pub fn fault(&self, fault: &str) {
        let request = http::Request::post("/minicluster/faults").header("content-type", "application/json");
        let request = request.body(fault.as_bytes().to_vec()).expect("a request");
        self.with_client(async |client| {
            client.request_text(request).await.expect("the fault is taken");
        });
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

    /// Ends every connection there is, as an operator does over gRPC, with this message for its user. Gives how many.
    pub fn terminates_all(&self, message: &str) -> usize {
        self.as_operator(async |mut client| {
            let list = v1::ListConnectionsRequest::default();
            let connections = client.list_connections(list).await.expect("lists").into_inner().connections;
            for one in &connections {
                let connection_id = one.connection_id.clone();
                let request = v1::TerminateConnectionRequest { connection_id, message: message.to_owned() };
                client.terminate_connection(request).await.expect("ends it");
            }
            connections.len()
        })
    }

    fn as_operator<T>(&self, what: impl AsyncFnOnce(ConnectionServiceClient<Channel>) -> T) -> T {
        self.by_grpc(async |channel| what(ConnectionServiceClient::new(channel)).await)
    }

    /// Calls a backend, with the demo's client certificate, which may act for everybody and has the operator right.
    ///
    /// # Panics
    /// If it can't be reached.
    pub fn by_grpc<T>(&self, what: impl AsyncFnOnce(Channel) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let read = |name: &str| std::fs::read_to_string(self.state.join(name)).expect(name);
        let env = read("grpc.env");
        let address = env.lines().find_map(|line| line.strip_prefix("PODBAY_ADDRESS=")).expect("an address");
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")))
            .identity(Identity::from_pem(read("client.crt"), read("client.key")))
            .domain_name("localhost");
        let address = format!("https://{address}");
        runtime.block_on(async {
            let endpoint = Endpoint::from_shared(address).and_then(|at| at.tls_config(tls)).expect("an endpoint");
            what(endpoint.connect().await.expect("connects")).await
        })
    }

    fn on_cluster<T>(&self, what: impl AsyncFnOnce(Api<Pod>) -> T) -> T {
        let namespace = self.real.as_ref().map_or("default", |real| &real.namespace);
        self.with_client(async |client| what(Api::namespaced(client, namespace)).await)
    }

    fn with_client<T>(&self, what: impl AsyncFnOnce(Client) -> T) -> T {
        with_client(&self.kubeconfig(), what)
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

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.local_addr().expect("an address").to_string()
}
