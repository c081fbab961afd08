//! The minicluster as a process of its own, and the stock `kubectl` against it.

mod world;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use podbay_minicluster::{Fault, On, Process, faults::Command as FaultCommand};
use std::{
    fs,
    path::PathBuf,
    process::{Output, Stdio},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};
use world::{is_alive, script, until, within};

struct Server {
    child: Child,
    kubeconfig: PathBuf,
    state: PathBuf,
    _folder: TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (kubeconfig, state) = (folder.path().join("kubeconfig"), folder.path().join("state"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_podbay-minicluster"))
            .args(["--state-dir".as_ref(), state.as_os_str(), "--kubeconfig".as_ref(), kubeconfig.as_os_str()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        assert_eq!(within("a line", lines.next_line()).await.expect("text").as_deref(), Some("ready"));
        Self { child, kubeconfig, state, _folder: folder }
    }

    fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    fn signal(&self, name: &str) {
        let kill = std::process::Command::new("kill").args([name, &self.pid().to_string()]).status();
        assert!(kill.expect("kill").success());
    }

    /// `None` without a kubectl on this machine.
    fn kubectl(&self, args: &[&str]) -> Option<Command> {
        if std::process::Command::new("kubectl").arg("help").output().is_err() {
            eprintln!("no kubectl here: this test shows nothing");
            return None;
        }
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args).kill_on_drop(true);
        command.env("HOME", self.state.join("..")).stdin(Stdio::null());
        Some(command)
    }

    async fn kubectl_output(&self, args: &[&str]) -> Option<Output> {
        let output = self.kubectl(args)?.output();
        Some(within(&format!("kubectl {args:?}"), output).await.expect("it runs"))
    }

    async fn client(&self) -> kube::Client {
        world::client(&fs::read_to_string(&self.kubeconfig).expect("a kubeconfig")).await
    }

    async fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client().await)
    }

    async fn create(&self, pod: Pod) {
        self.pods().await.create(&PostParams::default(), &pod).await.expect("created");
    }

    async fn processes(&self) -> Vec<Process> {
        self.admin("GET", "processes", String::new()).await
    }

