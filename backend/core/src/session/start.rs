//! From a valid Open to a program that runs: the pod where the program has its own, the stream, the wrapper's marks.
//!
//! All of it is one future under one deadline that its caller keeps; dropping it undoes what it began: the stream is
//! dropped, and a program's own pod is deleted in the background.

use super::{
    Opening, Sessions,
    console::{Console, PidReader, Signaller},
    ending::is_missing,
    leftover::Leftover,
    places,
    proof::Proof,
    reach::Api,
};
use crate::{
    cluster::{Input, Output, PodRef, StreamEnd, StreamRequest, Streams},
    failure::{agent_missing, or_agent_missing, short},
    handle::{Contents, Target},
    identity::{self, Marks},
    lifecycle::{Kind, Lifecycle, StartRequest},
    template::{SessionProgram, session_pod},
    wrapper::{self, Mark, Nonce, Program, WrapError, Wrapped},
};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    SessionId,
    v1::{self, Reason, Refusal},
};
use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

const NO_SHELL: &str = "this image has no /bin/sh: environment and terminal size are not set, and an upload may be cut";
const NO_SHELL_BUT_AGENT: &str =
    "this image has no /bin/sh: the terminal's size may come late, and an upload may be cut";
const IMAGES_OWN: &str = "the image's own command runs: output from before the connection may be missing";
const NO_EOF: &str = "this cluster can't end a program's stdin (v4.channel.k8s.io)";

/// The most stderr that is kept until the mark comes on stdout.
const MAX_EARLY: usize = 1024 * 1024;

/// A program that runs.
pub(super) struct Running {
    pub streams: Streams,
    pub pod: PodRef,
    /// Deletes a program's own pod when dropped.
    pub own_pod: Option<OwnPod>,
    /// Output that came with and before the mark.
    pub stdout: Bytes,
    pub stderr: Vec<Bytes>,
    /// For the user; may be empty.
    pub warning: String,
    /// Whether the stream's end is the wrapper's ([`wrapper::true_end`]).
    pub wrapped: bool,
    /// Takes the wrapper's last words out of the outputs.
    pub proof: Proof,
    /// Delivers signals, where an agent can.
    pub signaller: Option<Signaller>,
    /// Ends the program once its client left, where nothing else would.
    pub leftover: Option<Leftover>,
    /// The program is the container's own: its end stands in the pod's status.
    pub attached: bool,
}

/// A pod of the program's own, in which something waits.
pub(super) struct Prepared {
    pub own_pod: OwnPod,
    /// What it runs, by its status.
    pub image: String,
}

/// A pod of one program: deleted, under a fresh `podStop`, when this is dropped.
pub(super) struct OwnPod {
    lifecycle: Lifecycle,
    pub pod: PodRef,
    kept: bool,
    /// Its session was detached: it has its exit for whoever comes, until that is acknowledged.
    pub detached: bool,
}

impl OwnPod {
    /// It stays; whoever owns its connection removes it.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// It goes with its session from now on.
    pub fn ours(mut self) -> Self {
        self.kept = false;
        self
    }
}

impl Drop for OwnPod {
    fn drop(&mut self) {
        if !self.kept {
            self.lifecycle.undo(self.pod.clone());
        }
    }
}

/// What came of a try with the wrapper.
enum Tried {
    Runs(Box<Marked>),
    NoShell,
}

struct Marked {
    streams: Streams,
    stdout: Bytes,
    stderr: Vec<Bytes>,
}

impl Marked {
    /// From its very beginning.
    fn unread(streams: Streams) -> Self {
        Self { streams, stdout: Bytes::new(), stderr: Vec::new() }
    }

    /// Reads the PID that an agent at `path` tells before its program's output.
    async fn pid(&mut self, mut reader: PidReader, path: &str) -> Result<u32, Refusal> {
        let mut next = std::mem::take(&mut self.stdout);
        let mut early: usize = self.stderr.iter().map(Bytes::len).sum();
        loop {
            if let Some((pid, rest)) = reader.take(&next) {
                self.stdout = rest;
                return Ok(pid);
            }
            next = Bytes::new();
            let missing = |words: &str| Err(agent_missing(path, words));
            match self.streams.output.recv().await {
                Some(Output::Stdout(bytes)) => next = bytes,
                Some(Output::Stderr(bytes)) => {
                    early += bytes.len();
                    if early > MAX_EARLY {
                        return Err(Refusal::new(Reason::ContainerFailed, format!("{path} floods its stderr")));
                    }
                    self.stderr.push(bytes);
                }
                Some(Output::End(StreamEnd::ExitCode(_))) => return missing(&self.words()),
                Some(Output::End(StreamEnd::Failed { message, .. })) if is_missing(&message) => {
                    return missing(&message);
                }
                Some(Output::End(StreamEnd::Failed { reason, message })) => {
                    let text = format!("the program can't be started: {reason} {}", short(&message));
                    return Err(Refusal::new(Reason::CommandNotStarted, text));
                }
                Some(Output::End(StreamEnd::Success | StreamEnd::Lost(_))) | None => {
                    let text = "the connection to the pod broke before the program started";
                    return Err(Refusal::new(Reason::StreamLost, text));
                }
            }
        }
    }

