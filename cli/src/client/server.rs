//! Which backend, and with what certificate.

use anyhow::{Context as _, bail};
use podbay::v1::{connection_service_client::ConnectionServiceClient, session_service_client::SessionServiceClient};
use std::{collections::HashMap, path::PathBuf, time::Duration};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

const CONNECT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Each may stand in the file of `--server`, or in the environment, under the name that is given in brackets.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which backend")]
pub struct Server {
    /// A file of lines NAME=VALUE with the names in brackets below; `podbay demo` writes one [PODBAY_SERVER]
    #[arg(long = "server", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Backends, as HOST:PORT with commas between; one that answers is taken, another when it is lost [PODBAY_ADDRESS]
    #[arg(long, value_name = "HOST:PORT,…")]
    address: Option<String>,
    /// The CA that signed the backends' certificates, PEM [PODBAY_CA]
    #[arg(long, value_name = "FILE")]
    ca: Option<String>,
    /// The certificate that says who you are, PEM [PODBAY_CERT]
    #[arg(long, value_name = "FILE")]
    cert: Option<String>,
    /// Its key, PEM [PODBAY_KEY]
    #[arg(long, value_name = "FILE")]
    key: Option<String>,
    /// The name in the backends' certificates, where it is not the HOST [PODBAY_SERVER_NAME]
    #[arg(long = "server-name", value_name = "NAME")]
    tls_name: Option<String>,
}

/// Backends that share their handles. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Backends {
    addresses: Vec<String>,
    tls: ClientTlsConfig,
    server_name: Option<String>,
    next: usize,
}

impl Server {
    /// Reads the files.
    pub fn read(&self) -> anyhow::Result<Backends> {
        let file = self.file.clone().or_else(|| std::env::var_os("PODBAY_SERVER").map(PathBuf::from));
        let file = file.map_or_else(|| Ok(HashMap::new()), |path| lines(&path))?;
        let value = |flag: &Option<String>, name: &str| {
            flag.clone().or_else(|| file.get(name).cloned()).or_else(|| std::env::var(name).ok())
        };
        let needed = |flag: &Option<String>, option: &str, name: &str| {
            value(flag, name).with_context(|| {
                format!("no {option}: give it, or --server FILE, or set {name} (podbay demo prints how to)")
            })
        };
        let pem = |flag: &Option<String>, option: &str, name: &str| {
            let path = needed(flag, option, name)?;
            std::fs::read(&path).with_context(|| format!("{option} {path} can't be read"))
        };
        let addresses = needed(&self.address, "--address", "PODBAY_ADDRESS")?;
        let addresses: Vec<String> = addresses.split(',').map(|address| address.trim().to_owned()).collect();
        if let Some(bad) = addresses.iter().find(|address| !address.contains(':')) {
            bail!("--address {bad:?}: not HOST:PORT");
        }
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem(&self.ca, "--ca", "PODBAY_CA")?)).identity(
                Identity::from_pem(pem(&self.cert, "--cert", "PODBAY_CERT")?, pem(&self.key, "--key", "PODBAY_KEY")?),
            );
        Ok(Backends { addresses, tls, server_name: value(&self.tls_name, "PODBAY_SERVER_NAME"), next: 0 })
    }
}

fn lines(path: &PathBuf) -> anyhow::Result<HashMap<String, String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--server {} can't be read", path.display()))?;
    let named = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    named
        .map(|line| {
            let (name, value) = line
                .split_once('=')
                .with_context(|| format!("--server {}: {line:?} is not NAME=VALUE", path.display()))?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

impl Backends {
    /// How many addresses there are: at least one, and one more where the last try was the first one's.
    pub fn count(&self) -> usize {
        self.addresses.len() + 1
    }

    /// A channel to one that answers, beginning behind the last one that was given.
    pub async fn connect(&mut self) -> anyhow::Result<Channel> {
        let mut last = None;
        for _ in 0..self.addresses.len() {
            let address = self.addresses[self.next % self.addresses.len()].clone();
            self.next += 1;
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            let name = self.server_name.clone().unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned());
            let endpoint = Endpoint::from_shared(format!("https://{address}"))
                .and_then(|endpoint| endpoint.tls_config(self.tls.clone().domain_name(name)))
                .with_context(|| format!("--address {address:?} or the TLS files can't be used"))?
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true);
            match endpoint.connect().await {
                Ok(channel) => return Ok(channel),
                Err(error) => last = Some((address, error)),
            }
        }
        let (address, error) = last.context("--address names nothing")?;
        Err(error).with_context(|| {
            format!(
                "no backend answers, the last one tried was {address}: is it running, and do --ca, --cert and \
                 --server-name fit its certificate?"
            )
        })
    }
}

/// Calls about connections.
pub fn connections(channel: &Channel) -> ConnectionServiceClient<Channel> {
    ConnectionServiceClient::new(channel.clone())
}

/// Calls about sessions.
pub fn sessions(channel: &Channel) -> SessionServiceClient<Channel> {
    SessionServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20)
}
