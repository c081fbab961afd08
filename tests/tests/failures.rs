//! What goes wrong at the cluster, and what the user with the stock client gets: the reason, in time, and nothing left behind.
//! All parts are processes of their own; the cluster's faults are real answers on real sockets.

use podbay_tests::{Answered, Setup, World, only_embedded, wait_until};
use std::{
    io::Read as _,
    process::Stdio,
    time::{Duration, Instant},
};

const INJECTED: &str = "its faults are injected into the embedded one";

/// With short timeouts: a test waits for them.
fn world(timeouts: &str) -> World {
    let timeouts = timeouts.to_owned();
    World::with(Setup::Apart, "connection", move |config| {
        config.replace("  pod:\n    mode:", &format!("  timeouts: {{{timeouts}}}\n  pod:\n    mode:"))
    })
}

#[track_caller]
fn refused(answered: &Answered, text: &str) {
    assert_eq!(answered.status.code(), Some(255), "{answered:?}");
    assert!(answered.stderr.contains(text), "{text:?} is not told: {answered:?}");
}

const CREATE: &str = r#"{"verb": "create", "resource": "pods"}"#;

#[test]
fn a_pod_that_never_starts_is_given_up_after_pod_start() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = world("podStart: 3s");
    world.fault(r#"{"add": {"fault": "neverStarts", "on": {}}}"#);
    let began = Instant::now();
    refused(&world.run("true"), "did not start in time: starting the container");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(3), "after {took:?}");
    world.ends_clean();
}

#[test]
fn a_pod_without_a_node_shows_what_it_waits_for_and_then_why() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = world("podStart: 6s");
    world.fault(r#"{"add": {"fault": "unschedulable", "on": {}, "message": "0/3 nodes are available: 3 Insufficient memory."}}"#);
    let answered = world.run("true");
    refused(&answered, "Insufficient memory");
    assert!(answered.stderr.lines().filter(|line| line.contains("Insufficient memory")).count() >= 2, "{answered:?}");
    world.ends_clean();
}

