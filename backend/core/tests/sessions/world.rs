//! One connection over the in-memory cluster, its programs and its client.
#![allow(unreachable_pub, missing_debug_implementations)]

pub use futures::{FutureExt as _, future::BoxFuture};
pub use k8s_openapi::api::core::v1::Pod;
pub use podbay::{
    ConnectionId, MAX_CREDIT, OwnerId,
    v1::{
        self, Reason, Refusal, Stream, exit::End, open, run_session_request::Frame, run_session_response::Frame as Back,
    },
};
pub use podbay_backend_core::{
    cluster::{Cluster as _, ClusterError, Input, Output, PodRef, StreamEnd},
    config::{Ownership, Timeouts},
    fake::{Call, FakeCluster, Fault, Program, script},
    handle::{Contents, Target},
    identity::{Identity, User},
    lifecycle::Lifecycle,
    ownership::{Closing, Leases},
    policy::Most,
    session::{Opening, Report, Sessions, Stopping},
    template,
    wrapper::ZERO,
};
pub use podbay_runtime::config::Document;
pub use std::{num::NonZeroU32, sync::Arc, time::Duration};
pub use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
pub use tokio_stream::wrappers::ReceiverStream;
pub use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub const NS: &str = "ns";
pub const PATIENCE: Duration = Duration::from_mins(10);

pub struct World {
    pub cluster: FakeCluster,
    pub lifecycle: Lifecycle,
    pub sessions: Sessions,
    pub contents: Contents,
    pub cut: CancellationToken,
}

impl World {
    pub fn with(target: impl FnOnce(&FakeCluster) -> Target) -> Self {
        let cluster = FakeCluster::new();
        let lifecycle = Lifecycle::new(Arc::new(cluster.clone()), Timeouts::default(), TaskTracker::new());
        let leases = Leases::new(Arc::new(cluster.clone()), Ownership::new(NS));
        let contents = Contents {
            connection: ConnectionId::from_bytes([1; 16]),
            owner: OwnerId::from_bytes([2; 16]),
            user: User::named("alice"),
            timeouts: Timeouts::default(),
            console: "shell".into(),
            shell: vec!["/bin/bash".into()],
            subsystems: [("sftp".to_owned(), "/sftp".to_owned())].into(),
            environment: [("A".to_owned(), "1".to_owned())].into(),
            agent: None,
            security: podbay_backend_core::policy::Security::default(),
            only_shells: false,
            stays: false,
            target: target(&cluster),
        };
        let sessions = Sessions::new(lifecycle.clone(), leases);
        Self { cluster, lifecycle, sessions, contents, cut: CancellationToken::new() }
    }

    /// A connection with its pod.
    pub async fn connection() -> Self {
        let mut world = Self::with(|_| Target::Pod {
            namespace: NS.into(),
            name: "pod".into(),
            uid: String::new(),
            image_id: "sha256:image".into(),
        });
        let pod = world.cluster.create_pod(&script::pod(NS, "pod")).await.expect("created");
        if let Target::Pod { uid, .. } = &mut world.contents.target {
            *uid = pod.metadata.uid.expect("a uid");
        }
        world
    }

    /// A connection whose programs have their own pods.
    pub async fn session_mode() -> Self {
        let text = "kubernetes: {pod: {disableAgent: true, mode: session, metadata: {namespace: ns}}}";
        let document = Document::parse("f", text).expect("YAML");
        let settings = podbay_backend_core::config::Settings::read(&mut document.root());
        document.finish().expect("no mistakes");
        let who = Identity {
            connection: ConnectionId::from_bytes([1; 16]),
            owner: OwnerId::from_bytes([2; 16]),
            caller: "frontend".into(),
            user: User::named("alice"),
            remote: None,
        };
        let base = template::base_pod(&settings.expect("settings").pod, &who, &std::collections::BTreeMap::new());
        let world = Self::with(|_| Target::Template(Box::new(base)));
        let leases = Leases::new(Arc::new(world.cluster.clone()), Ownership::new(NS));
        leases.renew(who.owner, &who.caller, Instant::now() + PATIENCE).await.expect("a lease");
        world
    }

    pub fn runs(&self, program: impl Fn(Running) -> BoxFuture<'static, StreamEnd> + Send + Sync + 'static) {
        self.cluster.on_stream(move |stream| program(Running { stream }));
    }

