//! Runs one exec or attach over its WebSocket: a task that reads and a task that writes, and neither waits for the other.
//!
//! kube's own `AttachedProcess` is one loop that awaits every write, so a program that writes more than it reads
//! deadlocks it. Here unread output stops the reader only, unread stdin the writer only. Both tasks belong to the
//! adapter's tracker and end when [`Streams::output`] is dropped.

use super::frames::{self, PIECE};
use bytes::Bytes;
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use podbay_backend_core::cluster::{Input, Output, StreamEnd, Streams};
use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite::{self, Message, protocol::WebSocketConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Frames of output under way to their consumer: 8 × 32 KiB.
const OUTPUT_QUEUE: usize = 8;
/// Pieces of stdin under way to the socket. The API server reads resizes and pings behind them, so few.
const INPUT_QUEUE: usize = 2;
/// Keeps idle connections alive through load balancers (some cut after 60 s): one that was silent for one to two of these is
/// pinged. No other is ([`Heard`]).
const PING: Duration = Duration::from_secs(25);
/// A server that answered pings before, owes us an answer, and says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(80);
/// How long output may still follow a Status, and how long a closing handshake may take.
const LINGER: Duration = Duration::from_secs(2);
/// A Status longer than this is no Status.
const MAX_STATUS: usize = 64 * 1024;
/// Bytes that are read from a socket at once: one TLS record. tungstenite's own 128 KiB are cleared before each read, and are
/// most of what an idle session costs.
const READ_BUFFER: usize = 16 * 1024;

/// The longest message that is taken. API servers copy outputs in pieces of 32 KiB; more is somebody's who wants our memory.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// How the sockets buffer.
pub(super) fn socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// Starts both tasks.
pub(super) fn run<S>(socket: S, half_close: bool, tasks: &TaskTracker) -> Streams
where
    S: Stream<Item = Result<Message, tungstenite::Error>> + Sink<Message, Error = tungstenite::Error> + Send + 'static,
{
    let (output_in, output) = mpsc::channel(OUTPUT_QUEUE);
    let (input, input_out) = mpsc::channel(INPUT_QUEUE);
    let (size, sizes) = watch::channel(None);
    let (sink, stream) = socket.split();
    let stop = CancellationToken::new();
    let owed = Arc::new(Owed::default());
    let heard = Arc::new(Heard::default());
    let writer = Writer { input: input_out, sizes, half_close, owed: Arc::clone(&owed), heard: Arc::clone(&heard) };
    tasks.spawn(write(sink, writer, stop.clone()));
    tasks.spawn(async move {
        // Dropping the guard ends the writer, and with both halves the socket.
        let _stop = stop.drop_guard();
        let end = read(stream, &output_in, &owed, &heard).await;
        if let Some(end) = end {
            let _ = output_in.send(Output::End(end)).await;
        }
    });
    Streams { output, input, size, half_close }
}

/// Whether the server owes us the answer to a ping. It reads messages in order and stops at stdin that the program doesn't
/// take, so a missing answer behind stdin proves nothing.
#[derive(Debug, Default)]
struct Owed {
    /// Messages of stdin so far.
    sent: AtomicU64,
    /// One more than the value of `sent` in the last answered ping; 0 = none was answered yet.
    answered: AtomicU64,
}

impl Owed {
    fn is_owed(&self) -> bool {
        self.answered.load(Ordering::Acquire) == self.sent.load(Ordering::Acquire) + 1
    }
}

/// What the reader is at, for the writer's pings. An API server closes the connection when the program has ended, whether or
/// not we have read all output; a ping to a closed connection makes its kernel reset it, and ours then throws away what is not
/// read yet. So nobody pings who has something to read.
#[derive(Debug, Default)]
struct Heard {
    /// Messages so far.
    messages: AtomicU64,
    /// Whether the reader waits for the consumer of the output, and so doesn't know what else has come.
    stalled: AtomicBool,
}

impl Heard {
    /// Whether nothing has come since `before`, the value of an earlier call; which becomes the present one.
    fn is_idle_since(&self, before: &mut u64) -> bool {
        let now = self.messages.load(Ordering::Acquire);
        std::mem::replace(before, now) == now && !self.stalled.load(Ordering::Acquire)
    }
}

/// Reads until the end. `None` where the consumer is gone.
async fn read(
    stream: impl Stream<Item = Result<Message, tungstenite::Error>>,
    output: &mpsc::Sender<Output>,
    owed: &Owed,
    heard: &Heard,
) -> Option<StreamEnd> {
    let mut stream = pin!(stream);
    let mut status: Vec<u8> = Vec::new();
    let mut ended: Option<StreamEnd> = None;
    loop {
        let patience = if ended.is_some() { LINGER } else { SILENCE };
        let next = tokio::select! {
            () = output.closed() => return None,
            next = timeout(patience, stream.next()) => next,
        };
        let message = match (next, ended.take()) {
            (Err(_) | Ok(None | Some(Err(_) | Ok(Message::Close(_)))), Some(end)) => return Some(end),
            (Ok(Some(Ok(message))), end) => {
                ended = end;
                message
            }
            (Err(_), None) if owed.is_owed() => {
                return Some(StreamEnd::Lost(format!("the API server did not answer for {SILENCE:?}")));
            }
            (Err(_), None) => continue,
            (Ok(None), None) => return Some(StreamEnd::Lost("the connection ended without a status".to_owned())),
            (Ok(Some(Err(error))), None) => return Some(StreamEnd::Lost(broke(&error))),
        };
        heard.messages.fetch_add(1, Ordering::AcqRel);
        let data = match message {
            Message::Binary(data) => data,
            Message::Pong(stamp) => {
                if let Ok(stamp) = <[u8; 8]>::try_from(stamp.as_ref()) {
                    owed.answered.store(u64::from_be_bytes(stamp).saturating_add(1), Ordering::Release);
                }
                continue;
            }
            Message::Ping(_) | Message::Frame(_) => continue,
            Message::Text(_) => return Some(StreamEnd::Lost("the API server sent text frames".to_owned())),
            Message::Close(frame) => {
                let why = frame.map_or_else(String::new, |frame| format!(": {} {}", frame.code, frame.reason));
                return Some(StreamEnd::Lost(format!("the API server closed the connection without a status{why}")));
            }
        };
        match frames::read(data) {
            frames::Incoming::Stdout(data) => send(output, data, Output::Stdout, heard).await?,
            frames::Incoming::Stderr(data) => send(output, data, Output::Stderr, heard).await?,
            frames::Incoming::Status(data) => {
                status.extend_from_slice(&data);
                ended = frames::end_of(&status);
                if ended.is_none() && status.len() > MAX_STATUS {
                    return Some(StreamEnd::Lost("the API server's status can't be read".to_owned()));
                }
            }
            frames::Incoming::Nothing => {}
        }
    }
}

/// In pieces, so that the queue's bound is one of bytes. `None` where the consumer is gone.
async fn send(
    output: &mpsc::Sender<Output>,
    mut data: Bytes,
    as_output: fn(Bytes) -> Output,
    heard: &Heard,
) -> Option<()> {
    heard.stalled.store(true, Ordering::Release);
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(PIECE));
        output.send(as_output(piece)).await.ok()?;
    }
    heard.stalled.store(false, Ordering::Release);
    Some(())
}

