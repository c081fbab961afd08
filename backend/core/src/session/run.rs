//! A session from its valid Open to its last frame: over a link where podbay-agent is there, else by a stream of its own.

use super::{
    Opening, Sessions,
    driver::{Report, Stop, ToClient},
    durable::{Begun, Client, Durable},
    ending::{lost, may_be_terminated},
    reach::Api,
    start::{Prepared, image_of},
};
use crate::{
    config::Mode,
    failure::agent_missing,
    handle::{Contents, Target},
    link::{Found, Place},
};
use futures::Stream;
use podbay::v1::{self, Reason, Refusal, exit::End, run_session_response::Frame};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

/// What ends a session from outside.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// This replica drains: programs that outlive their streams should go on elsewhere.
    pub moving: CancellationToken,
    /// It ends: sessions are cut.
    pub cut: CancellationToken,
}

/// How a start over a link went, with the program's own pod.
enum Start {
    Running(Box<Durable>),
    Ended(v1::Exit),
    /// Without podbay-agent, in this pod.
    Without(Option<Prepared>),
}

impl Sessions {
    /// Runs a session. `frames` gives the client's frames after Open; an error there means that it is gone.
    ///
    /// Cancel safe in that nothing is left: dropping it drops the stream, a program's own pod is deleted in the background, and
    /// one that outlives its stream ends by its orphan timeout.
    pub async fn run<S, E>(
        &self,
        contents: &Contents,
        caller: &str,
        opening: Opening,
        frames: S,
        to: ToClient,
        stopping: Stopping,
    ) -> Report
    where
        S: Stream<Item = Result<v1::RunSessionRequest, E>> + Unpin,
    {
        let Stopping { moving, cut } = stopping;
        let mut client = Client { frames, to, cut, moving };
        let budget = match contents.mode() {
            Mode::Connection | Mode::Persistent => contents.timeouts.command_start,
            Mode::Session => contents.timeouts.pod_start.saturating_add(contents.timeouts.command_start),
        };
        let deadline = Instant::now() + budget;
        let place = match self.places.take(contents.connection, contents.security.max_sessions()).await {
            Ok(place) => place,
            Err(refusal) => return refused(refusal.about(contents.connection), &client.to).await,
        };
        let mut prepared = None;
        let image = image(contents);
        if let Some(agent) = contents.agent.as_deref().filter(|_| self.links.found(&image) != Some(Found::Containerssh))
        {
            let (news, progress) = mpsc::channel(4);
            let begin = Box::pin(self.over_link(contents, caller, &opening, (agent, &image), (deadline, &news)));
            match client.attend(begin, progress).await {
                Ok(Ok(Start::Running(mut durable))) => {
                    durable.place = Some(place);
                    return Box::pin(durable.run(contents, &mut client)).await;
                }
                Ok(Ok(Start::Ended(exit))) => return ended(exit, &client.to).await,
                Ok(Ok(Start::Without(found))) => prepared = found,
                Err(Stop::Gone) => return Report { kind: "gone", refusal: None, bytes: [0; 3] },
                Ok(Err(refusal)) | Err(Stop::Refused(refusal)) => {
                    let refusal = self.or_terminated(refusal, contents).await;
                    return refused(refusal.about(contents.connection), &client.to).await;
                }
            }
        }
        if let Err(refusal) = opening.without_agent() {
            return refused(refusal.about(contents.connection), &client.to).await;
        }
        Box::pin(self.by_stream(contents, caller, &opening, prepared, (deadline, place), client)).await
    }

    async fn or_terminated(&self, refusal: Refusal, contents: &Contents) -> Refusal {
        if !may_be_terminated(refusal.reason()) {
            return refusal;
        }
        self.leases.terminated(contents.connection).await.unwrap_or(refusal)
    }

