//! What goes wrong on a real Kubernetes, and what the user of the stock client gets: the reason, in time, and never status 0.
//!
//! These tests kill parts of the cluster, so they run one at a time, and only on the cluster of `tests/cluster/cluster`
//! (`PODBAY_TEST_KUBECONFIG=/run/podbay-cluster/kubeconfig`); elsewhere each says so and passes.

use podbay_tests::{
    Answered, Loop, PATIENCE, Setup, World,
    cluster::RealCluster,
    faketime, image,
    ours::{Part, is_ours, plain, token_that_ends},
    wait_until,
};
use serde_json::json;
use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const MIB: usize = 1 << 20;
/// Within which a start failure is told from when it is certain.
const PROMPT: Duration = Duration::from_secs(10);

/// One test at a time, where there is a cluster for it.
fn alone() -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    if !is_ours() {
        eprintln!("not told: it needs the cluster of tests/cluster/cluster");
        return None;
    }
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // One that has met several outages of the API server looks for pods every 30 s only, which is none of what is told here.
    Part::Kubelet.restarts(Duration::ZERO);
    Some(one)
}

/// A world whose configuration has more keys of a container, of the pod's spec, and of `kubernetes`.
fn world(container: &str, spec: &str, kubernetes: &str) -> World {
    let (container, spec, kubernetes) = (container.to_owned(), spec.to_owned(), kubernetes.to_owned());
    World::with(Setup::Apart, "connection", move |config| changed(&config, &container, &spec, &kubernetes))
}

fn changed(config: &str, container: &str, spec: &str, kubernetes: &str) -> String {
    let lines = |indent: usize, text: &str| {
        let padded: Vec<String> = text.lines().map(|line| format!("{:indent$}{line}\n", "")).collect();
        padded.concat()
    };
    config
        .replace("    shellCommand:", &format!("{}    shellCommand:", lines(10, container)))
        .replace("      containers:\n", &format!("{}      containers:\n", lines(6, spec)))
        .replace("  pod:\n    mode:", &format!("{}  pod:\n    mode:", lines(2, kubernetes)))
}

#[track_caller]
fn refused(answered: &Answered, words: &[&str]) {
    assert_eq!(answered.status.code(), Some(255), "{answered:?}");
    for text in words {
        assert!(answered.stderr.contains(text), "{text:?} is not told: {answered:?}");
    }
}

/// The command fails with these words, within this time.
#[track_caller]
fn fails(world: &World, within: Duration, words: &[&str]) {
    let began = Instant::now();
    refused(&world.run("true"), words);
    assert!(began.elapsed() < within, "told after {:?}", began.elapsed());
}

fn real(world: &World) -> &RealCluster {
    world.real().expect("a real cluster")
}

/// A command that has begun, and runs.
fn running(world: &World) -> Child {
    let mut ssh = world.ssh(&[]);
    let ssh = ssh.arg("echo up; sleep 1000").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = ssh.spawn().expect("starts");
    client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
    client
}

/// It ends as a broken connection does, and says so.
#[track_caller]
fn breaks(client: Child, words: &str) {
    let output = client.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("podbay: ") && told.contains(words), "{told}");
}

#[test]
fn an_image_that_may_not_be_pulled_and_is_not_there() {
    let Some(_alone) = alone() else { return };
    let world = World::with(Setup::Apart, "connection", |config| {
        changed(&config.replace(&image(), "localhost/nosuch:9"), "imagePullPolicy: Never", "", "")
    });
    fails(&world, PROMPT, &["localhost/nosuch:9", "not on the node"]);
    world.ends_clean();
}

#[test]
fn an_image_whose_registry_does_not_answer() {
    let Some(_alone) = alone() else { return };
    let world = World::with(Setup::Apart, "connection", |config| {
        changed(&config.replace(&image(), "localhost/nosuch:9"), "", "", "timeouts: {podStart: 6s}")
    });
    fails(&world, Duration::from_secs(6) + PROMPT, &["localhost/nosuch:9", "can't be pulled"]);
    world.ends_clean();
}

#[test]
fn a_pod_that_no_node_takes() {
    let Some(_alone) = alone() else { return };
    let world = world("resources: {requests: {cpu: \"1000\"}}", "", "timeouts: {podStart: 6s}");
    fails(&world, Duration::from_secs(6) + PROMPT, &["waiting for a node", "Insufficient cpu"]);
    world.ends_clean();
}

