use super::*;
use crate::{
    cluster::ClusterError,
    fake::script::{
        self, condition, container, ended, running, state_running, status, terminated, unschedulable, waiting,
    },
};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Event, Pod, PodStatus};
use std::time::Duration;

fn pod(status: PodStatus) -> Pod {
    Pod { status: Some(status), ..script::pod("ns", "p") }
}

fn one_look(status: PodStatus) -> Verdict {
    Observer::new("shell").see(&pod(status), &[])
}

fn event(reason: &str, message: &str, count: i32) -> Event {
    Event { reason: Some(reason.into()), message: Some(message.into()), count: Some(count), ..Event::default() }
}

const NOT_FOUND: &str = "rpc error: code = NotFound desc = failed to pull and unpack image \"docker.io/library/nosuch:1\": \
    failed to resolve reference \"docker.io/library/nosuch:1\": docker.io/library/nosuch:1: not found";
const DENIED: &str = "failed to resolve reference \"docker.io/x/y:1\": pull access denied, repository does not exist or may \
    require authorization: server message: insufficient_scope: authorization failed";
const UNAUTHORIZED: &str =
    "failed to authorize: failed to fetch anonymous token: unexpected status from GET request: 401 Unauthorized";
const REFUSED: &str = "failed to pull and unpack image \"localhost/nosuch:1\": failed to resolve reference: dial tcp \
    127.0.0.1:80: connect: connection refused";
const NO_HOST: &str =
    "failed to do request: Head \"https://r.example/v2/x\": dial tcp: lookup r.example on 10.96.0.10:53: no such host";
const RATE: &str = "429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit";