    /// What was said on stderr.
    fn words(&self) -> String {
        let all: Vec<u8> = self.stderr.iter().flat_map(|bytes| bytes.iter().copied()).take(4096).collect();
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// How a program was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// In the wrapper.
    Wrapped,
    /// Without: the image has no shell.
    Bare,
    /// As a container's own, without the wrapper; where there is an agent, it waits for the attach.
    BareWaits,
    /// As the image says.
    ImagesOwn,
}

impl Sessions {
    /// Starts the program. `deadline` is the start's whole budget.
    pub(super) async fn start(
        &self,
        contents: &Contents,
        caller: &str,
        opening: &Opening,
        deadline: Instant,
        progress: &mpsc::Sender<v1::Progress>,
    ) -> Result<Running, Refusal> {
        match (&contents.target, contents.pod()) {
            (Target::Pod { image_id, .. }, Some(pod)) => {
                let api = Api { sessions: self, deadline, progress };
                if contents.stays {
                    api.admit(contents, caller).await?;
                }
                self.exec(contents, opening, pod, image_id, &api).await
            }
            (Target::Template(base), _) => {
                let api = Api { sessions: self, deadline, progress };
                api.admit(contents, caller).await?;
                if let Some(most) = contents.security.max_sessions() {
                    self.room(contents, opening, base, most, deadline).await?;
                }
                Box::pin(self.own_pod(contents, opening, base, deadline, progress)).await
            }
            (Target::Pod { .. }, None) => Err(Refusal::new(Reason::Internal, "a connection without its pod")),
        }
    }

    /// In the connection's pod.
    async fn exec(
        &self,
        contents: &Contents,
        opening: &Opening,
        pod: PodRef,
        image: &str,
        api: &Api<'_>,
    ) -> Result<Running, Refusal> {
        let request = |command| StreamRequest {
            container: contents.console.clone(),
            command: Some(command),
            tty: opening.tty,
            stdin: true,
        };
        if self.bare.get(image).is_none() {
            let nonce = Nonce::new(rand::random());
            let argv = under_agent(contents, opening, Start::Wrapped);
            let wrapped = wrapper::for_exec(program(opening, &argv), &nonce).map_err(|error| unfit(&error))?;
            let streams = api.open_stream(&pod, &request(wrapped.command.clone())).await?;
            match marked(streams, &wrapped, &nonce, false).await? {
                Tried::Runs(marked) => {
                    return self.running(contents, opening, *marked, pod, None, (Start::Wrapped, Some(&nonce))).await;
                }
                Tried::NoShell => {
                    tracing::info!(pod = pod.name, image, "the image has no shell");
                    self.bare.learn(image, ());
                }
            }
        }
        needs_no_shell(opening)?;
        let streams = api.open_stream(&pod, &request(under_agent(contents, opening, Start::Bare))).await?;
        self.running(contents, opening, Marked::unread(streams), pod, None, (Start::Bare, None)).await
    }

