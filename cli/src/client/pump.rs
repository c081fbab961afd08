//! One session, over as many streams of frames as it takes.

use super::{
    connection::{long, told},
    flow::{Input, Output},
    server::{Backends, sessions},
    terminal::{self, Written},
};
use anyhow::bail;
use bytes::Bytes;
use podbay::{
    SessionId, refusal_of,
    v1::{self, Reason, Stream, exit::End, run_session_request::Frame as To, run_session_response::Frame as From},
};
use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

/// A durable session is looked for so long when its backend is lost.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(200);

/// How a session ended for this process.
#[derive(Debug)]
pub enum Ended {
    /// The program ended.
    Exit(v1::Exit),
    /// This process was told to leave, or nobody reads its output any more.
    Left,
    /// A start was all that was wanted, and it runs.
    Started,
}

/// A session to be carried.
pub struct Pump {
    pub backends: Backends,
    pub channel: Channel,
    pub handle: Vec<u8>,
    pub session: SessionId,
    /// What runs; for the first stream of a new session.
    pub open: v1::Open,
    /// Continue one, whoever has it.
    pub take_over: bool,
    pub stdout: Output,
    pub stderr: Output,
    pub input: Input,
    pub raw: bool,
    durable: bool,
    attempt: u32,
    next_id: u64,
    /// Signals and sizes without an answer.
    unanswered: Vec<To>,
    /// End once it runs and has the end of its stdin: this request's answer says so.
    only_start: Option<u64>,
}

enum Stop {
    Ended(Ended),
    /// The stream is gone; another may go on.
    Lost(String),
    Failed(anyhow::Error),
}

/// This process's ends.
struct Local {
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: mpsc::UnboundedSender<(u64, Bytes)>,
    stderr: mpsc::UnboundedSender<(u64, Bytes)>,
    written: mpsc::UnboundedReceiver<Written>,
    interrupt: Signal,
    resized: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl Pump {
    pub fn new(backends: Backends, channel: Channel, handle: Vec<u8>, session: SessionId, open: v1::Open) -> Self {
        Self {
            backends,
            channel,
            handle,
            session,
            open,
            take_over: false,
            stdout: Output::default(),
            stderr: Output::default(),
            input: Input::default(),
            raw: false,
            durable: false,
            attempt: 0,
            next_id: 0,
            unanswered: Vec::new(),
            only_start: None,
        }
    }

    /// Carries the session to its end; this process's stdin goes to the program where it `reads`.
    pub async fn run(&mut self, reads: bool) -> anyhow::Result<Ended> {
        let (told_written, written) = mpsc::unbounded_channel();
        let mut local = Local {
            stdin: reads.then(terminal::stdin),
            stdout: terminal::output(Stream::Stdout, io::stdout(), told_written.clone()),
            stderr: terminal::output(Stream::Stderr, io::stderr(), told_written),
            written,
            interrupt: signal(SignalKind::interrupt())?,
            resized: signal(SignalKind::window_change())?,
            terminated: signal(SignalKind::terminate())?,
            hung_up: signal(SignalKind::hangup())?,
        };
        // A terminal that other clients use may be of another size.
        if self.take_over && self.raw {
            self.ask_size();
        }
        let mut lost_since: Option<Instant> = None;
        let ended = loop {
            let why = match self.stream(&mut local, &mut lost_since).await {
                Stop::Ended(ended) => break ended,
                Stop::Failed(error) => return Err(error),
                Stop::Lost(why) => why,
            };
            if !self.durable {
                bail!("{why}; how the program ended is not known");
            }
            if lost_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                bail!("{why}; the program may run on: podbay attach {}", self.session);
            }
            sleep(PAUSE).await;
            if let Ok(channel) = self.backends.connect().await {
                self.channel = channel;
            }
        };
        // What came is written first.
        let Local { stdout, stderr, mut written, .. } = local;
        drop((stdout, stderr));
        while let Some((stream, result)) = written.recv().await {
            if let Ok((end, len)) = result {
                let _ = self.output(stream).wrote(stream, end, len);
            }
        }
        Ok(ended)
    }

    /// The program gets the end of its stdin, and this ends once it has it.
    pub fn starts_only(&mut self) {
        // It is refused by every agent, and nothing comes of it but the answer: what was sent before has arrived.
        let probe = To::Signal(v1::Signal { id: 2, name: "CONT".into(), deadline: None });
        self.unanswered = vec![To::Eof(v1::Eof { stream: Stream::Stdin.into(), offset: 0, id: 1 }), probe];
        self.next_id = 2;
        self.only_start = Some(2);
    }

