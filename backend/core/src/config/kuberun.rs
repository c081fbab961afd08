//! `kuberun`: ContainerSSH's backend before 0.4, read into the settings of `kubernetes`.
//!
//! The section is translated and then read by the same readers, so that what they check counts here too. How it is translated
//! is what ContainerSSH 0.4's own shim did, but for two of its faults: `disableCommand` also refuses subsystems, as
//! 0.3 did, and a `command` in the podSpec stays the shell, as in 0.3, rather than being lost.

use super::{Connection, PodConfig, Timeouts, connection};
use podbay_runtime::{
    codes,
    config::{Kind, Moved, Section},
};
use std::time::Duration;

/// The event's code, as ContainerSSH has it: alerts go by it.
pub const DEPRECATED: &str = codes::KUBERUN_DEPRECATED;

/// The event's text, word for word as ContainerSSH's manual gives it. Where it says docker it means kubernetes: the field
/// `backend` of the event says so (docs/design/0011-configuration.md).
pub const DEPRECATED_TEXT: &str = "You are using the kuberun backend deprecated since ContainerSSH 0.4. This backend will be removed in the \
    future. Please switch to the new docker backend as soon as possible. See https://containerssh.io/deprecations/kuberun for details.";

/// The code of the event that tells of an API server whose certificate is not checked.
pub const INSECURE: &str = codes::KUBERUN_INSECURE;

/// The code of refusals by `disableCommand`.
pub const EXEC_DISABLED: &str = codes::KUBERUN_EXEC_DISABLED;

/// What `kuberun` has and `kubernetes` has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kuberun {
    /// `pod.disableCommand`: only shells.
    pub disable_command: bool,
    /// `connection.insecure`: the API server's certificate is not checked.
    pub insecure: bool,
}

impl Kuberun {
    /// Logs that this backend is in use: at the start and for every connection, as ContainerSSH 0.4 does.
    pub fn warn(self, connection: Option<podbay::ConnectionId>) {
        let connection = connection.map(tracing::field::display);
        tracing::warn!(
            code = DEPRECATED,
            backend = "kubernetes",
            help = "podbay migrate FILE",
            connection,
            "{DEPRECATED_TEXT}"
        );
        if self.insecure {
            tracing::warn!(
                code = INSECURE,
                connection,
                "kuberun.connection.insecure: the API server's certificate is not checked; whoever is in between can read and change everything"
            );
        }
    }
}

/// Reads the section.
pub(super) fn read(mut section: Section) -> Option<(Kuberun, Connection, PodConfig, Timeouts)> {
    for (key, hint) in [
        ("timeouts", "kuberun has one timeout for all, and connection.timeout; the six are of the backend kubernetes"),
        ("spec", "belongs into pod.podSpec"),
        ("podSpec", "belongs into pod.podSpec"),
        ("namespace", "belongs into pod.namespace"),
    ] {
        section.refuse(key, hint);
    }
    let timeout = section.filled("timeout", Duration::from_mins(1));
    let mut connection = section.section("connection");
    let http = connection.filled("timeout", Timeouts::default().http);
    let insecure = connection.or("insecure", false);
    // Keys of both, under the same names; kubernetes' own kubeconfig and context are unknown here.
    let keys = connection::KEYS.map(|key| (key, Moved::From(key)));
    let mut reached = Connection::read(&mut connection.translated(&keys));
    if insecure {
        connection.warn(
            "insecure",
            "the API server's certificate is not checked (KUBERUN_INSECURE); give cacertFile, and leave this out",
        );
        match &mut reached {
            Some(Connection::Explicit(explicit)) => explicit.insecure = true,
            Some(Connection::InCluster | Connection::Kubeconfig { .. }) | None => {
                connection.warn("insecure", "has no effect without a host: in a cluster its CA is known");
            }
        }
    }
    let timeouts = Timeouts {
        pod_start: timeout,
        pod_stop: timeout,
        command_start: timeout,
        signal: timeout,
        window: timeout,
        http,
        ..Timeouts::default()
    };
    let (disable_command, pod) = pod(section.section("pod").lenient().in_any_case());
    Some((Kuberun { disable_command, insecure }, reached?, pod?, timeouts))
}

fn pod(mut section: Section) -> (bool, Option<PodConfig>) {
    let disable_command = section.or("disableCommand", false);
    let agent = section.or("disableAgent", false);
    if agent {
        section.warn("disableAgent", "in kuberun, true turns the agent on, as ContainerSSH 0.4 reads it; kubernetes.pod.disableAgent is the other way round");
    }
    for (key, hint) in [
        ("spec", "is ignored: kuberun calls it podSpec"),
        ("metadata", "is ignored: kuberun knows namespace only; see podbay migrate"),
        ("mode", "is ignored: kuberun starts a pod for each program"),
        ("idleCommand", "is ignored: kuberun's pods run one program each"),
        ("enableAgent", "is ignored: kuberun calls it disableAgent, and true turns the agent on"),
    ] {
        if section.has(key) {
            section.ignore(key);
            section.warn_key(key, hint);
        }
    }
    if section.describing() {
        section.effective("namespace", Kind::Text, "default".into());
        section.effective("shellCommand", Kind::List(Box::new(Kind::Text)), Vec::<String>::new().into());
    }
    // Known also where it is not there: a slip in it is told with what was meant.
    section.ignore("shellCommand");
    let number = section.get::<usize>("consoleContainerNumber").unwrap_or_default().to_string();
    let own = ["podSpec", "containers", &number, "command"];
    let shell = match (section.has("shellCommand"), agent) {
        (true, _) => Moved::From("shellCommand"),
        (false, false) if section.reaches(&own) => Moved::At(&own),
        (false, true | false) => Moved::Empty,
    };
    let keys = [
        ("mode", Moved::Text("session")),
        ("metadata", Moved::Below("namespace", "namespace")),
        ("spec", Moved::From("podSpec")),
        ("consoleContainerNumber", Moved::From("consoleContainerNumber")),
        ("subsystems", Moved::From("subsystems")),
        ("agentPath", Moved::From("agentPath")),
        ("disableAgent", Moved::Flag(!agent)),
        ("shellCommand", shell),
    ];
    (disable_command, PodConfig::read(&mut section.translated(&keys)))
}