    /// In a pod of its own.
    async fn own_pod(
        &self,
        contents: &Contents,
        opening: &Opening,
        base: &Pod,
        deadline: Instant,
        progress: &mpsc::Sender<v1::Progress>,
    ) -> Result<Running, Refusal> {
        let image = image_of(base, &contents.console);
        let api = Api { sessions: self, deadline, progress };
        let attach =
            StreamRequest { container: contents.console.clone(), command: None, tty: opening.tty, stdin: true };
        if !opening.argv.is_empty() && self.bare.get(&image).is_none() {
            // Of the session's id, so that a second start of the session knows the first one's pod.
            let nonce = Nonce::new(*opening.session.as_bytes());
            let argv = under_agent(contents, opening, Start::Wrapped);
            let wrapped = wrapper::for_container(program(opening, &argv), &nonce).map_err(|error| unfit(&error))?;
            let nothing = BTreeMap::new();
            let pod = pod_of(contents, opening, base, Some(wrapped.command.clone()), &nothing);
            match self.start_pod(contents, pod, deadline, progress).await {
                Ok(own) => {
                    let pod = own.pod.clone();
                    let streams = api.open_stream(&pod, &attach).await?;
                    match marked(streams, &wrapped, &nonce, true).await? {
                        Tried::Runs(marked) => {
                            return self
                                .running(contents, opening, *marked, pod, Some(own), (Start::Wrapped, Some(&nonce)))
                                .await;
                        }
                        Tried::NoShell => drop(self.bare.learn(&image, ())),
                    }
                }
                Err(refusal) if no_shell(&refusal) => drop(self.bare.learn(&image, ())),
                Err(refusal) => return Err(refusal),
            }
            tracing::info!(image, "the image has no shell");
            needs_no_shell(opening)?;
            // The name is the session's: the next pod can be made when this one is gone.
            if let Some(pod) = named(contents, opening, base) {
                self.lifecycle.stop(&pod).await?;
            }
        }
        needs_no_shell(opening)?;
        let (command, start) = if opening.argv.is_empty() {
            (None, Start::ImagesOwn)
        } else {
            (Some(under_agent(contents, opening, Start::BareWaits)), Start::BareWaits)
        };
        let environment = opening.environment.iter().cloned().collect();
        let pod = pod_of(contents, opening, base, command, &environment);
        let own = self.start_pod(contents, pod, deadline, progress).await?;
        let pod = own.pod.clone();
        let streams = api.open_stream(&pod, &attach).await?;
        if contents.agent.is_some() {
            let byte = Bytes::from_static(Console::start_byte(opening.tty));
            // A stream that takes nothing tells why when it is read.
            let _ = streams.input.send(Input::Stdin(byte)).await;
        }
        self.running(contents, opening, Marked::unread(streams), pod, Some(own), (start, None)).await
    }

    /// A stream whose program starts: with an agent, its PID comes first.
    async fn running(
        &self,
        contents: &Contents,
        opening: &Opening,
        mut marked: Marked,
        pod: PodRef,
        own_pod: Option<OwnPod>,
        (start, nonce): (Start, Option<&Nonce>),
    ) -> Result<Running, Refusal> {
        let signaller = match &contents.agent {
            Some(path) if start != Start::ImagesOwn => {
                let reader = PidReader::new(opening.tty, start == Start::BareWaits);
                let pid = marked.pid(reader, path).await?;
                let (cluster, container) = (Arc::clone(self.lifecycle.cluster()), contents.console.clone());
                Some(Signaller { cluster, pod: pod.clone(), container, path: path.clone(), pid })
            }
            Some(_) | None => None,
        };
        let leftover = match nonce {
            Some(nonce) if contents.stays && signaller.is_none() => {
                let (cluster, container) = (Arc::clone(self.lifecycle.cluster()), contents.console.clone());
                Some(Leftover { cluster, pod: pod.clone(), container, nonce: nonce.clone() })
            }
            Some(_) | None => None,
        };
        let Marked { streams, stdout, stderr } = marked;
        let mut warning = match start {
            Start::Wrapped => String::new(),
            Start::Bare | Start::BareWaits if signaller.is_some() => NO_SHELL_BUT_AGENT.to_owned(),
            Start::Bare | Start::BareWaits => NO_SHELL.to_owned(),
            Start::ImagesOwn => IMAGES_OWN.to_owned(),
        };
        if !streams.half_close && !opening.tty {
            let and = if warning.is_empty() { "" } else { "; " };
            warning = format!("{warning}{and}{NO_EOF}");
        }
        let (wrapped, attached) = (start == Start::Wrapped, own_pod.is_some());
        let proof = Proof::new(nonce, opening.tty);
        Ok(Running { streams, pod, own_pod, stdout, stderr, warning, wrapped, proof, signaller, leftover, attached })
    }

    /// In a pod of the program's own that stands ready.
    pub(super) async fn start_in(
        &self,
        contents: &Contents,
        opening: &Opening,
        prepared: Prepared,
        (deadline, progress): (Instant, &mpsc::Sender<v1::Progress>),
    ) -> Result<Running, Refusal> {
        let Prepared { own_pod, image } = prepared;
        let api = Api { sessions: self, deadline, progress };
        let running = self.exec(contents, opening, own_pod.pod.clone(), &image, &api).await?;
        Ok(Running { own_pod: Some(own_pod), ..running })
    }