    fn opening(&mut self) -> v1::Open {
        let again = self.attempt > 0 || self.take_over;
        self.attempt += 1;
        v1::Open {
            handle: Bytes::from(self.handle.clone()),
            session_id: self.session.to_string(),
            attempt: self.attempt,
            take_over: self.take_over,
            resume_from: again.then_some(v1::ResumeFrom { stdout: self.stdout.received, stderr: self.stderr.received }),
            // Of a program that is only started nothing is taken.
            stdout_credit: if self.only_start.is_some() { 0 } else { self.stdout.first_credit() },
            stderr_credit: if self.only_start.is_some() { 0 } else { self.stderr.first_credit() },
            ..self.open.clone()
        }
    }

    /// One stream of frames.
    async fn stream(&mut self, local: &mut Local, lost_since: &mut Option<Instant>) -> Stop {
        let (to, frames) = mpsc::channel(16);
        let send = |frame| v1::RunSessionRequest { frame: Some(frame) };
        let open = self.opening();
        if to.try_send(send(To::Open(open))).is_err() {
            return Stop::Lost("the stream ended".into());
        }
        let mut from = match sessions(&self.channel).run_session(ReceiverStream::new(frames)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Self::broken(&status),
        };
        match self.started(&mut from).await {
            Ok(()) => *lost_since = None,
            Err(stop) => return stop,
        }
        if self.only_start.is_some() && !self.durable {
            return Stop::Failed(anyhow::anyhow!("a program can run detached only where podbay-agent runs in the pod"));
        }
        let mut queue: VecDeque<To> = self.unanswered.iter().cloned().collect();
        // A backend that is done takes nothing more, while its last frames are still here to be read.
        let mut takes = true;
        loop {
            if queue.is_empty() {
                let next_id = &mut self.next_id;
                let id = || {
                    *next_id += 1;
                    *next_id
                };
                queue.extend(self.input.next(id));
            }
            let reads = local.stdin.is_some() && self.input.wants();
            tokio::select! {
                frame = from.message() => match frame {
                    Ok(Some(frame)) => if let Some(stop) = self.receive(frame, local, &mut queue) { return stop },
                    Ok(None) => return Stop::Lost("the backend ended the stream".into()),
                    Err(status) => return Self::broken(&status),
                },
                permit = to.reserve(), if takes && !queue.is_empty() => match permit {
                    Ok(permit) => if let Some(frame) = queue.pop_front() { permit.send(send(frame)) },
                    Err(_) => takes = false,
                },
                Some((stream, written)) = local.written.recv() => match written {
                    Ok((end, len)) => queue.extend(self.output(stream).wrote(stream, end, len).into_iter().flatten()),
                    Err(_) => return self.leave(&to).await,
                },
                piece = next_piece(&mut local.stdin), if reads => {
                    if let Some(piece) = piece {
                        self.input.push(piece);
                    } else {
                        local.stdin = None;
                        self.input.end();
                    }
                }
                _ = local.resized.recv(), if self.raw => {
                    self.ask_size();
                    queue.extend(self.unanswered.last().cloned());
                }
                _ = local.interrupt.recv() => {
                    self.next_id += 1;
                    let asked = To::Signal(v1::Signal { id: self.next_id, name: "INT".into(), deadline: None });
                    self.unanswered.push(asked.clone());
                    queue.push_back(asked);
                }
                _ = local.terminated.recv() => return self.leave(&to).await,
                _ = local.hung_up.recv() => return self.leave(&to).await,
            }
        }
    }

    fn ask_size(&mut self) {
        self.next_id += 1;
        let (id, size) = (self.next_id, Some(terminal::size()));
        self.unanswered.retain(|asked| !matches!(asked, To::Resize(_)));
        self.unanswered.push(To::Resize(v1::Resize { id, size, deadline: None }));
    }

    /// A program that was started here is given up; one that was continued is left to its caller.
    async fn leave(&self, to: &mpsc::Sender<v1::RunSessionRequest>) -> Stop {
        if !self.take_over {
            let _ = to.send(v1::RunSessionRequest { frame: Some(To::Hangup(v1::Hangup {})) }).await;
        }
        Stop::Ended(Ended::Left)
    }

    fn output(&mut self, stream: Stream) -> &mut Output {
        if stream == Stream::Stderr { &mut self.stderr } else { &mut self.stdout }
    }

