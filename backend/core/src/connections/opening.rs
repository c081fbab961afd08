//! Opening a connection: what is checked first, what is begun and in which order, and what is undone where it fails.

use super::{Connections, OpenRequest, files};
use crate::{
    config::{Mode, Persistent, PodConfig, duration_proto},
    failure::or_agent_missing,
    handle::{Contents, Target},
    identity::Identity,
    lifecycle::{EnterRequest, Entered, Kind, Release, StartRequest, StartedPod, Undo},
    link::Place,
    policy::{ORIGINAL_COMMAND, Restrictions},
    template,
};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use podbay::v1::{self, Reason, Refusal};
use podbay_runtime::{codes, webhook::Entry};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{sync::mpsc, time::Instant};

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

impl Connections {
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
        // An answer may have said that the user is another.
        request.check_user()?;
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
}