#[test]
fn a_refusal_that_is_certain_is_told_at_once() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = world("podStart: 60s");
    let error = |code, message: &str| {
        world.fault("\"clearAll\"");
        let fault = r#""fault": "error", "reason": "Forbidden""#;
        world.fault(&format!(r#"{{"add": {{{fault}, "on": {CREATE}, "code": {code}, "message": "{message}"}}}}"#));
    };
    let began = Instant::now();
    error(403, r#"admission webhook \"no.example.com\" denied the request: not on a Sunday"#);
    refused(&world.run("true"), "not on a Sunday");
    error(
        403,
        r#"pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false"#,
    );
    refused(&world.run("true"), "allowPrivilegeEscalation");
    error(422, r#"Pod \"x\" is invalid: spec.containers[0].image: Required value"#);
    refused(&world.run("true"), "spec.containers[0].image");
    // As a real API server puts a ValidatingAdmissionPolicy's word.
    error(
        422,
        r#"pods \"x\" is forbidden: ValidatingAdmissionPolicy 'x' with binding 'x' denied request: not on a Monday"#,
    );
    refused(&world.run("true"), "Kubernetes forbids the pod");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    world.ends_clean();
}

#[test]
fn a_quota_that_frees_in_time_is_only_a_wait() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = world("podStart: 30s");
    let message = r#"pods \"b\" is forbidden: exceeded quota: x, requested: pods=1, used: pods=1, limited: pods=1"#;
    world.fault(&format!(
        r#"{{"add": {{"fault": "error", "on": {CREATE}, "code": 403, "reason": "Forbidden", "message": "{message}", "times": 2}}}}"#
    ));
    let answered = world.run("echo in");
    assert_eq!((answered.status.code(), answered.stdout.as_slice()), (Some(0), &b"in\n"[..]), "{answered:?}");
    world.ends_clean();
}

#[test]
fn an_api_that_does_not_answer_is_bounded_by_http() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = world("http: 500ms, podStart: 3s");
    world.fault(&format!(r#"{{"add": {{"fault": "latency", "on": {CREATE}, "millis": 20000}}}}"#));
    let began = Instant::now();
    refused(&world.run("true"), "Kubernetes");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    world.fault("\"clearAll\"");
    world.run("echo again").is(0, "again\n", "");
    world.ends_clean();
}

#[test]
fn a_lost_answer_makes_no_second_pod() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = world("podStart: 30s");
    world.fault(&format!(r#"{{"add": {{"fault": "loseAnswer", "on": {CREATE}, "times": 1}}}}"#));
    let mut client = world.ssh(&[]).arg("echo up; sleep 1000").stdout(Stdio::piped()).spawn().expect("starts");
    client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
    assert_eq!(world.pods().len(), 1);
    client.kill().expect("it runs");
    client.wait().expect("ends");
    world.ends_clean();
}

#[test]
fn a_program_that_does_not_start_is_given_up_after_command_start() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = world("commandStart: 2s");
    let on = r#"{"resource": "pods/exec"}"#;
    world.fault(&format!(r#"{{"add": {{"fault": "latency", "on": {on}, "millis": 30000}}}}"#));
    let began = Instant::now();
    refused(&world.run("true"), "commandStart");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    world.fault("\"clearAll\"");
    world.run("echo again").is(0, "again\n", "");
    world.ends_clean();
}

#[test]
fn a_pod_that_goes_slowly_holds_nobody_up() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = world("podStop: 2s");
    world.fault(r#"{"add": {"fault": "slowDelete", "on": {}, "millis": 4000}}"#);
    let began = Instant::now();
    world.run("echo in").is(0, "in\n", "");
    assert!(began.elapsed() < Duration::from_secs(4), "the client does not wait for the pod's end");
    world.run("echo next").is(0, "next\n", "");
    world.ends_clean();
}

#[test]
fn a_broken_stream_is_never_a_success() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = world("podStart: 30s");
    for how in ["cut", "noStatus", "falseSuccess"] {
        let mut client = world.ssh(&[]);
        let client = client.arg("echo up; sleep 1000").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = client.spawn().expect("starts");
        client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
        world.fault(&format!(r#"{{"do": {{"action": "breakStreams", "how": "{how}"}}}}"#));
        let output = client.wait_with_output().expect("ends");
        assert_eq!(output.status.code(), Some(255), "{how}: {output:?}");
        assert!(!output.stderr.is_empty(), "{how}: nothing is told");
    }
    world.ends_clean();
}

#[test]
fn an_api_outage_kills_no_live_pod() {
    if only_embedded(INJECTED) {
        return;
    }
    // Ten times the lease: whoever reaped by the wall clock would kill everybody.
    let world =
        World::with(Setup::Apart, "connection", |config| config + "ownership: {leaseDuration: 2s, backendWait: 1s}\n");
    // Without an agent a session ends with its exec stream; the connection and its pod must not.
    let control = world.file("control");
    let path = format!("ControlPath={}", control.display());
    let mut client = world.ssh(&["-o", &path, "-o", "ControlMaster=yes", "-N"]).spawn().expect("starts");
    wait_until("the connection is up", || control.exists() && world.pods().len() == 1);
    let pods = world.pods();
    world.fault(r#"{"do": {"action": "apiDown", "millis": 20000}}"#);
    let began = Instant::now();
    wait_until("the API is back", || began.elapsed() > Duration::from_secs(21));
    // Some lease durations more, in which a reaper that is wrong would act.
    wait_until("reapers had time", || began.elapsed() > Duration::from_secs(29));
    assert_eq!(world.pods(), pods);
    let output = world.ssh(&["-o", &path]).arg("echo still").output().expect("runs");
    assert_eq!(output.stdout, b"still\n", "{output:?}");
    client.kill().expect("it runs");
    client.wait().expect("ends");
    world.ends_clean();
}

#[test]
fn an_operator_ends_programs_and_idle_connections_and_the_users_read_why() {
    for mode in ["connection", "session"] {
        let world =
            World::with(Setup::Apart, mode, |config| config + "ownership: {leaseDuration: 6s, backendWait: 1s}\n");
        // A program of its own connection, and a master that idles beside (in mode session it has no pod at all).
        let mut busy = world.ssh(&[]);
        let busy = busy.arg("echo up; sleep 1000").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut busy = busy.spawn().expect("starts");
        busy.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
        let control = world.file("control");
        let path = format!("ControlPath={}", control.display());
        let mut idle = world.ssh(&["-o", &path, "-o", "ControlMaster=yes", "-N"]);
        let idle = idle.stderr(Stdio::piped()).spawn().expect("starts");
        let connections = if mode == "connection" { 2 } else { 1 };
        wait_until("the master is up", || control.exists() && world.pods().len() == connections);
        assert_eq!(world.terminates_all("maintenance until noon"), connections);
        let words = "an operator ended this connection: maintenance until noon";
        let ended = busy.wait_with_output().expect("ends");
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(255), "{mode}: {told}");
        assert!(told.contains(&format!("podbay: {words}")), "{mode}: {told}");
        let mut idle = idle;
        if mode == "connection" {
            // A heartbeat told the frontend, which told the client.
            let ended = idle.wait_with_output().expect("ends");
            let told = String::from_utf8_lossy(&ended.stderr);
            assert!(told.contains(&format!("11: {words}")), "{told}");
        } else {
            idle.kill().expect("it runs: nobody ended it");
            idle.wait().expect("ends");
        }
        // A new login is a new connection.
        world.run("echo again").is(0, "again\n", "");
        world.ends_clean();
    }
}

#[test]
fn a_session_that_begins_while_the_api_restarts_waits_for_it() {
    if only_embedded(INJECTED) {
        return;
    }
    let world = World::new(Setup::Apart);
    let control = world.file("control");
    let path = format!("ControlPath={}", control.display());
    let mut client = world.ssh(&["-o", &path, "-o", "ControlMaster=yes", "-N"]).spawn().expect("starts");
    wait_until("the master is up", || control.exists());
    let output = world.ssh(&["-o", &path]).arg("true").output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    world.fault(r#"{"do": {"action": "apiDown", "millis": 5000}}"#);
    let began = Instant::now();
    let output = world.ssh(&["-o", &path]).arg("echo once >>ran; cat ran").output().expect("runs");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"once\n"[..]), "{output:?}");
    assert!(began.elapsed() >= Duration::from_secs(3), "the API was there: {:?}", began.elapsed());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("waiting for the Kubernetes API"), "{told}");
    client.kill().expect("it runs");
    client.wait().expect("ends");
    world.ends_clean();
}
