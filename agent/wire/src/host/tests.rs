mod bounds;
mod lives;

use super::*;
use crate::{
    client::{Client, Config as ClientConfig, Event, Key, LinkError, ResumeFrom},
    frame::{MAGIC, put_control},
    id::Attempt,
    proto::{ToAgent, to_agent},
};
use bytes::BytesMut;

const SESSION: SessionId = SessionId([1; 16]);

/// A host, a client, and the link between them; time is by hand.
struct Pair {
    host: Host,
    client: Client,
    link: Option<LinkKey>,
    now: Instant,
    events: Vec<Event>,
    signals: Vec<String>,
    spawned: Vec<ProgramKey>,
    forgotten: usize,
    /// Programs start at once.
    starts: bool,
}

impl Pair {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(Instance([7; 16]));
        change(&mut config);
        let mut pair = Self {
            host: Host::new(config),
            client: Client::new(ClientConfig::default()),
            link: None,
            now: Instant::now(),
            events: Vec::new(),
            signals: Vec::new(),
            spawned: Vec::new(),
            forgotten: 0,
            starts: true,
        };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        self.link = self.host.link_opened(self.now);
        self.client.connected(self.now);
    }

    fn lose(&mut self) {
        self.client.disconnected();
        if let Some(link) = self.link.take() {
            self.host.link_closed(link, self.now);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.host.tick(self.now);
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.host.next_action() {
            match action {
                Action::Spawn { program, .. } => {
                    self.spawned.push(program);
                    if self.starts {
                        self.host.spawned(program, Ok(5), self.now);
                    }
                }
                Action::Signal { program, name, request } => {
                    self.signals.push(name);
                    if let Some(request) = request {
                        self.host.answered(program, request, Ok(()));
                    }
                }
                Action::Forget { .. } => self.forgotten += 1,
                Action::Resize { program, request, .. } => self.host.answered(program, request, Ok(())),
                Action::WriteFile { .. } => {}
            }
        }
    }

    /// Moves everything; gives the client's first error.
    fn settle(&mut self) -> Result<(), LinkError> {
        loop {
            self.act();
            let Some(link) = self.link else { return Ok(()) };
            let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
            self.client.transmit(&mut up, 10_000, self.now);
            if !up.is_empty() {
                self.host.receive(link, &up, self.now);
            }
            self.act();
            self.host.transmit(link, &mut down, 10_000, self.now);
            let result = if down.is_empty() { Ok(()) } else { self.client.receive(&down, self.now) };
            while let Some(event) = self.client.next_event() {
                self.events.push(event);
            }
            result?;
            if up.is_empty() && down.is_empty() {
                return Ok(());
            }
        }
    }

    fn start(&mut self) -> Key {
        let key = self.client.start(SESSION, Attempt::new(1), &Start::new(["x"]), ResumeFrom::default());
        self.settle().expect("a sound host");
        key
    }

    fn exit(&mut self, code: u8) {
        let program = *self.spawned.last().expect("a program");
        self.host.exited(program, Exit::Code(code), self.now);
        self.host.output_ended(program, Out::Stdout);
        self.host.output_ended(program, Out::Stderr);
        self.settle().expect("a sound host");
    }

    fn closed(&self, of: Key) -> Option<Reason> {
        self.events.iter().find_map(|event| match event {
            Event::Closed { key, reason, .. } if *key == of => Some(*reason),
            _ => None,
        })
    }

    fn saw(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| wanted(event)).count()
    }
}

const HOUR: Duration = Duration::from_hours(1);
const SECOND: Duration = Duration::from_secs(1);