    /// Makes the pod of a program that will be started over a link: it waits.
    pub(super) async fn waiting_pod(
        &self,
        contents: &Contents,
        opening: &Opening,
        base: &Pod,
        agent: &str,
        (deadline, progress): (Instant, &mpsc::Sender<v1::Progress>),
    ) -> Result<Prepared, Refusal> {
        let waits = [agent, "wait-signal", "--signal", "INT", "--signal", "TERM"].map(str::to_owned).into();
        let pod = pod_of(contents, opening, base, Some(waits), &BTreeMap::new());
        let request = StartRequest { pod, console: contents.console.clone(), kind: Kind::Program, deadline };
        let started = self.lifecycle.start(request, progress).await;
        let started = started.map_err(|refusal| or_agent_missing(refusal, Some(agent), &[agent.to_owned()]))?;
        Ok(Prepared { own_pod: self.made(started.pod), image: started.image_id })
    }

    /// Whether the connection has few enough pods for one more, whichever replica made them. (Two that look at the same
    /// time may both find room.)
    pub(super) async fn room(
        &self,
        contents: &Contents,
        opening: &Opening,
        base: &Pod,
        most: NonZeroU32,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let namespace = base.metadata.namespace.as_deref().unwrap_or_default();
        let selector = identity::of_connection(contents.connection);
        let until = Instant::now() + places::OVERLAP;
        loop {
            let pods = self.lifecycle.list(namespace, &selector, deadline).await?;
            let others = pods.iter().filter(|pod| is_live(pod, opening.session)).count();
            if others < usize::try_from(most.get()).unwrap_or(usize::MAX) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(places::full(most));
            }
            // A session that is over, and whose pod's end is not asked for yet.
            sleep(places::OVERLAP / 4).await;
        }
    }

    /// The pod of a program that is to be continued: somebody else's until it is ([`OwnPod::ours`]).
    pub(super) fn found(&self, pod: PodRef, detached: bool) -> OwnPod {
        OwnPod { lifecycle: self.lifecycle.clone(), pod, kept: true, detached }
    }

    fn made(&self, pod: PodRef) -> OwnPod {
        OwnPod { lifecycle: self.lifecycle.clone(), pod, kept: false, detached: false }
    }

    async fn start_pod(
        &self,
        contents: &Contents,
        pod: Pod,
        deadline: Instant,
        progress: &mpsc::Sender<v1::Progress>,
    ) -> Result<OwnPod, Refusal> {
        let request = StartRequest { pod, console: contents.console.clone(), kind: Kind::Program, deadline };
        let started = self.lifecycle.start(request, progress).await?;
        Ok(self.made(started.pod))
    }
}

fn pod_of(
    contents: &Contents,
    opening: &Opening,
    base: &Pod,
    command: Option<Vec<String>>,
    environment: &BTreeMap<String, String>,
) -> Pod {
    let program = SessionProgram {
        connection: contents.connection,
        session: opening.session,
        console: &contents.console,
        command,
        tty: opening.tty,
        environment,
    };
    session_pod(base, program)
}

/// Whether a pod stands for another session that runs.
fn is_live(pod: &Pod, own: SessionId) -> bool {
    let ended = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    let other = Marks::read(&pod.metadata).is_some_and(|marks| marks.session.is_some_and(|session| session != own));
    other && !ended && pod.metadata.deletion_timestamp.is_none()
}

fn named(contents: &Contents, opening: &Opening, base: &Pod) -> Option<PodRef> {
    let metadata = pod_of(contents, opening, base, None, &BTreeMap::new()).metadata;
    Some(PodRef { namespace: metadata.namespace?, name: metadata.name?, uid: None })
}

fn program<'a>(opening: &'a Opening, argv: &'a [String]) -> Program<'a> {
    Program { argv, environment: &opening.environment, size: opening.size }
}

/// The program's argument vector, behind the agent's where there is one. In a pod of its own the environment is the pod's.
fn under_agent(contents: &Contents, opening: &Opening, start: Start) -> Vec<String> {
    let Some(path) = &contents.agent else { return opening.argv.clone() };
    let environment = if start == Start::Bare { opening.environment.as_slice() } else { &[] };
    Console { path, environment, wait: start == Start::BareWaits }.command(&opening.argv)
}