    async fn admin<T: serde::de::DeserializeOwned>(&self, method: &str, what: &str, body: String) -> T {
        let client = self.client().await;
        let uri = format!("/minicluster/{what}");
        let request = http::Request::builder().method(method).uri(uri).body(body.into_bytes()).expect("a request");
        client.request(request).await.expect("an answer")
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_gets_describes_execs_attaches_logs_and_deletes() {
    let server = Server::start().await;
    let Some(none) = server.kubectl_output(&["get", "pods"]).await else { return };
    assert!(text(&none).contains("No resources found"), "{}", text(&none));
    let mut web = script("web", "echo hello; while read line; do echo \"got $line\"; done; sleep 1000");
    web.spec.as_mut().expect("a spec").containers[0].stdin = Some(true);
    let manifest = server.kubeconfig.with_file_name("web.json");
    fs::write(&manifest, serde_json::to_vec(&web).expect("JSON")).expect("written");
    let applied = server.kubectl_output(&["apply", "-f", manifest.to_str().expect("text")]).await.expect("kubectl");
    assert!(text(&applied).contains("pod/web created"), "{}", text(&applied));
    let ready =
        server.kubectl_output(&["wait", "--for=condition=Ready", "pod/web", "--timeout=30s"]).await.expect("kubectl");
    assert!(ready.status.success(), "{}", text(&ready));

    for (args, shows) in [
        (&["get", "pods"][..], &["web", "1/1", "Running"][..]),
        (&["get", "pods", "-o", "wide", "--show-labels"], &["app=web"]),
        (&["get", "pod", "web", "-o", "jsonpath={.status.phase}"], &["Running"]),
        (
            &["describe", "pod", "web"],
            &["Successfully assigned default/web", "Started container main", "podbay/demo:1"],
        ),
        (&["get", "events"], &["NAME"]),
        (&["logs", "web"], &["hello"]),
        (&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2"], &["out\n", "err\n"]),
        (&["get", "leases,namespaces"], &["default"]),
        (&["api-resources"], &["pods", "leases", "coordination.k8s.io/v1"]),
        (&["version"], &["v1.33"]),
    ] {
        let output = server.kubectl_output(args).await.expect("kubectl");
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        for shown in shows {
            assert!(text(&output).contains(shown), "{args:?}: {shown} is not in {}", text(&output));
        }
    }
    let seven = server.kubectl_output(&["exec", "web", "--", "sh", "-c", "exit 7"]).await.expect("kubectl");
    assert_eq!(seven.status.code(), Some(7));
    let nosuch = server.kubectl_output(&["exec", "web", "--", "nosuch"]).await.expect("kubectl");
    assert!(text(&nosuch).contains("executable file not found in $PATH"), "{}", text(&nosuch));
    assert_ne!(nosuch.status.code(), Some(0));
    let unknown = server.kubectl_output(&["get", "pod", "other"]).await.expect("kubectl");
    assert!(text(&unknown).contains("(NotFound): pods \"other\" not found"), "{}", text(&unknown));

    let mut exec = server.kubectl(&["exec", "-i", "web", "--", "wc", "-c"]).expect("kubectl");
    let mut exec = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = exec.stdin.take().expect("its stdin");
    stdin.write_all(&vec![b'x'; 3_000_000]).await.expect("written");
    drop(stdin);
    let counted = within("wc", exec.wait_with_output()).await.expect("it ends");
    assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), "3000000");

    let mut attach = server.kubectl(&["attach", "-i", "web"]).expect("kubectl");
    let mut attach =
        attach.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut stdin = attach.stdin.take().expect("its stdin");
    let mut lines = BufReader::new(attach.stdout.take().expect("its stdout")).lines();
    stdin.write_all(b"me\n").await.expect("written");
    loop {
        let line = within("what comes back", lines.next_line()).await.expect("text").expect("a line");
        if line == "got me" {
            break;
        }
    }
    drop((stdin, lines));

    let mut follow = server.kubectl(&["logs", "-f", "web"]).expect("kubectl");
    let mut follow = follow.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut watch = server.kubectl(&["get", "pods", "-w", "--no-headers"]).expect("kubectl");
    let mut watch = watch.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut rows = BufReader::new(watch.stdout.take().expect("its stdout")).lines();
    assert!(within("a row", rows.next_line()).await.expect("text").expect("a row").contains("Running"));
    let deleted = server.kubectl_output(&["delete", "pod", "web"]).await.expect("kubectl");
    assert!(deleted.status.success(), "{}", text(&deleted));
    assert!(within("a row", rows.next_line()).await.expect("text").expect("a row").contains("Terminating"));
    let mut log = String::new();
    within("the log's end", follow.stdout.take().expect("its stdout").read_to_string(&mut log)).await.expect("text");
    assert!(log.starts_with("hello\n") && log.contains("got me\n"), "{log}");
    assert!(server.processes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_has_a_terminal() {
    let server = Server::start().await;
    server.create(script("web", "sleep 1000")).await;
    let Some(ready) = server.kubectl_output(&["wait", "--for=condition=Ready", "pod/web", "--timeout=30s"]).await
    else {
        return;
    };
    assert!(ready.status.success(), "{}", text(&ready));
    // script(1) gives kubectl a terminal of its own.
    let kubectl =
        format!("stty cols 91 rows 33; kubectl --kubeconfig {} exec -it web -- sh", server.kubeconfig.display());
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &kubectl, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut terminal = terminal.spawn().expect("script (util-linux)");
    let mut stdin = terminal.stdin.take().expect("its stdin");
    stdin.write_all(b"until stty size | grep '^33 91$'; do sleep 0.02; done; tty; exit 5\n").await.expect("written");
    let output = within("the shell", terminal.wait_with_output()).await.expect("it ends");
    assert!(text(&output).contains("33 91\r\n") && text(&output).contains("/dev/pts/"), "{}", text(&output));
    assert_eq!(output.status.code(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_sigint_end_it_cleanly() {
    for signal in ["-TERM", "-INT"] {
        let mut server = Server::start().await;
        server.create(script("p", "trap '' TERM; while :; do sleep 0.02; done")).await;
        let processes =
            until("its processes", || async { Some(server.processes().await).filter(|all| all.len() >= 2) }).await;
        server.signal(signal);
        assert!(within("its end", server.child.wait()).await.expect("it ends").success());
        assert!(processes.iter().all(|process| !is_alive(process.pid)));
        assert!(!server.state.exists() && !server.kubeconfig.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_leaves_no_process() {
    let mut server = Server::start().await;
    let daemon = "(setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 0.02; done' </dev/null >/dev/null 2>&1 &)";
    server.create(script("p", &format!("{daemon}; sleep 1000"))).await;
    // The supervisor, the shell, its sleep, and the daemon with its own.
    let processes =
        until("its processes", || async { Some(server.processes().await).filter(|all| all.len() >= 4) }).await;
    server.signal("-KILL");
    within("its end", server.child.wait()).await.expect("it ends");
    until("all are gone", || async { processes.iter().all(|process| !is_alive(process.pid)).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_can_be_asked_for_over_http() {
    let server = Server::start().await;
    let fault = FaultCommand::Add(Fault::unschedulable(On::pod("p")));
    let added: serde_json::Value = server.admin("POST", "faults", serde_json::to_string(&fault).expect("JSON")).await;
    assert!(added.get("id").is_some());
    server.create(script("p", "sleep 1000")).await;
    let pods = server.pods().await;
    until("unschedulable", || async {
        pods.get("p").await.ok().filter(|pod| world::condition(pod, "PodScheduled") == "False")
    })
    .await;
    let cleared: serde_json::Value = server.admin("POST", "faults", "\"clearAll\"".into()).await;
    assert_eq!(cleared["done"], true);
    until("ready", || async { pods.get("p").await.ok().filter(|pod| world::condition(pod, "Ready") == "True") }).await;
    let counts: Vec<serde_json::Value> = server.admin("GET", "counts", String::new()).await;
    assert!(counts.iter().any(|count| count["verb"] == "get" && count["resource"] == "pods"));
}