struct Writer {
    input: mpsc::Receiver<Input>,
    sizes: watch::Receiver<Option<(u16, u16)>>,
    half_close: bool,
    owed: Arc<Owed>,
    heard: Arc<Heard>,
}

/// Writes until `stop`, or until the connection takes no more (the reader says why).
async fn write(sink: impl Sink<Message, Error = tungstenite::Error>, mut writer: Writer, stop: CancellationToken) {
    let mut sink = pin!(sink);
    let work = async {
        let mut pings = interval(PING);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pings.tick().await;
        let (mut input_open, mut sizes_open, mut heard) = (true, true, 0);
        loop {
            let message = tokio::select! {
                biased;
                changed = writer.sizes.changed(), if sizes_open => {
                    sizes_open = changed.is_ok();
                    let size = *writer.sizes.borrow_and_update();
                    match size {
                        Some(size) if sizes_open => frames::resize(size),
                        _ => continue,
                    }
                }
                _ = pings.tick() => {
                    if !writer.heard.is_idle_since(&mut heard) {
                        continue;
                    }
                    let stamp = writer.owed.sent.load(Ordering::Acquire).to_be_bytes();
                    sink.send(Message::Ping(Bytes::copy_from_slice(&stamp))).await?;
                    continue;
                }
                input = writer.input.recv(), if input_open => match input {
                    Some(Input::Stdin(data)) => {
                        for piece in data.chunks(PIECE) {
                            writer.owed.sent.fetch_add(1, Ordering::AcqRel);
                            sink.send(Message::Binary(frames::stdin(piece))).await?;
                        }
                        continue;
                    }
                    Some(Input::CloseStdin) if writer.half_close => {
                        input_open = false;
                        frames::close_stdin()
                    }
                    // Without half-close nothing can tell it without losing the output.
                    Some(Input::CloseStdin) | None => {
                        input_open = false;
                        continue;
                    }
                },
            };
            sink.send(Message::Binary(message)).await?;
        }
        #[allow(unreachable_code)]
        Ok::<(), tungstenite::Error>(())
    };
    tokio::select! {
        () = stop.cancelled() => {}
        _ = work => {
            stop.cancelled().await;
        }
    }
    // Polite where it costs nothing; the socket closes either way.
    let _ = timeout(LINGER, sink.close()).await;
}

