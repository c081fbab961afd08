//! The demo's state directory: what it holds, and that nothing of it is left.

use super::credentials;
use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// The configuration of frontend and backend, in one file.
pub const CONFIG: &str = "podbay.yaml";
const SSH_CONFIG: &str = "ssh_config";
const USER_KEY: &str = "id_ed25519";
const KNOWN_HOSTS: &str = "known_hosts";
/// The name by which the host key is known, whatever the port.
const HOST: &str = "demo";
/// The agent's file.
pub const AGENT: &str = "podbay-agent";
/// Where the embedded cluster's image has it.
pub const AGENT_IN_IMAGE: &str = "/usr/bin/containerssh-agent";

/// Where systems keep OpenSSH's sftp-server.
const SFTP_SERVERS: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
];

/// The path of sftp-server in the pods: the host's for the embedded cluster, the usual one elsewhere.
pub fn sftp_server(embedded: bool) -> Option<&'static str> {
    if embedded { SFTP_SERVERS.into_iter().find(|path| Path::new(path).exists()) } else { Some(SFTP_SERVERS[0]) }
}

/// What the files say.
pub struct Plan {
    /// The pods are processes of this machine.
    pub embedded: bool,
    pub ssh: SocketAddr,
    pub grpc: SocketAddr,
    pub mode: &'static str,
    pub kubeconfig: PathBuf,
    pub namespace: String,
    pub image: String,
    pub shell: &'static str,
    pub sftp_server: Option<&'static str>,
    /// podbay-agent is in the pods' image.
    pub agent: bool,
    pub drain: Duration,
    /// As whom programs run, where the image's own user is not to be it.
    pub run_as: Option<u32>,
}

impl Plan {
    /// What Ctrl-C does, and what it leaves.
    fn end(&self) -> String {
        match (self.embedded, self.stays()) {
            (true, true | false) => "Ctrl-C ends it all.".to_owned(),
            (false, false) => "Ctrl-C ends it all, and deletes the pods.".to_owned(),
            (false, true) => format!("Ctrl-C ends it, and leaves the users' pods. {}", self.removal()),
        }
    }

    /// What is told at the end.
    pub fn ended(&self) -> String {
        if self.embedded || !self.stays() {
            "ended; nothing is left".to_owned()
        } else {
            format!("ended. {}", self.removal())
        }
    }

    fn stays(&self) -> bool {
        self.mode == "persistent"
    }

    fn removal(&self) -> String {
        format!(
            "Pods of mode persistent stay until they are deleted: kubectl --kubeconfig {} -n {} delete pods -l \
             app.kubernetes.io/managed-by=podbay",
            self.kubeconfig.display(),
            self.namespace
        )
    }
}

/// The directory. Dropping it removes what the demo wrote, and the directory itself where the demo made it.
pub struct State {
    dir: PathBuf,
    made: bool,
    keep: bool,
}

