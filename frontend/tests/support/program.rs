//! One session at the test's backend: a local process, or a scripted end.
//!
//! Commands that begin with `@` are scripts: `@lost`, `@signal NAME`, `@refuse`, `@never`, `@terminated`, `@unavailable`, `@late MS COMMAND`,
//! `@progress MS COMMAND`. Everything else goes to `/bin/sh -c`.

use super::backend::Shared;
use podbay::v1::{
    self, Stream, exit::End, open::Program, run_session_request::Frame as Request, run_session_response::Frame,
};
use podbay_agent_wire::flow::{Incoming, Outgoing};
use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    sync::{Notify, mpsc},
};
use tonic::{Status, Streaming};

type Frames = mpsc::Sender<Result<v1::RunSessionResponse, Status>>;

async fn send(frames: &Frames, frame: Frame) -> bool {
    frames.send(Ok(v1::RunSessionResponse { frame: Some(frame) })).await.is_ok()
}

fn code(code: u32) -> Frame {
    Frame::Exit(v1::Exit { end: Some(End::Code(code)) })
}

/// Serves one stream to its end.
pub async fn run(script: Shared, address: SocketAddr, mut requests: Streaming<v1::RunSessionRequest>, frames: Frames) {
    let Ok(Some(v1::RunSessionRequest { frame: Some(Request::Open(open)) })) = requests.message().await else {
        let refusal = v1::Refusal::new(v1::Reason::ProtocolViolation, "no Open");
        let _ = frames.send(Err(refusal.into_status())).await;
        return;
    };
    script.lock().sessions.push((address, open.clone()));
    script.lock().running += 1;
    let ended = tokio::select! {
        ended = session(&script, open, &mut requests, &frames) => ended,
        () = frames.closed() => false,
    };
    let mut script = script.lock();
    script.running -= 1;
    script.given_up += usize::from(!ended);
}

async fn session(
    script: &Shared,
    open: v1::Open,
    requests: &mut Streaming<v1::RunSessionRequest>,
    frames: &Frames,
) -> bool {
    let mut command = match &open.program {
        Some(Program::Exec(exec)) => exec.command.clone(),
        Some(Program::Shell(_)) => "exec sh".to_owned(),
        Some(Program::Subsystem(subsystem)) if subsystem.name == "echo" => "exec cat".to_owned(),
        Some(Program::Subsystem(_)) | None => "@refuse".to_owned(),
    };
    let lost = |reason, text: &str| v1::Refusal::new(reason, text);
    loop {
        let words: Vec<String> = command.splitn(3, ' ').map(str::to_owned).collect();
        let time = || Duration::from_millis(words[1].parse().expect("milliseconds"));
        match words[0].as_str() {
            "@lost" => {
                let refusal = lost(v1::Reason::StreamLost, "the stream to the program broke");
                return start(frames, 0).await
                    && send(frames, Frame::Exit(v1::Exit { end: Some(End::Lost(refusal)) })).await;
            }
            "@signal" => {
                let signal = v1::ExitSignal { name: words[1].clone(), core_dumped: false, message: "gone".to_owned() };
                return start(frames, 0).await
                    && send(frames, Frame::Exit(v1::Exit { end: Some(End::Signal(signal)) })).await;
            }
            "@refuse" => {
                let refusal = lost(v1::Reason::CommandNotStarted, "no such program in the image");
                return frames.send(Err(refusal.into_status())).await.is_ok();
            }
            "@terminated" => {
                let refusal = lost(v1::Reason::Terminated, "an operator ended this connection: now");
                return start(frames, 0).await
                    && send(frames, Frame::Exit(v1::Exit { end: Some(End::Lost(refusal)) })).await;
            }
            "@unavailable" => {
                let refusal = lost(v1::Reason::KubernetesUnavailable, "the API went away");
                return frames.send(Err(refusal.into_status())).await.is_ok();
            }
            "@draining" => {
                let refusal = lost(v1::Reason::Draining, "this replica drains");
                return frames.send(Err(refusal.into_status())).await.is_ok();
            }
            "@never" => std::future::pending().await,
            "@late" => {
                tokio::time::sleep(time()).await;
                command.clone_from(&words[2]);
            }
            "@progress" => {
                let message = "starting the program".to_owned();
                send(frames, Frame::Progress(v1::Progress { message, ..Default::default() })).await;
                tokio::time::sleep(time()).await;
                command.clone_from(&words[2]);
            }
            _ => return process(script, open, &command, requests, frames).await,
        }
    }
}

async fn start(frames: &Frames, stdin_credit: u64) -> bool {
    send(frames, Frame::Started(v1::Started { stdin_credit, ..Default::default() })).await
}

/// Credit for one output stream.
struct Room {
    flow: Mutex<Outgoing>,
    more: Notify,
}

impl Room {
    fn new(credit: u64) -> Arc<Self> {
        Arc::new(Self { flow: Mutex::new(Outgoing::new(0, credit)), more: Notify::new() })
    }

