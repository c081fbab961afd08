//! The stdio of a container's own program: its output goes to the log and to every attached client, one of them at most
//! as fast as the slowest (as containerd does it); its stdin takes what any of them sends.

use super::log::Log;
use crate::stdio::{Chunks, Ends, Reader, Terminal, Writer};
use bytes::Bytes;
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Channel bytes of the remote command protocol.
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;

/// Chunks under way to one attached client.
const QUEUE: usize = 4;

#[derive(Debug)]
pub(crate) struct Hub {
    pub log: Arc<Log>,
    pub terminal: Option<Arc<Terminal>>,
    stdin: tokio::sync::Mutex<Option<Writer>>,
    outputs: Mutex<Outputs>,
    drained: CancellationToken,
}

#[derive(Debug)]
struct Outputs {
    /// Streams that have not ended.
    open: usize,
    last: u64,
    clients: Vec<Client>,
}

#[derive(Debug, Clone)]
struct Client {
    id: u64,
    stdout: bool,
    stderr: bool,
    queue: mpsc::Sender<Bytes>,
}

impl Hub {
    /// Takes over a program's stdio. Its tasks end with the outputs, or when `removed` is cancelled.
    pub fn new(ends: Ends, log: Arc<Log>, tasks: &TaskTracker, removed: &CancellationToken) -> Arc<Self> {
        let streams: Vec<(Reader, u8)> = [(ends.stdout, STDOUT), (ends.stderr, STDERR)]
            .into_iter()
            .filter_map(|(end, id)| Some((end?, id)))
            .collect();
        let hub = Arc::new(Self {
            log,
            terminal: ends.terminal,
            stdin: tokio::sync::Mutex::new(ends.stdin),
            outputs: Mutex::new(Outputs { open: streams.len(), last: 0, clients: Vec::new() }),
            drained: CancellationToken::new(),
        });
        for (reader, channel) in streams {
            let (hub, removed) = (hub.clone(), removed.clone());
            tasks.spawn(async move {
                removed.run_until_cancelled(hub.pump(Chunks::new(reader, channel))).await;
                hub.stream_ended();
            });
        }
        hub
    }

    fn lock(&self) -> MutexGuard<'_, Outputs> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pump(&self, mut chunks: Chunks) {
        // An error means the same as the end: there is nothing more to be had.
        while let Ok(Some(chunk)) = chunks.next().await {
            self.log.push(chunk.get(1..).unwrap_or_default());
            let wanted = |client: &&Client| match chunk.first() {
                Some(&STDERR) => client.stderr,
                _ => client.stdout,
            };
            let clients: Vec<Client> = self.lock().clients.iter().filter(wanted).cloned().collect();
            for client in clients {
                if client.queue.send(chunk.clone()).await.is_err() {
                    self.lock().clients.retain(|known| known.id != client.id);
                }
            }
        }
    }

    fn stream_ended(&self) {
        let mut outputs = self.lock();
        outputs.open = outputs.open.saturating_sub(1);
        if outputs.open == 0 {
            outputs.clients.clear();
            self.log.close();
            self.drained.cancel();
        }
    }

    /// Waits until all output was read and handed on.
    pub async fn drained(&self) {
        self.drained.cancelled().await;
    }

    /// The output from now on; ends when the program's output does.
    pub fn attach(&self, stdout: bool, stderr: bool) -> mpsc::Receiver<Bytes> {
        let (queue, output) = mpsc::channel(QUEUE);
        let mut outputs = self.lock();
        if outputs.open > 0 {
            outputs.last += 1;
            let id = outputs.last;
            outputs.clients.push(Client { id, stdout, stderr, queue });
        }
        output
    }

    /// Writes to the program's stdin; an error if it has none (any more).
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self.stdin.lock().await.as_mut() {
            Some(stdin) => stdin.write_all(bytes).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends the program's stdin for good.
    pub async fn close_stdin(&self) {
        self.stdin.lock().await.take();
    }
}