impl State {
    /// Makes the directory, for this user alone. One that others could write to is refused: whoever can change the files in
    /// it decides what runs.
    pub fn prepare(given: Option<&Path>) -> anyhow::Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let dir = given.map_or_else(|| std::env::temp_dir().join(format!("podbay-demo-{uid}")), Path::to_owned);
        let dir = std::path::absolute(dir)?;
        let text = dir.to_str().with_context(|| format!("{} is not UTF-8", dir.display()))?;
        if text.contains(['"', '%', '$', '\n', ' ']) {
            bail!("{text}: ssh_config can't name a path with spaces, quotes, % or $; choose another --state-dir");
        }
        let made = match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).with_context(|| format!("can't make {}", dir.display())),
        };
        let meta = fs::symlink_metadata(&dir)?;
        if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
            bail!("{} is not a directory that only you can write to; choose another --state-dir", dir.display());
        }
        let state = Self { dir, made, keep: false };
        if state.path(CONFIG).exists() {
            let dir = state.dir.display().to_string();
            state.keep();
            bail!("{dir} is in use by another demo, or left by one that was killed: end it, or remove the directory");
        }
        Ok(state)
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Leaves the files where they are.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// Writes a file that only this user can read.
    pub fn secret(&self, name: &str, text: &str) -> anyhow::Result<()> {
        self.put(name, 0o600, text.as_bytes())
    }

    /// Writes a file with this mode. What an earlier demo left under the name may have any other, or be a link: it is not written to.
    fn put(&self, name: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.path(name);
        let _ = fs::remove_file(&path);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(bytes))
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// Writes everything but the embedded cluster's kubeconfig.
    pub fn write(&self, plan: &Plan) -> anyhow::Result<()> {
        let made = credentials::make().context("can't make certificates")?;
        self.secret("ca.crt", &made.ca)?;
        for (name, identity) in [("backend", made.backend), ("frontend", made.frontend), ("client", made.client)] {
            self.secret(&format!("{name}.crt"), &identity.cert)?;
            self.secret(&format!("{name}.key"), &identity.key)?;
        }
        self.secret("handle.key", &STANDARD.encode(rand::random::<[u8; 32]>()))?;
        let user_key = podbay_frontend::ensure_key(&self.path(USER_KEY))?;
        let host_key = podbay_frontend::ensure_key(&self.path("ssh_host_ed25519_key"))?;
        self.secret(KNOWN_HOSTS, &format!("{HOST} {host_key}\n"))?;
        self.secret(SSH_CONFIG, &self.ssh_config(plan))?;
        self.secret("grpc.env", &self.grpc_env(plan))?;
        if plan.agent {
            self.agent()?;
        }
        self.secret(CONFIG, &self.config(plan, &user_key))
    }

    /// The agent, for pods of the embedded cluster.
    fn agent(&self) -> anyhow::Result<()> {
        self.put(AGENT, 0o700, podbay_agent_embed::BINARY)
    }

    fn quoted(&self, name: &str) -> String {
        quoted(&self.path(name).display().to_string())
    }

    fn config(&self, plan: &Plan, user_key: &str) -> String {
        let subsystems = plan.sftp_server.map(|path| format!("    subsystems: {{sftp: {}}}\n", quoted(path)));
        let drain = plan.drain.as_secs();
        let stays = plan.mode == "persistent";
        format!(
            "# Written by `podbay demo`. One file for both: the frontend reads ssh, users and frontend; the backend kubernetes and grpc.
ssh:
  listen: {ssh}
users:
  - name: demo
    authorizedKeys:
      - {user_key}
frontend:
  stateDir: {dir}
  drainTimeout: {drain}s
  backend:
    addresses: [\"{grpc}\"]
    tls: {{ca: {ca}, cert: {frontend_cert}, key: {frontend_key}}}
backend: kubernetes
kubernetes:
  connection:
    kubeconfig: {kubeconfig}
  pod:
    mode: {mode}
{persistent}{agent}    metadata:
{name}      namespace: {namespace}
      generateName: podbay-
{profile}    spec:
      terminationGracePeriodSeconds: 2
{run_as}      containers:
        - name: shell
          image: {image}
    shellCommand: [{shell}]
{subsystems}grpc:
  listen: {grpc}
  tls: {{certFile: {backend_cert}, keyFile: {backend_key}, clientCAFile: {ca}}}
  drainTimeout: {drain}s
  callers:
    - {{name: \"dns:frontend.podbay\", service: frontend, users: [\"*\"]}}
    - {{name: \"dns:client.podbay\", service: client, users: [\"*\"], operator: true}}
  handleKeys:
    - {{id: demo, file: {handle_key}}}
",
            ssh = quoted(&plan.ssh.to_string()),
            user_key = quoted(user_key),
            dir = quoted(&self.dir.display().to_string()),
            grpc = plan.grpc,
            ca = self.quoted("ca.crt"),
            frontend_cert = self.quoted("frontend.crt"),
            frontend_key = self.quoted("frontend.key"),
            kubeconfig = quoted(&plan.kubeconfig.display().to_string()),
            mode = plan.mode,
            persistent = if stays { "    createMissingPods: true\n    persistentIdleTimeout: 10m\n" } else { "" },
            name = if stays { "      name: \"podbay-{username}\"\n" } else { "" },
            agent = if plan.agent { "" } else { "    disableAgent: true\n" },
            namespace = quoted(&plan.namespace),
            profile = if plan.run_as.is_some() { "    securityProfile: restricted\n" } else { "" },
            run_as =
                plan.run_as.map(|uid| format!("      securityContext: {{runAsUser: {uid}}}\n")).unwrap_or_default(),
            image = quoted(&plan.image),
            shell = quoted(plan.shell),
            subsystems = subsystems.unwrap_or_default(),
            backend_cert = self.quoted("backend.crt"),
            backend_key = self.quoted("backend.key"),
            handle_key = self.quoted("handle.key"),
        )
    }

    fn ssh_config(&self, plan: &Plan) -> String {
        format!(
            "# Written by `podbay demo`: ssh -F {file} {HOST}
Host {HOST}
    HostName {ip}
    Port {port}
    User demo
    HostKeyAlias {HOST}
    IdentityFile {key}
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {known}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    PreferredAuthentications publickey
",
            file = self.path(SSH_CONFIG).display(),
            ip = plan.ssh.ip(),
            port = plan.ssh.port(),
            key = self.path(USER_KEY).display(),
            known = self.path(KNOWN_HOSTS).display(),
        )
    }

    fn grpc_env(&self, plan: &Plan) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        format!(
            "PODBAY_ADDRESS={}\nPODBAY_CA={}\nPODBAY_CERT={}\nPODBAY_KEY={}\n",
            plan.grpc,
            path("ca.crt"),
            path("client.crt"),
            path("client.key")
        )
    }

    /// What to type next.
    pub fn welcome(&self, plan: &Plan) -> String {
        let (config, env) = (self.path(SSH_CONFIG), self.path("grpc.env"));
        let sftp = match plan.sftp_server {
            Some(_) => format!("  sftp -F {} {HOST}\n", config.display()),
            None => {
                "  (no sftp here: this machine has no sftp-server; on Debian: apt-get install openssh-sftp-server)\n"
                    .to_owned()
            }
        };
        let real = if plan.embedded {
            String::new()
        } else {
            let (image, namespace) = (&plan.image, &plan.namespace);
            format!(
                "Pods of the image {image} are made in namespace {namespace} of the cluster in {}.\n",
                plan.kubeconfig.display()
            )
        };
        format!(
            "{real}A shell in a new pod, from another terminal:\n  ssh -F {ssh} {HOST}\n{sftp}\
             Its pods:\n  kubectl --kubeconfig {kube} -n {namespace} get pods\n\
             A program over gRPC, and one that runs on alone:\n  podbay run --server {env} --user {HOST} -- uname -a\n\
             \x20 podbay run --server {env} --user {HOST} --detach -- sleep 60\n\
             \x20 podbay sessions --server {env} --user {HOST}\n\
             Any other gRPC client finds what it needs in:\n  {env}\n{end}\n",
            end = plan.end(),
            ssh = config.display(),
            kube = plan.kubeconfig.display(),
            namespace = plan.namespace,
            env = env.display(),
        )
    }

    /// How to run the three programs, each in a terminal of its own.
    pub fn how_to_run_apart(&self, embedded: bool, agent: bool) -> String {
        let (config, kube, file) = (self.path(CONFIG), self.path("kubeconfig"), self.path(AGENT));
        let program = if agent { format!(" --program {AGENT_IN_IMAGE}={}", file.display()) } else { String::new() };
        let cluster = if embedded {
            format!("  podbay-minicluster --kubeconfig {}{program}\n", kube.display())
        } else {
            String::new()
        };
        format!(
            "Each in a terminal of its own:\n{cluster}  podbay-backend --config {config}\n  podbay-frontend --config {config}\n\
             Then:\n  ssh -F {ssh} {HOST}\n",
            config = config.display(),
            ssh = self.path(SSH_CONFIG).display(),
        )
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let names = ["ca.crt", "handle.key", USER_KEY, "ssh_host_ed25519_key", KNOWN_HOSTS, SSH_CONFIG, "grpc.env"];
        let pairs = ["backend", "frontend", "client"].map(|name| [format!("{name}.crt"), format!("{name}.key")]);
        let all = names.into_iter().map(str::to_owned).chain(pairs.into_iter().flatten());
        for name in all.chain(["kubeconfig".to_owned(), AGENT.to_owned(), CONFIG.to_owned()]) {
            let _ = fs::remove_file(self.path(&name));
        }
        let _ = fs::remove_dir(self.path("pods"));
        if self.made {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// As a YAML string: JSON's are.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn secrets_are_written_to_no_file_that_is_there_already() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = State::prepare(Some(dir.path())).expect("prepares");
        fs::write(state.path("a"), "").expect("writes");
        fs::set_permissions(state.path("a"), fs::Permissions::from_mode(0o644)).expect("sets");
        symlink(state.path("elsewhere"), state.path("b")).expect("a link");
        for name in ["a", "b"] {
            state.secret(name, "secret").expect("writes");
            let meta = fs::symlink_metadata(state.path(name)).expect("there");
            assert!(meta.is_file() && meta.mode() & 0o777 == 0o600, "{name}: {:o}", meta.mode());
        }
        assert!(!state.path("elsewhere").exists(), "written through the link");
    }
}
