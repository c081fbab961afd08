//! One exec or attach on an upgraded connection.

use super::{Protocol, first_channel};
use crate::{
    faults::{Break, FaultTable, Real},
    helper::wire::Exit,
    kubelet::{
        container::Live,
        hub::{Hub, STDERR, STDOUT},
    },
    stdio::{Chunks, Terminal, Wanted, Writer},
    supervisor::Started,
};
use bytes::Bytes;
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;

const STDIN: u8 = 0;
pub(super) const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Bytes of stdin that are read ahead of the program; then the connection is not read any more, as on the real server.
const UNREAD: usize = 256 * 1024;
/// Messages of stdin that are read ahead: a bound on their number, for small ones.
const UNREAD_MESSAGES: usize = 4096;
/// Chunks of output under way to the connection.
const QUEUE: usize = 4;
/// How long the client has to read the end and to close its side.
const LINGER: Duration = Duration::from_secs(2);

/// What there is to do.
pub(super) enum Job {
    Exec {
        live: Arc<Live>,
        command: Vec<String>,
    },
    Attach {
        live: Arc<Live>,
    },
    /// Nothing: the runtime has no such container. Like the real server, that is said on the stream.
    Missing(String),
}

pub(super) struct Session {
    pub job: Job,
    pub wanted: Wanted,
    pub protocol: Protocol,
    pub breaks: watch::Receiver<Option<Break>>,
    pub faults: Arc<FaultTable>,
}

/// For the program's stdin.
enum Input {
    Bytes(Bytes, #[allow(dead_code, reason = "held until the bytes are written")] OwnedSemaphorePermit),
    End,
}

/// Where stdin goes.
enum Sink {
    Program(Writer),
    /// `once`: the end of this client's stdin is the end of the container's.
    Container {
        hub: Arc<Hub>,
        once: bool,
    },
}

/// How the streams end.
enum End {
    Status(Value),
    NoStatus,
    /// Without a word.
    Cut,
}

type Socket<S> = WebSocketStream<S>;

impl Session {
    pub async fn run<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, socket: Socket<S>) {
        let (mut sink, stream) = socket.split();
        let hello = Bytes::from(vec![first_channel(self.wanted)]);
        if sink.send(Message::Binary(hello)).await.is_err() {
            return;
        }
        let Self { job, wanted, protocol, breaks, faults } = self;
        // Whatever runs for this session ends with it.
        let mut tasks = JoinSet::new();
        let client = CancellationToken::new();
        let end = match job {
            Job::Missing(why) => {
                let why = format!("unable to upgrade connection: {why}");
                tasks.spawn(listen(stream, None, None, protocol, client.clone()));
                End::Status(internal_error(&why))
            }
            Job::Exec { live, command } => match live.exec(command, wanted).await {
                Err(why) => {
                    let why = format!(
                        "error executing command in container: failed to exec in container: failed to start exec \"minicluster\": OCI runtime exec failed: exec failed: unable to start container process: {why}"
                    );
                    // The v5 server wraps what it was told once more.
                    let why = match protocol {
                        Protocol::V4 => why,
                        Protocol::V5 => format!("Internal error occurred: {why}"),
                    };
                    tasks.spawn(listen(stream, None, None, protocol, client.clone()));
                    End::Status(internal_error(&why))
                }
                Ok((ends, started)) => {
                    let cut_stdin = CancellationToken::new();
                    let cut_output = CancellationToken::new();
                    let (queue, output) = mpsc::channel(QUEUE);
                    for (reader, channel) in [(ends.stdout, STDOUT), (ends.stderr, STDERR)] {
                        let Some(reader) = reader else { continue };
                        let queue = queue.clone();
                        let cut_stdin = cut_stdin.clone();
                        let cuts = !wanted.tty && faults.real(Real::CriStdinCut);
                        let cut_output = cut_output.clone();
                        tasks.spawn(async move {
                            cut_output.run_until_cancelled(forward(Chunks::new(reader, channel), queue)).await;
                            if cuts {
                                cut_stdin.cancel();
                            }
                        });
                    }
                    drop(queue);
                    let stdin = ends.stdin.map(|stdin| {
                        let (inputs, queue) = mpsc::channel(UNREAD_MESSAGES);
                        let cut = (wanted.tty && faults.real(Real::CriTtyEofCut)).then_some(cut_output);
                        tasks.spawn(feed(Sink::Program(stdin), queue, cut_stdin, cut));
                        inputs
                    });
                    tasks.spawn(listen(stream, stdin, ends.terminal, protocol, client.clone()));
                    deliver(&mut sink, output, exec_status(started), breaks, &client).await
                }
            },
            Job::Attach { live } => {
                let output = live.hub.attach(wanted.stdout, wanted.stderr && !live.tty);
                // `stdinOnce`: the first attach that has stdin is the last.
                let once = wanted.stdin && live.stdin_once && !live.tty;
                let stdin = wanted.stdin.then(|| {
                    let (inputs, queue) = mpsc::channel(UNREAD_MESSAGES);
                    let sink = Sink::Container { hub: live.hub.clone(), once };
                    tasks.spawn(feed(sink, queue, CancellationToken::new(), None));
                    inputs
                });
                tasks.spawn(listen(stream, stdin, live.hub.terminal.clone(), protocol, client.clone()));
                let end = deliver(&mut sink, output, async { success() }, breaks, &client).await;
                if once {
                    // Also when the client just went. Its task may hold the lock in a write that can't end.
                    tasks.shutdown().await;
                    live.hub.close_stdin().await;
                }
                end
            }
        };
        finish(sink, end, &client).await;
    }
}