    async fn started(&mut self, from: &mut Streaming<v1::RunSessionResponse>) -> Result<(), Stop> {
        loop {
            let frame = from.message().await.map_err(|status| Self::broken(&status))?;
            match frame.and_then(|frame| frame.frame) {
                Some(From::Progress(progress)) => {
                    if long(progress.elapsed) {
                        eprintln!("podbay: {}\r", progress.message);
                    }
                }
                Some(From::Started(started)) => {
                    self.durable = started.durable;
                    if !started.warning.is_empty() {
                        eprintln!("podbay: {}\r", started.warning);
                    }
                    if self.take_over && self.attempt == 1 {
                        self.input.adopt(started.stdin_offset);
                    }
                    self.input.begin(started.stdin_offset, started.stdin_credit);
                    return Ok(());
                }
                // A program that was to be continued is gone.
                Some(From::Exit(exit)) => return Err(Stop::Ended(Ended::Exit(exit))),
                Some(_) => return Err(Stop::Failed(anyhow::anyhow!("the backend answers out of order"))),
                None => return Err(Stop::Lost("the backend ended the stream".into())),
            }
        }
    }

    fn receive(&mut self, frame: v1::RunSessionResponse, local: &Local, queue: &mut VecDeque<To>) -> Option<Stop> {
        match frame.frame? {
            From::Data(data) => {
                let (writer, output) = match data.stream() {
                    Stream::Stderr => (&local.stderr, &mut self.stderr),
                    Stream::Stdout | Stream::Stdin | Stream::Unspecified => (&local.stdout, &mut self.stdout),
                };
                match output.data(&data) {
                    // A writer that has failed says so itself.
                    Ok(end) => drop(writer.send((end, data.data))),
                    Err(why) => return Some(Stop::Failed(anyhow::anyhow!(why))),
                }
            }
            From::Gap(gap) => {
                let stream = gap.stream();
                eprintln!(
                    "podbay: {} bytes of output are not here: dropped, or taken before\r",
                    gap.to - gap.from.min(gap.to)
                );
                queue.extend(self.output(stream).gap(stream, gap.to).into_iter().flatten());
            }
            From::Credit(credit) => self.input.credit(credit.limit),
            From::Ack(ack) => self.input.ack(ack.offset),
            From::Answer(answer) => {
                let id_of = |asked: &To| match asked {
                    To::Signal(signal) => signal.id,
                    To::Resize(resize) => resize.id,
                    _ => 0,
                };
                self.unanswered.retain(|asked| id_of(asked) != answer.id);
                if self.only_start == Some(answer.id) {
                    return Some(Stop::Ended(Ended::Started));
                }
                if let Some(refusal) = answer.refusal.filter(|_| self.only_start.is_none()) {
                    eprintln!("podbay: {}\r", refusal.message);
                }
            }
            // Of one that was to run alone, the exit is for who comes back.
            From::Exit(_) if self.only_start.is_some() => return Some(Stop::Ended(Ended::Started)),
            From::Exit(exit) => return Some(Stop::Ended(Ended::Exit(exit))),
            From::Notice(notice) => eprintln!("podbay: {}\r", notice.message),
            From::Moving(_) if self.durable => return Some(Stop::Lost("the backend ends".into())),
            From::Moving(_) | From::Progress(_) | From::Started(_) | From::Eof(_) => {}
        }
        None
    }

    /// What a status says: whether another stream may go on.
    fn broken(status: &Status) -> Stop {
        let reason = refusal_of(status).reason();
        let ours = !status.details().is_empty();
        match reason {
            Reason::Draining | Reason::KubernetesUnavailable => Stop::Lost(format!("{:#}", told(status))),
            _ if !ours => Stop::Lost(format!("the backend was lost: {}", status.message())),
            _ => Stop::Failed(told(status)),
        }
    }
}

async fn next_piece(stdin: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

/// The exit status to pass on: a signal's is 128 + n, as shells say; 255 where it is not known, with why.
pub fn status_of(exit: &v1::Exit) -> (u8, String) {
    match &exit.end {
        Some(End::Code(code)) => (u8::try_from(*code).unwrap_or(255), String::new()),
        Some(End::Signal(end)) => {
            let number = SIGNALS.iter().find(|(name, _)| *name == end.name).map_or(127, |(_, number)| *number);
            let core = if end.core_dumped { " (core dumped)" } else { "" };
            (128 + number, format!("ended by signal {}{core} {}", end.name, end.message).trim_end().to_owned())
        }
        Some(End::Lost(refusal)) => (255, refusal.message.clone()),
        None => (255, "the backend does not say how the program ended".to_owned()),
    }
}

/// Linux's numbers, in the pod whatever this machine's are.
const SIGNALS: [(&str, u8); 16] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("SYS", 31),
];
