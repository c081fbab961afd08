//! One container's life: image pulled, program started, watched, restarted, ended.

use super::{
    Kubelet, PodHandle, Stop,
    env::{self, Env},
    events::{Note, Source},
    hub::Hub,
    log::Log,
    new_uid, now,
    pod::stopped_within,
    termination::TerminationMessage,
    view::{State, Terminated},
};
use crate::{
    helper::wire::Exit,
    image::{Image, PATH},
    stdio::{self, Wanted},
    supervisor::{Program, StartError, Started, Supervisor},
};
use k8s_openapi::api::core::v1::{Container, Pod};
use rustix::process::Signal;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

/// What a container that could not be started "exits" with, as containerd reports it.
const NOT_STARTED: i32 = 128;
/// How long the status of an ended container waits for its last output to be read. It takes longer only if an attached
/// client does not read.
const DRAIN: Duration = Duration::from_secs(1);
/// A container that ran so long is restarted at once again (the kubelet's rule).
const STABLE: Duration = Duration::from_mins(10);

/// A running container.
#[derive(Debug)]
pub(crate) struct Live {
    pub id: String,
    pub supervisor: Arc<Supervisor>,
    pub hub: Arc<Hub>,
    pub tty: bool,
    pub stdin_once: bool,
    env: Env,
    cwd: PathBuf,
    image: Image,
    oom: AtomicBool,
}

impl Live {
    pub async fn oom_kill(&self) {
        self.oom.store(true, Ordering::Relaxed);
        self.supervisor.end().await;
    }

    /// Starts a program beside the container's own. The error is in the words of the runtime.
    pub async fn exec(&self, argv: Vec<String>, wanted: Wanted) -> Result<(stdio::Ends, Started), String> {
        let mut env = self.env.clone();
        if wanted.tty {
            env.set("TERM", "xterm".into());
        }
        start(&self.supervisor, false, &self.image, argv, env, &self.cwd, wanted).await
    }
}

