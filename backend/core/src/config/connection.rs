//! `kubernetes.connection`: how to reach the API.

use podbay_runtime::config::{Secret, Section};
use std::path::PathBuf;

/// What is told of a token's file that is not there; of no consequence where a file is only rewritten.
pub(crate) const UNREADABLE: &str = "can't be read";

/// How to reach the API.
#[derive(Debug, Clone, PartialEq)]
pub enum Connection {
    /// With the pod's own service account: the default.
    InCluster,
    /// With a kubeconfig file.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// The context; `None` = the file's current one.
        context: Option<String>,
    },
    /// With ContainerSSH's keys.
    Explicit(Box<Explicit>),
}

/// PEM text from the configuration or from a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Pem {
    /// Text in the configuration; wins over a file.
    Inline(Secret),
    /// A file, read by the adapter.
    File(PathBuf),
}

/// ContainerSSH's keys, by name (docs/configuration.md).
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Explicit {
    pub host: String,
    pub path: String,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub server_name: Option<String>,
    pub cert: Option<Pem>,
    pub key: Option<Pem>,
    pub cacert: Option<Pem>,
    pub bearer_token: Option<Secret>,
    pub bearer_token_file: Option<PathBuf>,
    /// Requests per second on average, of the whole process.
    pub qps: f64,
    /// Requests at once.
    pub burst: u32,
    /// The server's certificate is not checked: only `kuberun` can say so.
    pub insecure: bool,
}

/// ContainerSSH's: `kubernetes` and `kuberun` have the same.
pub(super) const KEYS: [&str; 15] = [
    "host",
    "path",
    "username",
    "password",
    "serverName",
    "certFile",
    "keyFile",
    "cacertFile",
    "cert",
    "key",
    "cacert",
    "bearerToken",
    "bearerTokenFile",
    "qps",
    "burst",
];

impl Connection {
    pub(super) fn read(section: &mut Section) -> Option<Self> {
        let file: Option<PathBuf> = section.get("kubeconfig");
        let context: Option<String> = section.get("context");
        section.refuse("insecure", "the API server's certificate is always checked; give cacertFile");
        section.refuse("timeout", "it is a key of kuberun; here kubernetes.timeouts.http bounds requests");
        for key in KEYS {
            // Read or not, they are known: a slip in one is told with what was meant.
            section.ignore(key);
        }
        let set: Vec<&str> = KEYS.into_iter().filter(|key| section.has(key)).collect();
        match (file, set.first()) {
            (Some(_), Some(key)) => {
                section.mistake(key, "can't be used together with kubeconfig");
                None
            }
            (Some(file), None) => Some(Self::Kubeconfig { file, context }),
            (None, _) if context.is_some() => {
                section.mistake("context", "needs kubeconfig");
                None
            }
            (None, None) if section.describing() => {
                drop(Explicit::read(section));
                None
            }
            (None, None) => Some(Self::InCluster),
            (None, Some(_)) => Explicit::read(section).map(|explicit| Self::Explicit(Box::new(explicit))),
        }
    }
}

impl Explicit {
    fn read(section: &mut Section) -> Option<Self> {
        // Empty text means 'not set', as in ContainerSSH.
        let host = section.filled("host", "kubernetes.default.svc".to_owned());
        let path = section.filled("path", "/api".to_owned());
        let mut text = |key| section.get::<String>(key).filter(|text| !text.is_empty());
        let (username, server_name) = (text("username"), text("serverName"));
        let mut secret = |key| section.get::<Secret>(key).filter(|secret| !secret.expose().is_empty());
        let (password, bearer_token) = (secret("password"), secret("bearerToken"));
        let mut file = |key| section.get::<PathBuf>(key).filter(|path| !path.as_os_str().is_empty());
        let bearer_token_file = file("bearerTokenFile");
        let mut pem = |key, file_key| {
            let file = section.get::<PathBuf>(file_key).filter(|path| !path.as_os_str().is_empty());
            let inline = section.get::<Secret>(key).filter(|secret| !secret.expose().is_empty());
            inline.map(Pem::Inline).or(file.map(Pem::File))
        };
        let (mut cert, key, cacert) = (pem("cert", "certFile"), pem("key", "keyFile"), pem("cacert", "cacertFile"));
        if key.is_none() && cacert.is_some() && cert.take().is_some() {
            // As the stock client. ContainerSSH 0.3 has the CA's file here by default, and files that name it there.
            let at = if section.has("cert") { "cert" } else { "certFile" };
            section.warn(at, "has no effect without key or keyFile; a CA belongs into cacertFile");
        }
        let qps = section.filled("qps", 5.0_f64);
        let burst = section.filled("burst", 10_u32);

        let mut good = true;
        let mut wrong = |key: &str, text: String| {
            section.mistake(key, text);
            good = false;
        };
        let path = path.trim_end_matches('/').to_owned();
        if !path.ends_with("/api") {
            wrong("path", format!("{path:?} does not end in /api"));
        }
        if cert.is_some() != key.is_some() {
            let (there, missing) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
            let at = if section.has(there) { there.to_owned() } else { format!("{there}File") };
            let hint = if there == "cert" { "; the API server's CA belongs into cacertFile" } else { "" };
            wrong(&at, format!("needs {missing} or {missing}File as well{hint}"));
        }
        // The stock Kubernetes client's rules: one way to say who we are, and a password belongs to a user.
        if username.is_some() && (bearer_token.is_some() || bearer_token_file.is_some()) {
            wrong("username", "can't be used together with a bearer token".into());
        }
        if password.is_some() && username.is_none() {
            wrong("password", "needs username".into());
        }
        if host.contains('@') {
            wrong("host", "holds a user's name or password: use username and password".into());
        }
        if qps < 0.0 {
            wrong("qps", "must not be negative".into());
        }
        // Nothing else depends on it: it is missing wherever the file is read outside of the pod that it is for.
        if let Some(file) = &bearer_token_file
            && let Err(error) = std::fs::metadata(file)
        {
            section.mistake("bearerTokenFile", format!("{} {UNREADABLE}: {error}", file.display()));
        }
        good.then_some(Self {
            host,
            path,
            username,
            password,
            server_name,
            cert,
            key,
            cacert,
            bearer_token,
            bearer_token_file,
            qps,
            burst,
            insecure: false,
        })
    }

    /// The API server's URL with the prefix of `path`. A host without scheme is reached by HTTPS if anything of TLS or any
    /// credential is configured; else, as ContainerSSH does, by HTTP. (ContainerSSH sends a lone token over HTTP: we don't.)
    pub fn url(&self) -> String {
        let credentials = self.bearer_token.is_some() || self.bearer_token_file.is_some() || self.username.is_some();
        let tls = self.cacert.is_some() || self.cert.is_some() || credentials || self.host == "kubernetes.default.svc";
        let scheme = if self.host.contains("://") { "" } else { ["http://", "https://"][usize::from(tls)] };
        let prefix = self.path.strip_suffix("/api").unwrap_or_default();
        format!("{scheme}{}{prefix}", self.host.trim_end_matches('/'))
    }
}