    /// Programs that say this, if anything, and then run until they are stopped, wherever they are.
    pub fn runs_on(&self, says: &'static str) {
        let cluster = self.cluster.clone();
        self.runs(move |mut program| {
            let cluster = cluster.clone();
            async move {
                if program.stream.request.command.is_none() {
                    let pod = cluster.get_pod(&program.stream.pod).await.expect("the pod");
                    program.attached(&pod).await;
                } else {
                    program.wrapper().await;
                }
                if !says.is_empty() {
                    program.say(says).await;
                }
                std::future::pending().await
            }
            .boxed()
        });
    }

    pub fn open(&self, open: &v1::Open) -> Session {
        let opening = Opening::parse(open, &self.contents).expect("a valid Open");
        let (client, frames) = mpsc::channel::<Result<v1::RunSessionRequest, ()>>(16);
        let (sender, from) = mpsc::channel(8);
        let (sessions, contents, cut) = (self.sessions.clone(), self.contents.clone(), self.cut.clone());
        let task = tokio::spawn(async move {
            Box::pin(sessions.run(
                &contents,
                "frontend",
                opening,
                ReceiverStream::new(frames),
                sender,
                Stopping { cut, ..Stopping::default() },
            ))
            .await
        });
        Session { client, from, task }
    }

    /// All that was begun in the background is over.
    pub async fn settled(&self) {
        self.lifecycle.tracker().close();
        timeout(PATIENCE, self.lifecycle.tracker().wait()).await.expect("the undoing ends");
    }
}

/// The program's side, behind the wrapper that it plays.
pub struct Running {
    pub stream: Program,
}

impl Running {
    /// Plays the wrapper's start: its argv must be ours; the mark comes with more output behind it.
    pub async fn wrapper(&mut self) {
        let argv = self.argv();
        assert_eq!(argv[..2], ["/bin/sh", "-c"]);
        let nonce = argv[4].clone();
        match argv[5].as_str() {
            "" => {}
            "r" => {
                self.say(&format!("{nonce}+")).await;
                self.preamble().await;
            }
            "q" => drop(self.preamble().await),
            other => panic!("{other}"),
        }
        self.say(&format!("{nonce}.")).await;
    }

    pub fn argv(&self) -> Vec<String> {
        self.stream.request.command.clone().expect("an exec")
    }

    /// As the container's own program, whose command stands in the pod.
    pub async fn attached(&mut self, pod: &Pod) {
        let command = pod.spec.as_ref().expect("a spec").containers[0].command.clone().expect("a command");
        self.stream.request.command = Some(command);
        self.wrapper().await;
    }

    pub async fn preamble(&mut self) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"\n.\n") && text != b".\n" {
            match self.stream.input.recv().await {
                Some(Input::Stdin(bytes)) => text.extend_from_slice(&bytes),
                other => panic!("{other:?} in the preamble"),
            }
        }
        String::from_utf8(text).expect("ASCII")
    }

    pub async fn say(&self, text: &str) {
        let _ = self.stream.output.send(Output::Stdout(text.to_owned().into())).await;
    }

    pub async fn complain(&self, text: &str) {
        let _ = self.stream.output.send(Output::Stderr(text.to_owned().into())).await;
    }

    /// Reads stdin to its end.
    pub async fn stdin(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(Input::Stdin(bytes)) = self.stream.input.recv().await {
            all.extend_from_slice(&bytes);
        }
        all
    }
}

pub fn shell() -> v1::Open {
    v1::Open {
        session_id: "ab".repeat(16),
        program: Some(open::Program::Shell(v1::Shell {})),
        stdout_credit: MAX_CREDIT,
        stderr_credit: MAX_CREDIT,
        ..v1::Open::default()
    }
}

pub fn exec(command: &str) -> v1::Open {
    v1::Open { program: Some(open::Program::Exec(v1::Exec { command: command.into(), argv: Vec::new() })), ..shell() }
}

pub fn argv(argv: &[&str]) -> v1::Open {
    let argv = argv.iter().map(ToString::to_string).collect();
    v1::Open { program: Some(open::Program::Exec(v1::Exec { command: String::new(), argv })), ..shell() }
}

pub fn on_terminal(open: v1::Open) -> v1::Open {
    let size = Some(v1::WindowSize { columns: 80, rows: 24, ..v1::WindowSize::default() });
    v1::Open { pty: Some(v1::Pty { term: "xterm".into(), size, modes: Vec::new() }), ..open }
}

/// The client's side.
pub struct Session {
    pub client: mpsc::Sender<Result<v1::RunSessionRequest, ()>>,
    pub from: mpsc::Receiver<Result<v1::RunSessionResponse, Refusal>>,
    pub task: JoinHandle<Report>,
}

