//! Output on its way to the client: the program's, and our own lines on stderr.

use super::link::Link;
use crate::{metrics::Direction, ssh::Conn};
use bytes::{Bytes, BytesMut};
use podbay::{
    FRAME,
    v1::{self, Stream},
};
use prometheus_client::metrics::counter::Counter;
use russh::{ChannelWriteHalf, server::Msg};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// SSH_EXTENDED_DATA_STDERR.
const STDERR: u32 = 1;

/// Larger pieces go out as they are: copying them together would cost more than a packet.
const SMALL: usize = 8 * 1024;

/// Lines of ours that may wait for a client that reads nothing.
const NOTES: usize = 16;

/// The longest line of ours.
const MAX_NOTE: usize = 2048;

#[derive(Debug)]
enum Item {
    /// Bounded by the credit of its stream.
    Data { stream: Stream, data: Bytes, link: Arc<Link> },
    /// Bounded by [`NOTES`].
    Note(Bytes),
}

/// Where output is put. The queue has no bound of its own: what is in it has.
#[derive(Debug)]
pub struct Output {
    items: Mutex<Option<mpsc::UnboundedSender<Item>>>,
    notes: Arc<AtomicUsize>,
    broken: CancellationToken,
    newline: &'static str,
}

impl Output {
    /// An output and its task.
    pub fn new(conn: &Arc<Conn>, write: &Arc<ChannelWriteHalf<Msg>>, pty: bool, tasks: &mut JoinSet<()>) -> Self {
        let (items, queue) = mpsc::unbounded_channel();
        let (notes, broken) = (Arc::<AtomicUsize>::default(), CancellationToken::new());
        let bytes = conn.server.metrics.bytes(Direction::Output);
        let writer =
            Writer { write: Arc::clone(write), queue, batch: VecDeque::new(), notes: Arc::clone(&notes), bytes };
        let guard = broken.clone().drop_guard();
        tasks.spawn(async move {
            let _guard = guard;
            writer.run().await;
        });
        Self { items: Mutex::new(Some(items)), notes, broken, newline: if pty { "\r\n" } else { "\n" } }
    }

    fn put(&self, item: Item) {
        if let Some(items) = &*self.items.lock().unwrap_or_else(PoisonError::into_inner) {
            // A writer that is gone has said so by `broken`.
            let _ = items.send(item);
        }
    }

    /// Output of the program, which the link has checked.
    pub fn data(&self, link: &Arc<Link>, data: v1::Data) {
        let stream = data.stream();
        if !data.data.is_empty() {
            self.put(Item::Data { stream, data: data.data, link: Arc::clone(link) });
        }
    }

    /// A line of ours on stderr. Left out where many wait already.
    pub fn note(&self, text: &str) {
        if text.is_empty() || self.notes.fetch_add(1, Ordering::Relaxed) >= NOTES {
            return;
        }
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_NOTE).collect();
        self.put(Item::Note(format!("podbay: {text}{}", self.newline).into()));
    }

    /// No more output: the task ends when the rest is written.
    pub fn finish(&self) {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Returns when the channel takes nothing any more.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }
}

struct Writer {
    write: Arc<ChannelWriteHalf<Msg>>,
    queue: mpsc::UnboundedReceiver<Item>,
    batch: VecDeque<Item>,
    notes: Arc<AtomicUsize>,
    bytes: Counter,
}

impl Writer {
    /// Writes until the queue ends. Window is taken before bytes are handed over, so it must not be dropped in between;
    /// it is aborted only when the channel is gone.
    async fn run(mut self) {
        while let Some(item) = self.next().await {
            let written = match item {
                Item::Note(text) => {
                    self.notes.fetch_sub(1, Ordering::Relaxed);
                    self.write.extended_data_bytes(STDERR, text).await.is_ok()
                }
                Item::Data { stream, data, link } => {
                    let data = self.merged(stream, data);
                    let len = data.len();
                    let written = match stream {
                        Stream::Stderr => self.write.extended_data_bytes(STDERR, data).await,
                        Stream::Stdout | Stream::Stdin | Stream::Unspecified => self.write.data_bytes(data).await,
                    };
                    self.bytes.inc_by(len as u64);
                    link.taken(stream, len);
                    written.is_ok()
                }
            };
            if !written {
                return;
            }
        }
    }

    async fn next(&mut self) -> Option<Item> {
        match self.batch.pop_front() {
            Some(item) => Some(item),
            None => self.queue.recv().await,
        }
    }

    /// Small pieces that wait behind a small one, together with it, up to one frame.
    fn merged(&mut self, stream: Stream, first: Bytes) -> Bytes {
        if first.len() >= SMALL {
            return first;
        }
        let mut merged: Option<BytesMut> = None;
        loop {
            if self.batch.is_empty() {
                match self.queue.try_recv() {
                    Ok(item) => self.batch.push_back(item),
                    Err(_) => break,
                }
            }
            let so_far = merged.as_ref().map_or(first.len(), BytesMut::len);
            match self.batch.front() {
                Some(Item::Data { stream: next, data, .. })
                    if *next == stream && data.len() < SMALL && so_far + data.len() <= FRAME =>
                {
                    merged.get_or_insert_with(|| BytesMut::from(&first[..])).extend_from_slice(data);
                    self.batch.pop_front();
                }
                Some(Item::Data { .. } | Item::Note(_)) | None => break,
            }
        }
        merged.map_or(first, BytesMut::freeze)
    }
}
