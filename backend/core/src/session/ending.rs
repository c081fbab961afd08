//! How programs ended: from what the stream said and what the pod's status says. Pure; [`read`] gets the status.

mod read;

pub(super) use read::{EXPLAINED, STOPPED, explained, of_broken, read_exit};

use crate::{
    cluster::{ClusterError, StreamEnd},
    failure::short,
};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use podbay::v1::{Exit, ExitSignal, Reason, Refusal, exit::End};

pub(super) fn code(code: u8) -> Exit {
    Exit { end: Some(End::Code(code.into())) }
}

pub(super) fn lost(reason: Reason, message: impl Into<String>) -> Exit {
    Exit { end: Some(End::Lost(Refusal::new(reason, message))) }
}

/// Whether a runtime's words mean that the program's file is not in the image (or can't be executed). They must be about a program:
/// of a container that has just ended, runtimes say that it, or a namespace under /proc, is not found.
pub(crate) fn is_missing(message: &str) -> bool {
    /// How runc and crun, gVisor and Kata begin to speak of the file.
    const OF_A_PROGRAM: [&str; 5] = ["exec: \"", "exec /", "executable", "exec format error", "failed to load "];
    const MISSING: [&str; 5] = [
        "executable file not found",
        "no such file or directory",
        "not found",
        "permission denied",
        "exec format error",
    ];
    let message = message.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|words| message.contains(words));
    has(&OF_A_PROGRAM) && has(&MISSING)
}

/// The end of a program that ended by itself, and of whose output the end never came: not an end to build on.
pub(super) fn with_output_lost(exit: Exit) -> Exit {
    match exit.end {
        Some(End::Code(status)) if !may_be_the_pods(&exit) => {
            let text = format!("the program ended with status {status}, and the end of its output was lost on its way");
            lost(Reason::StreamLost, text)
        }
        Some(End::Code(_) | End::Signal(_) | End::Lost(_)) | None => exit,
    }
}

/// Whether a start that failed for this reason may have met the end of its pod by an operator.
pub(super) fn may_be_terminated(reason: Reason) -> bool {
    matches!(reason, Reason::PodGone | Reason::StreamLost | Reason::ProgramLost)
}

/// Whether a program may have ended with its pod: its pod is gone, its stream broke, or it was told to end as kubelets end
/// containers (by TERM, and then KILL). A program's own end of that kind costs one read more.
pub(super) fn may_be_the_pods(exit: &Exit) -> bool {
    match &exit.end {
        Some(End::Code(status)) => matches!(status, 129 | 137 | 143),
        Some(End::Signal(signal)) => matches!(signal.name.as_str(), "TERM" | "KILL" | "HUP"),
        None => false,
        Some(End::Lost(refusal)) => may_be_terminated(refusal.reason()),
    }
}

/// The end of an exec, where the stream told one; `None` = ask the pod what happened ([`of_gone`]).
pub(super) fn of_exec(end: &StreamEnd) -> Option<Exit> {
    match end {
        StreamEnd::Success => Some(code(0)),
        StreamEnd::ExitCode(exit) => Some(code(*exit)),
        StreamEnd::Failed { message, .. } if is_missing(message) => {
            Some(lost(Reason::CommandNotStarted, format!("the program can't be started: {}", short(message))))
        }
        StreamEnd::Failed { reason, message } => {
            Some(lost(Reason::StreamLost, format!("the program's end is not known: {reason} {}", short(message))))
        }
        StreamEnd::Lost(_) => None,
    }
}

/// The end of a program whose stream broke, from what its pod looks like afterwards.
pub(super) fn of_gone(pod: &Result<Pod, ClusterError>, console: &str, end: &StreamEnd) -> Exit {
    let why = match end {
        StreamEnd::Lost(why) => why.as_str(),
        StreamEnd::Success | StreamEnd::ExitCode(_) | StreamEnd::Failed { .. } => "",
    };
    let ended = || pod.as_ref().ok().and_then(|pod| container_ended(pod, console));
    of_pod(pod, console).or_else(ended).unwrap_or_else(|| stream_lost(why))
}