/// What a client has read to the end.
#[derive(Debug, Default)]
pub struct All {
    pub started: Option<v1::Started>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub eofs: Vec<(Stream, u64)>,
    pub exit: Option<End>,
    pub refusal: Option<Refusal>,
}

impl Session {
    pub async fn send(&self, frame: Frame) {
        timeout(PATIENCE, self.client.send(Ok(v1::RunSessionRequest { frame: Some(frame) })))
            .await
            .expect("the session reads always")
            .expect("it is there");
    }

    pub async fn next(&mut self) -> Option<Result<Back, Refusal>> {
        let item = timeout(PATIENCE, self.from.recv()).await.expect("in time")?;
        Some(item.map(|frame| frame.frame.expect("a frame")))
    }

    pub async fn frame(&mut self) -> Back {
        loop {
            match self.next().await.expect("a frame").expect("no refusal") {
                Back::Progress(_) => {}
                frame => return frame,
            }
        }
    }

    pub async fn started(&mut self) -> v1::Started {
        match self.frame().await {
            Back::Started(started) => started,
            other => panic!("{other:?} before Started"),
        }
    }

    /// Reads all, granting credit as it goes.
    pub async fn all(&mut self) -> All {
        let mut all = All::default();
        while let Some(item) = self.next().await {
            match item {
                Err(refusal) => all.refusal = Some(refusal),
                Ok(Back::Started(started)) => all.started = Some(started),
                Ok(Back::Data(data)) => {
                    assert!(all.started.is_some() && all.exit.is_none());
                    let out = if data.stream() == Stream::Stderr { &mut all.stderr } else { &mut all.stdout };
                    assert_eq!(data.offset, out.len() as u64);
                    out.extend_from_slice(&data.data);
                    let limit = out.len() as u64 + MAX_CREDIT;
                    // It may have ended meanwhile.
                    let frame = Frame::Credit(v1::Credit { stream: data.stream, limit });
                    let _ = self.client.send(Ok(v1::RunSessionRequest { frame: Some(frame) })).await;
                }
                Ok(Back::Eof(eof)) => all.eofs.push((eof.stream(), eof.offset)),
                Ok(Back::Exit(exit)) => all.exit = exit.end,
                Ok(_) => {}
            }
        }
        all
    }

    /// [`Self::all`], for one whose Started was read.
    pub async fn all_after_start(&mut self) -> All {
        let mut all = All::default();
        while let Some(item) = self.next().await {
            match item {
                Err(refusal) => all.refusal = Some(refusal),
                Ok(Back::Exit(exit)) => all.exit = exit.end,
                Ok(_) => {}
            }
        }
        all
    }

    pub async fn report(self) -> Report {
        drop(self.client);
        timeout(PATIENCE, self.task).await.expect("in time").expect("no panic")
    }
}

pub fn lost(end: Option<End>) -> Refusal {
    match end {
        Some(End::Lost(refusal)) => refusal,
        other => panic!("not lost: {other:?}"),
    }
}

pub async fn gone(cluster: &FakeCluster) {
    let none = async {
        while !cluster.pods().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, none).await.expect("no pod is left");
}

/// Ends the container of the session's pod as a kubelet would tell it.
pub fn container_ends(cluster: &FakeCluster, pod: &PodRef, reason: &'static str, code: i32) {
    let name = pod.name.clone();
    assert!(cluster.change_pod(NS, &name, move |pod| pod.status = Some(script::ended("shell", reason, code))));
}

pub fn playing(world: &World, reason: &'static str, code: i32, end: StreamEnd) {
    playing_until(world, reason, code, end, false);
}

/// The same; the wrapper's last words come, or do not.
pub fn playing_until(world: &World, reason: &'static str, code: i32, end: StreamEnd, whole: bool) {
    let cluster = world.cluster.clone();
    world.runs(move |mut program| {
        let (cluster, end) = (cluster.clone(), end.clone());
        async move {
            assert!(program.stream.request.command.is_none(), "an attach");
            let pod = cluster.get_pod(&program.stream.pod).await.expect("the pod");
            program.attached(&pod).await;
            program.say("first output").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if whole {
                let words = format!("\x1e{}={code};", program.argv()[4]);
                program.complain(&words).await;
                program.say(&words).await;
            }
            container_ends(&cluster, &program.stream.pod, reason, code);
            end
        }
        .boxed()
    });
}

pub const AGENT: &str = "/usr/bin/containerssh-agent";

/// What containerssh-agent says of a mode that it does not know.
pub async fn other_agent(program: &Running) -> StreamEnd {
    program.say("Usage: containerssh-agent MODE").await;
    program.complain("Error: unknown mode: attach").await;
    StreamEnd::ExitCode(1)
}
