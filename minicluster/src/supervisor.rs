//! The minicluster's side of a supervisor process (`helper`): start programs, signal them, end them all.

use crate::helper::{
    self,
    wire::{Event, Exit, Request, Start, Stdio},
};
use std::{
    collections::HashMap,
    io,
    path::Path,
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{mpsc, oneshot},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Requests under way to one supervisor.
const QUEUE: usize = 16;

/// Why a program did not start.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{message}")]
    System { errno: i32, message: String },
    #[error("the container has ended")]
    Gone,
}

/// A program to start.
#[derive(Debug)]
pub(crate) struct Program {
    pub main: bool,
    pub executable: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub stdio: Stdio,
}

/// A program that has started.
#[derive(Debug)]
pub(crate) struct Started {
    pub id: u64,
    exit: oneshot::Receiver<Exit>,
}

impl Started {
    /// Its end. If the supervisor died, killed: that is what happens to its programs then. Cancel safe.
    pub async fn exit(&mut self) -> Exit {
        (&mut self.exit).await.unwrap_or(Exit::Signal(rustix::process::Signal::KILL.as_raw()))
    }
}

/// A supervisor process. When the last handle is dropped its stdin closes, and it ends with all its programs.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pid: u32,
    requests: mpsc::Sender<Request>,
    programs: Arc<Mutex<Programs>>,
    gone: CancellationToken,
}

#[derive(Debug, Default)]
struct Programs {
    last: u64,
    ended: bool,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    started: Option<oneshot::Sender<Result<(), StartError>>>,
    exit: oneshot::Sender<Exit>,
}

impl Supervisor {
    /// Starts one. Its two tasks belong to `tasks`; the second ends when the process and all below it are gone.
    pub fn launch(program: &Path, tasks: &TaskTracker) -> io::Result<Arc<Self>> {
        let mut command = Command::from(helper::supervisor_command(program));
        command.env_clear().current_dir("/").stdin(process::Stdio::piped()).stdout(process::Stdio::piped());
        let mut child = command.spawn()?;
        let missing = || io::Error::other("the supervisor has no pipes");
        let (stdin, stdout) = (child.stdin.take().ok_or_else(missing)?, child.stdout.take().ok_or_else(missing)?);
        let pid = child.id().ok_or_else(missing)?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let programs = Arc::new(Mutex::new(Programs::default()));
        let gone = CancellationToken::new();
        let writer_gone = gone.clone();
        // Not only until the last handle is dropped: a client that does not read may hold one.
        tasks.spawn(async move { writer_gone.run_until_cancelled(write(queue, stdin)).await });
        tasks.spawn(read(child, stdout, programs.clone(), gone.clone()));
        Ok(Arc::new(Self { pid, requests, programs, gone }))
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Starts a program and waits until it runs. When dropped early the program may run all the same, until the
    /// container ends.
    pub async fn start(&self, program: Program) -> Result<Started, StartError> {
        let (started, has_started) = oneshot::channel();
        let (exit, has_exited) = oneshot::channel();
        let id = {
            let mut programs = lock(&self.programs);
            if programs.ended {
                return Err(StartError::Gone);
            }
            programs.last += 1;
            let id = programs.last;
            programs.waiting.insert(id, Waiting { started: Some(started), exit });
            id
        };
        let Program { main, executable, argv, env, cwd, stdio } = program;
        let start = Start { id, main, program: executable, argv, env, cwd, stdio };
        self.requests.send(Request::Start(Box::new(start))).await.map_err(|_| StartError::Gone)?;
        has_started.await.unwrap_or(Err(StartError::Gone))?;
        Ok(Started { id, exit: has_exited })
    }

    /// Sends a signal to a program, if it still runs.
    pub async fn signal(&self, id: u64, signal: rustix::process::Signal) {
        let _ = self.requests.send(Request::Signal { id, signal: signal.as_raw() }).await;
    }

    /// Kills everything; [`Self::gone`] tells when that is done.
    pub async fn end(&self) {
        let _ = self.requests.send(Request::End).await;
    }

    /// Waits until the supervisor and everything below it are gone.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Cancelled when [`Self::gone`].
    pub fn gone_token(&self) -> CancellationToken {
        self.gone.clone()
    }
}

fn lock(programs: &Mutex<Programs>) -> MutexGuard<'_, Programs> {
    programs.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(mut queue: mpsc::Receiver<Request>, mut stdin: ChildStdin) {
    while let Some(request) = queue.recv().await {
        // Plain strings and numbers: this can't fail.
        let Ok(mut line) = serde_json::to_vec(&request) else { continue };
        line.push(b'\n');
        if stdin.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read(mut child: Child, stdout: ChildStdout, programs: Arc<Mutex<Programs>>, gone: CancellationToken) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(event) => lock(&programs).take(event),
            Err(error) => tracing::warn!(%error, "a supervisor said something odd"),
        }
    }
    {
        let mut programs = lock(&programs);
        programs.ended = true;
        // Whoever waits sees its channel closed.
        programs.waiting.clear();
    }
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "can't wait for a supervisor");
    }
    gone.cancel();
}

impl Programs {
    fn take(&mut self, event: Event) {
        match event {
            Event::Started { id } => {
                if let Some(started) = self.waiting.get_mut(&id).and_then(|waiting| waiting.started.take()) {
                    let _ = started.send(Ok(()));
                }
            }
            Event::Failed { id, errno, message } => {
                if let Some(started) = self.waiting.remove(&id).and_then(|waiting| waiting.started) {
                    let _ = started.send(Err(StartError::System { errno, message }));
                }
            }
            Event::Exited { id, exit } => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    let _ = waiting.exit.send(exit);
                }
            }
        }
    }
}