/// Why a container can't be started.
enum Refused {
    /// It stays waiting, and is tried again.
    Waiting { reason: &'static str, message: String },
    /// The runtime refused: it counts as ended.
    Runtime(String),
}

pub(super) struct ContainerTask {
    pub(super) kubelet: Arc<Kubelet>,
    pod: Arc<PodHandle>,
    object: Arc<Pod>,
    pub(super) spec: Container,
    folder: PathBuf,
    pub(super) stop: watch::Receiver<Stop>,
}

/// A pod's `terminationGracePeriodSeconds`.
pub(crate) fn grace(pod: &Pod) -> Duration {
    let seconds = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl ContainerTask {
    pub fn new(
        kubelet: &Arc<Kubelet>,
        pod: &Arc<PodHandle>,
        object: &Arc<Pod>,
        spec: &Container,
        folder: &Path,
    ) -> Self {
        Self {
            kubelet: kubelet.clone(),
            pod: pod.clone(),
            object: object.clone(),
            spec: spec.clone(),
            folder: folder.to_owned(),
            stop: pod.stop.subscribe(),
        }
    }

    /// Until it has ended for good, or the pod is to stop.
    pub async fn run(mut self) {
        let Some(image) = self.pull().await else { return };
        let mut pause = Duration::ZERO;
        loop {
            if !self.may_start().await {
                return;
            }
            let began = Instant::now();
            let ended = match self.start(&image).await {
                Ok((live, started)) => self.attend(live, started).await,
                Err(Refused::Runtime(message)) => {
                    self.note(true, "Failed", &format!("Error: {message}"));
                    Self::not_started(message)
                }
                Err(Refused::Waiting { reason, message }) => {
                    self.note(true, "Failed", &format!("Error: {message}"));
                    self.wait_state(reason, Some(message));
                    if stopped_within(&mut self.stop, self.kubelet.settings.backoff).await {
                        return;
                    }
                    continue;
                }
            };
            let code = ended.code;
            self.set(State::Terminated(ended.clone()));
            let policy = self.object.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
            let again = match policy {
                Some("Never") => false,
                Some("OnFailure") => code != 0,
                _ => true,
            };
            if !again || self.stop.borrow().kill_at.is_some() {
                return;
            }
            if began.elapsed() >= STABLE {
                pause = Duration::ZERO;
            }
            self.pod.change(&self.spec.name, |view| view.last = Some(ended));
            if !pause.is_zero() {
                let message = format!(
                    "back-off {}s restarting failed container={} pod={}_{}({})",
                    pause.as_secs_f32(),
                    self.spec.name,
                    self.pod.name,
                    self.pod.namespace,
                    self.pod.uid
                );
                self.note(
                    true,
                    "BackOff",
                    &format!(
                        "Back-off restarting failed container {} in pod {}_{}({})",
                        self.spec.name, self.pod.name, self.pod.namespace, self.pod.uid
                    ),
                );
                self.wait_state("CrashLoopBackOff", Some(message));
            }
            if stopped_within(&mut self.stop, pause).await {
                return;
            }
            pause = self.next_pause(pause);
            self.pod.change(&self.spec.name, |view| view.restarts += 1);
        }
    }

    pub(super) fn next_pause(&self, pause: Duration) -> Duration {
        let settings = &self.kubelet.settings;
        if pause.is_zero() { settings.backoff } else { (pause * 2).min(settings.max_backoff) }
    }

    fn set(&self, state: State) {
        self.pod.change(&self.spec.name, |view| view.state = state);
        self.kubelet.publish(&self.pod, &self.object);
    }

    pub(super) fn wait_state(&self, reason: &str, message: Option<String>) {
        self.set(State::Waiting { reason: reason.to_owned(), message });
    }

    pub(super) fn note(&self, warning: bool, reason: &str, message: &str) {
        let container = Some(self.spec.name.as_str());
        let note = Note { source: Source::Kubelet, warning, reason, message, container };
        self.kubelet.recorder.write(&self.pod, &note);
    }

    /// Waits while a fault keeps the pod from starting. False when it is to stop.
    async fn may_start(&mut self) -> bool {
        let mut changed = self.kubelet.faults.subscribe();
        loop {
            changed.mark_unchanged();
            if self.stop.borrow().kill_at.is_some() {
                return false;
            }
            if !self.kubelet.faults.never_starts(&self.pod.namespace, &self.pod.name) {
                return true;
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = self.stop.wait_for(|stop| stop.kill_at.is_some()) => return false,
            }
        }
    }

    async fn start(&self, image: &Image) -> Result<(Arc<Live>, Started), Refused> {
        let cannot = |reason, error: io::Error| Refused::Waiting { reason, message: error.to_string() };
        let home = utf8(&self.folder).map_err(|error| cannot("CreateContainerError", error))?;
        let mut env = env::environment(&self.object, &self.spec, image, &home)
            .map_err(|message| Refused::Waiting { reason: "CreateContainerConfigError", message })?;
        let argv = env::argv(&self.spec, image, &env);
        if argv.is_empty() {
            let message = "failed to generate container spec: no command specified".to_owned();
            return Err(Refused::Waiting { reason: "CreateContainerError", message });
        }
        let message_file = self.message().prepare().map_err(|error| cannot("CreateContainerError", error))?;
        // Pods share the host's /run and /dev/shm: each agent gets a folder of its own.
        env.set("PODBAY_AGENT_DIR", format!("{home}/.podbay-agent"));
        env.set("PODBAY_TERMINATION_LOG", utf8(&message_file).map_err(|error| cannot("CreateContainerError", error))?);
        let cwd = self.cwd().map_err(|error| cannot("CreateContainerError", error))?;
        let wanted = Wanted {
            stdin: self.spec.stdin == Some(true),
            stdout: true,
            stderr: true,
            tty: self.spec.tty == Some(true),
        };
        let supervisor = Supervisor::launch(&self.kubelet.settings.helper, &self.kubelet.tasks)
            .map_err(|error| cannot("CreateContainerError", error))?;
        self.kubelet.know(&self.pod, &supervisor);
        self.note(false, "Created", &format!("Created container: {}", self.spec.name));
        let begun = start(&supervisor, true, image, argv, env.clone(), &cwd, wanted).await;
        let (ends, started) = begun.map_err(|error| {
            Refused::Runtime(format!(
                "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: {error}"
            ))
        })?;
        let log = Arc::new(Log::new());
        let hub = Hub::new(ends, log.clone(), &self.kubelet.tasks, &self.pod.removed);
        let live = Arc::new(Live {
            id: format!("minicluster://{}", new_uid()),
            supervisor,
            hub,
            tty: wanted.tty,
            stdin_once: self.spec.stdin_once == Some(true),
            env,
            cwd,
            image: image.clone(),
            oom: AtomicBool::new(false),
        });
        self.note(false, "Started", &format!("Started container {}", self.spec.name));
        self.pod.change(&self.spec.name, |view| view.previous_log = view.log.replace(log));
        Ok((live, started))
    }

    fn message(&self) -> TerminationMessage<'_> {
        TerminationMessage { spec: &self.spec, folder: &self.folder }
    }

    /// The working directory: the host's folder of that name if there is one, else one below the pod's own.
    fn cwd(&self) -> io::Result<PathBuf> {
        match self.spec.working_dir.as_deref() {
            None | Some("") => Ok(self.folder.clone()),
            Some(path) => {
                let host = Path::new("/").join(path);
                if host.is_dir() {
                    return Ok(host);
                }
                let own = self.folder.join(path.trim_start_matches('/'));
                fs::create_dir_all(&own)?;
                Ok(own)
            }
        }
    }

    /// Until the container's program and everything it left are gone.
    async fn attend(&mut self, live: Arc<Live>, mut started: Started) -> Terminated {
        let since = now();
        self.set(State::Running { since: since.clone(), live: live.clone() });
        let mut kill_at = None;
        let mut told = false;
        let exit = loop {
            let kill = async {
                match kill_at {
                    Some(time) => sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = started.exit() => break exit,
                () = kill => {
                    live.supervisor.end().await;
                    kill_at = None;
                }
                Ok(()) = self.stop.changed() => {
                    let stop = *self.stop.borrow_and_update();
                    if let Some(time) = stop.kill_at {
                        if !std::mem::replace(&mut told, true) {
                            self.note(false, "Killing", &format!("Stopping container {}", self.spec.name));
                            live.supervisor.signal(started.id, Signal::TERM).await;
                        }
                        kill_at = Some(time);
                    }
                }
            }
        };
        live.supervisor.gone().await;
        let _ = timeout(DRAIN, live.hub.drained()).await;
        self.ended(&live, exit, since)
    }

    fn ended(&self, live: &Live, exit: Exit, started: String) -> Terminated {
        let oom = live.oom.load(Ordering::Relaxed);
        let code = exit.code();
        let reason = match (oom, code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        let message = self.message().read(code, &live.hub.log);
        Terminated { code, reason, message, started, finished: now(), id: live.id.clone() }
    }

    fn not_started(message: String) -> Terminated {
        let now = now();
        let id = format!("minicluster://{}", new_uid());
        Terminated {
            code: NOT_STARTED,
            reason: "StartError",
            message: Some(message),
            started: "1970-01-01T00:00:00Z".into(),
            finished: now,
            id,
        }
    }
}

fn utf8(path: &Path) -> io::Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))
}

