//! A minicluster in this process, and clients for it.

#![allow(dead_code, reason = "each test file uses its own part")]

use bytes::Bytes;
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{AttachParams, DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use podbay_minicluster::{Faults, Minicluster, Options, Process};
use serde_json::{Value, json};
use std::{fmt, future::Future, path::Path, time::Duration};
use tokio::{net::TcpListener, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// Longer than anything takes on a busy machine; nothing waits for it unless it fails.
pub const DEADLINE: Duration = Duration::from_mins(1);

pub type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

pub struct World {
    pub cluster: Minicluster,
    pub client: Client,
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// Asks again and again until the answer is there. For what nothing can be waited on.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    within(what, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

pub async fn options() -> Options {
    let mut options = Options::new(TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    options.helper = Some(env!("CARGO_BIN_EXE_podbay-minicluster").into());
    options.backoff = Duration::from_millis(200);
    options
}

pub async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config");
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

#[allow(clippy::needless_pass_by_value, reason = "callers write json! in place")]
pub fn pod_of(name: &str, spec: Value) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } }, "spec": spec,
    }))
    .expect("a pod")
}

/// A pod whose one container runs a shell script.
pub fn script(name: &str, script: &str) -> Pod {
    pod_of(
        name,
        json!({
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "main", "image": "podbay/demo:1", "command": ["/bin/sh", "-c", script] }],
        }),
    )
}

pub fn idle(name: &str) -> Pod {
    script(name, "exec sleep 1000")
}

impl World {
    pub async fn start() -> Self {
        Self::with(options().await).await
    }

    pub async fn with(options: Options) -> Self {
        let cluster = Minicluster::start(options).await.expect("it starts");
        let client = client(cluster.kubeconfig()).await;
        Self { cluster, client }
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub fn faults(&self) -> Faults {
        self.cluster.faults()
    }

    pub async fn create(&self, pod: &Pod) -> Pod {
        self.pods().create(&PostParams::default(), pod).await.expect("created")
    }

    /// Creates a pod and waits until it is ready.
    pub async fn run(&self, pod: &Pod) {
        self.create(pod).await;
        let name = pod.metadata.name.clone().expect("a name");
        self.wait(&name, "ready", |pod| condition(pod, "Ready") == "True").await;
    }

    pub async fn wait(&self, name: &str, what: &str, is: impl Fn(&Pod) -> bool) -> Pod {
        until(&format!("{name} is {what}"), || async {
            self.pods().get_opt(name).await.expect("an answer").filter(|pod| is(pod))
        })
        .await
    }

    pub async fn wait_gone(&self, name: &str) {
        until(&format!("{name} is gone"), || async {
            self.pods().get_opt(name).await.expect("an answer").is_none().then_some(())
        })
        .await;
    }

    pub async fn delete(&self, name: &str, grace: u32) {
        self.pods().delete(name, &DeleteParams::default().grace_period(grace)).await.expect("deleted");
    }

    /// The reasons of all events about a pod.
    pub async fn reasons(&self, name: &str) -> Vec<String> {
        let events: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(self.client.clone(), "default");
        let about = kube::api::ListParams::default().fields(&format!("involvedObject.name={name}"));
        events.list(&about).await.expect("a list").items.into_iter().filter_map(|event| event.reason).collect()
    }

    pub async fn exec(&self, pod: &str, command: &[&str], params: &AttachParams) -> Stream {
        self.try_exec(pod, command, params).await.expect("an upgrade")
    }

    pub async fn try_exec(&self, pod: &str, command: &[&str], params: &AttachParams) -> kube::Result<Stream> {
        let request = kube::core::Request::new("/api/v1/namespaces/default/pods");
        let request = request.exec(pod, command.iter().copied(), params).expect("a request");
        let connection = self.client.connect(request).await?;
        assert!(connection.supports_stream_close(), "v5 was negotiated");
        Ok(Stream::new(connection.into_stream()))
    }

    pub async fn attach(&self, pod: &str, params: &AttachParams) -> Stream {
        let request = kube::core::Request::new("/api/v1/namespaces/default/pods");
        let request = request.attach(pod, params).expect("a request");
        Stream::new(self.client.connect(request).await.expect("an upgrade").into_stream())
    }

    /// Runs a command to its end, without stdin.
    pub async fn run_in(&self, pod: &str, command: &[&str]) -> Outcome {
        let params = AttachParams::default().stdin(false).stdout(true).stderr(true);
        self.exec(pod, command, &params).await.outcome().await
    }

    /// Ends it, and shows that nothing is left.
    pub async fn end(self) {
        let processes = self.cluster.processes();
        let state = self.cluster.state_dir().to_owned();
        within("shutdown", self.cluster.shutdown()).await;
        assert!(!state.exists(), "{} is left", state.display());
        for Process { pid, .. } in processes {
            assert!(!is_alive(pid), "process {pid} is left");
        }
    }
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> &'a str {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().find(|known| known.type_ == kind).map_or("", |known| &known.status)
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// A container's state as JSON: `{"running": …}`, `{"waiting": …}` or `{"terminated": …}`.
pub fn state(pod: &Pod, container: &str) -> Value {
    let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let status = status.into_iter().flatten().find(|status| status.name == container);
    status.map(|status| json!(status.state)).unwrap_or_default()
}

pub fn waits_for(pod: &Pod, reason: &str) -> bool {
    state(pod, "main").pointer("/waiting/reason") == Some(&json!(reason))
}

/// Whether a process is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// What came out of an exec or attach.
#[derive(Default)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// `Null` if none came.
    pub status: Value,
    /// Whether a Close frame came.
    pub closed: bool,
}

/// Short, whatever it holds.
impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |bytes: &[u8]| {
            let text: String = String::from_utf8_lossy(bytes).chars().take(2000).collect();
            format!("{} bytes: {text:?}", bytes.len())
        };
        f.debug_struct("Outcome")
            .field("stdout", &show(&self.stdout))
            .field("stderr", &show(&self.stderr))
            .field("status", &self.status)
            .field("closed", &self.closed)
            .finish()
    }
}

