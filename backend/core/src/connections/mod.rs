//! Connections: opened, kept, listed and closed in terms of the port. What the gRPC service calls.
//!
//! Who may call is decided before: the caller's service comes in as a name, and its rights (operator, which users) are the
//! service's to check.

mod files;
mod found;
mod kept;
mod list;
mod reach;
mod request;
mod webhook;

pub use found::FoundPod;
pub use list::{ListRequest, Page};
pub use request::{Heartbeat, OpenRequest};
pub use webhook::{Ask, ConfigWebhook};

use crate::{
    config::{Mode, Persistent, PodConfig, Settings, duration_proto},
    failure::or_agent_missing,
    handle::{Contents, KeyRing, Target},
    identity::{self, Identity, Marks},
    lifecycle::{EnterRequest, Entered, Kind, Lifecycle, Release, StartRequest, StartedPod, Undo},
    link::{Links, Place},
    ownership::{Closing, Leases, Sweep},
    policy::{ORIGINAL_COMMAND, Restrictions},
    template,
};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId,
    v1::{self, Reason, Refusal},
};
use podbay_runtime::{
    codes,
    webhook::{CallMetrics, Entry, Service},
};
use reach::Reach;
use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

/// A heartbeat looks for marks of ended connections for at most so long: callers give the whole call a few seconds.
const LOOK_FOR_MARKS: Duration = Duration::from_secs(1);

/// What an opening connection tells its caller: `Accepted`, any number of `Progress`, `Opened`.
#[derive(Debug, Clone, PartialEq)]
pub enum OpenEvent {
    /// First.
    Accepted(Box<v1::Accepted>),
    /// Dropped while the channel is full: news, not data.
    Progress(v1::Progress),
    /// Last.
    Opened(v1::Opened),
}

/// What is undone where an opening fails after all.
enum Began {
    Pod(Undo),
    Claim(Release),
}

fn target_of(StartedPod { pod, image_id, .. }: StartedPod) -> Target {
    Target::Pod { namespace: pod.namespace, name: pod.name, uid: pod.uid.unwrap_or_default(), image_id }
}

/// Does something whose progress is told meanwhile.
async fn telling<T>(
    events: &mpsc::Sender<OpenEvent>,
    work: impl AsyncFnOnce(mpsc::Sender<v1::Progress>) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let (sender, mut progress) = mpsc::channel(8);
    let tell = async {
        while let Some(news) = progress.recv().await {
            let _ = events.try_send(OpenEvent::Progress(news));
        }
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        result = work(sender) => result,
        never = tell => match never {},
    }
}

/// Opens, keeps and closes connections. Clones share everything.
#[derive(Debug, Clone)]
pub struct Connections {
    lifecycle: Lifecycle,
    leases: Leases,
    settings: Arc<Settings>,
    keys: Arc<KeyRing>,
    sweep: Arc<Sweep>,
    webhook: Option<ConfigWebhook>,
    /// Of the webhook.
    calls: CallMetrics,
    links: Links,
    reach: Reach,
}

impl Connections {
    /// By these settings; handles are sealed with these keys.
    pub fn new(lifecycle: Lifecycle, leases: Leases, settings: Arc<Settings>, keys: Arc<KeyRing>) -> Self {
        let spare = lifecycle.timeouts().pod_start + lifecycle.timeouts().pod_stop;
        let links = Links::new(Arc::clone(lifecycle.cluster()));
        let reach = Reach::of(&settings, false);
        let calls = CallMetrics::new(Service::Config);
        Self {
            lifecycle,
            leases,
            settings,
            keys,
            sweep: Arc::new(Sweep::new(spare)),
            webhook: None,
            calls,
            links,
            reach,
        }
    }

    /// The same; the webhook is asked for each connection's settings.
    #[must_use]
    pub fn with_webhook(mut self, webhook: Option<ConfigWebhook>) -> Self {
        self.reach = Reach::of(&self.settings, webhook.is_some());
        self.webhook = webhook;
        self
    }

    /// The same; the webhook's calls are counted there.
    #[must_use]
    pub fn with_calls(mut self, calls: CallMetrics) -> Self {
        self.calls = calls;
        self
    }