#[test]
fn a_quota_that_is_used_up_and_one_that_frees() {
    let Some(_alone) = alone() else { return };
    let world = world("", "", "timeouts: {podStart: 12s}");
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}},
    });
    real(&world).makes("/api/v1/namespaces/NAMESPACE/resourcequotas", &quota);
    let known = |quota: &serde_json::Value| quota["status"]["hard"]["pods"] == "1";
    wait_until("the quota counts", || known(&real(&world).gets("/api/v1/namespaces/NAMESPACE/resourcequotas/few")));
    let mut first = running(&world);
    fails(&world, Duration::from_secs(12) + PROMPT, &["the quota for pods is used up", "exceeded quota: few"]);
    let mut ssh = world.ssh(&[]);
    let second = ssh.arg("echo in").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    first.kill().expect("it runs");
    first.wait().expect("ends");
    let output = second.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"in\n"[..]), "{output:?}");
    world.ends_clean();
}

const RESTRICTED: &str = r#"{"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}"#;

#[test]
fn a_restricted_namespace_gets_pods_that_comply_and_tells_what_is_missing() {
    let Some(_alone) = alone() else { return };
    let plain = World::with(Setup::Apart, "connection", |config| {
        config.replace("    shellCommand:", "    securityProfile: none\n    shellCommand:")
    });
    real(&plain).patches("/api/v1/namespaces/NAMESPACE", RESTRICTED);
    fails(
        &plain,
        PROMPT,
        &["Pod Security level forbids the pod", "allowPrivilegeEscalation", "kubernetes.pod.securityProfile"],
    );
    plain.ends_clean();
    // The test's image runs as root, and nothing says as whom else.
    let root = world("", "", "");
    real(&root).patches("/api/v1/namespaces/NAMESPACE", RESTRICTED);
    fails(&root, PROMPT, &["runs as root", "kubernetes.pod.spec.securityContext.runAsUser"]);
    root.ends_clean();
    for (mode, profile) in [
        ("connection", "auto"),
        ("session", "auto"),
        ("connection+podbay", "restricted"),
        ("session+podbay", "restricted"),
    ] {
        let world = World::with(Setup::Apart, mode, |config| {
            let spec = "securityContext: {runAsUser: 1000}";
            changed(&config, "", spec, "")
                .replace("    shellCommand:", &format!("    securityProfile: {profile}\n    shellCommand:"))
        });
        real(&world).patches("/api/v1/namespaces/NAMESPACE", RESTRICTED);
        world.run("id -u; grep CapEff /proc/self/status; exit 3").is(3, "1000\nCapEff:\t0000000000000000\n", "");
        world.ends_clean();
    }
}

#[test]
fn a_policy_that_forbids_the_pod() {
    let Some(_alone) = alone() else { return };
    let world = world("", "", "");
    let real = real(&world);
    let name = real.namespace.as_str();
    let group = "/apis/admissionregistration.k8s.io/v1";
    let (policies, bindings) =
        (format!("{group}/validatingadmissionpolicies"), format!("{group}/validatingadmissionpolicybindings"));
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]},
            ]},
            "validations": [{"expression": "false", "message": "not on a Sunday"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {
            "policyName": name, "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}},
        },
    });
    real.makes(&policies, &policy);
    real.makes(&bindings, &binding);
    let _gone = [real.deletes_later(&format!("{bindings}/{name}")), real.deletes_later(&format!("{policies}/{name}"))];
    // The API server takes a moment to take it up.
    wait_until("the policy counts", || !world.run("true").status.success());
    fails(&world, PROMPT, &["Kubernetes forbids the pod", "not on a Sunday"]);
    world.ends_clean();
}

#[test]
fn a_container_that_ends_at_once() {
    let Some(_alone) = alone() else { return };
    for policy in ["Never", "Always"] {
        let world = World::with(Setup::Apart, "connection", |config| {
            let spec = format!("restartPolicy: {policy}");
            changed(&config, "", &spec, "")
                .replace("    shellCommand:", "    idleCommand: [/bin/sh, -c, exit 3]\n    shellCommand:")
        });
        // Its second end is certain, which is a start and a pause later.
        fails(&world, PROMPT + PROMPT, &["ended at once with exit code 3"]);
        world.ends_clean();
    }
}

