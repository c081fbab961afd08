//! One session, over as many streams of frames as it takes.
//!
//! What the frames say, and what is said again, is [`ClientSession`](podbay_frontend_core::ClientSession)'s, and what they mean
//! for this process [`Dialogue`]'s; this carries them between it, the backend and this process's own ends.

use super::{
    connection::{is_broken, told},
    dialogue::{Dialogue, Ended, Heard, Stop, What},
    local::{self, Signals, Streams, Told},
    say,
    server::{Backends, sessions},
    terminal,
};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use podbay::{
    refusal_of,
    v1::{self, Reason, Stream, run_session_request::Frame as To},
};
use std::{io::ErrorKind, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

/// A durable session is looked for so long when its backend is lost.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(200);
/// A search that takes longer is worth a line.
const PROGRESS: Duration = Duration::from_secs(2);
/// How long the backend is given to end what was given up, and the outputs of this process to take their last bytes.
const GIVING_UP: Duration = Duration::from_secs(5);

/// A session to be carried.
pub struct Pump {
    backends: Backends,
    channel: Channel,
    /// The first frame, without what changes with each attempt.
    open: v1::Open,
    dialogue: Dialogue,
    /// Whether this process's terminal is the program's.
    raw: bool,
    lost_since: Option<Instant>,
    told_lost: bool,
}

type ToBackend = mpsc::Sender<v1::RunSessionRequest>;

impl Pump {
    /// A session to be started.
    pub fn new(backends: Backends, channel: Channel, open: v1::Open, detached: bool) -> Self {
        let dialogue = if detached { Dialogue::starting() } else { Dialogue::carrying(open.pty.is_some()) };
        Self::of(backends, channel, open, dialogue)
    }

    /// A session to be gone on with, its output from here.
    pub fn attaching(
        backends: Backends,
        channel: Channel,
        open: v1::Open,
        terminal: bool,
        from: v1::ResumeFrom,
    ) -> Self {
        // Above what earlier clients used, for they count from 1 or did this before.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let last_id = u64::try_from(now.as_micros()).unwrap_or(u64::MAX / 2);
        Self::of(backends, channel, open, Dialogue::attaching(terminal, from, last_id))
    }

    fn of(backends: Backends, channel: Channel, mut open: v1::Open, dialogue: Dialogue) -> Self {
        open.take_over = dialogue.what() == What::Attach;
        Self { backends, channel, open, dialogue, raw: false, lost_since: None, told_lost: false }
    }

    /// This process's terminal is the program's: its size follows.
    pub fn follow_terminal(&mut self) {
        self.raw = true;
        // One that other clients use may be of another size.
        if self.dialogue.what() == What::Attach {
            self.ask_size();
        }
    }

    fn ask_size(&mut self) {
        if self.raw {
            self.dialogue.ask_size(terminal::size());
        }
    }

    /// The backend that it is connected to now, and the others.
    pub const fn backend(&mut self) -> (&mut Backends, &Channel) {
        (&mut self.backends, &self.channel)
    }

    /// How far the outputs were written.
    pub const fn written(&self) -> v1::ResumeFrom {
        self.dialogue.session.taken_up_to()
    }

    /// Whether all stdin that was read is with the program.
    pub fn is_stdin_safe(&self) -> bool {
        self.dialogue.session.is_stdin_safe()
    }

    /// Carries the session to its end; this process's stdin goes to the program where it `reads`.
    pub async fn run(&mut self, signals: &mut Signals, reads: bool) -> anyhow::Result<Ended> {
        let mut local = Streams::start(reads);
        let ended = loop {
            let why = match self.stream(signals, &mut local).await {
                Stop::Ended(ended) => break ended,
                Stop::Failed(error) => return Err(error),
                Stop::Lost(why) => why,
            };
            if !self.dialogue.session.is_durable() {
                bail!("{why}; how the program ended is not known: look at its work before you repeat it");
            }
            if let Some(ended) = self.reconnect(&why, signals).await? {
                break ended;
            }
        };
        self.finish(&ended, local, signals).await?;
        Ok(ended)
    }

    /// A channel for the next stream; or this process was told to leave.
    async fn reconnect(&mut self, why: &str, signals: &mut Signals) -> anyhow::Result<Option<Ended>> {
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            bail!("{why}; the program may run on: try podbay attach {}", self.open.session_id);
        }
        self.dialogue.session.reopen();
        if !self.told_lost && since.elapsed() > PROGRESS {
            self.told_lost = true;
            say("the connection to the backend broke; the program runs on, waiting for another backend");
        }
        let backends = &mut self.backends;
        let found = async {
            sleep(PAUSE).await;
            backends.connect().await.ok()
        };
        tokio::select! {
            // Where none answers, the next stream on the old channel finds it out.
            found = found => if let Some(channel) = found { self.channel = channel },
            // Nobody could hand INT on.
            number = signals.leave() => return Ok(Some(Ended::Left(number))),
        }
        self.ask_size();
        Ok(None)
    }

    /// What came is written before this process ends.
    async fn finish(&mut self, ended: &Ended, local: Streams, signals: &mut Signals) -> anyhow::Result<()> {
        let Streams { stdout, stderr, mut written, .. } = local;
        drop((stdout, stderr));
        let last = async {
            while let Some((stream, result)) = written.recv().await {
                match result {
                    Ok(len) => self.dialogue.session.taken(stream, len),
                    // Nobody wants it.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                    Err(error) => return Err(error).context(no_output(stream)),
                }
            }
            Ok(())
        };
        let waits = async {
            match ended {
                Ended::Exit(_) | Ended::Started => drop(signals.leave().await),
                // Whoever wants to leave does not wait for a pipe that nobody reads.
                Ended::Left(_) => sleep(GIVING_UP).await,
            }
        };
        tokio::select! {
            written = last => written,
            () = waits => Ok(()),
        }
    }

    /// One stream of frames.
    async fn stream(&mut self, signals: &mut Signals, local: &mut Streams) -> Stop {
        let (to, frames) = mpsc::channel(16);
        let mut open = self.open.clone();
        self.dialogue.session.open(&mut open);
        if to.try_send(v1::RunSessionRequest { frame: Some(To::Open(open)) }).is_err() {
            return Stop::Lost("the stream ended".into());
        }
        let mut client = sessions(&self.channel);
        let called = tokio::select! {
            called = client.run_session(ReceiverStream::new(frames)) => called,
            number = signals.leave() => return Stop::Ended(Ended::Left(number)),
        };
        let mut from = match called {
            Ok(answer) => answer.into_inner(),
            Err(status) => return broken(&status),
        };
        let stop = self.carry(&to, &mut from, signals, local).await;
        if let Stop::Ended(Ended::Left(_)) = stop
            && self.dialogue.what() != What::Attach
        {
            self.give_up(&to, &mut from, signals).await;
        }
        stop
    }

    async fn carry(
        &mut self,
        to: &ToBackend,
        from: &mut Streaming<v1::RunSessionResponse>,
        signals: &mut Signals,
        local: &mut Streams,
    ) -> Stop {
        let (mut frame, mut takes) = (None, true);
        loop {
            if frame.is_none() {
                frame = self.dialogue.next_frame();
            }
            let reads = local.stdin.is_some() && self.dialogue.session.room() > 0;
            // A session that is looked for is not waited for longer than that.
            let patience = self.lost_since.map(|since| since + PATIENCE);
            let step = tokio::select! {
                came = from.message() => match came {
                    Ok(Some(came)) => self.receive(came, local),
                    Ok(None) => Err(Stop::Lost("the backend ended the stream".into())),
                    Err(status) => Err(broken(&status)),
                },
                permit = to.reserve(), if takes && frame.is_some() => {
                    if let Ok(permit) = permit {
                        if let Some(frame) = frame.take() {
                            permit.send(frame);
                        }
                    } else {
                        // A backend that has said its last takes no more; what it said is still to be read, and tells why.
                        takes = false;
                    }
                    Ok(())
                },
                Some((stream, result)) = local.written.recv() => match result {
                    Ok(len) => {
                        self.dialogue.session.taken(stream, len);
                        Ok(())
                    }
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Stop::Ended(Ended::Left(13))),
                    Err(error) => Err(Stop::Failed(anyhow::Error::new(error).context(no_output(stream)))),
                },
                piece = local::piece(&mut local.stdin), if reads => self.read(piece, local),
                told = signals.next() => self.told(told),
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() =>
                    Err(Stop::Lost("the backend does not answer".into())),
            };
            if let Err(stop) = step {
                return stop;
            }
        }
    }

    fn read(&mut self, piece: Option<std::io::Result<Bytes>>, local: &mut Streams) -> Result<(), Stop> {
        match piece {
            Some(Ok(piece)) => self.dialogue.session.push(piece),
            // Its end must not look like the end of what was to be sent.
            Some(Err(error)) => return Err(Stop::Failed(anyhow::Error::new(error).context("stdin can't be read"))),
            None => {
                local.stdin = None;
                self.dialogue.session.end_stdin();
            }
        }
        Ok(())
    }

    fn told(&mut self, told: Told) -> Result<(), Stop> {
        match told {
            Told::Leave(number) => Err(Stop::Ended(Ended::Left(number))),
            Told::Interrupt => self.dialogue.interrupt(),
            Told::Resized => {
                self.ask_size();
                Ok(())
            }
        }
    }

    fn receive(&mut self, frame: v1::RunSessionResponse, local: &Streams) -> Result<(), Stop> {
        match self.dialogue.receive(frame)? {
            Heard::Started => (self.lost_since, self.told_lost) = (None, false),
            Heard::Output(data) => {
                let to = match data.stream() {
                    Stream::Stderr => &local.stderr,
                    Stream::Stdout | Stream::Stdin | Stream::Unspecified => &local.stdout,
                };
                // A writer that has failed says so itself.
                let _ = to.send(data.data);
            }
            Heard::Nothing => {}
        }
        Ok(())
    }

    /// A program that was started here is given up, and its end waited for a little.
    async fn give_up(&mut self, to: &ToBackend, from: &mut Streaming<v1::RunSessionResponse>, signals: &mut Signals) {
        self.dialogue.session.hang_up();
        let given_up = async {
            while !self.dialogue.session.has_hung_up() {
                let Ok(permit) = to.reserve().await else { return };
                let Some(frame) = self.dialogue.session.next_frame() else { return };
                permit.send(frame);
            }
            while let Ok(Some(_)) = from.message().await {}
        };
        tokio::select! {
            _ = timeout(GIVING_UP, given_up) => {}
            _ = signals.leave() => {}
        }
    }
}

fn no_output(stream: Stream) -> &'static str {
    if stream == Stream::Stderr { "stderr can't be written" } else { "stdout can't be written" }
}

/// What a status says: whether another stream may go on.
fn broken(status: &Status) -> Stop {
    match refusal_of(status).reason() {
        Reason::Draining | Reason::KubernetesUnavailable => Stop::Lost(format!("{:#}", told(status))),
        _ if is_broken(status) => Stop::Lost(format!("{:#}", told(status))),
        _ => Stop::Failed(told(status)),
    }
}
