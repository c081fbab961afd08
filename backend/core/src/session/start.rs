//! From a valid Open to a program that runs: the pod where the program has its own, the stream, the wrapper's marks.
//!
//! All of it is one future under one deadline that its caller keeps; dropping it undoes what it began: the stream is
//! dropped, and a program's own pod is deleted in the background.

mod mark;
mod own_pod;

pub(super) use own_pod::{OwnPod, Prepared, image_of};

use super::{
    Opening, Sessions,
    console::{Console, PidReader, Signaller},
    ending::is_missing,
    leftover::Leftover,
    proof::Proof,
    reach::Api,
};
use crate::{
    cluster::{Input, PodRef, StreamRequest, Streams},
    handle::{Contents, Target},
    wrapper::{self, Nonce, Program, WrapError},
};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use mark::{Marked, Tried, marked};
use own_pod::{named, pod_of};
use podbay::v1::{self, Reason, Refusal};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{sync::mpsc, time::Instant};

const NO_SHELL: &str = "this image has no /bin/sh: environment and terminal size are not set, and an upload may be cut";
const NO_SHELL_BUT_AGENT: &str =
    "this image has no /bin/sh: the terminal's size may come late, and an upload may be cut";
const IMAGES_OWN: &str = "the image's own command runs: output from before the connection may be missing";
const NO_EOF: &str = "this cluster can't end a program's stdin (v4.channel.k8s.io)";

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