#[test]
fn some_states_are_told_at_once() {
    let start_error = ContainerState { terminated: Some(terminated("StartError", 128)), ..ContainerState::default() };
    let again = |state, restart_count| PodStatus {
        container_statuses: Some(vec![ContainerStatus { restart_count, ..container("shell", state) }]),
        ..status("Running")
    };
    let exited = || ContainerState { terminated: Some(terminated("Error", 2)), ..ContainerState::default() };
    let evicted =
        PodStatus { reason: Some("Evicted".into()), message: Some("low on memory".into()), ..status("Failed") };
    let cases = [
        (waiting("shell", "InvalidImageName", "couldn't parse"), Reason::ImageUnavailable, "is not valid"),
        (waiting("shell", "ErrImageNeverPull", "x"), Reason::ImageUnavailable, "the image image is not on the node"),
        (waiting("shell", "RunContainerError", "exec: no such file"), Reason::ContainerFailed, "exec: no such file"),
        (waiting("shell", "CrashLoopBackOff", "back-off"), Reason::ContainerFailed, "keeps ending"),
        (
            waiting("shell", "CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
            Reason::ContainerFailed,
            "kubernetes.pod.spec.securityContext.runAsUser says as whom",
        ),
        (ended("shell", "OOMKilled", 137), Reason::ContainerFailed, "needs more memory"),
        (ended("shell", "Completed", 0), Reason::ContainerFailed, "ended at once with exit code 0"),
        (ended("shell", "Error", 3), Reason::ContainerFailed, "exit code 3"),
        (again(start_error, 0), Reason::ContainerFailed, "can't be started"),
        (again(exited(), 1), Reason::ContainerFailed, "exit code 2"),
        (evicted, Reason::PodGone, "evicted: low on memory"),
        (PodStatus { reason: Some("OutOfcpu".into()), ..status("Failed") }, Reason::Unschedulable, "the node refuses"),
        (status("Failed"), Reason::ContainerFailed, "ended (Failed) before"),
    ];
    for (status, reason, words) in cases {
        match one_look(status.clone()) {
            Verdict::Certain(found, text) if found == reason && text.contains(words) => {}
            other => panic!("{status:?}: {other:?}"),
        }
    }
    let mut deleted = pod(status("Running"));
    deleted.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    assert!(matches!(Observer::new("shell").see(&deleted, &[]), Verdict::Certain(Reason::PodGone, _)));
}

#[test]
fn some_states_may_heal() {
    let unready = PodStatus {
        container_statuses: Some(vec![container("shell", state_running())]),
        conditions: Some(vec![
            condition("PodScheduled", true, "", ""),
            condition("Ready", false, "ContainersNotReady", ""),
        ]),
        ..status("Running")
    };
    let cases = [
        (unschedulable("0/1 nodes are available: 1 Insufficient cpu."), Reason::Unschedulable, "1 Insufficient cpu."),
        (waiting("shell", "ErrImagePull", NOT_FOUND), Reason::ImageUnavailable, "nosuch:1: not found"),
        (
            waiting("shell", "CreateContainerConfigError", "secret \"s\" not found"),
            Reason::ContainerFailed,
            "secret \"s\"",
        ),
        (waiting("side", "CrashLoopBackOff", "back-off"), Reason::ContainerFailed, "side keeps ending"),
    ];
    for (status, reason, words) in cases {
        match one_look(status.clone()) {
            Verdict::MayHeal(found, progress) if found == reason && progress.message.contains(words) => {}
            other => panic!("{status:?}: {other:?}"),
        }
    }
    for (status, phase) in [
        (status("Pending"), StartPhase::Scheduling),
        (waiting("shell", "ContainerCreating", ""), StartPhase::Starting),
        (unready, StartPhase::Starting),
    ] {
        assert!(matches!(one_look(status), Verdict::Waiting(progress) if progress.phase == phase));
    }
    assert_eq!(one_look(running(&script::pod("ns", "p"))), Verdict::Ready);
}

#[test]
fn a_registrys_definite_answer_counts_after_two_pulls() {
    for (message, certain) in
        [(NOT_FOUND, true), (DENIED, true), (UNAUTHORIZED, true), (REFUSED, false), (NO_HOST, false), (RATE, false)]
    {
        let mut observer = Observer::new("shell");
        let mut look = |reason, message| observer.see(&pod(waiting("shell", reason, message)), &[]);
        assert!(matches!(look("ErrImagePull", message), Verdict::MayHeal(..)), "{message}");
        assert!(matches!(look("ErrImagePull", message), Verdict::MayHeal(..)), "the same pull, seen twice");
        assert!(matches!(look("ImagePullBackOff", "Back-off pulling image \"x\""), Verdict::MayHeal(..)));
        let second = look("ErrImagePull", message);
        assert_eq!(matches!(second, Verdict::Certain(Reason::ImageUnavailable, _)), certain, "{second:?}");
    }
}

#[test]
fn pulls_are_counted_by_events_where_the_watch_missed_them() {
    let mut observer = Observer::new("shell");
    let failed = |count| [event("Failed", &format!("Failed to pull image \"nosuch:1\": {NOT_FOUND}"), count)];
    let back_off = pod(waiting("shell", "ImagePullBackOff", "Back-off pulling image \"nosuch:1\""));
    assert!(matches!(observer.see(&back_off, &failed(1)), Verdict::MayHeal(..)));
    assert!(matches!(observer.see(&back_off, &failed(2)), Verdict::Certain(Reason::ImageUnavailable, _)));
}

#[test]
fn events_say_what_a_silent_container_does() {
    let creating = pod(waiting("shell", "ContainerCreating", ""));
    let see = |events: &[Event]| Observer::new("shell").see(&creating, events);
    let pulling = event("Pulling", "Pulling image \"i\"", 1);
    assert!(matches!(see(std::slice::from_ref(&pulling)), Verdict::Waiting(p) if p.phase == StartPhase::Pulling));
    assert!(matches!(see(&[pulling, event("Pulled", "", 1)]), Verdict::Waiting(p) if p.phase == StartPhase::Starting));
    let mount = event("FailedMount", "MountVolume.SetUp failed: configmap \"c\" not found", 3);
    assert!(matches!(see(&[mount]), Verdict::MayHeal(Reason::ContainerFailed, p) if p.message.contains("configmap")));
}

#[test]
fn a_program_may_end_but_not_fail_to_start() {
    let see = |status| Observer::for_program("shell").see(&pod(status), &[]);
    assert_eq!(see(ended("shell", "Completed", 0)), Verdict::Ended);
    assert_eq!(see(ended("shell", "Error", 7)), Verdict::Ended);
    assert!(matches!(see(ended("shell", "StartError", 128)), Verdict::Certain(Reason::ContainerFailed, _)));
    let running =
        PodStatus { container_statuses: Some(vec![container("shell", state_running())]), ..status("Running") };
    assert_eq!(see(running), Verdict::Ready);
}

#[test]
fn a_refused_create() {
    let forbidden = |message: &str| ClusterError::Forbidden { message: message.into() };
    let certain = [
        (ClusterError::Invalid { message: "spec.containers[0].name: Invalid value".into() }, Reason::PodInvalid),
        (ClusterError::NotFound { message: "namespaces \"x\" not found".into() }, Reason::NamespaceMissing),
        (
            forbidden(
                "pods \"b\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false",
            ),
            Reason::AdmissionDenied,
        ),
        (
            ClusterError::Invalid {
                message: r#"pods "p" is forbidden: ValidatingAdmissionPolicy 'x' with binding 'x' denied request: no"#
                    .into(),
            },
            Reason::AdmissionDenied,
        ),
        (forbidden("admission webhook \"w\" denied the request: no"), Reason::AdmissionDenied),
        (forbidden("pods \"p\" is forbidden: failed quota: q: must specify limits.cpu"), Reason::AdmissionDenied),
        (
            forbidden(
                "pods is forbidden: User \"u\" cannot create resource \"pods\" in API group \"\" in the namespace \"n\"",
            ),
            Reason::BackendNotAllowed,
        ),
        (
            forbidden("unable to create new content in namespace n because it is being terminated"),
            Reason::NamespaceMissing,
        ),
    ];
    for (error, reason) in certain {
        assert!(matches!(of_create(&error), CreateFailure::Certain(found, _) if found == reason), "{error:?}");
    }
    let quota = "pods \"b\" is forbidden: exceeded quota: x, requested: pods=1, used: pods=1, limited: pods=1";
    let wait = Some(Duration::from_secs(7));
    let heals = [
        (forbidden(quota), Reason::QuotaExceeded, None, false),
        (
            forbidden("error looking up service account n/s: serviceaccount \"s\" not found"),
            Reason::AdmissionDenied,
            None,
            false,
        ),
        (
            ClusterError::Unavailable { message: "x".into(), retry_after: wait },
            Reason::KubernetesUnavailable,
            wait,
            true,
        ),
        (ClusterError::Timeout(Duration::from_secs(15)), Reason::KubernetesUnavailable, None, true),
        (ClusterError::Unauthorized { message: "x".into() }, Reason::BackendNotAllowed, None, false),
        (ClusterError::Conflict { message: "resourcequotas".into() }, Reason::KubernetesUnavailable, None, false),
    ];
    for (error, expected, after, unsure) in heals {
        match of_create(&error) {
            CreateFailure::MayHeal { reason, retry_after, uncertain, .. } => {
                assert_eq!((reason, retry_after, uncertain), (expected, after, unsure), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(of_create(&ClusterError::AlreadyExists), CreateFailure::Exists);
}

#[test]
fn the_apis_words_fit_a_terminal() {
    assert_eq!(short("a\n\tb  \u{1b}c"), "a b c");
    assert_eq!(short(&"ü".repeat(301)).chars().count(), 301);
}
