//! Joins a client's frames, the machine and a program's streams, under the deadlines.

use super::{
    Opening, Sessions,
    ending::{self, of_exec, of_gone, read_exit},
    machine::Machine,
    start::Running,
    violation,
};
use crate::{
    cluster::{Output, StreamEnd, Streams},
    config::Mode,
    handle::Contents,
    wrapper::true_end,
};
use futures::{Stream, StreamExt as _};
use podbay::v1::{self, AgentLevel, Reason, Refusal, exit::End};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// What goes to the client; an error is the last item.
pub type ToClient = mpsc::Sender<Result<v1::RunSessionResponse, Refusal>>;

/// How a session ended, for metrics and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `exit`, `signal`, `lost`, `refused` or `gone` (the client left).
    pub kind: &'static str,
    /// Why, where it did not just exit.
    pub refusal: Option<Refusal>,
    /// Bytes given of stdin, sent of stdout and of stderr.
    pub bytes: [u64; 3],
}

/// Why the stream ends without Exit.
enum Stop {
    /// The client is gone.
    Gone,
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

struct Driver<S> {
    machine: Machine,
    client: S,
    client_open: bool,
    to_client: ToClient,
    progress: mpsc::Receiver<v1::Progress>,
    /// This replica ends: the session is cut.
    cut: CancellationToken,
}

impl Sessions {
    /// Runs a session from its valid Open to its last frame. `client` gives the frames after Open; an error there means that
    /// the client is gone. `cut` ends it with `DRAINING`.
    ///
    /// Cancel safe in that nothing is left: dropping it drops the stream, and a program's own pod is deleted in the background.
    pub async fn run<S, E>(
        &self,
        contents: &Contents,
        caller: &str,
        opening: Opening,
        client: S,
        to_client: ToClient,
        cut: CancellationToken,
    ) -> Report
    where
        S: Stream<Item = Result<v1::RunSessionRequest, E>> + Unpin,
    {
        let (news, progress) = mpsc::channel(4);
        let machine = Machine::new(opening.tty, opening.credits());
        let mut driver = Driver { machine, client, client_open: true, to_client, progress, cut };
        let result = self.run_with(contents, caller, &opening, news, &mut driver).await;
        let (kind, refusal) = match result {
            Ok(exit) => match exit.end {
                Some(End::Code(_)) => ("exit", None),
                Some(End::Signal(_)) => ("signal", None),
                Some(End::Lost(refusal)) => ("lost", Some(refusal)),
                None => ("lost", None),
            },
            Err(Stop::Gone) => ("gone", None),
            Err(Stop::Refused(refusal)) => {
                let refusal = refusal.about(contents.connection);
                // Waits for room as long as the client is there.
                let _ = driver.to_client.send(Err(refusal.clone())).await;
                ("refused", Some(refusal))
            }
        };
        Report { kind, refusal, bytes: driver.machine.bytes() }
    }

