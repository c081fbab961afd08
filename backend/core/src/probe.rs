//! A pod tried out: made as a user's would be, its agent asked, and deleted. For `podbay check --try-pod`.

use crate::{
    cluster::{Cluster, ClusterError, PodRef},
    config::{Mode, PodConfig, Settings, agent_idle},
    failure::{agent_missing, or_agent_missing},
    identity::{Identity, User},
    lifecycle::{Kind, Lifecycle, StartRequest, StartedPod, reference},
    link::{Found, Links, Place},
    template::{self, SessionProgram},
};
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId, OwnerId, SessionId,
    v1::{self, Reason, Refusal},
};
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

/// The cluster ends the pod by itself this long after `podStart`, should we be killed.
const MARGIN: Duration = Duration::from_mins(2);

/// The pod that a try makes, and how it is known to run.
#[derive(Debug, Clone)]
pub struct Trial {
    pod: Pod,
    at: PodRef,
    console: String,
    kind: Kind,
    agent: Option<String>,
    idle_command: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What the image has at the agent's path; `None` = the agent is off, and nobody asked.
    pub agent: Option<Found>,
    /// From the request to a pod that runs.
    pub took: Duration,
}

/// Whose pod it is: nobody's. Its owner has no lease, so that a backend's reaper takes what a crash of ours leaves.
fn nobody() -> Identity {
    Identity {
        connection: ConnectionId::from_bytes(rand::random()),
        owner: OwnerId::from_bytes(rand::random()),
        caller: "podbay check".into(),
        user: User::named("podbay-check"),
        remote: None,
    }
}

impl Trial {
    /// Of a configuration; `None` where it makes no pods (mode `persistent` without `createMissingPods`).
    pub fn of(settings: &Settings) -> Option<Self> {
        let config = &settings.pod;
        if config.persistent.as_ref().is_some_and(|which| !which.create_missing) {
            return None;
        }
        let who = nobody();
        let nothing = BTreeMap::new();
        let (mut pod, kind) = match (config.mode, &config.agent) {
            // Its pods run one program each: here that is the shell, which waits for somebody to speak to it.
            (Mode::Session, None) => {
                let command = Some(config.shell_command.clone()).filter(|command| !command.is_empty());
                let (connection, session) = (who.connection, SessionId::from_bytes(rand::random()));
                let console = config.console.as_str();
                let program =
                    SessionProgram { connection, session, console, command, tty: false, environment: &nothing };
                (template::session_pod(&template::base_pod(config, &who, &nothing), program), Kind::Program)
            }
            (Mode::Session, Some(agent)) => {
                // Of the configuration's own idle command, this mode makes nothing.
                let config = PodConfig { idle_command: agent_idle(agent), ..config.clone() };
                (template::connection_pod(&config, &who, &nothing), Kind::Connection)
            }
            (Mode::Connection | Mode::Persistent, _) => {
                (template::connection_pod(config, &who, &nothing), Kind::Connection)
            }
        };
        if let Some(spec) = &mut pod.spec {
            let most = (settings.timeouts.pod_start + MARGIN).as_secs();
            spec.active_deadline_seconds.get_or_insert(i64::try_from(most).unwrap_or(i64::MAX));
        }
        let idle_command = match (config.mode, &config.agent) {
            (Mode::Session, Some(agent)) => agent_idle(agent),
            _ => config.idle_command.clone(),
        };
        let (at, console) = (reference(&pod)?, config.console.clone());
        Some(Self { pod, at, console, kind, agent: config.agent.clone(), idle_command })
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.at.name
    }

    /// The console container's image.
    pub fn image(&self) -> &str {
        let containers = self.pod.spec.iter().flat_map(|spec| &spec.containers);
        containers.filter(|one| one.name == self.console).find_map(|one| one.image.as_deref()).unwrap_or_default()
    }

    /// Makes the pod, waits until it runs (at most `podStart`), asks its agent, and deletes it (at most `podStop` and `http`), also
    /// where anything fails or `stop` comes first. The second result is the deletion's: `Err` = it may be there still.
    ///
    /// Not cancel safe: dropped before its end, the pod stays until its deadline.
    pub async fn run(
        self,
        settings: &Settings,
        cluster: Arc<dyn Cluster>,
        progress: &mpsc::Sender<v1::Progress>,
        stop: impl Future<Output = ()>,
    ) -> (Result<Outcome, Refusal>, Result<(), Refusal>) {
        let tracker = TaskTracker::new();
        let lifecycle = Lifecycle::new(Arc::clone(&cluster), settings.timeouts, tracker.clone());
        let at = self.at.clone();
        let outcome = tokio::select! {
            outcome = self.start_and_ask(&lifecycle, settings.timeouts.pod_start, progress) => outcome,
            () = stop => Err(Refusal::new(Reason::Terminated, "interrupted")),
        };
        // What was begun is undone by the guards that are dropped by now.
        tracker.close();
        tracker.wait().await;
        let gone = match cluster.get_pod(&at).await {
            Err(ClusterError::NotFound { .. }) => Ok(()),
            Ok(_) => Err(Refusal::new(Reason::PodStopTimeout, format!("the pod {} is still there", at.name))),
            Err(error) => {
                Err(Refusal::new(Reason::PodStopTimeout, format!("whether the pod {} is gone: {error}", at.name)))
            }
        };
        (outcome, gone)
    }

    async fn start_and_ask(
        self,
        lifecycle: &Lifecycle,
        bound: Duration,
        progress: &mpsc::Sender<v1::Progress>,
    ) -> Result<Outcome, Refusal> {
        let begun = Instant::now();
        let deadline = begun + bound;
        let Self { pod, console, kind, agent, idle_command, .. } = self;
        let request = StartRequest { pod, console: console.clone(), kind, deadline };
        let started = Box::pin(lifecycle.start(request, progress)).await;
        let started = started.map_err(|refusal| or_agent_missing(refusal, agent.as_deref(), &idle_command))?;
        let took = begun.elapsed();
        let _guard = lifecycle.guard(started.pod.clone());
        let agent = match agent {
            None => None,
            Some(path) => Some(found(lifecycle.cluster(), &started, console, path, deadline).await?),
        };
        Ok(Outcome { agent, took })
    }
}

/// What answers at the agent's path.
async fn found(
    cluster: &Arc<dyn Cluster>,
    started: &StartedPod,
    container: String,
    path: String,
    deadline: Instant,
) -> Result<Found, Refusal> {
    let links = Links::new(Arc::clone(cluster));
    // One image is all there is here, whatever the runtime calls it.
    let place = Place { pod: started.pod.clone(), container, agent: path.clone(), image: "tried".into() };
    let link = links.program(&place);
    let listed = timeout_at(deadline, link.list(None)).await;
    match (listed, links.found(&place.image)) {
        (Ok(Ok(_)), _) | (_, Some(Found::Podbay)) => Ok(Found::Podbay),
        (_, Some(Found::Containerssh)) => Ok(Found::Containerssh),
        (_, Some(Found::Nothing)) => Err(agent_missing(&path, "nothing there answers as an agent does")),
        (Ok(Err(_)), None) => Err(Refusal::new(Reason::StreamLost, format!("the agent at {path} could not be asked"))),
        (Err(_), None) => Err(Refusal::new(
            Reason::PodStartTimeout,
            format!("nothing at {path} answered in time (timeouts.podStart)"),
        )),
    }
}