fn unfit(error: &WrapError) -> Refusal {
    Refusal::new(Reason::InvalidRequest, error.to_string())
}

/// A command line can't run where there is no shell: that is known before it is tried.
fn needs_no_shell(opening: &Opening) -> Result<(), Refusal> {
    if opening.argv.first().map(String::as_str) == Some(wrapper::SHELL) {
        let text = "the image has no /bin/sh, which runs command lines";
        return Err(Refusal::new(Reason::CommandNotStarted, text));
    }
    Ok(())
}

/// Whether a pod failed for want of the wrapper's shell.
fn no_shell(refusal: &Refusal) -> bool {
    refusal.reason() == Reason::ContainerFailed
        && refusal.message.contains(wrapper::SHELL)
        && is_missing(&refusal.message)
}

pub(crate) fn image_of(base: &Pod, console: &str) -> String {
    let containers = base.spec.iter().flat_map(|spec| &spec.containers);
    containers.filter(|c| c.name == console).find_map(|c| c.image.clone()).unwrap_or_default()
}

/// Until the wrapper says that it starts the program. No byte of the client's goes in before.
async fn marked(mut streams: Streams, wrapped: &Wrapped, nonce: &Nonce, quiet: bool) -> Result<Tried, Refusal> {
    let mut reader = Reader { stdout: Bytes::new(), stderr: Vec::new(), early: 0 };
    if let Some(preamble) = &wrapped.preamble {
        if !quiet && !reader.find(&mut streams.output, nonce.wants()).await? {
            return Ok(Tried::NoShell);
        }
        let input = streams.input.clone();
        // A terminal echoes what it is sent: read while writing.
        let send = async {
            let sent = input.send(Input::Stdin(preamble.clone())).await;
            drop(input);
            // The reader tells what became of a stream that takes nothing.
            if sent.is_err() {
                tracing::debug!("the stream ended before the preamble");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            found = reader.find(&mut streams.output, nonce.runs()) => if !found? { return Ok(Tried::NoShell) },
            () = send => {}
        }
    } else if !reader.find(&mut streams.output, nonce.runs()).await? {
        return Ok(Tried::NoShell);
    }
    Ok(Tried::Runs(Box::new(Marked { streams, stdout: reader.stdout, stderr: reader.stderr })))
}

struct Reader {
    /// What followed the last mark.
    stdout: Bytes,
    stderr: Vec<Bytes>,
    early: usize,
}

impl Reader {
    /// Reads to the mark; `false`: the script doesn't run there.
    async fn find(&mut self, output: &mut mpsc::Receiver<Output>, mut mark: Mark) -> Result<bool, Refusal> {
        let mut next = std::mem::take(&mut self.stdout);
        loop {
            match mark.take(&next) {
                Ok(Some(rest)) => {
                    self.stdout = rest;
                    return Ok(true);
                }
                Ok(None) => {}
                Err(_) => return Ok(false),
            }
            next = Bytes::new();
            match output.recv().await {
                Some(Output::Stdout(bytes)) => next = bytes,
                Some(Output::Stderr(bytes)) => {
                    self.early += bytes.len();
                    if self.early > MAX_EARLY {
                        return Ok(false);
                    }
                    self.stderr.push(bytes);
                }
                // It ran something, but not our script: /bin/sh is no shell. (And the program did not run.)
                Some(Output::End(StreamEnd::ExitCode(_))) => return Ok(false),
                // Our script never ends well before the mark: the API server says `Success` of a kubelet that died, too.
                Some(Output::End(StreamEnd::Success)) => {
                    let text = "the connection to the pod ended before the program started";
                    return Err(Refusal::new(Reason::StreamLost, text));
                }
                Some(Output::End(StreamEnd::Failed { message, .. })) if is_missing(&message) => return Ok(false),
                Some(Output::End(StreamEnd::Failed { reason, message })) => {
                    let text = format!("the program can't be started: {reason} {}", short(&message));
                    return Err(Refusal::new(Reason::CommandNotStarted, text));
                }
                Some(Output::End(StreamEnd::Lost(why))) => {
                    let text = format!("the connection to the pod broke before the program started: {}", short(&why));
                    return Err(Refusal::new(Reason::StreamLost, text));
                }
                None => {
                    return Err(Refusal::new(Reason::StreamLost, "the connection to the pod ended without a word"));
                }
            }
        }
    }
}
