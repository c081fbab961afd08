//! A supervisor of the real program in a folder of its own, and backends that drive it through `attach`.

use bytes::BytesMut;
use podbay_agent_wire::{
    client::{Client, Config, Event, Key, LinkError, ResumeFrom},
    frame::Stream,
    id::{Attempt, SessionId},
    program::{Exit, Start},
    proto::Reason,
};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

pub const DEADLINE: Duration = Duration::from_mins(1);

/// Waits for a condition.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "in time: {what}");
        thread::yield_now();
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn agent() -> Command {
    Command::new(podbay_agent_embed::BUILT_AT)
}

/// A supervisor; killed when dropped, if it has not ended.
pub struct Pod {
    pub folder: TempDir,
    pub supervisor: Child,
}

impl Pod {
    pub fn new() -> Self {
        Self::with(&[], &[])
    }

    pub fn with(options: &[&str], idle: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = agent();
        command.arg("supervise").arg("--socket").arg(folder.path().join("agent.sock")).args(options);
        if !idle.is_empty() {
            command.arg("--").args(idle);
        }
        let supervisor = command.stdin(Stdio::null()).spawn().expect("the agent");
        let pod = Self { folder, supervisor };
        until("the supervisor listens", || UnixStream::connect(pod.socket()).is_ok());
        pod
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub fn backend(&self) -> Backend {
        Backend::new(&self.socket())
    }

    /// The supervisor's memory in use, in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.supervisor.id())).expect("runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.supervisor.id().to_string()).status();
        assert!(status.expect("kill").success());
    }