/// What ended a pod's programs from outside of them: its deletion, eviction and the like, or memory. `None` where the pod shows no such thing (yet).
pub(super) fn of_pod(pod: &Result<Pod, ClusterError>, console: &str) -> Option<Exit> {
    match pod {
        Err(ClusterError::NotFound { .. }) => Some(deleted(None)),
        Err(_) => None,
        Ok(pod) => pod_gone(pod)
            .or_else(|| killed(pod, console))
            .or_else(|| pod.metadata.deletion_timestamp.is_some().then(|| deleted(Some(pod)))),
    }
}

/// The words of an end that is not the program's own.
pub(super) fn words(exit: Exit) -> Option<String> {
    match exit.end {
        Some(End::Lost(refusal)) => Some(refusal.message),
        Some(End::Signal(signal)) => Some(signal.message),
        Some(End::Code(_)) | None => None,
    }
}

/// An end by a signal in a container that was stopped, nobody knows why.
pub(super) fn stopped(exit: Exit) -> Exit {
    match exit.end {
        Some(End::Signal(signal)) if signal.message.is_empty() => {
            let message = "the container was stopped".to_owned();
            Exit { end: Some(End::Signal(ExitSignal { message, ..signal })) }
        }
        end => Exit { end },
    }
}

fn is_final(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Of a pod that is gone or on its way, and who wanted it so, where the pod says that (a drained or lost node, a preemption).
fn deleted(pod: Option<&Pod>) -> Exit {
    let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref()).into_iter().flatten();
    let why = conditions
        .filter(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")
        .find_map(|condition| condition.message.as_deref().or(condition.reason.as_deref()))
        .map(|why| format!(": {}", short(why)));
    lost(Reason::PodGone, format!("the pod was deleted{}", why.unwrap_or_default()))
}

/// A container that ended although nothing is known to have ended it from outside.
fn container_ended(pod: &Pod, console: &str) -> Option<Exit> {
    let end = terminated(pod, console)?;
    let reason = short(end.reason.as_deref().unwrap_or("no reason is told"));
    let text = format!("the pod's container ended, and its programs with it (exit code {}, {reason})", end.exit_code);
    Some(lost(Reason::ProgramLost, text))
}

/// The end of a program whose supervisor was replaced by another: the container was restarted. What ended the container before is its
/// last state then.
pub(super) fn of_lost_program(pod: &Result<Pod, ClusterError>, console: &str) -> Exit {
    let last = |pod: &Pod| {
        let status = pod.status.as_ref()?.container_statuses.iter().flatten().find(|status| status.name == console)?;
        status.last_state.as_ref()?.terminated.as_ref()?.reason.clone()
    };
    if let Ok(pod) = pod
        && last(pod).as_deref() == Some("OOMKilled")
    {
        return out_of_memory();
    }
    let exit = of_gone(pod, console, &StreamEnd::Lost("its container was restarted".to_owned()));
    match exit.end {
        Some(End::Lost(refusal)) if refusal.reason() == Reason::StreamLost => {
            let text = "the program is gone with the container that ran it; how it ended is not known";
            lost(Reason::ProgramLost, text)
        }
        _ => exit,
    }
}

fn stream_lost(why: &str) -> Exit {
    let text = format!("the connection to the program broke, how it ended is not known: {}", short(why));
    lost(Reason::StreamLost, text)
}

/// The end of a container's own program, by its pod's status; `None` while it runs.
pub(super) fn of_container(pod: &Pod, console: &str) -> Option<Exit> {
    if let Some(exit) = pod_gone(pod) {
        return Some(exit);
    }
    if let Some(end) = terminated(pod, console) {
        let exit = of_terminated(end);
        let is_deleted = pod.metadata.deletion_timestamp.is_some() && may_be_the_pods(&exit);
        // Memory has its own word.
        return Some(if is_deleted && killed(pod, console).is_none() { deleted(Some(pod)) } else { exit });
    }
    is_final(pod).then(|| lost(Reason::PodGone, "the pod ended without a status of its program"))
}

fn of_terminated(end: &ContainerStateTerminated) -> Exit {
    let words = short(end.message.as_deref().unwrap_or_default());
    match (end.reason.as_deref(), u8::try_from(end.exit_code)) {
        (Some("OOMKilled"), _) => out_of_memory(),
        (Some("StartError" | "ContainerCannotRun"), _) => {
            lost(Reason::CommandNotStarted, format!("the program can't be started: {words}"))
        }
        (Some("ContainerStatusUnknown"), _) => lost(Reason::PodGone, "the program's node or container is gone"),
        (_, Ok(exit)) => code(exit),
        (_, Err(_)) => lost(Reason::ContainerFailed, format!("the program ended with code {} {words}", end.exit_code)),
    }
}

fn out_of_memory() -> Exit {
    let message = "out of memory: the container needs more than its limit (OOMKilled)".to_owned();
    Exit { end: Some(End::Signal(ExitSignal { name: "KILL".to_owned(), core_dumped: false, message })) }
}

/// A container that memory ended: told even where the stream broke on it.
fn killed(pod: &Pod, console: &str) -> Option<Exit> {
    let end = terminated(pod, console)?;
    (end.reason.as_deref() == Some("OOMKilled")).then(out_of_memory)
}

/// A pod that something outside of it ended.
fn pod_gone(pod: &Pod) -> Option<Exit> {
    let status = pod.status.as_ref()?;
    let message = short(status.message.as_deref().unwrap_or_default());
    let text = match status.reason.as_deref()? {
        "Evicted" => format!("the pod was evicted: {message}"),
        "DeadlineExceeded" => "the pod's active deadline is over".to_owned(),
        reason @ ("Preempting" | "NodeShutdown" | "Terminated" | "NodeLost") => {
            format!("the pod was ended: {reason} {message}")
        }
        _ => return None,
    };
    Some(lost(Reason::PodGone, text))
}

fn terminated<'a>(pod: &'a Pod, console: &str) -> Option<&'a ContainerStateTerminated> {
    // By name: the kubelet sorts statuses by it, so an index would read another container's.
    let statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
    statuses.filter(|status| status.name == console).find_map(|status| status.state.as_ref()?.terminated.as_ref())
}

