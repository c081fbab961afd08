//! Joins a client's frames, the machine and a program's streams, under the deadlines.

use super::{
    Opening, Sessions,
    console::Signaller,
    durable::Client,
    ending::{self, EXPLAINED, explained, of_broken, of_exec, of_pod, read_exit},
    leftover::Leftover,
    machine::Machine,
    places::Place,
    proof::{Proof, Proven},
    start::{Prepared, Running},
    violation,
};
use crate::{
    cluster::{Output, StreamEnd, Streams},
    handle::Contents,
    policy::{Clock, Tick},
    wrapper::true_end,
};
use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture};
use podbay::v1::{self, AgentLevel, Reason, Refusal, exit::End, run_session_request::Frame as FromClient};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{Instant, error::Elapsed, sleep_until, timeout, timeout_at},
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

/// What a shell says of a program that SIGKILL ended.
const KILLED: u8 = 137;

/// A signal under way: its id, and what comes of it.
type Delivery = (u64, BoxFuture<'static, Result<(), Refusal>>);

/// How long a program's end waits for the answer to the signal that may have ended it.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// How long a client may take for the rest of the output of a program whose time is over.
pub(super) const LAST_OUTPUT: Duration = Duration::from_secs(5);

/// Why the stream ends without Exit.
pub(super) enum Stop {
    /// The client is gone.
    Gone,
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// How a program's streams came to their end.
enum Pumped {
    /// By themselves.
    Ended(StreamEnd),
    /// Not yet, but the wrapper's last words are here and say that nothing is to follow.
    Over,
    /// A limit of time is over.
    Cut(Refusal),
}

struct Driver<S> {
    machine: Machine,
    client: S,
    client_open: bool,
    to_client: ToClient,
    progress: mpsc::Receiver<v1::Progress>,
    /// This replica ends: the session is cut.
    cut: CancellationToken,
    /// Delivers signals, once the program runs and where an agent can.
    signaller: Option<Signaller>,
    /// Ends the program when its client is gone, where no agent can and the pod lives on.
    leftover: Option<Leftover>,
    /// Its streams until then: where closing them hangs its terminal up, the wrapper would die by that, and the program with a
    /// process group of its own that heeds no HUP could not be found any more.
    held: Option<Streams>,
    /// The signal that is being delivered; one at a time, so that they arrive in order.
    signalling: Option<Delivery>,
    /// The bound of one.
    signal_bound: Duration,
}

impl Sessions {
    /// Runs a session by an exec or attach of its own, in a pod that stands ready where there is one.
    pub(super) async fn by_stream<S, E>(
        &self,
        contents: &Contents,
        caller: &str,
        opening: &Opening,
        prepared: Option<Prepared>,
        (deadline, place): (Instant, Place),
        client: Client<S>,
    ) -> Report
    where
        S: Stream<Item = Result<v1::RunSessionRequest, E>> + Unpin,
    {
        let (news, progress) = mpsc::channel(4);
        let mut machine = Machine::new(opening.tty, opening.credits()).under(&contents.security);
        if contents.agent.is_none() {
            machine.without_signals();
        }
        let Client { frames, to, cut, moving: _ } = client;
        let mut driver = Driver {
            machine,
            client: frames,
            client_open: true,
            to_client: to,
            progress,
            cut,
            signaller: None,
            leftover: None,
            held: None,
            signalling: None,
            signal_bound: contents.timeouts.signal,
        };
        // Boxed: a start is large, and thousands of sessions live long after theirs.
        let start = async {
            match prepared {
                Some(prepared) => self.start_in(contents, opening, prepared, (deadline, &news)).await,
                None => self.start(contents, caller, opening, deadline, &news).await,
            }
        };
        let started = driver.attend(timeout_at(deadline, Box::pin(start))).await;
        drop(news);
        let result = match started {
            Ok(started) => self.run_with(contents, opening, (started, place), &mut driver).await,
            Err(stop) => Err(stop),
        };
        if let (Err(_), Some(signaller)) = (&result, driver.signaller.take()) {
            // Nobody waits for the program any more, and the pod may live on.
            self.lifecycle.tracker().spawn(signaller.kill(contents.timeouts.signal));
        }
        if let Some(leftover) = driver.leftover.take() {
            let (held, bound) = (driver.held.take(), contents.timeouts.signal);
            self.lifecycle.tracker().spawn(async move {
                leftover.end(bound).await;
                drop(held);
            });
        }
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
        opening: &Opening,
        (started, place): (Result<Result<Running, Refusal>, Elapsed>, Place),
        driver: &mut Driver<S>,
    ) -> Result<v1::Exit, Stop>
    where
        S: Stream<Item = Result<v1::RunSessionRequest, E>> + Unpin,
    {
        let late = |_| {
            let text = "the program was not started in time (timeouts.commandStart)";
            Stop::Refused(Refusal::new(Reason::CommandStartTimeout, text))
        };
        let running = match started.map_err(late)? {
            Ok(running) => running,
            Err(refusal) if ending::may_be_terminated(refusal.reason()) => {
                let terminated = driver.attend(self.leases.terminated(contents.connection)).await?;
                return Err(terminated.unwrap_or(refusal).into());
            }
            Err(refusal) => return Err(refusal.into()),
        };
        let Running {
            mut streams,
            pod,
            own_pod,
            stdout,
            stderr,
            warning,
            wrapped,
            mut proof,
            signaller,
            leftover,
            attached,
        } = running;
        driver.leftover = leftover;
        driver.machine.started(v1::Started {
            agent_level: if signaller.is_some() { AgentLevel::Containerssh } else { AgentLevel::None }.into(),
            pod_namespace: pod.namespace.clone(),
            pod_name: pod.name.clone(),
            warning,
            ..v1::Started::default()
        });
        match signaller {
            Some(signaller) => driver.signaller = Some(signaller),
            None => driver.machine.without_signals(),
        }
        driver.stdout(&mut proof, stdout);
        for bytes in stderr {
            driver.stderr(&mut proof, bytes);
        }
        if let Some(size) = opening.size {
            streams.size.send_replace(Some(size));
        }
        let mut clock = Clock::new(&contents.security, Instant::now(), opening.ran);
        let end = match driver.pump(&mut streams, &mut proof, &mut clock).await {
            // An attach's Status speaks of the streaming only, and the pod keeps the program's own.
            Ok(Pumped::Ended(end)) if wrapped && !attached => true_end(end),
            Ok(Pumped::Ended(end)) => end,
            Ok(Pumped::Over) => StreamEnd::Success,
            Err(stop) => {
                driver.hold(streams);
                return Err(stop);
            }
            Ok(Pumped::Cut(refusal)) => {
                driver.hold(streams);
                drop((own_pod, place));
                if let Some(signaller) = driver.signaller.take() {
                    self.lifecycle.tracker().spawn(signaller.kill(contents.timeouts.signal));
                }
                return driver.cut(&mut proof, refusal.about(contents.connection)).await;
            }
        };
        driver.release(&mut proof, None);
        if !matches!(end, StreamEnd::Lost(_)) || matches!(proof.proven(), Proven::Ended(_)) {
            driver.leftover = None;
        }
        drop(streams);
        driver.signaller = None;
        driver.machine.discard_input();
        let cluster = &**self.lifecycle.cluster();
        let ending = async {
            match of_exec(&end) {
                Some(exit) if !attached && matches!(end, StreamEnd::ExitCode(_)) => exit,
                // All output is here, and so is the status: whatever became of the stream, or of its Status, afterwards. What
                // looks like a kill may have been for want of memory: the pod tells.
                _ if let Proven::Ended(status) = proof.proven()
                    && (!attached || status != KILLED) =>
                {
                    ending::code(status)
                }
                Some(exit) if !attached => exit,
                Some(_) => {
                    let exit = read_exit(cluster, &pod, &contents.console, contents.timeouts.pod_stop).await;
                    // Its wrapper says so behind all output: an API server on a busy machine cuts the end of an attach now and then.
                    if proof.proven() == Proven::Missing { ending::with_output_lost(exit) } else { exit }
                }
                None => of_broken(cluster, &pod, &contents.console, &end).await,
            }
        };
        let ending = async {
            let exit = ending.await;
            if !ending::may_be_the_pods(&exit) {
                return exit;
            }
            if let Some(refusal) = self.leases.terminated(contents.connection).await {
                return v1::Exit { end: Some(End::Lost(refusal)) };
            }
            let why = match (&exit.end, proof.proven()) {
                // It tells why, or its own pod's status has been read.
                (None | Some(End::Lost(_) | End::Signal(_)), _) => None,
                _ if attached && !matches!(proof.proven(), Proven::Ended(_)) => None,
                // The wrapper outlived its program: rather its own end than the pod's.
                (Some(End::Code(_)), Proven::Ended(_)) => of_pod(&cluster.get_pod(&pod).await, &contents.console),
                (Some(End::Code(_)), Proven::Bare | Proven::Missing) => {
                    explained(cluster, &pod, &contents.console, EXPLAINED).await
                }
            };
            why.unwrap_or(exit)
        };
        let mut exit = driver.attend(ending).await?;
        if let Some(End::Lost(refusal)) = &mut exit.end {
            refusal.connection_id = contents.connection.to_string();
        }
        if let Some((id, delivery)) = driver.signalling.take() {
            let ended = |_| Err(Refusal::new(Reason::SignalNotDelivered, "the program has ended"));
            let result = driver.attend(timeout(LAST_ANSWER, delivery)).await?.unwrap_or_else(ended);
            driver.machine.signalled(id, result);
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
        if self.signalling.is_none() {
            self.signalling = self.next_signal();
        }
        tokio::select! {
            frame = self.client.next(), if reads => match frame {
                Some(Ok(v1::RunSessionRequest { frame: Some(FromClient::Hangup(v1::Hangup {})) })) => {
                    return Err(Stop::Gone);
                }
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
            (id, result) = delivered(&mut self.signalling) => {
                self.signalling = None;
                self.machine.signalled(id, result);
            }
            () = self.to_client.closed() => return Err(Stop::Gone),
            () = self.cut.cancelled() => {
                let text = "this server is shutting down: log in again";
                return Err(Refusal::new(Reason::Draining, text).into());
            }
        }
        Ok(())
    }

    /// Closes the streams, or leaves that to the end of what its client left.
    fn hold(&mut self, streams: Streams) {
        self.held = self.leftover.is_some().then_some(streams);
    }

    fn next_signal(&mut self) -> Option<Delivery> {
        let signaller = self.signaller.clone()?;
        let signal = self.machine.take_signal()?;
        let asked = signal.deadline.and_then(|deadline| Duration::try_from(deadline).ok());
        let bound = asked.map_or(self.signal_bound, |asked| asked.min(self.signal_bound));
        Some((signal.id, signaller.deliver(signal.name, bound).boxed()))
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

    fn stdout(&mut self, proof: &mut Proof, bytes: Bytes) {
        for bytes in proof.stdout(bytes, Instant::now()) {
            self.machine.stdout(bytes);
        }
    }

    fn stderr(&mut self, proof: &mut Proof, bytes: Bytes) {
        for bytes in proof.stderr(bytes, Instant::now()) {
            self.machine.stderr(bytes);
        }
    }

    fn release(&mut self, proof: &mut Proof, now: Option<Instant>) {
        let [stdout, stderr] = proof.release(now);
        self.machine.stdout(stdout);
        self.machine.stderr(stderr);
    }

    /// Carries bytes both ways until the program's stream ends, nothing is to follow on it, or its time is over.
    async fn pump(&mut self, streams: &mut Streams, proof: &mut Proof, clock: &mut Clock) -> Result<Pumped, Stop> {
        let mut passed = self.machine.bytes();
        loop {
            if proof.is_over() {
                return Ok(Pumped::Over);
            }
            let bytes = self.machine.bytes();
            if bytes != passed {
                passed = bytes;
                clock.active(Instant::now());
            }
            let tick_at = clock.due();
            if let Some(size) = self.machine.take_resize() {
                streams.size.send_replace(Some(size));
            }
            let due = proof.due();
            let (takes_output, has_input) = (self.machine.takes_output(), self.machine.has_input());
            tokio::select! {
                step = self.step() => step?,
                output = streams.output.recv(), if takes_output => match output {
                    Some(Output::Stdout(bytes)) => self.stdout(proof, bytes),
                    Some(Output::Stderr(bytes)) => self.stderr(proof, bytes),
                    Some(Output::End(end)) => return Ok(Pumped::Ended(end)),
                    None => {
                        return Ok(Pumped::Ended(StreamEnd::Lost("the stream ended without a word".to_owned())));
                    }
                },
                () = sleep_until(tick_at.unwrap_or_else(Instant::now)), if tick_at.is_some() => {
                    match clock.tick(Instant::now()) {
                        Tick::Nothing => {}
                        Tick::Warn(text) => self.machine.notice(text),
                        Tick::Cut(refusal) => return Ok(Pumped::Cut(refusal)),
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.release(proof, Some(Instant::now()));
                }
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

    /// The program is not followed any more. What it wrote so far goes out for as long as the client takes it, up to a bound.
    async fn cut(&mut self, proof: &mut Proof, refusal: Refusal) -> Result<v1::Exit, Stop> {
        self.release(proof, None);
        self.machine.discard_input();
        let exit = v1::Exit { end: Some(End::Lost(refusal)) };
        self.machine.finish(exit.clone());
        if let Ok(flushed) = timeout(LAST_OUTPUT, self.flush()).await {
            flushed?;
        } else {
            tracing::debug!("a client takes no output while its session is cut");
        }
        Ok(exit)
    }

    /// Until Exit was sent.
    async fn flush(&mut self) -> Result<(), Stop> {
        while !self.machine.is_done() {
            self.step().await?;
        }
        Ok(())
    }
}

/// What came of the signal under way; never, where there is none. Cancel safe.
async fn delivered(signalling: &mut Option<Delivery>) -> (u64, Result<(), Refusal>) {
    match signalling {
        Some((id, delivery)) => (*id, delivery.await),
        None => std::future::pending().await,
    }
}