    /// The same; files go over these links, which sessions use too.
    #[must_use]
    pub fn with_links(mut self, links: Links) -> Self {
        self.links = links;
        self
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Opens handles for sessions.
    pub fn keys(&self) -> &Arc<KeyRing> {
        &self.keys
    }

    /// The leases, for session mode's [`Leases::admit`].
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Starts and stops pods.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// Opens a connection; its events go to `events` in order. `podStart` begins when `Accepted` was taken.
    ///
    /// Cancel safe: when this is dropped, or the receiver of `events` is, before `Opened` was taken, all that was begun is
    /// undone in the background.
    pub async fn open(&self, request: OpenRequest, events: mpsc::Sender<OpenEvent>) -> Result<(), Refusal> {
        let id = request.who.connection;
        let opened = tokio::select! {
            // Boxed: pods are large, and many connections wait here at once.
            result = Box::pin(self.open_whole(request, &events)) => result,
            () = events.closed() => Err(Refusal::new(Reason::Terminated, "the caller gave the connection up")),
        };
        match opened {
            Ok(()) => Ok(()),
            // A start that an operator ended finds its pod gone, and can say why.
            Err(refusal) if refusal.reason() == Reason::PodGone => {
                Err(self.leases.terminated(id).await.unwrap_or(refusal).about(id))
            }
            Err(refusal) => Err(refusal.about(id)),
        }
    }

    async fn open_whole(&self, mut request: OpenRequest, events: &mpsc::Sender<OpenEvent>) -> Result<(), Refusal> {
        let mut settings = match &self.webhook {
            Some(webhook) => Arc::new(webhook.settings(&mut request, &self.settings, &self.calls).await?),
            None => Arc::clone(&self.settings),
        };
        // An answer may have brought it, or done away with it.
        if let Some(kuberun) = settings.kuberun {
            kuberun.warn(Some(request.who.connection));
        }
        let OpenRequest { who, facts, restrictions, .. } = request;
        let restricted = restrictions != Restrictions::default();
        if restricted {
            let settings = Arc::make_mut(&mut settings);
            settings.security = settings.security.clone().restricted(&restrictions);
        }
        let values = |entries: BTreeMap<String, Entry<String>>| -> BTreeMap<String, String> {
            entries.into_iter().map(|(name, entry)| (name, entry.value)).collect()
        };
        let (mut environment, metadata) = (values(facts.environment), values(facts.metadata));
        if environment.contains_key(ORIGINAL_COMMAND) {
            let text = format!("environment: {ORIGINAL_COMMAND} is the backend's own");
            return Err(Refusal::new(Reason::Policy, text));
        }
        let (config, timeouts) = (&settings.pod, settings.timeouts);
        config.expose.add_environment(&metadata, &mut environment);
        files::possible(&facts.files, config)?;
        let given_up = || Refusal::new(Reason::Terminated, "the caller gave the connection up");
        let accepted = v1::Accepted {
            timeouts: Some(timeouts.to_proto()),
            policy: Some(settings.security.to_proto(config.subsystems.keys())),
            mode: v1::ExecutionMode::from(config.mode).into(),
            backend_wait: Some(duration_proto(self.leases.ownership().backend_wait)),
            heartbeat_interval: Some(duration_proto(self.leases.ownership().heartbeat())),
            restricted,
        };
        events.send(OpenEvent::Accepted(Box::new(accepted))).await.map_err(|_| given_up())?;
        if config.agent.is_none() {
            // A warning in ContainerSSH, where much does not work without.
            tracing::debug!(code = codes::KUBERNETES_GUEST_AGENT_DISABLED, connection = %who.connection, "no agent: disableAgent");
        }
        let deadline = Instant::now() + timeouts.pod_start;
        let renewed = self.leases.renew(who.owner, &who.caller, deadline);

        // What is asked for; a start finds out whether the image has it.
        let level = if config.agent.is_some() { v1::AgentLevel::Containerssh } else { v1::AgentLevel::None };
        let (target, began, console) = match (config.mode, &config.persistent) {
            (Mode::Session, _) => {
                renewed.await?;
                let mut base = template::base_pod(config, &who, &environment);
                config.expose.mark(&metadata, &mut base.metadata);
                self.note_policy(&settings.security, &mut base.metadata);
                (Target::Template(Box::new(base)), None, None)
            }
            (Mode::Persistent, Some(which)) => {
                // A claim counts for as long as its owner's lease: that comes first.
                renewed.await?;
                let mut pod = template::persistent_pod(config, which, &who);
                config.expose.mark(&metadata, &mut pod.metadata);
                let entered = Box::pin(self.enter(config, pod, which, &who, deadline, events)).await?;
                let Entered { started, console, release } = entered;
                (target_of(started), Some(Began::Claim(release)), Some(console))
            }
            (Mode::Persistent, None) => return Err(Refusal::new(Reason::Internal, "mode persistent without a pod")),
            (Mode::Connection, _) => {
                let mut pod = template::connection_pod(config, &who, &environment);
                config.expose.mark(&metadata, &mut pod.metadata);
                self.note_policy(&settings.security, &mut pod.metadata);
                let start = StartRequest { pod, console: config.console.clone(), kind: Kind::Connection, deadline };
                // From the moment that the pod is there, it is undone unless all the rest works too.
                let started = telling(events, async |sender| {
                    let started = self.lifecycle.start(start, &sender).await?;
                    let undo = self.lifecycle.guard(started.pod.clone());
                    Ok((started, undo))
                });
                let ((), (started, undo)) = futures::try_join!(renewed, started)
                    .map_err(|refusal| or_agent_missing(refusal, config.agent.as_deref(), &config.idle_command))?;
                if let Some(agent) = config.agent.clone().filter(|_| !facts.files.is_empty()) {
                    let place = Place {
                        pod: started.pod.clone(),
                        container: config.console.clone(),
                        agent,
                        image: started.image_id.clone(),
                    };
                    files::write(&self.links, &place, facts.files, deadline).await?;
                }
                (target_of(started), Some(Began::Pod(undo)), None)
            }
        };
        let mut opened = v1::Opened { agent_level: level.into(), ..v1::Opened::default() };
        if let Target::Pod { namespace, name, .. } = &target {
            opened.pod_namespace.clone_from(namespace);
            opened.pod_name.clone_from(name);
        }
        let mut contents = Contents::new(&settings, timeouts, &who, environment, target);
        if let Some(console) = console {
            contents.console = console;
        }
        let handle = Bytes::from(self.keys.seal(&contents, &who.caller)?);
        let pod_name = opened.pod_name.clone();
        events.send(OpenEvent::Opened(v1::Opened { handle, ..opened })).await.map_err(|_| given_up())?;
        match began {
            Some(Began::Pod(undo)) => undo.keep(),
            Some(Began::Claim(release)) => release.keep(),
            None => {}
        }
        tracing::info!(
            target: "podbay::activity",
            connection = %who.connection, user = who.user.name, remote = who.remote.map(tracing::field::display), pod = pod_name,
            "connection opened"
        );
        Ok(())
    }

    async fn enter(
        &self,
        config: &PodConfig,
        pod: Pod,
        which: &Persistent,
        who: &Identity,
        deadline: Instant,
        events: &mpsc::Sender<OpenEvent>,
    ) -> Result<Entered, Refusal> {
        let request = EnterRequest {
            pod,
            which: which.clone(),
            who: who.clone(),
            console: (config.console.clone(), config.console_number),
            deadline,
        };
        let entered = telling(events, async |sender| Box::pin(self.lifecycle.enter(request, &sender)).await).await;
        entered.map_err(|refusal| or_agent_missing(refusal, config.agent.as_deref(), &config.idle_command))
    }

    /// Closes a connection of this caller: its pods are gone, within `podStop`. Gives how many there were; a connection that
    /// isn't there is closed.
    ///
    /// With `keep_detached`, pods that a Detach keeps stay: their time, or a later call without it, ends them.
    ///
    /// Cancel safe, in that dropping it leaves the deletion asked but not awaited.
    pub async fn close(&self, id: ConnectionId, caller: &str, keep_detached: bool) -> Result<u32, Refusal> {
        self.end(id, Some(caller), &Closing::ByCaller(caller.to_owned()), keep_detached).await
    }

    /// Closes anybody's connection; for operators. Its sessions end with `TERMINATED` and the message, and so say the
    /// heartbeats of its owner.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a message that is no line of text; else as [`Self::close`].
    pub async fn terminate(&self, id: ConnectionId, message: &str) -> Result<u32, Refusal> {
        self.end(id, None, &Closing::by_operator(message)?, false).await
    }

    async fn end(
        &self,
        id: ConnectionId,
        caller: Option<&str>,
        why: &Closing,
        keep_detached: bool,
    ) -> Result<u32, Refusal> {
        let budget = self.lifecycle.timeouts().pod_stop;
        let late =
            || Refusal::new(Reason::PodStopTimeout, "the pods were not gone in time; they will be removed later");
        let whole = async {
            // Where it is not known, as in the one in which pods may still be made.
            let mode = self.reach.mode.unwrap_or(Mode::Session);
            match (mode, why) {
                (Mode::Connection, Closing::ByCaller(_)) => {}
                // First, so that sessions that find their pod gone find the words too; but words hold no deletion up.
                (Mode::Connection, Closing::ByOperator(_)) => {
                    let marked = self.leases.revoke(id, why, Instant::now() + budget / 4);
                    match timeout(budget / 2, marked).await {
                        Ok(Ok(())) => {}
                        Ok(Err(refusal)) => {
                            tracing::warn!(connection = %id, "users won't be told why: {}", refusal.message);
                        }
                        Err(_) => tracing::warn!(connection = %id, "users won't be told why: no answer in time"),
                    }
                }
                // First, so that no session starts a pod behind our back, or a program in one that stays.
                (Mode::Session | Mode::Persistent, _) => self.leases.revoke(id, why, Instant::now() + budget).await?,
            }
            let kept = Mutex::new(Vec::new());
            let ours = |pod: &Pod| {
                let Some(marks) = Marks::read(&pod.metadata) else { return false };
                let ours = caller.is_none_or(|caller| caller == marks.caller);
                if ours && keep_detached && marks.is_kept() {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(pod.clone());
                    return false;
                }
                ours
            };
            if self.reach.persistent {
                let deadline = Instant::now() + budget;
                let theirs = |by: &str| caller.is_none_or(|caller| caller == by);
                for namespace in self.places() {
                    self.lifecycle.release(namespace, id, &theirs, deadline).await?;
                }
            }
            let selector = identity::of_connection(id);
            let stopped = self.stop_everywhere(&selector, ours).await?;
            let kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
            Ok(stopped + self.stop_without_detached(kept).await?)
        };
        let result = timeout(budget, whole).await.unwrap_or_else(|_| Err(late()));
        match &result {
            Ok(pods) => {
                let code = (*pods > 0).then_some(codes::KUBERNETES_POD_REMOVE_SUCCESSFUL);
                tracing::info!(target: "podbay::activity", code, connection = %id, pods, "connection closed");
            }
            Err(refusal) => {
                let code = codes::KUBERNETES_POD_REMOVE_FAILED;
                tracing::error!(code, connection = %id, reason = %refusal.message, "connection not closed in time");
            }
        }
        result.map_err(|refusal| refusal.about(id))
    }

    /// Deletes pods wherever they may be, and sees them gone. Gives how many.
    async fn stop_everywhere(&self, selector: &str, which: impl Fn(&Pod) -> bool) -> Result<u32, Refusal> {
        let places = self.places().iter();
        let stops = places.map(|namespace| self.lifecycle.stop_all(namespace, selector, &which));
        Ok(futures::future::try_join_all(stops).await?.iter().sum())
    }

    /// Renews an owner's lease; where the owner tells all its connections, pods that it doesn't know are closed in the
    /// background; handles of old keys are sealed anew. An owner that leaves has its pods deleted, within `podStop`.
    pub async fn heartbeat(&self, beat: Heartbeat) -> Result<v1::HeartbeatResponse, Refusal> {
        let Heartbeat { owner, caller, known, complete, handles, leaving } = beat;
        let ownership = self.leases.ownership();
        let mut terminated = Vec::new();
        if leaving {
            let selector = identity::of_owner(owner);
            let ours = |meta: &_| Marks::read(meta).is_some_and(|marks| marks.caller == caller && !marks.is_kept());
            self.stop_everywhere(&selector, |pod| ours(&pod.metadata)).await?;
            self.leases.leave(owner, &caller).await?;
        } else {
            let deadline = Instant::now() + ownership.heartbeat().min(self.lifecycle.timeouts().http);
            let (renewed, found) =
                futures::join!(self.leases.renew(owner, &caller, deadline), self.terminated_among(&known));
            renewed?;
            terminated = found;
            if complete {
                let (this, caller, stays) = (self.clone(), caller.clone(), self.reach.persistent);
                // Apart, so that a slow list never delays a renewal's answer.
                self.lifecycle.tracker().spawn(async move {
                    let namespaces = this.places();
                    this.sweep.run(&this.lifecycle, namespaces, owner, &known, &caller).await;
                    if stays {
                        for namespace in namespaces {
                            this.sweep.claims(&this.lifecycle, namespace, owner, &known).await;
                        }
                    }
                });
            }
        }
        let handles = handles.iter().map(|handle| match self.keys.renew(handle, &caller) {
            Ok(renewed) => Bytes::from(renewed.unwrap_or_default()),
            Err(refusal) => {
                tracing::warn!(%owner, reason = %refusal.message, "a handle in a heartbeat is not valid");
                Bytes::new()
            }
        });
        let proto = |duration: Duration| Some(duration_proto(duration));
        Ok(v1::HeartbeatResponse {
            handles: handles.collect(),
            interval: proto(ownership.heartbeat()),
            lease_duration: proto(ownership.lease_duration),
            terminated,
        })
    }

    /// Which of these operators ended. Nothing where that can't be read at once: a renewal's answer must not wait for it.
    async fn terminated_among(&self, known: &HashSet<ConnectionId>) -> Vec<v1::TerminatedConnection> {
        if known.is_empty() {
            return Vec::new();
        }
        match timeout(LOOK_FOR_MARKS, self.leases.all_terminated()).await {
            Ok(Ok(marked)) => {
                let ours = marked.into_iter().filter(|(id, _)| known.contains(id));
                ours.map(|(id, message)| v1::TerminatedConnection { connection_id: id.to_string(), message }).collect()
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "marks of ended connections can't be listed; next time");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }
}