    async fn wait(&self) -> usize {
        loop {
            let room = self.flow.lock().expect("a lock").room();
            if room > 0 {
                return usize::try_from(room).expect("a size").min(podbay::FRAME);
            }
            self.more.notified().await;
        }
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, stream: Stream, room: Arc<Room>, frames: Frames) {
    let mut buffer = bytes::BytesMut::new();
    loop {
        let max = room.wait().await;
        buffer.reserve(podbay::FRAME);
        let mut limited = (&mut from).take(max as u64);
        match limited.read_buf(&mut buffer).await {
            Ok(n) if n > 0 => {}
            Ok(_) | Err(_) => break,
        }
        let data = buffer.split().freeze();
        let offset = room.flow.lock().expect("a lock").send(data.len());
        if !send(&frames, Frame::Data(v1::Data { stream: stream.into(), offset, data })).await {
            return;
        }
    }
    let offset = room.flow.lock().expect("a lock").offset();
    send(&frames, Frame::Eof(v1::Eof { stream: stream.into(), offset, id: 0 })).await;
}

async fn process(
    script: &Shared,
    open: v1::Open,
    command: &str,
    requests: &mut Streaming<v1::RunSessionRequest>,
    frames: &Frames,
) -> bool {
    let mut shell = Command::new("/bin/sh");
    let merged = format!("exec 2>&1; {command}");
    shell.arg("-c").arg(if open.pty.is_some() { &merged } else { command });
    shell.envs(&open.environment).process_group(0).kill_on_drop(true);
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().expect("starts");
    let pid = child.id().expect("a pid");
    let _group = Group(pid);
    let (mut to, out, err) = (
        child.stdin.take().expect("stdin"),
        child.stdout.take().expect("stdout"),
        child.stderr.take().expect("stderr"),
    );
    let mut incoming = Incoming::new(0, podbay::MAX_CREDIT);
    if !start(frames, incoming.granted()).await {
        return false;
    }
    let (stdout, stderr) = (Room::new(open.stdout_credit), Room::new(open.stderr_credit));
    let outputs = async {
        let out = pump(out, Stream::Stdout, Arc::clone(&stdout), frames.clone());
        let err = async {
            // With a terminal there is no stderr, and no credit for it.
            if open.pty.is_none() {
                pump(err, Stream::Stderr, Arc::clone(&stderr), frames.clone()).await;
            }
        };
        tokio::join!(out, err);
        child.wait().await.expect("waits")
    };
    let (stdin, mut pieces) = mpsc::unbounded_channel::<Option<bytes::Bytes>>();
    let taken = Arc::new(Mutex::new(0usize));
    let took = Arc::new(Notify::new());
    let inputs = {
        let (taken, took) = (Arc::clone(&taken), Arc::clone(&took));
        async move {
            while let Some(Some(piece)) = pieces.recv().await {
                if to.write_all(&piece).await.is_err() {
                    break;
                }
                *taken.lock().expect("a lock") += piece.len();
                took.notify_one();
            }
            drop(to);
            std::future::pending::<()>().await;
        }
    };
    let reading = async {
        loop {
            let frame = tokio::select! {
                message = requests.message() => match message {
                    Ok(Some(message)) => message.frame,
                    Ok(None) => return std::future::pending().await,
                    Err(_) => return,
                },
                () = took.notified() => {
                    let n = std::mem::take(&mut *taken.lock().expect("a lock"));
                    if let Some(limit) = incoming.consume(n) {
                        send(frames, Frame::Credit(v1::Credit { stream: Stream::Stdin.into(), limit })).await;
                    }
                    continue;
                }
            };
            match frame {
                Some(Request::Data(data)) => {
                    incoming.receive(data.offset, data.data.len()).expect("the frontend keeps to the credit");
                    let _ = stdin.send(Some(data.data));
                }
                Some(Request::Eof(eof)) => {
                    incoming.end(eof.offset).expect("the frontend ends where it stands");
                    let _ = stdin.send(None);
                }
                Some(Request::Credit(credit)) => {
                    let room = if credit.stream() == Stream::Stderr { &stderr } else { &stdout };
                    room.flow.lock().expect("a lock").credit(credit.limit);
                    room.more.notify_one();
                }
                Some(Request::Ack(ack)) => {
                    let room = if ack.stream() == Stream::Stderr { &stderr } else { &stdout };
                    room.flow.lock().expect("a lock").ack(ack.offset).expect("only what was sent is acknowledged");
                }
                Some(Request::Signal(signal)) => {
                    script.lock().signals.push(signal.name.clone());
                    if signal.name == "USR2" {
                        continue; // never answered
                    }
                    let refusal = (signal.name == "USR1")
                        .then(|| v1::Refusal::new(v1::Reason::SignalNotDelivered, "no agent in the pod"));
                    if refusal.is_none() {
                        kill(&signal.name, pid);
                    }
                    send(frames, Frame::Answer(v1::Answer { id: signal.id, refusal })).await;
                }
                Some(Request::Resize(resize)) => {
                    let size = resize.size.unwrap_or_default();
                    script.lock().sizes.push((size.columns, size.rows));
                    send(frames, Frame::Answer(v1::Answer { id: resize.id, refusal: None })).await;
                }
                Some(Request::Hangup(_)) => return,
                Some(Request::Open(_)) | None => {}
            }
        }
    };
    let status = tokio::select! {
        status = outputs => status,
        () = inputs => return false,
        () = reading => return false,
    };
    let status = match (status.code(), std::os::unix::process::ExitStatusExt::signal(&status)) {
        (Some(status), _) => u32::try_from(status).expect("a status"),
        (None, signal) => 128 + u32::try_from(signal.unwrap_or(0)).expect("a signal"),
    };
    send(frames, code(status)).await
}

fn kill(signal: &str, group: u32) {
    let _ = std::process::Command::new("kill").args(["-s", signal, "--", &format!("-{group}")]).status();
}

/// Ends what the shell has started.
struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kill")
            .args(["-s", "KILL", "--", &format!("-{}", self.0)])
            .stderr(Stdio::null())
            .status();
    }
}