/// For the user: an end without the peer's farewell is the common case (an API server that died), and rustls' words for it are
/// for programmers.
fn broke(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the Kubernetes API server closed the connection".to_owned()
        }
        error => format!("the connection to the Kubernetes API server broke: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::duplex, time::sleep};
    use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

    #[tokio::test(start_paused = true)]
    async fn who_has_something_to_read_pings_nobody() {
        let (ours, theirs) = duplex(1024 * 1024);
        let client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
        let mut streams = run(client, true, &TaskTracker::new());
        let (mut out, incoming) = server.split();
        let pings = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&pings);
        let counts = tokio::spawn(async move {
            let pings = incoming.filter(|message| std::future::ready(matches!(message, Ok(Message::Ping(_)))));
            let count = |_| {
                counted.fetch_add(1, Ordering::AcqRel);
                std::future::ready(())
            };
            pings.for_each(count).await;
        });
        // More than the queue takes, and nobody reads it.
        let pieces = OUTPUT_QUEUE + 4;
        for _ in 0..pieces {
            out.send(Message::Binary(Bytes::from_static(b"\x01out"))).await.expect("taken");
        }
        sleep(PING * 10).await;
        assert_eq!(pings.load(Ordering::Acquire), 0, "a reset would throw away what is not read");
        for _ in 0..pieces {
            assert!(matches!(streams.output.recv().await, Some(Output::Stdout(bytes)) if bytes == "out"));
        }
        // One that speaks all the time needs none either.
        for _ in 0..20 {
            out.send(Message::Binary(Bytes::from_static(b"\x01out"))).await.expect("taken");
            assert!(matches!(streams.output.recv().await, Some(Output::Stdout(_))));
            sleep(PING / 2).await;
        }
        assert_eq!(pings.load(Ordering::Acquire), 0);
        sleep(PING * 2).await;
        assert!(pings.load(Ordering::Acquire) > 0, "an idle one is kept alive");
        drop(streams);
        counts.await.expect("no panic");
    }
}
