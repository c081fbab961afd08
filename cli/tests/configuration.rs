//! `podbay check`, `migrate` and `schema` as their users meet them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn podbay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podbay")).args(arguments).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("written");
        path.display().to_string()
    }
}

/// A file of ContainerSSH 0.4, whole but for what is not built.
const KUBERNETES: &str = "
ssh: {listen: '0.0.0.0:2222', serverVersion: SSH-2.0-ContainerSSH, clientAliveInterval: 0s, clientAliveCountMax: 0}
backend: kubernetes
kubernetes:
  timeouts: {podStart: 60s, podStop: 60s, commandStart: 60s, http: 15s, signal: 60s, window: 60s}
  connection: {host: 'https://api', bearerToken: hunter2}
  pod:
    metadata: {namespace: default, generateName: myPodNamePrefix-, labels: {foo: bar}}
    spec: {containers: [{name: shell, image: containerssh/containerssh-guest-image, env: [{name: A, value: hunter3}]}]}
    agentPath: /usr/bin/containerssh-agent
log: {level: notice, format: ljson, destination: stdout}
";

#[test]
fn check_says_what_is_wrong_in_all_files_and_exits_2() {
    let dir = Dir::new();
    let good = dir.write("good.yaml", KUBERNETES);
    let bad = dir.write("bad.yaml", "kubernetes:\n  podd: {}\nssh:\n  listn: x\n  banner: [5]\n");
    let run = podbay(&["check", &good]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert_eq!(text(&run.stdout), format!("{good}: no mistakes\n"));
    for lacking in ["grpc is not there: podbay-backend needs it", "frontend is not there: podbay-frontend needs it"] {
        assert!(text(&run.stderr).contains(lacking), "{run:?}");
    }
    let run = podbay(&["check", &bad, &good, "/nonexistent/file"]);
    assert_eq!(run.status.code(), Some(2), "{run:?}");
    let told = text(&run.stderr);
    for wanted in [
        &format!("{bad}:2:3: kubernetes.podd: unknown key; did you mean pod?"),
        &format!("{bad}:4:3: ssh.listn: unknown key; did you mean listen?"),
        &format!("{bad}:5:11: ssh.banner: expected text, found a list"),
        &"/nonexistent/file: can't be read".to_owned(),
    ] {
        assert!(told.contains(wanted), "{wanted} is not in {told}");
    }
}

#[test]
fn effective_shows_defaults_and_no_secrets() {
    let dir = Dir::new();
    let run = podbay(&["check", "--effective", &dir.write("f.yaml", KUBERNETES)]);
    let shown = text(&run.stdout);
    for wanted in [
        "shellCommand",
        "/bin/bash",
        "mypodnameprefix-",
        "podStart: 60s",
        "bearerToken: '***'",
        "leaseDuration: 1m30s",
        "clientAliveCountMax: 3",
    ] {
        assert!(shown.replace('"', "'").contains(wanted), "{wanted} is not in:\n{shown}");
    }
    assert!(!shown.contains("hunter"), "{shown}");
}

#[test]
fn migrate_writes_what_check_takes() {
    let dir = Dir::new();
    let old = "# mine\nbackend: kuberun\nkuberun:\n  timeout: 30s # enough\n  pod:\n    namespace: users\n    podSpec:\n      containers:\n      - image: registry.example/i:1\n";
    let file = dir.write("old.yaml", old);
    assert_eq!(podbay(&["migrate", "--check", &file]).status.code(), Some(1));
    let run = podbay(&["migrate", &file]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    let new = text(&run.stdout);
    assert!(
        new.starts_with("# mine\nbackend: kubernetes\nkubernetes:\n  timeouts:\n    podStart: 30s # enough\n"),
        "{new}"
    );
    for wanted in ["changed: pod.podSpec is pod.spec", "less safe: if the image's CMD"] {
        assert!(text(&run.stderr).contains(wanted), "{run:?}");
    }
    let run = podbay(&["migrate", "--in-place", &file]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert_eq!(fs::read_to_string(&file).expect("read"), new);
    assert_eq!(fs::read_to_string(format!("{file}.bak")).expect("read"), old);
    assert_eq!(podbay(&["check", &file]).status.code(), Some(0));
    assert_eq!(podbay(&["migrate", "--check", &file]).status.code(), Some(0));
    // A backup is never lost.
    fs::write(&file, old).expect("written");
    let run = podbay(&["migrate", "--in-place", &file]);
    assert_eq!((run.status.code(), fs::read_to_string(&file).expect("read").as_str()), (Some(1), old), "{run:?}");
    let bad = dir.write("bad.yaml", "backend: kuberun\nkuberun: {timeout: soon}\n");
    assert_eq!(podbay(&["migrate", &bad]).status.code(), Some(2));
    // 1 is --check's answer that there is something to migrate, and no other.
    let large = dir.write("large.yaml", &format!("backend: kuberun\n# {}\n", "x".repeat(10 << 20)));
    for (file, wanted) in [
        (large.as_str(), "large.yaml: larger than 4194304 bytes"),
        ("/nonexistent/file", "/nonexistent/file: can't be read: No such file"),
        (&dir.0.path().display().to_string(), "can't be read: Is a directory"),
        (&dir.write("list.yaml", "- a\n"), "list.yaml:1:1: expected a map, found a list"),
    ] {
        let run = podbay(&["migrate", "--check", file]);
        assert!(run.status.code() == Some(2) && text(&run.stderr).contains(wanted), "{wanted}: {run:?}");
        assert!(run.stdout.is_empty(), "{run:?}");
    }
    // A link stays one.
    let (target, link) = (dir.write("target.yaml", "backend: kuberun\n"), dir.0.path().join("link.yaml"));
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    assert_eq!(podbay(&["migrate", "--in-place", &link.display().to_string()]).status.code(), Some(0));
    assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    assert!(fs::read_to_string(&target).expect("read").starts_with("backend: kubernetes\n"));
    let json = dir.write("f.json", "{\"backend\": \"kuberun\"}\n");
    assert_eq!(podbay(&["migrate", "--in-place", &json]).status.code(), Some(0));
    assert!(serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&json).expect("read")).is_ok());
    assert_eq!(podbay(&["check", &json]).status.code(), Some(0));
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// With PODBAY_UPDATE=1 the files are written instead.
#[test]
fn the_schema_and_the_table_of_keys_are_not_stale() {
    for (arguments, path) in
        [(&["schema"][..], "deploy/podbay.schema.json"), (&["schema", "--keys"][..], "docs/configuration-keys.md")]
    {
        let made = text(&podbay(arguments).stdout);
        let path = in_repository(path);
        if std::env::var_os("PODBAY_UPDATE").is_some() {
            fs::write(&path, &made).expect("written");
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(made.len() > 1000 && there == made, "{} is stale: run the tests with PODBAY_UPDATE=1", path.display());
    }
}

/// A cluster whose demo image has what is given at `/usr/bin/containerssh-agent`, and a kubeconfig for it in the directory.
fn cluster(
    runtime: &tokio::runtime::Runtime,
    dir: &Dir,
    agent: Option<&Path>,
) -> (podbay_minicluster::Minicluster, String) {
    let cluster = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let mut options = podbay_minicluster::Options::new(listener);
        options.helper = Some(env!("CARGO_BIN_EXE_podbay").into());
        options.backoff = std::time::Duration::from_millis(50);
        let image = options.images.get_mut(podbay_minicluster::image::DEMO).expect("the demo's image");
        if let Some(agent) = agent {
            image.programs.insert("/usr/bin/containerssh-agent".into(), agent.to_owned());
        }
        podbay_minicluster::Minicluster::start(options).await.expect("a minicluster")
    });
    let kubeconfig = dir.write("kubeconfig", cluster.kubeconfig());
    (cluster, kubeconfig)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// An executable of this text.
fn executable(dir: &Dir, name: &str, bytes: &[u8]) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.0.path().join(name);
    fs::write(&path, bytes).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

#[test]
fn a_pod_that_is_tried_tells_the_agents_level_and_goes() {
    let (runtime, dir) = (runtime(), Dir::new());
    let ours = executable(&dir, "podbay-agent", podbay_agent_embed::BINARY);
    // As ContainerSSH's: it waits, and knows nothing of ours.
    let theirs = executable(&dir, "theirs", b"#!/bin/sh\n[ \"$1\" = wait-signal ] || exit 1\nexec sleep 600\n");
    let image = podbay_minicluster::image::DEMO;
    let agents = [
        (Some(ours.as_path()), "podbay-agent (everything)"),
        (Some(theirs.as_path()), "containerssh-agent (signals"),
        (None, ""),
    ];
    for (agent, level) in agents {
        let (cluster, kubeconfig) = cluster(&runtime, &dir, agent);
        let with = |pod: &str| {
            let spec = format!("spec: {{terminationGracePeriodSeconds: 1, containers: [{{image: '{image}'}}]}}");
            let text = format!(
                "kubernetes:\n  connection: {{kubeconfig: {kubeconfig:?}}}\n  timeouts: {{podStart: 30s}}\n  pod: {{{pod}{spec}}}\n"
            );
            let run = podbay(&["check", "--try-pod", &dir.write("f.yaml", &text)]);
            (run.status.code(), text_of(&run))
        };
        for mode in ["", "mode: session, ", "mode: persistent, createMissingPods: true, metadata: {name: workspace}, "]
        {
            let (status, told) = with(mode);
            if level.is_empty() {
                assert_eq!(status, Some(2), "{told}");
                assert!(told.contains("the image has no agent that runs at /usr/bin/containerssh-agent"), "{told}");
            } else {
                assert_eq!(status, Some(0), "{told}");
                assert!(told.contains(&format!("cluster: agent level of {image}: {level}")), "{told}");
                assert!(told.contains(" s: good\n"), "{told}");
            }
            assert!(told.contains("was deleted: good"), "{told}");
            assert_eq!(cluster.pods().len(), 0, "{told}");
        }
        for mode in ["disableAgent: true, ", "disableAgent: true, mode: session, "] {
            let (status, told) = with(mode);
            assert_eq!(status, Some(0), "{told}");
            assert!(told.contains("none, as pod.disableAgent says") && told.contains("was deleted: good"), "{told}");
            assert_eq!(cluster.pods().len(), 0, "{told}");
        }
        let (status, told) = with("mode: persistent, metadata: {name: workspace}, ");
        assert!(status == Some(0) && told.contains("makes no pods: none is tried"), "{told}");
        // No pod is made where a dry run fails, nor without being asked.
        let (status, told) = with("metadata: {namespace: nowhere}, ");
        assert!(status == Some(2) && told.contains("cluster: no pod is tried: see above"), "{told}");
        assert_eq!(cluster.pods().len(), 0, "{told}");
        runtime.block_on(cluster.shutdown());
    }
}

#[test]
fn a_pod_that_can_not_run_is_told_and_goes_in_time() {
    let (runtime, dir) = (runtime(), Dir::new());
    let (cluster, kubeconfig) = cluster(&runtime, &dir, None);
    let text = format!(
        "kubernetes:\n  connection: {{kubeconfig: {kubeconfig:?}}}\n  timeouts: {{podStart: 2s, podStop: 8s}}\n  pod: {{disableAgent: true, spec: {{containers: [{{image: 'registry.example/nosuch:1'}}]}}}}\n"
    );
    let run = podbay(&["check", "--try-pod", &dir.write("f.yaml", &text)]);
    let told = text_of(&run);
    assert_eq!(run.status.code(), Some(2), "{told}");
    assert!(told.contains("nosuch") && told.contains("was deleted: good"), "{told}");
    assert_eq!(cluster.pods().len(), 0, "{told}");
    runtime.block_on(cluster.shutdown());
}

fn text_of(run: &Output) -> String {
    text(&run.stdout) + &text(&run.stderr)
}

#[test]
fn check_tries_the_cluster() {
    let (runtime, dir) = (runtime(), Dir::new());
    let (cluster, kubeconfig) = cluster(&runtime, &dir, None);
    let with = |more: &str| {
        format!("kubernetes:\n  connection: {{kubeconfig: {kubeconfig:?}}}\n  pod: {{disableAgent: true{more}}}\n")
    };
    let run = podbay(&["check", "--cluster", &dir.write("good.yaml", &with(""))]);
    let told = text(&run.stdout) + &text(&run.stderr);
    assert_eq!(run.status.code(), Some(0), "{told}");
    assert!(
        told.contains("cluster: the API answers: good")
            && told.contains("a pod would be taken in namespace default")
            && cluster.pods().is_empty(),
        "{told}"
    );
    let run = podbay(&["check", "--cluster", &dir.write("nowhere.yaml", &with(", metadata: {namespace: nowhere}"))]);
    let told = text(&run.stdout) + &text(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{told}");
    assert!(text(&run.stderr).contains("nowhere"), "{told}");
    runtime.block_on(cluster.shutdown());
}

#[test]
fn a_mistake_that_people_make_is_one_line_that_says_what_to_do() {
    let dir = Dir::new();
    let utf16: Vec<u8> = KUBERNETES.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let kubeconfig = dir.write("kubeconfig", "put x\n");
    let named = format!("kubernetes: {{connection: {{kubeconfig: {kubeconfig}}}, pod: {{disableAgent: true}}}}\n");
    for (text, wanted) in [
        (
            b"ssh:\n\tlisten: 0.0.0.0:2222\n".to_vec(),
            ":2:2: tabs disallowed within this context (block indentation): indent by spaces",
        ),
        (b"ssh:\n  banner: a\n listen: x\n".to_vec(), "keys of one map begin in the same column"),
        (b"ssh: {}\nssh: {}\n".to_vec(), ":2:1: ssh is given twice"),
        (b"[ssh]\nlisten = \"x\"\n".to_vec(), "is this YAML?"),
        (b"ssh: {}\n---\nssh: {}\n".to_vec(), ":3:1: a second document begins here"),
        (b"hello\n".to_vec(), ":1:1: expected a map, found text"),
        (
            b"ssh: {clientAliveInterval: 5 min}\n".to_vec(),
            ":1:28: ssh.clientAliveInterval: not a duration: write for example 60s",
        ),
        (b"ssh: {listen: here}\n".to_vec(), "is not an address with port, such as 0.0.0.0:2222"),
        (
            b"kubernetes: {pod: {disableAgent: true, metadata: {namespace: My_NS}}}\n".to_vec(),
            "namespace \"My_NS\": names of namespaces",
        ),
        (utf16, "save the file as UTF-8; this looks like UTF-16"),
    ] {
        let path = dir.0.path().join("podbay.yaml");
        fs::write(&path, &text).expect("written");
        let run = podbay(&["check", &path.display().to_string()]);
        let told = text_without_warnings(&run.stderr);
        assert_eq!((run.status.code(), told.lines().count()), (Some(2), 1), "{told}");
        assert!(told.starts_with(&path.display().to_string()) && told.contains(wanted), "{wanted}: {told}");
    }
    let whole = "grpc: {callers: [{name: 'cn:x', service: x, users: ['*']}], tls: {certFile: C, keyFile: K, clientCAFile: C}}\n";
    let key = rcgen::KeyPair::generate().expect("a key");
    let cert = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
    let (cert, key) = (dir.write("cert.pem", &cert.pem()), dir.write("key.pem", &key.serialize_pem()));
    let whole = named
        + &whole.replace("certFile: C", &format!("certFile: {cert}")).replace("CAFile: C", &format!("CAFile: {cert}"));
    let path = dir.write("podbay.yaml", &whole.replace("keyFile: K", &format!("keyFile: {key}")));
    let told = text_without_warnings(&podbay(&["check", &path]).stderr);
    let wanted = ": kubernetes.connection.kubeconfig: failed to parse kubeconfig";
    assert!(told.lines().count() == 1 && told.contains(wanted), "{told}");
}

fn text_without_warnings(bytes: &[u8]) -> String {
    let told = text(bytes);
    told.lines().filter(|line| !line.starts_with("warning: ")).collect::<Vec<_>>().join("\n")
}