    /// Waits for the supervisor's end.
    pub fn code(&mut self) -> Option<i32> {
        let mut status = None;
        until("the supervisor ends", || {
            status = self.supervisor.try_wait().expect("a child");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Ok(None) = self.supervisor.try_wait() {
            // TERM ends its programs too.
            self.signal("TERM");
            let deadline = Instant::now() + Duration::from_secs(15);
            while let Ok(None) = self.supervisor.try_wait() {
                if Instant::now() > deadline {
                    let _ = self.supervisor.kill();
                    let _ = self.supervisor.wait();
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// One exec of `attach`.
struct Exec {
    child: Child,
    stdin: ChildStdin,
    out: Receiver<Vec<u8>>,
}

impl Drop for Exec {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a backend knows of a program.
#[derive(Default)]
pub struct Seen {
    pub started: bool,
    pub resumed: bool,
    pub pid: u32,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    pub gaps: Vec<(u64, u64)>,
    pub exit: Option<Exit>,
    pub closed: Option<Reason>,
    pub answers: Vec<(u64, Result<(), Reason>)>,
    pub ended: [bool; 2],
    /// Takes no output.
    pub deaf: bool,
    /// What goes to stdin, and whether its end does.
    pub stdin: Vec<u8>,
    pub eof: bool,
    pub sent: u64,
    pub credit: u64,
    pub acked: u64,
    pub eof_sent: bool,
}

/// A replica.
pub struct Backend {
    pub client: Client,
    socket: PathBuf,
    pub spawn: bool,
    exec: Option<Exec>,
    pub seen: BTreeMap<Key, Seen>,
    pub links: usize,
    pub forgotten: Vec<SessionId>,
    pub files: Vec<(u64, Result<(), Reason>)>,
    pub connects: bool,
}

impl Backend {
    pub fn new(socket: &Path) -> Self {
        Self {
            client: Client::new(Config { name: "test".into(), ..Config::default() }),
            socket: socket.to_owned(),
            spawn: false,
            exec: None,
            seen: BTreeMap::new(),
            links: 0,
            forgotten: Vec::new(),
            files: Vec::new(),
            connects: true,
        }
    }

    pub fn start(&mut self, id: u8, start: &Start) -> Key {
        self.start_attempt(id, 1, start, Seen::default())
    }

    pub fn start_attempt(&mut self, id: u8, attempt: u32, start: &Start, seen: Seen) -> Key {
        let credit = if seen.deaf { 0 } else { 1 << 18 };
        let from = ResumeFrom { stdout: 0, stdout_credit: credit, stderr: 0, stderr_credit: credit };
        let key = self.client.start(SessionId([id; 16]), Attempt::new(attempt), start, from);
        self.seen.insert(key, seen);
        key
    }

    pub fn take_over(&mut self, id: u8, stdout: u64) -> Key {
        let from = ResumeFrom { stdout, stdout_credit: stdout + (1 << 18), stderr: 0, stderr_credit: 1 << 18 };
        let key = self.client.attach(SessionId([id; 16]), Attempt::default(), true, from);
        self.seen.insert(key, Seen::default());
        key
    }

    /// Kills `attach`.
    pub fn cut(&mut self) {
        if self.exec.take().is_some() {
            self.client.disconnected();
        }
    }

    fn connect(&mut self) {
        let mut command = agent();
        command.arg("attach").arg("--socket").arg(&self.socket);
        if self.spawn {
            command.arg("--spawn");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("attach");
        let stdin = child.stdin.take().expect("a pipe");
        let mut stdout = child.stdout.take().expect("a pipe");
        let (send, out) = mpsc::sync_channel(4);
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok(len @ 1..) = stdout.read(&mut buffer) {
                if send.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        self.exec = Some(Exec { child, stdin, out });
        self.client.connected(Instant::now());
        self.links += 1;
    }

    /// Moves what can be moved.
    pub fn step(&mut self) {
        let now = Instant::now();
        if self.exec.is_none() && self.connects {
            self.connect();
        }
        self.client.tick(now).expect("a living agent");
        self.feed();
        let mut out = BytesMut::new();
        self.client.transmit(&mut out, 128 * 1024, now);
        let Some(exec) = &mut self.exec else { return };
        let mut alive = exec.stdin.write_all(&out).is_ok();
        let patience = if out.is_empty() { Duration::from_millis(5) } else { Duration::ZERO };
        match exec.out.recv_timeout(patience) {
            Ok(bytes) => match self.client.receive(&bytes, now) {
                Ok(()) => {}
                Err(LinkError::Goodbye { reason: Reason::Shutdown, .. }) => {
                    self.connects = false;
                    alive = false;
                }
                Err(error) => panic!("an agent that is not sound: {error}"),
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => alive = false,
        }
        if !alive {
            self.cut();
        }
        while let Some(event) = self.client.next_event() {
            self.event(event);
        }
    }

    fn feed(&mut self) {
        for (&key, seen) in &mut self.seen {
            if !seen.started || seen.closed.is_some() {
                continue;
            }
            let end = (seen.stdin.len() as u64).min(seen.credit).min(seen.sent + 32_768);
            if end > seen.sent {
                let bytes = &seen.stdin[seen.sent as usize..end as usize];
                self.client.stdin(key, seen.sent, bytes).expect("within the credit");
                seen.sent = end;
            }
            if seen.eof && !seen.eof_sent && seen.sent == seen.stdin.len() as u64 {
                seen.eof_sent = true;
                self.client.eof(key, 1_000_000, seen.sent).expect("an end");
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Started { key, stdin_offset, stdin_credit, resumed, pid, .. } => {
                let seen = self.seen.entry(key).or_default();
                seen.started = true;
                seen.resumed = resumed;
                seen.pid = pid;
                seen.sent = stdin_offset;
                seen.credit = stdin_credit;
            }
            Event::Data { key, stream, offset, data } => {
                let seen = self.seen.entry(key).or_default();
                let bytes = if stream == Stream::Stdout { &mut seen.out } else { &mut seen.err };
                bytes.extend_from_slice(&data);
                let end = offset + data.len() as u64;
                self.client.ack(key, stream, end);
                if !seen.deaf {
                    self.client.credit(key, stream, end + (1 << 18));
                }
            }
            Event::Gap { key, from, to, .. } => {
                self.seen.entry(key).or_default().gaps.push((from, to));
                self.client.credit(key, Stream::Stdout, to + (1 << 18));
            }
            Event::End { key, stream, .. } => {
                self.seen.entry(key).or_default().ended[usize::from(stream == Stream::Stderr)] = true;
            }
            Event::Credit { key, limit } => self.seen.entry(key).or_default().credit = limit,
            Event::Ack { key, offset } => self.seen.entry(key).or_default().acked = offset,
            Event::Answer { key, id, result } => {
                self.seen.entry(key).or_default().answers.push((id, result.map_err(|(reason, _)| reason)));
            }
            Event::Exit { key, exit, .. } => {
                let seen = self.seen.entry(key).or_default();
                assert!(seen.exit.replace(exit).is_none(), "once");
                assert!(seen.ended[0], "after the output");
            }
            Event::Closed { key, reason, .. } => self.seen.entry(key).or_default().closed = Some(reason),
            Event::Forgotten { session, running } => {
                assert!(!running);
                self.forgotten.push(session);
            }
            Event::FileWritten { id, result } => self.files.push((id, result.map_err(|(reason, _)| reason))),
            Event::Linked { .. } | Event::Relinked { .. } | Event::Listed { .. } => {}
        }
    }

    /// Goes on until something is so.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < deadline, "in time: {what}");
            self.step();
        }
    }

    pub fn seen(&self, key: Key) -> &Seen {
        &self.seen[&key]
    }

    pub fn text(&self, key: Key) -> String {
        String::from_utf8_lossy(&self.seen(key).out).into_owned()
    }

    /// Waits for the program's exit and says that it is known.
    pub fn exit(&mut self, key: Key, id: u8) -> Exit {
        self.until("an exit", |backend| {
            let seen = backend.seen(key);
            assert_eq!(seen.closed, None, "it was not closed");
            seen.exit.is_some()
        });
        let before = self.forgotten.len();
        self.client.ack_exit(SessionId([id; 16]));
        self.until("it is forgotten", |backend| backend.forgotten.len() > before);
        self.seen(key).exit.clone().expect("an exit")
    }
}

/// A program that a shell runs, with pipes.
pub fn sh(script: &str) -> Start {
    Start::new(["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()])
}

/// Bytes that no compression or shift would leave the same.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}
