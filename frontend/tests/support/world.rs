//! A frontend, its backends, and users with the stock client.

use super::{PATIENCE, Replica, backend::Shared, tls::Files};
use podbay_frontend::{
    Config, Metrics, Parts,
    auth::{AuthConfig, PasswordHash, User, Users, parse_authorized_key},
    backend::{connector::Security, pool::Addresses},
    config::{BackendConfig, FrontendConfig, HostKeys, Operations, SshConfig},
};
use podbay_runtime::{admin::Readiness, reload::Source, shutdown::Shutdown, telemetry::Log};
use prometheus_client::registry::Registry;
use russh::keys::{Algorithm, PrivateKey, ssh_key::LineEnding};
use std::{
    collections::HashMap,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

/// "password", as SHA-512-crypt with the fewest rounds.
pub const PASSWORD_HASH: &str =
    "$6$rounds=1000$podbaytest$teYGG2o7/CqMdOyV.LkkHteEEHkooVPLpSYB3u1KWx..qPdARID00kMeDHrJyNRaXUq4FfPQO1y8RGTZsz1tJ0";

/// What a finished `ssh` left.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Answered {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Answered {
    /// Exactly this came of it.
    pub fn is(&self, status: i32, stdout: &str, stderr: &str) {
        assert_eq!((self.status, self.stdout.as_str(), self.stderr.as_str()), (Some(status), stdout, stderr));
    }
}

/// Puts what a configuration names into its directory.
type Before<'a> = &'a mut dyn FnMut(&Path);

/// Everything of one test. Dropping it ends the frontend and the backends.
pub struct World {
    pub address: SocketAddr,
    pub script: Shared,
    pub replicas: Vec<Replica>,
    pub registry: Registry,
    pub readiness: Readiness,
    pub shutdown: Shutdown,
    pub frontend: Option<JoinHandle<()>>,
    pub dir: tempfile::TempDir,
    pub key: PrivateKey,
    /// Has the configuration read again ([`Self::with_file`]).
    pub asked: Arc<Notify>,
}

impl World {
    /// One replica, usual settings.
    pub async fn new() -> Self {
        Self::with(1, |_| {}).await
    }

    /// So many replicas, and settings changed.
    pub async fn with(replicas: usize, change: impl FnOnce(&mut Config)) -> Self {
        Self::build(replicas, false, change, None).await
    }

    /// The same with mutual TLS to the backend.
    pub async fn with_tls() -> Self {
        Self::build(1, true, |_| {}, None).await
    }

    /// One replica, and a configuration from a file: [`Self::replace_file`]. `before` puts what it names into its directory.
    pub async fn with_file(text: &str, before: impl FnOnce(&Path)) -> Self {
        let mut before = Some(before);
        Self::build(1, false, |_| {}, Some((text, &mut |dir| before.take().expect("once")(dir)))).await
    }

    /// Puts another file in place of the configuration's.
    pub fn replace_file(&self, text: &str) {
        let names = self.replicas.iter().map(|replica| replica.address.to_string()).collect::<Vec<_>>();
        write_file(self.dir.path(), text, &names);
    }

