//! What lines of the log are called: ContainerSSH's codes where it has one for what happened, and a few of ours in its manner. Operators' alerts
//! go by them, so one that is here is never renamed. `docs/log-codes.md` is generated from this, and a test holds both against the code.

use crate::telemetry::Severity::{self, Crit, Debug, Err as Error, Info, Warning};

/// A name of lines.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// As it stands in the log.
    pub name: &'static str,
    /// The levels at which it is told.
    pub levels: &'static [Severity],
    /// Which process tells it.
    pub by: &'static str,
    /// When.
    pub when: &'static str,
    /// Not one of ContainerSSH's.
    pub ours: bool,
}

macro_rules! codes {
    ($($name:ident, [$($level:ident),*], $by:literal, $when:literal $(, $ours:ident)?;)*) => {
        $(#[doc = $when] pub const $name: &str = stringify!($name);)*

        /// All of them.
        pub const CODES: &[Code] = &[$(Code {
            name: stringify!($name),
            levels: &[$($level),*],
            by: $by,
            when: $when,
            ours: codes!(@ours $($ours)?),
        }),*];
    };
    (@ours) => { false };
    (@ours ours) => { true };
}

codes! {
    CORE_NO_HOST_KEYS, [Info], "frontend", "`ssh.hostkeys` is empty and none was kept: a host key was made";
    CORE_HOST_KEY_GENERATION_FAILED, [Crit], "frontend", "… and that failed; the process ends";
    CORE_HEALTH_CHECK_SUCCESSFUL, [Info], "frontend", "`--healthcheck`: healthy";
    CORE_HEALTH_CHECK_FAILED, [Crit], "frontend", "`--healthcheck`: not healthy, or not there";
    SERVICE_POOL_STARTING, [Info], "both", "the configuration is read, ports are opened next";
    SERVICE_POOL_RUNNING, [Info], "both", "everything serves";
    SERVICE_POOL_STOPPING, [Info], "both", "the first signal: draining";
    SERVICE_POOL_STOPPED, [Info], "both", "the ordered end";
    SERVICE_CRASHED, [Error], "both", "a part failed, and the process ends with it";
    SSH_AVAILABLE, [Info], "frontend", "SSH is served";
    SSH_START_FAILED, [Error], "frontend", "`ssh.listen` can't be bound";
    HTTP_LISTEN_FAILED, [Error], "both", "the address of `metrics`, `health`, `frontend.admin` or `grpc.adminListen` can't be bound";
    METRICS_AVAILABLE, [Info], "frontend", "`metrics` is served";
    HEALTH_AVAILABLE, [Info], "frontend", "`health` is served";
    SSH_CONNECTED, [Debug], "frontend", "a TCP connection was accepted";
    SSH_DISCONNECTED, [Debug], "frontend", "a connection is gone";
    SSH_HANDSHAKE_SUCCESSFUL, [Info], "frontend", "logged in, and the backend has opened the connection";
    SSH_HANDSHAKE_FAILED, [Info], "frontend", "a connection ended before that: a scanner, a login that failed or did not come in time, a backend that refused";
    SSH_AUTH_SUCCESSFUL, [Info], "frontend", "a login; the signature is proven by then";
    SSH_AUTH_FAILED, [Info], "frontend", "an attempt to log in that was refused";
    SSH_AUTH_UNAVAILABLE, [Info], "frontend", "an attempt to log in that nobody could judge: a webhook is out of order";
    SSH_BACKEND_REJECTED_HANDSHAKE, [Error], "frontend", "logged in, but the backend could not open the connection: **alert**";
    SSH_KEEPALIVE_NORESP, [Info], "frontend", "the client answers no keepalive; it is cut";
    SSH_NEW_CHANNEL, [Debug], "frontend", "a session channel was opened";
    SSH_NEW_CHANNEL_REJECTED, [Debug], "frontend", "a session channel was refused: too many";
    SSH_CHANNEL_REQUEST_FAILED, [Debug], "frontend", "a request on a channel was refused, as wrong or out of time";
    SSH_EXIT, [Debug], "frontend", "a program ended with a status";
    SSH_EXIT_SIGNAL, [Debug], "frontend", "a program ended by a signal";
    SECURITY_ENV_REJECTED, [Info], "both", "`security.env` refuses a variable";
    SECURITY_EXEC_REJECTED, [Info], "both", "`security.command` refuses a program";
    SECURITY_SHELL_REJECTED, [Info], "both", "`security.shell` refuses a shell";
    SECURITY_SUBSYSTEM_REJECTED, [Info], "both", "`security.subsystem` refuses a subsystem";
    SECURITY_TTY_REJECTED, [Info], "both", "`security.tty` refuses a terminal";
    SECURITY_SIGNAL_REJECTED, [Info], "both", "`security.signal` refuses a signal";
    SECURITY_EXEC_FORCING_COMMAND, [Info], "backend", "`security.forceCommand` takes a program's place";
    SECURITY_MAX_SESSIONS, [Info], "frontend", "`security.maxSessions` (or the frontend's own limit) refuses a channel";
    SECURITY_FORWARDING_REJECTED, [Info], "frontend", "a client asked for `-L`, `-D`, `-J` or a socket";
    SECURITY_REVERSE_FORWARDING_REJECTED, [Info], "frontend", "a client asked for `-R`";
    SECURITY_X11_FORWARDING_REJECTED, [Info], "frontend", "a client asked for X11";
    AUTH, [Debug], "frontend", "the authentication webhook is asked; `authtype` says what";
    AUTH_SUCCESSFUL, [Debug], "frontend", "it said yes";
    AUTH_FAILED, [Debug], "frontend", "it said no";
    AUTH_BACKEND_ERROR, [Debug, Error], "frontend", "a call failed, `reason` says why; at error: given up, **alert**";
    AUTH_INVALID_STATUS, [Debug], "frontend", "in `reason`: a status other than 200";
    CONFIG_AUTH_URL_DEPRECATED, [Warning], "frontend", "`auth.url` is the form of 0.4";
    CONFIG_REQUEST, [Debug], "backend", "the config webhook is asked";
    CONFIG_RESPONSE, [Debug], "backend", "it has answered";
    CONFIG_BACKEND_ERROR, [Debug, Error], "backend", "a call failed, `reason` says why; at error: given up, **alert**";
    CONFIG_INVALID_STATUS_CODE, [Debug], "backend", "in `reason`: a status other than 200";
    BACKEND_CONFIG_WARNING, [Info], "backend", "the config webhook's answer is used, and something in it is odd", ours;
    BACKEND_CONFIG_ERROR, [Error], "backend", "the config webhook's answer can't be used: **alert**";
    HTTP_CLIENT_REQUEST, [Debug], "both", "a call of a webhook begins";
    HTTP_CLIENT_RESPONSE, [Debug], "both", "it has an answer of status 200";
    HTTP_CLIENT_CONNECTION_FAILED, [Debug], "both", "no connection, no TLS, or no answer in time; also in `reason`";
    HTTP_CLIENT_DECODE_FAILED, [Debug], "both", "the answer is too long or no valid JSON; also in `reason`";
    HTTP_CLIENT_REDIRECTS_DISABLED, [Debug], "both", "the answer is a redirect; also in `reason`";
    LOG_WRITE_FAILED, [Crit], "both", "the log can't be written where it belongs; lines go to stderr until it can";
    LOG_ROTATE_FAILED, [Crit], "both", "at SIGHUP the log could not be opened anew; it goes on where it was";
    KUBERNETES_CONFIG_ERROR, [Error], "backend", "`kubernetes.connection` makes no client; the process ends";
    KUBERNETES_POD_CREATE, [Info], "backend", "a pod was created";
    KUBERNETES_POD_CREATE_FAILED, [Debug, Error], "backend", "a try failed; at error: refused for good";
    KUBERNETES_POD_WAIT, [Debug], "backend", "a pod is waited for";
    KUBERNETES_POD_WAIT_FAILED, [Error], "backend", "a pod failed to start, or was not ready in time";
    KUBERNETES_POD_NOT_FOUND, [Info], "backend", "mode `persistent`: the pod is missing";
    KUBERNETES_POD_REMOVE_SUCCESSFUL, [Info], "backend", "a pod was deleted";
    KUBERNETES_POD_REMOVE_FAILED, [Error], "backend", "a pod was not deleted in time; the reaper tries again";
    KUBERNETES_POD_ATTACH, [Debug], "backend", "attaching to a container";
    KUBERNETES_EXEC, [Debug], "backend", "an exec is being made";
    KUBERNETES_FILE_WRITE, [Debug], "backend", "files of webhooks are written into the pod";
    KUBERNETES_FILE_WRITE_FAILED, [Error], "backend", "that failed, and with it the connection";
    KUBERNETES_GUEST_AGENT_DISABLED, [Debug], "backend", "a connection without agent";
    KUBERNETES_EXIT_CODE_FAILED, [Info], "backend", "how a program ended is not known";
    KUBERUN_DEPRECATED, [Warning], "backend", "each start and each connection with `backend: kuberun`";
    KUBERUN_EXEC_DISABLED, [Info], "backend", "`kuberun.pod.disableCommand` refuses a program";
    KUBERUN_INSECURE, [Warning], "backend", "`kuberun.connection.insecure`";
    TLS_RELOADED, [Info], "both", "changed certificate files are in use", ours;
    TLS_RELOAD_FAILED, [Error], "both", "changed certificate files can't be used; the old ones still are", ours;
    OWNER_LOST, [Error], "frontend", "this process's lease was lost; its connections end: **alert**", ours;
    OWNER_REAPED, [Warning], "backend", "an owner was not heard of for too long; its pods are deleted", ours;
    KUBERNETES_UNAVAILABLE, [Warning], "backend", "the Kubernetes API does not answer: **alert**", ours;
    KUBERNETES_AVAILABLE, [Info], "backend", "the Kubernetes API answers", ours;
}

/// ContainerSSH's codes that are never told, by prefix or name, and why not.
pub const ABSENT: &[(&str, &str)] = &[
    ("CORE_CONFIG_ERROR", "mistakes go to stderr before there is a log, all of them; exit status 2"),
    ("CORE_CONFIG_FILE", "the command line names it"),
    ("CORE_CONFIG_CANNOT_WRITE_FILE", "the configuration is never written"),
    ("HEALTH_REQUEST_FAILED", "the cause stands in `CORE_HEALTH_CHECK_FAILED`"),
    (
        "SERVICE_STARTING",
        "parts have codes of their own: `SSH_AVAILABLE`, `METRICS_AVAILABLE`, `HEALTH_AVAILABLE`; `SERVICE_RUNNING`, `SERVICE_STOPPING` and `SERVICE_STOPPED` likewise",
    ),
    ("SSH_ALREADY_RUNNING", "can't happen; nor can `SSH_LISTEN_CLOSE_FAILED`, `SSH_SOCKET_REUSE_FAILED`"),
    (
        "SSH_GLOBAL_REQUEST*",
        "only what is refused is told; `SSH_CHANNEL_REQUEST` and `SSH_CHANNEL_REQUEST_SUCCESSFUL` likewise",
    ),
    ("SSH_UNSUPPORTED_CHANNEL_TYPE", "russh refuses it without telling; `SSH_UNSUPPORTED_GLOBAL_REQUEST` likewise"),
    ("SSH_DECODE_FAILED", "russh ends the connection: `SSH_DISCONNECTED` or `SSH_HANDSHAKE_FAILED` says why"),
    ("SSH_REPLY_SEND_FAILED", "the connection is gone: `SSH_DISCONNECTED`; `SSH_EXIT_CODE_FAILED` likewise"),
    ("SSH_NOT_IMPLEMENTED", "what is not built is refused at start"),
    ("AUTH_DISABLED", "methods that could let nobody in are not offered; `AUTH_UNSUPPORTED` likewise"),
    ("AUTH_DEPRECATED", "`CONFIG_AUTH_URL_DEPRECATED`"),
    ("AUTH_CONFIG_ERROR", "a mistake of the configuration"),
    ("AUTH_SERVER_DECODE_FAILED", "the webhook server's; `AUTH_AVAILABLE`, `CONFIG_SERVER_AVAILABLE` too"),
    ("AUTHZ_FAILED", "`AUTH_FAILED` with `authtype` `authorization`, as there"),
    ("AUTH_OAUTH*", "OAuth2 is not built; `OAUTH_*`, `GITHUB_*`, `OIDC_*`, `GENERIC_*` neither"),
    ("KRB_*", "Kerberos is not built"),
    ("CONFIG_LISTEN_DEPRECATED", "a top-level `listen` is a warning of the configuration, which names it"),
    ("HTTP_CLIENT_REDIRECT", "redirects are never followed"),
    ("HTTP_CLIENT_ENCODE_FAILED", "can't happen"),
    ("HTTP_SERVER_*", "the client of `metrics` or `health` is gone"),
    ("SECURITY_EXEC_FAILED_SETENV", "can't happen: the variable is set with the command"),
    ("LOG_FILE_OPEN_FAILED", "at start the process says so on stderr and ends"),
    ("UNKNOWN_ERROR", "in the formats `ljson` and `text` (there without), lines without a code"),
    ("AUDIT_*", "there is no audit log"),
    ("SSHPROXY_*", "there is no backend sshproxy; nor docker, dockerrun"),
    ("AGENTPROTO_*", "podbay-agent has another protocol"),
    ("KUBERNETES_AGENT_*", "forwarding is not built; nor `KUBERNETES_FORWARDING_FAILED`"),
    ("KUBERNETES_CLOSE_OUTPUT_FAILED", "the session's end is told: `session ended`"),
    ("KUBERNETES_EXEC_RESIZE*", "sizes are not told"),
    ("KUBERNETES_EXEC_SIGNAL*", "signals are answered to the client; those that are refused by policy are told"),
    ("KUBERNETES_KUBERUN_REMOVED", "kuberun works"),
    ("KUBERNETES_PID_RECEIVED", "no PID is printed: the agent's link has it"),
    ("KUBERNETES_POD_REMOVE", "only its end is told"),
    (
        "KUBERNETES_POD_SHUTTING_DOWN",
        "a refusal (docs/contract.md); `KUBERNETES_PROGRAM_*`, `KUBERNETES_SIGNAL_FAILED_*`, `KUBERNETES_SUBSYSTEM_NOT_SUPPORTED` too",
    ),
    ("KUBERNETES_USERNAME_TOO_LONG", "the label is shortened, the annotation has all of it"),
];

/// The one level of a code that has one.
pub(crate) fn severity(name: &str) -> Option<Severity> {
    match CODES.iter().find(|code| code.name == name)?.levels {
        [one] => Some(*one),
        _ => None,
    }
}

/// A table of all codes, as `docs/log-codes.md` has it.
pub fn table() -> String {
    let head = "| code | level | process | when |\n| --- | --- | --- | --- |\n".to_owned();
    CODES.iter().fold(head, |text, Code { name, levels, by, when, ours }| {
        let levels: Vec<_> = levels.iter().map(|level| level.word()).collect();
        let ours = if *ours { " (ours)" } else { "" };
        text + &format!("| `{name}`{ours} | {} | {by} | {when} |\n", levels.join(", "))
    })
}

/// ContainerSSH's codes that are never told, as `docs/log-codes.md` has them.
pub fn absent() -> String {
    let head = "| code of ContainerSSH | why it is never told |\n| --- | --- |\n".to_owned();
    ABSENT.iter().fold(head, |text, (name, why)| text + &format!("| `{name}` | {why} |\n"))
}
