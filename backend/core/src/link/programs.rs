//! What is asked of one link's agent, and who waits for which of its words: the wire's client on one side, the sessions' queues on
//! the other. No I/O: [`super::actor`] carries the client's bytes.

use super::{News, Written, commands::Do};
use crate::failure::short;
use podbay_agent_wire::{
    client::{Client, Config, Event, Key, RequestError},
    proto,
};
use std::collections::HashMap;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// The programs of one link, by their tokens, and other questions under way.
pub(super) struct Programs {
    pub client: Client,
    /// The pod's name, for the log.
    pod: String,
    all: HashMap<u64, Program>,
    tokens: HashMap<Key, u64>,
    acks: Vec<(podbay::SessionId, oneshot::Sender<bool>)>,
    lists: HashMap<u64, oneshot::Sender<Vec<proto::Session>>>,
    files: HashMap<u64, oneshot::Sender<Written>>,
}

struct Program {
    key: Key,
    news: mpsc::UnboundedSender<News>,
}

impl Programs {
    /// None yet, of this pod.
    pub fn new(pod: String) -> Self {
        Self {
            client: Client::new(Config {
                name: format!("podbay-backend {}", env!("CARGO_PKG_VERSION")),
                ..Config::default()
            }),
            pod,
            all: HashMap::new(),
            tokens: HashMap::new(),
            acks: Vec::new(),
            lists: HashMap::new(),
            files: HashMap::new(),
        }
    }

    /// Whether anything needs the link.
    pub fn want_link(&self) -> bool {
        !self.all.is_empty() || self.client.wants_link()
    }

    /// Does what a program asks for; `now` bounds from below when its requests are due.
    pub fn act(&mut self, token: u64, what: Do, now: Instant) {
        match what {
            Do::Start { session, attempt, start, from, news } => {
                let key = self.client.start(wire_id(session), attempt, &start, from);
                self.all.insert(token, Program { key, news });
                self.tokens.insert(key, token);
            }
            Do::Attach { session, attempt, take_over, from, news } => {
                let key = self.client.attach(wire_id(session), attempt, take_over, from);
                self.all.insert(token, Program { key, news });
                self.tokens.insert(key, token);
            }
            Do::AckExit { session, done } => {
                self.client.ack_exit(wire_id(session));
                self.acks.push((session, done));
            }
            Do::List { session, done } => {
                let id = self.client.list(session.map(wire_id));
                self.lists.insert(id, done);
            }
            Do::WriteFile { path, mode, data, done } => {
                let id = self.client.write_file(path.into_bytes(), mode, data);
                self.files.insert(id, done);
            }
            Do::Stdin { offset, data } => {
                if let Some(program) = self.all.get(&token)
                    && let Err(error) = self.client.stdin(program.key, offset, &data)
                {
                    // The session has checked it against the same credit.
                    tracing::debug!(%error, "stdin that a program does not take");
                }
            }
            Do::Eof { id, offset } => {
                if let Some(program) = self.all.get(&token)
                    && let Err(error) = self.client.eof(program.key, id, offset)
                {
                    tracing::debug!(%error, "an end of stdin that a program does not take");
                }
            }
            Do::Signal { id, name, deadline } => {
                let result =
                    self.all.get(&token).map(|p| self.client.signal(p.key, id, &name, deadline.max(now).into_std()));
                self.refused(token, id, result);
            }
            Do::Resize { id, size, deadline } => {
                let result =
                    self.all.get(&token).map(|p| self.client.resize(p.key, id, size, deadline.max(now).into_std()));
                self.refused(token, id, result);
            }
            Do::Credit { stream, limit } => {
                if let Some(program) = self.all.get(&token) {
                    self.client.credit(program.key, stream, limit);
                }
            }
            Do::Ack { stream, offset } => {
                if let Some(program) = self.all.get(&token) {
                    self.client.ack(program.key, stream, offset);
                }
            }
            Do::Detach { keep } => {
                if let Some(program) = self.all.get(&token) {
                    self.client.detach(program.key, keep);
                }
            }
            Do::Release => {
                if let Some(program) = self.all.get(&token) {
                    self.client.release(program.key);
                }
            }
        }
    }

    /// A request that the client does not take is answered all the same.
    fn refused(&self, token: u64, id: u64, result: Option<Result<(), RequestError>>) {
        let (Some(Err(error)), Some(program)) = (result, self.all.get(&token)) else { return };
        let reason = match error {
            RequestError::TooMany => proto::Reason::Limit,
            RequestError::Unknown => proto::Reason::Ended,
            RequestError::Flow(_) | RequestError::Id => proto::Reason::Invalid,
        };
        let result = Err((reason, error.to_string()));
        let _ = program.news.send(News::Wire(Event::Answer { key: program.key, id, result }));
    }

    /// Its session is gone: the program runs on for its orphan timeout.
    pub fn leave(&mut self, token: u64) {
        if let Some(program) = self.all.remove(&token) {
            self.tokens.remove(&program.key);
            self.client.detach(program.key, None);
        }
    }

    /// Hands the agent's events on.
    pub fn tell(&mut self) {
        while let Some(event) = self.client.next_event() {
            let key = match &event {
                Event::Started { key, .. }
                | Event::Relinked { key }
                | Event::Data { key, .. }
                | Event::Gap { key, .. }
                | Event::End { key, .. }
                | Event::Credit { key, .. }
                | Event::Ack { key, .. }
                | Event::Answer { key, .. }
                | Event::Exit { key, .. }
                | Event::Closed { key, .. } => *key,
                Event::Linked { agent_version, .. } => {
                    tracing::debug!(pod = self.pod, agent_version, "linked to the agent");
                    continue;
                }
                Event::Forgotten { session, running } => {
                    let (done, waiting) =
                        std::mem::take(&mut self.acks).into_iter().partition(|(id, _)| wire_id(*id) == *session);
                    self.acks = waiting;
                    let done: Vec<_> = done;
                    for (_, done) in done {
                        let _ = done.send(!running);
                    }
                    continue;
                }
                Event::Listed { id, sessions } => {
                    if let Some(done) = self.lists.remove(id) {
                        let _ = done.send(sessions.clone());
                    }
                    continue;
                }
                Event::FileWritten { id, result } => {
                    if let Some(done) = self.files.remove(id) {
                        let _ = done.send(result.clone().map_err(|(_, words)| short(&words)));
                    }
                    continue;
                }
            };
            let closed = matches!(event, Event::Closed { .. });
            let Some(token) = self.tokens.get(&key).copied() else { continue };
            if let Some(program) = self.all.get(&token) {
                // A session that is gone is on its way to `left`.
                let _ = program.news.send(News::Wire(event));
            }
            if closed {
                self.tokens.remove(&key);
                self.all.remove(&token);
            }
        }
    }

    /// Tells all programs the last that they hear.
    pub fn end(&mut self, news: impl Fn() -> News) {
        for (_, program) in self.all.drain() {
            let _ = program.news.send(news());
        }
    }
}

fn wire_id(session: podbay::SessionId) -> podbay_agent_wire::id::SessionId {
    podbay_agent_wire::id::SessionId(*session.as_bytes())
}