async fn exec_status(mut started: Started) -> Value {
    match started.exit().await {
        Exit::Code(0) => success(),
        exit => {
            let code = exit.code();
            json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: command terminated with exit code {code}"),
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            })
        }
    }
}

fn success() -> Value {
    json!({ "metadata": {}, "status": "Success" })
}

fn internal_error(message: &str) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {message}"),
        "details": { "causes": [{ "message": message }] },
    })
}

/// One output stream, chunk by chunk, until it ends or nobody wants it any more.
async fn forward(mut chunks: Chunks, queue: mpsc::Sender<Bytes>) {
    while let Ok(Some(chunk)) = chunks.next().await {
        if queue.send(chunk).await.is_err() {
            return;
        }
    }
}

/// Sends all output, then waits for the status. Ends early when the client goes or the streams are broken on purpose.
async fn deliver<S: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<Socket<S>, Message>,
    mut output: mpsc::Receiver<Bytes>,
    status: impl Future<Output = Value>,
    mut breaks: watch::Receiver<Option<Break>>,
    client: &CancellationToken,
) -> End {
    let work = async {
        while let Some(chunk) = output.recv().await {
            if sink.send(Message::Binary(chunk)).await.is_err() {
                return End::Cut;
            }
        }
        End::Status(status.await)
    };
    let broken = async {
        if breaks.changed().await.is_err() {
            pending::<()>().await;
        }
        *breaks.borrow()
    };
    tokio::select! {
        end = work => end,
        how = broken => match how {
            Some(Break::NoStatus) => End::NoStatus,
            Some(Break::FalseSuccess) => End::Status(success()),
            Some(Break::Cut) | None => End::Cut,
        },
        () = client.cancelled() => End::Cut,
    }
}

/// Status, Close, and a while for the client to read them: closing a socket on unread data could destroy them.
async fn finish<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<Socket<S>, Message>,
    end: End,
    client: &CancellationToken,
) {
    let status = match end {
        End::Cut => return,
        End::NoStatus => None,
        End::Status(status) => Some(status),
    };
    let close = async {
        if let Some(status) = status {
            let mut message = vec![STATUS];
            message.extend(status.to_string().into_bytes());
            sink.send(Message::Binary(message.into())).await?;
        }
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        sink.send(Message::Close(Some(frame))).await
    };
    if let Ok(Ok(())) = timeout(LINGER, close).await {
        let _ = timeout(LINGER, client.cancelled()).await;
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads the client: stdin into its queue, resizes at once. Cancels `client` when the client is gone.
async fn listen<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<Socket<S>>,
    mut stdin: Option<mpsc::Sender<Input>>,
    terminal: Option<Arc<Terminal>>,
    protocol: Protocol,
    client: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(UNREAD));
    while let Some(Ok(message)) = stream.next().await {
        let mut data = match message {
            Message::Binary(data) => data,
            Message::Close(_) => break,
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        if data.is_empty() {
            continue;
        }
        let channel = data.split_to(1);
        match channel.first() {
            Some(&STDIN) if !data.is_empty() => {
                let Some(queue) = &stdin else { continue };
                let size = u32::try_from(data.len().min(UNREAD)).unwrap_or(u32::MAX);
                let Ok(permit) = room.clone().acquire_many_owned(size).await else { break };
                // Nobody reads stdin any more: what still comes is dropped, as by a closed pipe.
                if queue.send(Input::Bytes(data, permit)).await.is_err() {
                    stdin = None;
                }
            }
            Some(&RESIZE) => {
                if let (Some(terminal), Ok(size)) = (&terminal, serde_json::from_slice::<Size>(&data))
                    && let Err(error) = terminal.resize(size.width, size.height)
                {
                    tracing::debug!(%error, "a resize failed");
                }
            }
            Some(&CLOSE) if protocol == Protocol::V5 && data.first() == Some(&STDIN) => {
                if let Some(queue) = stdin.take() {
                    let _ = queue.send(Input::End).await;
                }
            }
            _ => {}
        }
    }
    client.cancel();
}

/// Writes stdin to the program. `cut` drops the rest; `cut_output` is told when the client ended stdin.
async fn feed(
    sink: Sink,
    mut queue: mpsc::Receiver<Input>,
    cut: CancellationToken,
    cut_output: Option<CancellationToken>,
) {
    let work = async {
        let mut sink = sink;
        while let Some(input) = queue.recv().await {
            match input {
                Input::Bytes(bytes, _permit) => {
                    let written = match &mut sink {
                        Sink::Program(writer) => writer.write_all(&bytes).await,
                        Sink::Container { hub, .. } => hub.write(&bytes).await,
                    };
                    if written.is_err() {
                        return;
                    }
                }
                Input::End => break,
            }
        }
        // A program's pipe ends by being dropped. A terminal has no end: its user types one.
        if let Some(cut_output) = cut_output {
            cut_output.cancel();
        }
        if let Sink::Container { hub, once: true } = sink {
            hub.close_stdin().await;
        }
    };
    cut.run_until_cancelled(work).await;
}