#[test]
fn a_program_that_is_killed_for_its_memory() {
    let Some(_alone) = alone() else { return };
    for mode in ["connection", "session", "connection+podbay", "session+podbay"] {
        let world =
            World::with(Setup::Apart, mode, |config| changed(&config, "resources: {limits: {memory: 64Mi}}", "", ""));
        // The program itself is what is killed.
        let answered = world.run("exec python3 -c 'x = bytearray(500_000_000)'");
        assert!(!answered.status.success(), "{mode}: {answered:?}");
        // A child that is killed alone is the program's own affair; where the kubelet has the group killed, all is.
        let answered = world.run("python3 -c 'x = bytearray(500_000_000)'; echo then $?; exit 5");
        let alone = (answered.status.code(), answered.stdout.as_slice()) == (Some(5), b"then 137\n");
        let with_all = !answered.status.success() && answered.stdout.is_empty();
        assert!(alone || with_all, "{mode}: {answered:?}");
        world.ends_clean();
    }
}

#[test]
fn a_main_program_that_is_killed_for_its_memory() {
    let Some(_alone) = alone() else { return };
    let world = World::with(Setup::Apart, "connection", |config| {
        let idle = "    idleCommand: [python3, -c, 'x = bytearray(500_000_000)']\n    shellCommand:";
        let limits = "resources: {limits: {memory: 64Mi}}";
        changed(&config, limits, "restartPolicy: Never", "").replace("    shellCommand:", idle)
    });
    fails(&world, PROMPT, &["needs more memory than its limit"]);
    world.ends_clean();
}

#[test]
fn a_namespace_that_is_not_there() {
    let Some(_alone) = alone() else { return };
    // With an administrator's rights: the Role of another namespace tells nothing about this one.
    let world = World::with(Setup::Apart, "connection", |config| {
        let namespace = config.lines().find_map(|line| line.strip_prefix("      namespace: ")).expect("a namespace");
        config.replace(namespace, "podbay-nosuch")
    });
    fails(&world, PROMPT, &["the backend has no right to make pods"]);
    world.ends_clean();
    let world = World::with(Setup::Apart, "connection", |config| {
        let namespace = config.lines().find_map(|line| line.strip_prefix("      namespace: ")).expect("a namespace");
        as_administrator(&config.replace(namespace, "podbay-nosuch"))
    });
    fails(&world, PROMPT, &["the namespace for pods is missing", "podbay-nosuch"]);
    world.ends_clean();
}

fn as_administrator(config: &str) -> String {
    let own = config.lines().find_map(|line| line.strip_prefix("    kubeconfig: ")).expect("a kubeconfig");
    config.replace(own, &std::env::var(podbay_tests::cluster::REAL).expect("the cluster's"))
}

#[test]
fn a_part_that_dies_breaks_sessions_and_costs_none_with_the_agent() {
    let Some(_alone) = alone() else { return };
    for part in [Part::Kubelet, Part::Containerd, Part::ApiServer] {
        let world = World::new(Setup::Apart);
        let client = running(&world);
        part.restarts(Duration::from_secs(1));
        breaks(client, "broke");
        // What the kubelet says of its runtime may be told as what the start waits for.
        let again = world.run("echo again");
        assert_eq!((again.status.code(), again.stdout.as_slice()), (Some(0), &b"again\n"[..]), "{part:?}: {again:?}");
        world.ends_clean();
        let world = World::with(Setup::Apart, "connection+podbay", |config| config);
        let mut run = Loop::start(&world, 9 * MIB);
        for _ in 0..2 {
            run.goes_on(3 * MIB);
            part.restarts(Duration::from_secs(1));
        }
        run.ends_whole();
        world.ends_clean();
    }
}

#[test]
fn a_start_waits_for_an_api_server_that_dies_in_it() {
    let Some(_alone) = alone() else { return };
    // Before the pod was asked for.
    let world = World::new(Setup::Apart);
    Part::ApiServer.dies();
    let mut ssh = world.ssh(&[]);
    let mut client = ssh.arg("echo in").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let told = BufReader::new(client.stderr.take().expect("piped"));
    let mut said = told.lines().map_while(Result::ok);
    assert!(
        said.any(|line| line.contains("the Kubernetes API can't be reached")),
        "what the start waits for is not told"
    );
    Part::ApiServer.starts();
    let output = client.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"in\n"[..]), "{output:?}");
    world.ends_clean();
    // When the pod was there and not ready.
    let slow = format!("initContainers: [{{name: slow, image: {}, command: [sleep, \"4\"]}}]", image());
    let world = self::world("", &slow, "");
    let mut ssh = world.ssh(&[]);
    let client = ssh.arg("echo in").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    wait_until("there is a pod", || world.pods().len() == 1);
    Part::ApiServer.restarts(Duration::from_secs(2));
    let output = client.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"in\n"[..]), "{output:?}");
    assert!(world.pods().len() <= 1, "a second pod was made");
    world.ends_clean();
}