/// Whether a pod or this container of it has ended for good, or the pod is on its way.
pub(crate) fn is_over(pod: &Pod, console: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let restarts = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) != Some("Never");
    pod.metadata.deletion_timestamp.is_some()
        || matches!(phase, "Succeeded" | "Failed")
        || pod_gone(pod).is_some()
        || (!restarts && terminated(pod, console).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::script;
    use std::time::Duration;

    fn pod(status: k8s_openapi::api::core::v1::PodStatus) -> Pod {
        Pod { status: Some(status), ..script::pod("ns", "p") }
    }

    fn reason(exit: Exit) -> Reason {
        match exit.end {
            Some(End::Lost(refusal)) => refusal.reason(),
            other => panic!("not lost: {other:?}"),
        }
    }

    #[test]
    fn a_broken_stream_is_never_a_code() {
        let broken = StreamEnd::Lost("x".into());
        assert_eq!(of_exec(&broken), None);
        let running = Ok(pod(script::status("Running")));
        assert_eq!(reason(of_gone(&running, "shell", &broken)), Reason::StreamLost);
        let gone = Err(ClusterError::NotFound { message: String::new() });
        assert_eq!(reason(of_gone(&gone, "shell", &broken)), Reason::PodGone);
        let timeout = Err(ClusterError::Timeout(Duration::from_secs(1)));
        assert_eq!(reason(of_gone(&timeout, "shell", &broken)), Reason::StreamLost);
        // Even where the container's status has a code: output may be missing.
        let ended = Ok(pod(script::ended("shell", "Completed", 0)));
        assert_eq!(reason(of_gone(&ended, "shell", &broken)), Reason::ProgramLost);
        let failed = |message: &str| StreamEnd::Failed { reason: "InternalError".into(), message: message.into() };
        let exit = of_exec(&failed("exec: \"x\": executable file not found in $PATH"));
        assert_eq!(exit.map(reason), Some(Reason::CommandNotStarted));
        assert_eq!(of_exec(&failed("container is not running")).map(reason), Some(Reason::StreamLost));
    }

    #[test]
    fn only_a_programs_file_can_be_missing() {
        for words in [
            "exec: \"/bin/sh\": stat /bin/sh: no such file or directory: unknown",
            "exec: \"sh\": executable file not found in $PATH",
            "exec: \"/x\": permission denied",
            "exec /bin/sh: exec format error",
            "exec /bin/sh: no such file or directory",
            "executable file `sh` not found in $PATH: No such file or directory",
            "failed to load /bin/sh: no such file or directory",
        ] {
            assert!(is_missing(words), "{words}");
        }
        for words in [
            "container not found (\"shell\")",
            "failed to start exec \"4f\": OCI runtime exec failed: exec failed: can't open /proc/71/ns/ipc: no such file or directory",
            "failed to create exec \"4f\": cannot exec in a stopped state: unknown",
            "failed to create exec \"4f\": task 9a not found: not found",
            "pods \"p\" not found",
        ] {
            assert!(!is_missing(words), "{words}");
        }
    }

    #[test]
    fn what_ended_a_pod_is_told_in_its_words() {
        let told = |pod: Pod| match of_pod(&Ok(pod), "shell").and_then(|exit| exit.end) {
            Some(End::Lost(refusal)) => {
                assert_eq!(refusal.reason(), Reason::PodGone);
                refusal.message
            }
            Some(End::Signal(signal)) => signal.message,
            other => format!("{other:?}"),
        };
        assert_eq!(told(pod(script::status("Running"))), "None");
        let mut going = pod(script::status("Running"));
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(told(going.clone()), "the pod was deleted");
        let by =
            |status| script::condition("DisruptionTarget", status, "EvictionByEvictionAPI", "Eviction API: evicting");
        let drained = |status| {
            let mut pod = going.clone();
            pod.status.get_or_insert_default().conditions = Some(vec![by(status)]);
            told(pod)
        };
        assert_eq!(drained(true), "the pod was deleted: Eviction API: evicting");
        assert_eq!(drained(false), "the pod was deleted");
        // A program that a kubelet ended on the way is the pod's end; its own code is its own, and memory is memory.
        let ended = |reason, code| {
            let mut pod = Pod { status: Some(script::ended("shell", reason, code)), ..going.clone() };
            pod.status.get_or_insert_default().phase = Some("Running".into());
            of_container(&pod, "shell").and_then(|exit| exit.end)
        };
        assert!(matches!(ended("Error", 137), Some(End::Lost(refusal)) if refusal.reason() == Reason::PodGone));
        assert_eq!(ended("Error", 3), Some(End::Code(3)));
        assert!(matches!(ended("OOMKilled", 137), Some(End::Signal(signal)) if signal.message.contains("memory")));
    }

    #[test]
    fn a_containers_end_is_read_by_name() {
        assert_eq!(of_container(&pod(script::ended("shell", "Error", 7)), "shell"), Some(code(7)));
        assert_eq!(
            of_container(&pod(script::ended("sidecar", "Error", 7)), "shell").map(reason),
            Some(Reason::PodGone)
        );
        assert_eq!(of_container(&pod(script::status("Running")), "shell"), None);
        let oom = of_container(&pod(script::ended("shell", "OOMKilled", 137)), "shell").and_then(|exit| exit.end);
        assert!(matches!(oom, Some(End::Signal(signal)) if signal.name == "KILL" && signal.message.contains("memory")));
        let evicted = k8s_openapi::api::core::v1::PodStatus {
            reason: Some("Evicted".into()),
            message: Some("The node was low on resource: memory.".into()),
            ..script::status("Failed")
        };
        let Some(End::Lost(refusal)) = of_container(&pod(evicted), "shell").and_then(|exit| exit.end) else {
            panic!("not lost")
        };
        assert_eq!(refusal.reason(), Reason::PodGone);
        assert!(refusal.message.contains("low on resource"), "{}", refusal.message);
        let start_error = of_container(&pod(script::ended("shell", "StartError", 128)), "shell");
        assert_eq!(start_error.map(reason), Some(Reason::CommandNotStarted));
        assert_eq!(
            of_container(&pod(script::ended("shell", "Error", -1)), "shell").map(reason),
            Some(Reason::ContainerFailed)
        );
    }
}