    async fn run_with<S, E>(
        &self,
        contents: &Contents,
        caller: &str,
        opening: &Opening,
        news: mpsc::Sender<v1::Progress>,
        driver: &mut Driver<S>,
    ) -> Result<v1::Exit, Stop>
    where
        S: Stream<Item = Result<v1::RunSessionRequest, E>> + Unpin,
    {
        let timeouts = &contents.timeouts;
        let budget = match contents.mode() {
            Mode::Connection => timeouts.command_start,
            Mode::Session => timeouts.pod_start.saturating_add(timeouts.command_start),
        };
        let deadline = Instant::now() + budget;
        let place = driver.attend(self.places.take(contents.connection, contents.max_sessions)).await??;
        // Boxed: a start is large, and thousands of sessions live long after theirs.
        let start = Box::pin(self.start(contents, caller, opening, deadline, &news));
        let started = driver.attend(timeout_at(deadline, start)).await?;
        let late = |_| {
            let text = "the program was not started in time (timeouts.commandStart)";
            Stop::Refused(Refusal::new(Reason::CommandStartTimeout, text))
        };
        let Running { mut streams, pod, own_pod, stdout, stderr, warning, wrapped } = match started.map_err(late)? {
            Ok(running) => running,
            Err(refusal) if ending::may_be_terminated(refusal.reason()) => {
                let terminated = driver.attend(self.leases.terminated(contents.connection)).await?;
                return Err(terminated.unwrap_or(refusal).into());
            }
            Err(refusal) => return Err(refusal.into()),
        };
        drop(news);
        driver.machine.started(v1::Started {
            agent_level: AgentLevel::None.into(),
            pod_namespace: pod.namespace.clone(),
            pod_name: pod.name.clone(),
            warning,
            ..v1::Started::default()
        });
        driver.machine.stdout(stdout);
        for bytes in stderr {
            driver.machine.stderr(bytes);
        }
        if let Some(size) = opening.size {
            streams.size.send_replace(Some(size));
        }
        let end = match (driver.pump(&mut streams).await?, contents.mode()) {
            (end, Mode::Connection) if wrapped => true_end(end),
            // An attach's Status speaks of the streaming only, and the pod keeps the program's own.
            (end, Mode::Connection | Mode::Session) => end,
        };
        drop(streams);
        driver.machine.discard_input();
        let cluster = &**self.lifecycle.cluster();
        let ending = async {
            match (contents.mode(), of_exec(&end)) {
                (Mode::Connection, Some(exit)) => exit,
                (Mode::Session, Some(_)) => read_exit(cluster, &pod, &contents.console, timeouts.pod_stop).await,
                (_, None) => of_gone(&cluster.get_pod(&pod).await, &contents.console, &end),
            }
        };
        let ending = async {
            let exit = ending.await;
            if !ending::may_be_the_pods(&exit) {
                return exit;
            }
            let terminated = self.leases.terminated(contents.connection).await;
            terminated.map_or(exit, |refusal| v1::Exit { end: Some(End::Lost(refusal)) })
        };
        let mut exit = driver.attend(ending).await?;
        if let Some(End::Lost(refusal)) = &mut exit.end {
            refusal.connection_id = contents.connection.to_string();
        }
        // Neither is needed any more; the client's last reads need not hold them, and who has read Exit may begin anew.
        drop((own_pod, place));
        driver.machine.finish(exit.clone());
        driver.flush().await?;
        Ok(exit)
    }
}

impl<S, E> Driver<S>
where
    S: Stream<Item = Result<v1::RunSessionRequest, E>> + Unpin,
{
    /// Reads or writes one frame, whichever can be done first. Cancel safe.
    async fn step(&mut self) -> Result<(), Stop> {
        let reads = self.client_open && self.machine.takes_frames();
        let writes = self.machine.has_frame();
        if !self.client_open && self.machine.wants_credit() {
            return Err(violation("the client closed its side, but output waits for more credit").into());
        }
        tokio::select! {
            frame = self.client.next(), if reads => match frame {
                Some(Ok(frame)) => self.machine.receive(frame)?,
                Some(Err(_)) => return Err(Stop::Gone),
                None => {
                    self.client_open = false;
                    self.machine.client_closed();
                }
            },
            permit = self.to_client.reserve(), if writes => match (permit, self.machine.next_frame()) {
                (Ok(permit), Some(frame)) => permit.send(Ok(frame)),
                (Ok(_), None) => {}
                (Err(_), _) => return Err(Stop::Gone),
            },
            Some(progress) = self.progress.recv() => self.machine.progress(progress),
            () = self.to_client.closed() => return Err(Stop::Gone),
            () = self.cut.cancelled() => {
                let text = "this server is shutting down: log in again";
                return Err(Refusal::new(Reason::Draining, text).into());
            }
        }
        Ok(())
    }

    /// Serves the client until `work` is done.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                step = self.step() => step?,
            }
        }
    }

    /// Carries bytes both ways until the program's stream ends.
    async fn pump(&mut self, streams: &mut Streams) -> Result<StreamEnd, Stop> {
        loop {
            if let Some(size) = self.machine.take_resize() {
                streams.size.send_replace(Some(size));
            }
            let (takes_output, has_input) = (self.machine.takes_output(), self.machine.has_input());
            tokio::select! {
                step = self.step() => step?,
                output = streams.output.recv(), if takes_output => match output {
                    Some(Output::Stdout(bytes)) => self.machine.stdout(bytes),
                    Some(Output::Stderr(bytes)) => self.machine.stderr(bytes),
                    Some(Output::End(end)) => return Ok(end),
                    None => return Ok(StreamEnd::Lost("the stream ended without a word".to_owned())),
                },
                permit = streams.input.reserve(), if has_input => match permit {
                    Ok(permit) => if let Some(input) = self.machine.take_input() {
                        permit.send(input);
                    },
                    // The connection takes no more; its output tells why.
                    Err(_) => self.machine.discard_input(),
                },
            }
        }
    }

    /// Until Exit was sent.
    async fn flush(&mut self) -> Result<(), Stop> {
        while !self.machine.is_done() {
            self.step().await?;
        }
        Ok(())
    }
}