#[test]
fn a_clock_that_makes_the_apis_certificate_invalid() {
    let Some(_alone) = alone() else { return };
    for (clock, words) in [("-30d", "not valid yet"), ("+50y", "expired")] {
        let mut world = self::world("", "", "timeouts: {podStart: 4s}");
        world.run("echo in").is(0, "in\n", "");
        for name in ["backend", "backend-2"] {
            world.take(name).stop();
            let by = faketime(clock);
            world.restart_by(name, &by.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let answered = world.run("true");
        refused(&answered, &["certificate", words, "is the backend's clock right?"]);
        // The right clock is all that it takes.
        for name in ["backend", "backend-2"] {
            world.take(name).stop();
            world.restart(name);
        }
        world.run("echo in").is(0, "in\n", "");
        world.ends_clean();
    }
}

/// The configuration with explicit keys in place of the kubeconfig: the account's token in a file, and this CA.
fn explicit(config: &str, token: &std::path::Path, ca: Option<&str>) -> String {
    let own = config.lines().find_map(|line| line.strip_prefix("    kubeconfig: ")).expect("a kubeconfig");
    let text = std::fs::read_to_string(own.trim_matches('"')).expect("reads");
    let kubeconfig: serde_json::Value = serde_yaml::from_str(&text).expect("YAML");
    let found = kubeconfig["users"][0]["user"]["token"].as_str().expect("a token");
    std::fs::write(token, found).expect("writes");
    let cluster = &kubeconfig["clusters"][0]["cluster"];
    let own_ca = ca.map_or_else(
        || plain(cluster["certificate-authority-data"].as_str().expect("a CA")),
        |ca| ca.as_bytes().to_vec(),
    );
    let ca_file = token.with_extension("ca");
    std::fs::write(&ca_file, own_ca).expect("writes");
    let keys = format!(
        "    host: {}\n    cacertFile: {}\n    bearerTokenFile: {}\n    qps: 100\n    burst: 100",
        cluster["server"].as_str().expect("a server"),
        ca_file.display(),
        token.display()
    );
    config.replace(&format!("    kubeconfig: {own}"), &keys)
}

#[test]
fn a_token_that_expires_is_told_and_its_successor_taken() {
    let Some(_alone) = alone() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let token = dir.path().join("token");
    let world = World::with(Setup::Apart, "connection", |config| {
        changed(&explicit(&config, &token, None), "", "", "timeouts: {podStart: 8s}")
    });
    world.run("echo in").is(0, "in\n", "");
    let good = std::fs::read_to_string(&token).expect("reads");
    let lives = Duration::from_secs(6);
    std::fs::write(&token, token_that_ends(&good, lives)).expect("writes");
    // The file is read every other second, and the API server believes a token for 10 s more.
    let mut open = running(&world);
    wait_until("the token has expired", || !world.run("true").status.success());
    fails(&world, Duration::from_secs(8) + PROMPT, &["does not accept the backend's credentials"]);
    assert!(open.try_wait().expect("waits").is_none(), "an open session has no business with the token");
    std::fs::write(&token, good).expect("writes");
    wait_until("the new token is taken", || world.run("true").status.success());
    open.kill().expect("it runs");
    open.wait().expect("ends");
    world.ends_clean();
}

#[test]
fn a_certificate_that_nobody_known_signed() {
    let Some(_alone) = alone() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let (key, other) = (dir.path().join("key"), dir.path().join("crt"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]);
    let made = openssl.args(["-subj", "/CN=somebody else", "-keyout"]).arg(&key).arg("-out").arg(&other).output();
    assert!(made.expect("runs").status.success());
    let ca = std::fs::read_to_string(&other).expect("reads");
    let token = dir.path().join("token");
    let world = World::with(Setup::Apart, "connection", |config| {
        changed(&explicit(&config, &token, Some(&ca)), "", "", "timeouts: {podStart: 6s}")
    });
    let began = Instant::now();
    let answered = world.run("true");
    refused(&answered, &["podbay: "]);
    assert!(answered.stderr.contains("ertificate"), "{answered:?}");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    world.ends_clean();
}