    async fn build(
        replicas: usize,
        tls: bool,
        change: impl FnOnce(&mut Config),
        file: Option<(&str, Before<'_>)>,
    ) -> Self {
        if std::env::var_os("RUST_LOG").is_some() {
            let _ = podbay_runtime::telemetry::init(&Log::default());
        }
        let dir = tempfile::tempdir().expect("a directory");
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key");
        let wrong = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key");
        for (name, key) in [("id", &key), ("wrong", &wrong)] {
            let path = dir.path().join(name);
            std::fs::write(&path, key.to_openssh(LineEnding::LF).expect("PEM").as_bytes()).expect("writes");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("sets the mode");
        }
        let script = Shared::default();
        let files = tls.then(|| Files::make(dir.path()));
        let mut running = Vec::new();
        for _ in 0..replicas {
            running.push(Replica::start(&script, files.as_ref()));
        }
        let names: Vec<String> = running.iter().map(|replica| replica.address.to_string()).collect();
        let asked = Arc::<Notify>::default();
        let from_file = file.map(|(text, before)| {
            before(dir.path());
            write_file(dir.path(), text, &names);
            let read = Source::read(&dir.path().join("podbay.yaml"), Config::from_document);
            read.unwrap_or_else(|mistakes| panic!("{mistakes}"))
        });
        let security = files.map_or(Security::Plaintext, |files| Security::Tls {
            config: podbay_runtime::tls::Followed::client(files.ca, Some((files.cert, files.key))).expect("TLS"),
            reload_interval: Duration::from_millis(100),
            name: Some("localhost".try_into().expect("a name")),
        });
        let backend =
            BackendConfig { addresses: Addresses { names, every: Duration::from_secs(1), connections: 2 }, security };
        let host_key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key");
        let mut config = Config {
            ssh: SshConfig { host_keys: HostKeys::Given(vec![host_key]), ..SshConfig::default() },
            auth: AuthConfig::default(),
            users: users(&key),
            frontend: FrontendConfig { drain_timeout: Duration::from_secs(2), ..FrontendConfig::new(backend) },
            log: Log::default(),
            operations: Operations::default(),
            warnings: Vec::new(),
        };
        let mut source = None;
        if let Some((read, from)) = from_file {
            config = read;
            source = Some(from.every(Duration::ZERO).when(Arc::clone(&asked)));
        }
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let (mut registry, shutdown) = (Registry::default(), Shutdown::new());
        let metrics = Some(Metrics::new(&mut registry));
        let source = source.map(|source| source.counted(&mut registry));
        let readiness = Readiness::default();
        let parts = Parts { metrics, readiness: readiness.clone(), shutdown: shutdown.clone(), backend: None, source };
        let frontend = tokio::spawn(async move {
            podbay_frontend::run(config, listener, parts).await.expect("runs");
        });
        let frontend = Some(frontend);
        Self { address, script, replicas: running, registry, readiness, shutdown, frontend, dir, key, asked }
    }

    /// Alice's client.
    pub fn ssh(&self, arguments: &[&str]) -> Ssh {
        Ssh::new(self, "id", &[], arguments)
    }

    /// The same with options of `ssh_config`, which count before the usual ones.
    pub fn ssh_with(&self, options: &[&str], arguments: &[&str]) -> Ssh {
        Ssh::new(self, "id", options, arguments)
    }

    /// With a key that nobody knows.
    pub fn ssh_with_wrong_key(&self, options: &[&str], arguments: &[&str]) -> Ssh {
        Ssh::new(self, "wrong", options, arguments)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// All metrics.
    pub fn encoded(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("encodes");
        text
    }

    /// The sum of a metric's lines whose labels hold `label`.
    pub fn metric(&self, name: &str, label: &str) -> u64 {
        let text = self.encoded();
        let matching = text.lines().filter(|line| {
            let line = line.strip_prefix("podbay_frontend_").unwrap_or_default();
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        matching.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Ends the frontend softly and waits for it.
    pub async fn end(&mut self) {
        self.shutdown.soft.cancel();
        let frontend = self.frontend.take().expect("runs");
        timeout(PATIENCE, frontend).await.expect("the frontend ends").expect("no panic");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.soft.cancel();
        self.shutdown.hard.cancel();
    }
}

/// `@DIR@`, `@BACKEND@`, and the public keys `@ID@` and `@WRONG@` stand for themselves.
fn write_file(dir: &Path, text: &str, replicas: &[String]) {
    let key = |name: &str| {
        let text = std::fs::read_to_string(dir.join(name)).expect("a key");
        let key = PrivateKey::from_openssh(text).expect("a key");
        key.public_key().to_openssh().expect("a line")
    };
    let text = text
        .replace("@DIR@", &dir.display().to_string())
        .replace("@BACKEND@", &replicas.join("', '"))
        .replace("@ID@", &key("id"))
        .replace("@WRONG@", &key("wrong"));
    std::fs::write(dir.join("new.yaml"), text).expect("writes");
    std::fs::rename(dir.join("new.yaml"), dir.join("podbay.yaml")).expect("renames");
}

fn users(key: &PrivateKey) -> Users {
    let public = parse_authorized_key(&key.public_key().to_openssh().expect("a line")).expect("a key");
    let hash = PasswordHash::parse(PASSWORD_HASH).expect("a hash");
    let alice = User { password: Some(hash), keys: vec![public] };
    Users::new(HashMap::from([("alice".to_owned(), alice)]))
}

/// A call of `ssh`.
pub struct Ssh(Command);

impl Ssh {
    fn new(world: &World, key: &str, options: &[&str], arguments: &[&str]) -> Self {
        let mut command = Command::new("ssh");
        let port = world.address.port().to_string();
        let identity = world.path(key);
        command.args(["-F", "none", "-p", &port]);
        let usual = [
            "User=alice",
            "LogLevel=ERROR",
            "HostName=127.0.0.1",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
        ];
        for option in options.iter().chain(&usual) {
            command.args(["-o", option]);
        }
        command.arg("-i").arg(identity).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // No agent, askpass or display of whoever runs the tests.
        command.env_remove("SSH_AUTH_SOCK").env_remove("SSH_ASKPASS").env_remove("DISPLAY");
        Self(command)
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    pub fn with_stdin(mut self) -> Self {
        self.0.stdin(Stdio::piped());
        self
    }

    pub fn spawn(mut self) -> Child {
        self.0.spawn().expect("ssh starts")
    }

    /// Runs to the end.
    pub async fn run(mut self) -> Answered {
        let child = self.0.spawn().expect("ssh starts");
        timeout(PATIENCE, child.wait_with_output()).await.expect("ssh ends in time").expect("ssh ends").into()
    }
}

/// A russh client that accepts any server.
pub struct AnyServer;

impl russh::client::Handler for AnyServer {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &russh::keys::PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

impl World {
    /// Alice through russh's client, for what `ssh` never does.
    pub async fn client(&self) -> russh::client::Handle<AnyServer> {
        let config = Arc::new(russh::client::Config::default());
        let mut client = russh::client::connect(config, self.address, AnyServer).await.expect("connects");
        let key = russh::keys::PrivateKeyWithHashAlg::new(Arc::new(self.key.clone()), None);
        let result = client.authenticate_publickey("alice", key).await.expect("authenticates");
        assert!(result.success());
        client
    }
}
