//! The cluster that `tests/cluster/cluster` started: its parts can be killed, and its keys are at hand.

use super::{cluster::REAL, finish, program_of_tests};
use serde_json::Value;
use std::{
    path::Path,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const FOLDER: &str = "/run/podbay-cluster";

/// Whether scenarios run on it.
pub fn is_ours() -> bool {
    std::env::var_os(REAL).is_some_and(|kubeconfig| Path::new(&kubeconfig).starts_with(FOLDER))
}

/// A part of it that can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    ApiServer,
    Kubelet,
    Containerd,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "apiserver",
            Self::Kubelet => "kubelet",
            Self::Containerd => "containerd",
        }
    }

    /// Killed as by a crash.
    pub fn dies(self) {
        self.does("kill", &[]);
    }

    /// Started again; ready when this returns.
    pub fn starts(self) {
        self.does("start", &[]);
    }

    /// Both, with this between them.
    pub fn restarts(self, down_for: Duration) {
        self.does("restart", &["--down-for", &down_for.as_secs_f64().to_string()]);
    }

    #[track_caller]
    fn does(self, verb: &str, more: &[&str]) {
        let done = finish(Command::new(program_of_tests("cluster/cluster")).arg(verb).arg(self.name()).args(more), b"");
        assert!(done.status.success(), "{verb} {self:?}: {done:?}");
        // The scheduler asks an API server that was away less and less often, after several outages every 30 s: that is none of
        // what these tests are about, and a new one asks at once.
        if self == Self::ApiServer && verb != "kill" {
            let mut scheduler = Command::new(program_of_tests("cluster/cluster"));
            let done = finish(scheduler.args(["restart", "scheduler"]), b"");
            assert!(done.status.success(), "the scheduler: {done:?}");
        }
    }
}

/// The same token, which is accepted for so long from now: signed with the cluster's own key, since the API gives none for less than ten
/// minutes.
pub fn token_that_ends(token: &str, lives: Duration) -> String {
    let mut parts = token.split('.');
    let (header, claims) = (parts.next().expect("a header"), parts.next().expect("claims"));
    let mut claims: Value = serde_json::from_slice(&plain(claims)).expect("JSON");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    // For clocks that differ the API server adds a minute.
    claims["exp"] = (now + lives).saturating_sub(Duration::from_mins(1)).as_secs().into();
    let signed = format!("{header}.{}", encoded(claims.to_string().as_bytes()));
    let key = format!("{FOLDER}/pki/tokens.key");
    let signature = through(Command::new("openssl").args(["dgst", "-sha256", "-sign", &key]), signed.as_bytes());
    format!("{signed}.{}", encoded(&signature))
}

/// What a base64 text (of either alphabet) says.
pub fn plain(text: &str) -> Vec<u8> {
    let mut text = text.replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    through(Command::new("base64").arg("-d"), text.as_bytes())
}

fn encoded(bytes: &[u8]) -> String {
    let text = String::from_utf8(through(Command::new("base64").arg("-w0"), bytes)).expect("ASCII");
    text.trim_end_matches('=').replace('+', "-").replace('/', "_")
}

#[track_caller]
fn through(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let done = finish(command, input);
    assert!(done.status.success(), "{done:?}");
    done.stdout
}