/// Starts a program of an image; the error ends as runc's do.
async fn start(
    supervisor: &Supervisor,
    main: bool,
    image: &Image,
    argv: Vec<String>,
    env: Env,
    cwd: &Path,
    wanted: Wanted,
) -> Result<(stdio::Ends, Started), String> {
    let name = argv.first().cloned().unwrap_or_default();
    let executable =
        image.resolve(&name, env.get("PATH").unwrap_or(PATH), cwd).map_err(|error| format!("{error}: unknown"))?;
    let unknown = |error: io::Error| format!("exec: \"{name}\": {error}: unknown");
    let (ends, stdio) = stdio::open(wanted).map_err(unknown)?;
    let program = Program {
        main,
        executable: utf8(&executable).map_err(unknown)?,
        argv,
        env: env.into_vec(),
        cwd: utf8(cwd).map_err(unknown)?,
        stdio,
    };
    let started = supervisor.start(program).await.map_err(|error| match error {
        StartError::System { errno, .. } if errno == rustix::io::Errno::ACCESS.raw_os_error() => {
            format!("exec: \"{name}\": permission denied: unknown")
        }
        StartError::System { message, .. } => format!("exec: \"{name}\": {message}: unknown"),
        StartError::Gone => "container is not running: unknown".to_owned(),
    })?;
    // The program has opened its ends: from here on they are its own to close.
    let stdio::Ends { stdin, stdout, stderr, terminal, theirs } = ends;
    drop(theirs);
    Ok((stdio::Ends { stdin, stdout, stderr, terminal, theirs: stdio::Theirs::default() }, started))
}