impl Outcome {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub fn is_success(&self) -> bool {
        self.status.get("status") == Some(&json!("Success"))
    }

    pub fn exit_code(&self) -> &str {
        let cause = self.status.pointer("/details/causes/0/message").and_then(Value::as_str);
        cause.filter(|_| self.status.get("reason") == Some(&json!("NonZeroExitCode"))).unwrap_or("none")
    }
}

pub struct Stream {
    pub sink: SplitSink<Socket, Message>,
    pub source: SplitStream<Socket>,
    pub got: Outcome,
}

impl Stream {
    fn new(socket: Socket) -> Self {
        let (sink, source) = socket.split();
        Self { sink, source, got: Outcome::default() }
    }

    pub async fn send(&mut self, channel: u8, data: &[u8]) {
        send(&mut self.sink, channel, data).await;
    }

    pub async fn close_stdin(&mut self) {
        self.send(255, &[0]).await;
    }

    pub async fn resize(&mut self, columns: u16, rows: u16) {
        let size = json!({ "Width": columns, "Height": rows }).to_string();
        self.send(4, size.as_bytes()).await;
    }

    /// Takes in one message; false at the end.
    pub async fn step(&mut self) -> bool {
        step(&mut self.source, &mut self.got).await
    }

    /// Until stdout has a text.
    pub async fn until_stdout(&mut self, text: &str) {
        while !self.got.stdout().contains(text) {
            assert!(self.step().await, "ended without {text:?}: {:?}", self.got);
        }
    }

    /// Sends all of it and the end of stdin, while it reads; until the end.
    pub async fn feed(self, data: Vec<u8>) -> Outcome {
        let Self { mut sink, mut source, mut got } = self;
        let writer = tokio::spawn(async move {
            for part in data.chunks(32 * 1024) {
                let mut message = vec![0];
                message.extend(part);
                // The program may have ended without reading all.
                if sink.send(Message::Binary(message.into())).await.is_err() {
                    return;
                }
            }
            let _ = sink.send(Message::Binary(Bytes::from_static(&[255, 0]))).await;
        });
        while step(&mut source, &mut got).await {}
        writer.abort();
        got
    }

    /// Until the end.
    pub async fn outcome(mut self) -> Outcome {
        while self.step().await {}
        self.got
    }
}

pub async fn send(sink: &mut SplitSink<Socket, Message>, channel: u8, data: &[u8]) {
    let mut message = vec![channel];
    message.extend(data);
    within("a message is taken", sink.send(Message::Binary(message.into()))).await.expect("sent");
}

fn take(got: &mut Outcome, data: &Bytes) {
    let (channel, data) = data.split_first().expect("a channel");
    match channel {
        1 => got.stdout.extend(data),
        2 => got.stderr.extend(data),
        3 if !data.is_empty() => {
            assert!(got.status.is_null(), "one Status");
            got.status = serde_json::from_slice(data).expect("a Status");
        }
        3 => {}
        other => panic!("channel {other}"),
    }
}

async fn step(stream: &mut SplitStream<Socket>, got: &mut Outcome) -> bool {
    let next = timeout(DEADLINE, stream.next()).await;
    match next.unwrap_or_else(|_| panic!("no message within {DEADLINE:?} after {got:?}")) {
        Some(Ok(Message::Binary(data))) => {
            take(got, &data);
            true
        }
        Some(Ok(Message::Close(_))) => {
            got.closed = true;
            true
        }
        Some(Ok(_)) => true,
        Some(Err(_)) | None => false,
    }
}