    async fn over_link(
        &self,
        contents: &Contents,
        caller: &str,
        opening: &Opening,
        (agent, image): (&str, &str),
        (deadline, progress): (Instant, &mpsc::Sender<v1::Progress>),
    ) -> Result<Start, Refusal> {
        let continues = opening.resume.is_some() || opening.take_over;
        let own_pod: Option<Prepared> = match &contents.target {
            Target::Pod { .. } => {
                if contents.stays && continues {
                    // What runs was admitted, and what is kept needs no owner. An operator's word stands.
                    if let Some(refusal) = self.leases.terminated(contents.connection).await {
                        return Err(refusal);
                    }
                } else if contents.stays {
                    // The pod does not end with the connection: a closed one is told by its mark.
                    Api { sessions: self, deadline, progress }.admit(contents, caller).await?;
                }
                None
            }
            // It runs already, or is gone: no other pod is made for it, and what is kept needs no owner.
            Target::Template(_) if continues => match self.own_pod_of(contents, opening.session).await? {
                Some((pod, image, detached)) => Some(Prepared { own_pod: self.found(pod, detached), image }),
                None => return Ok(Start::Ended(no_pod())),
            },
            Target::Template(base) => {
                let api = Api { sessions: self, deadline, progress };
                api.admit(contents, caller).await?;
                if let Some(most) = contents.security.max_sessions() {
                    self.room(contents, opening, base, most, deadline).await?;
                }
                Some(Box::pin(self.waiting_pod(contents, opening, base, agent, (deadline, progress))).await?)
            }
        };
        let (pod, of_pod) = if let Some(Prepared { own_pod, image }) = &own_pod {
            (own_pod.pod.clone(), image.clone())
        } else {
            let pod = contents.pod().ok_or_else(|| Refusal::new(Reason::Internal, "a connection without its pod"))?;
            (pod, image.to_owned())
        };
        let place =
            Place { pod: pod.clone(), container: contents.console.clone(), agent: agent.to_owned(), image: of_pod };
        if opening.take_over {
            // Whose it was may close his connection now that the session is another's.
            let until = deadline.min(Instant::now() + contents.timeouts.http);
            if let Err(refusal) = self.mark_kept(&pod, self.leases.ownership().max_keep, until).await {
                tracing::warn!(pod = pod.name, reason = %refusal.message, "a session that is taken over may end with its connection");
            }
        }
        let link = self.links.program(&place);
        match self.begin(contents, opening, pod.clone(), link, deadline).await? {
            Begun::Running(mut durable) => {
                durable.own_pod = own_pod.map(|prepared| prepared.own_pod.ours());
                Ok(Start::Running(durable))
            }
            Begun::Ended(exit) => {
                // Of a program that is gone nothing is left to keep.
                drop(own_pod.map(|prepared| prepared.own_pod.ours()));
                Ok(Start::Ended(exit))
            }
            Begun::Other(Found::Containerssh, words) => {
                tracing::info!(pod = pod.name, agent, words, "the agent is containerssh-agent");
                // Before there is a pod, its image is known by its name only.
                self.links.learn(image, Found::Containerssh);
                Ok(Start::Without(own_pod))
            }
            Begun::Other(Found::Nothing | Found::Podbay, words) => Err(agent_missing(agent, &words)),
        }
    }
}

impl<S> Client<S> {
    /// Waits for `work`, and passes news on to the client.
    async fn attend<T>(
        &mut self,
        work: impl Future<Output = T> + Unpin,
        mut progress: mpsc::Receiver<v1::Progress>,
    ) -> Result<T, Stop> {
        let mut work = work;
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                Some(news) = progress.recv() => {
                    // One that reads nothing misses news of the start, and nothing else.
                    let frame = v1::RunSessionResponse { frame: Some(Frame::Progress(news)) };
                    let _ = self.to.try_send(Ok(frame));
                }
                () = self.to.closed() => return Err(Stop::Gone),
                () = self.cut.cancelled() => {
                    let text = "this server is shutting down: log in again";
                    return Err(Refusal::new(Reason::Draining, text).into());
                }
            }
        }
    }
}

/// Of a program whose own pod is not there any more.
fn no_pod() -> v1::Exit {
    lost(Reason::ProgramLost, "the program is gone with its pod; how it ended is not known")
}

/// What is known by the image that a session's console container runs.
fn image(contents: &Contents) -> String {
    match &contents.target {
        Target::Pod { image_id, .. } => image_id.clone(),
        Target::Template(base) => image_of(base, &contents.console),
    }
}

async fn refused(refusal: Refusal, to: &ToClient) -> Report {
    // Waits for room as long as the client is there.
    let _ = to.send(Err(refusal.clone())).await;
    Report { kind: "refused", refusal: Some(refusal), bytes: [0; 3] }
}

async fn ended(exit: v1::Exit, to: &ToClient) -> Report {
    let _ = to.send(Ok(v1::RunSessionResponse { frame: Some(Frame::Exit(exit.clone())) })).await;
    let refusal = if let Some(End::Lost(refusal)) = exit.end { Some(refusal) } else { None };
    Report { kind: "lost", refusal, bytes: [0; 3] }
}
