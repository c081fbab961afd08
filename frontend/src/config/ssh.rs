//! The `ssh` section.

use super::{Algorithms, PenaltyConfig};
use podbay_runtime::config::{Secret, Section};
use russh::keys::{PrivateKey, decode_secret_key};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

/// The longest banner; it goes out before anybody has logged in.
const MAX_BANNER: usize = 16 * 1024;

/// Keys that prove the server's identity.
#[derive(Debug, Clone)]
pub enum HostKeys {
    /// These.
    Given(Vec<PrivateKey>),
    /// One that is made at the first start and kept in `frontend.stateDir`.
    Kept,
}

/// How SSH is served.
#[derive(Debug, Clone)]
pub struct SshConfig {
    /// Where. Default 0.0.0.0:2222.
    pub listen: SocketAddr,
    /// Default `SSH-2.0-Podbay_0.1`.
    pub server_version: String,
    /// Shown before login; empty = none.
    pub banner: String,
    /// Host keys.
    pub host_keys: HostKeys,
    /// What is offered.
    pub algorithms: Algorithms,
    /// A silent client is asked whether it is there after this; `None` = never. Default 30 s.
    pub client_alive_interval: Option<Duration>,
    /// So many unanswered questions end the connection. Default 3.
    pub client_alive_count_max: usize,
    /// What failed logins cost.
    pub penalties: PenaltyConfig,
}

impl Default for SshConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 2222)),
            server_version: "SSH-2.0-Podbay_0.1".to_owned(),
            banner: String::new(),
            host_keys: HostKeys::Kept,
            algorithms: Algorithms::default(),
            client_alive_interval: Some(Duration::from_secs(30)),
            client_alive_count_max: 3,
            penalties: PenaltyConfig::default(),
        }
    }
}

impl SshConfig {
    pub(super) fn from_section(mut ssh: Section) -> Self {
        let default = Self::default();
        let server_version = ssh.filled("serverVersion", default.server_version);
        if !is_version(&server_version) {
            ssh.mistake(
                "serverVersion",
                "must be SSH-2.0- and a name of printable characters without space or -, at most 253 bytes",
            );
        }
        let banner: String = ssh.or("banner", String::new());
        if banner.len() > MAX_BANNER {
            ssh.mistake("banner", format!("is longer than {MAX_BANNER} bytes"));
        }
        let interval = ssh.or("clientAliveInterval", Duration::from_secs(30));
        if !interval.is_zero() && interval < Duration::from_secs(1) {
            ssh.mistake("clientAliveInterval", "must be 0 (off) or at least 1s");
        }
        let count = ssh.filled("clientAliveCountMax", default.client_alive_count_max);
        Self {
            listen: ssh.or("listen", default.listen),
            server_version,
            banner,
            host_keys: host_keys(&mut ssh),
            algorithms: Algorithms::from_section(&mut ssh),
            client_alive_interval: (!interval.is_zero()).then_some(interval),
            client_alive_count_max: count,
            penalties: PenaltyConfig::from_section(&mut ssh),
        }
    }
}

/// RFC 4253 section 4.2, as ContainerSSH checks it.
fn is_version(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("SSH-2.0-") else { return false };
    let (software, comment) =
        rest.split_once(' ').map_or((rest, None), |(software, comment)| (software, Some(comment)));
    let software_ok = !software.is_empty() && software.bytes().all(|c| c.is_ascii_graphic() && c != b'-');
    let comment_ok = comment.is_none_or(|comment| {
        !comment.is_empty() && comment.bytes().all(|c| c.is_ascii_alphanumeric() || b"- _.".contains(&c))
    });
    text.len() <= 253 && software_ok && comment_ok
}

/// Each entry is an inline PEM or the name of a file with one.
fn host_keys(ssh: &mut Section) -> HostKeys {
    let entries: Vec<Secret> = ssh.get("hostkeys").unwrap_or_default();
    let mut keys = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let entry = entry.expose().trim();
        let read = if entry.starts_with("-----") {
            decode(entry).map_err(|error| format!("entry {i} (inline): {error}"))
        } else {
            ssh.text_file(Path::new(entry))
                .map_err(|error| error.to_string())
                .and_then(|text| decode(text.trim()))
                .map_err(|error| format!("entry {i}, file {entry}: {error}"))
        };
        match read {
            Ok(key) => keys.push(key),
            Err(error) => ssh.mistake("hostkeys", error),
        }
    }
    if keys.is_empty() { HostKeys::Kept } else { HostKeys::Given(keys) }
}

fn decode(text: &str) -> Result<PrivateKey, String> {
    let key = decode_secret_key(text, None).map_err(|_| "is no private key in PEM, or has a passphrase".to_owned())?;
    if key.is_encrypted() { Err("has a passphrase".to_owned()) } else { Ok(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_version() {
        for good in ["SSH-2.0-Podbay_0.1", "SSH-2.0-a comment v1.0_x-y", "SSH-2.0-ContainerSSH"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "SSH-2.0-", "SSH-1.99-x", "SSH-2.0-a-b", "SSH-2.0-a\r", "SSH-2.0-a ", "SSH-2.0-a \u{e4}"] {
            assert!(!is_version(bad), "{bad}");
        }
        assert!(!is_version(&format!("SSH-2.0-{}", "x".repeat(250))));
    }
}
