//! The client's link of now: its bytes in and out.

use super::{
    Client, Event, Key, LinkError,
    program::{Place, Want},
};
use crate::{
    flow::FlowError,
    frame::{Decoder, Frame, MAGIC, MAX_OFFSET, MAX_TO_BACKEND, Stream, VERSION, put_control},
    id::{Attempt, Instance, SessionId},
    program::Exit,
    proto::{self, Reason, ToAgent, ToBackend, to_agent, to_backend},
};
use bytes::{BufMut as _, BytesMut};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

#[derive(Debug)]
pub(super) enum Link {
    Down,
    /// A byte stream is there.
    Up(Box<Up>),
}

#[derive(Debug)]
pub(super) struct Up {
    pub(super) decoder: Decoder<ToBackend>,
    /// Its hello has come.
    pub(super) hello: bool,
    pub(super) control: BytesMut,
    pub(super) numbers: BTreeMap<u16, Key>,
    next_number: u16,
    pub(super) heard: Instant,
    pub(super) pinged: Instant,
}

impl Up {
    pub(super) fn put(&mut self, message: to_agent::Message) {
        put_control(&ToAgent { message: Some(message) }, &mut self.control);
    }

    pub(super) fn number(&mut self) -> Option<u16> {
        let numbers = &self.numbers;
        let free = (0..=u16::MAX).map(|step| self.next_number.wrapping_add(step)).find(|n| !numbers.contains_key(n))?;
        self.next_number = free.wrapping_add(1);
        Some(free)
    }
}

impl From<FlowError> for LinkError {
    fn from(error: FlowError) -> Self {
        Self::Violation(error.to_string())
    }
}

fn violation(what: &str) -> LinkError {
    LinkError::Violation(what.to_owned())
}

fn result(refusal: i32, message: String) -> Result<(), (Reason, String)> {
    if refusal == 0 { Ok(()) } else { Err((Reason::read(refusal), message)) }
}

impl Client {
    /// There is a new byte stream to the pod: a fresh exec of `podbay-agent attach`. An old one counts as lost.
    pub fn connected(&mut self, now: Instant) {
        self.disconnected();
        let mut up = Up {
            decoder: Decoder::new(MAX_TO_BACKEND),
            hello: false,
            control: BytesMut::new(),
            numbers: BTreeMap::new(),
            next_number: 0,
            heard: now,
            pinged: now,
        };
        up.control.put_slice(&MAGIC);
        up.put(to_agent::Message::Hello(proto::BackendHello {
            version: VERSION,
            min_version: VERSION,
            features: 0,
            name: self.config.name.clone(),
        }));
        self.link = Link::Up(Box::new(up));
    }

    /// The byte stream is gone. What was under way is sent again over the next one.
    pub fn disconnected(&mut self) {
        self.link = Link::Down;
        self.ready.clear();
        self.programs.values_mut().for_each(super::Program::unlinked);
        self.acks.values_mut().for_each(|sent| *sent = false);
        self.lists.values_mut().for_each(|(_, sent)| *sent = false);
        self.files.values_mut().for_each(|file| file.sent = Some(0));
    }

    /// Whether there is a byte stream and its hello has come.
    pub fn is_linked(&self) -> bool {
        matches!(&self.link, Link::Up(up) if up.hello)
    }

    /// Bytes that arrived. After an error the link is [down](Self::disconnected); events before it stand.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) -> Result<(), LinkError> {
        if let Link::Up(up) = &mut self.link {
            up.heard = now;
            up.decoder.push(bytes);
        }
        let result = self.read();
        if result.is_err() {
            self.disconnected();
        }
        result
    }

    /// The byte stream ended by itself: as [`disconnected`](Self::disconnected), and tells what the peer said if it was no agent.
    pub fn ended(&mut self) -> Option<LinkError> {
        let error = match &self.link {
            Link::Up(up) if !up.decoder.begun() => {
                Some(LinkError::Frame(crate::frame::FrameError::NotAnAgent(up.decoder.sample())))
            }
            Link::Up(_) | Link::Down => None,
        };
        self.disconnected();
        error
    }

    fn read(&mut self) -> Result<(), LinkError> {
        loop {
            let Link::Up(up) = &mut self.link else { return Ok(()) };
            let Some(frame) = up.decoder.next()? else { return Ok(()) };
            self.frame(frame)?;
        }
    }

    fn frame(&mut self, frame: Frame<ToBackend>) -> Result<(), LinkError> {
        let Link::Up(up) = &mut self.link else { return Ok(()) };
        if !up.hello {
            let Frame::Control(ToBackend { message: Some(message) }) = frame else {
                return Err(violation("the first frame is no hello"));
            };
            return match message {
                to_backend::Message::Hello(hello) => self.hello(&hello),
                to_backend::Message::Goodbye(goodbye) => Err(goodbye.into()),
                _ => Err(violation("the first frame is no hello")),
            };
        }
        match frame {
            Frame::Control(ToBackend { message }) => message.map_or(Ok(()), |message| self.message(message)),
            Frame::Data { program, stream, offset, data } => {
                let key = self.started(program)?;
                let Some(reading) = self.programs.get_mut(&key).and_then(|p| p.reading(stream)) else {
                    return Err(violation("stdin from an agent"));
                };
                reading.receive(offset, data.len())?;
                self.events.push_back(Event::Data { key, stream, offset, data });
                Ok(())
            }
            Frame::End { program, stream, offset } => {
                let key = self.started(program)?;
                let Some(reading) = self.programs.get_mut(&key).and_then(|p| p.reading(stream)) else {
                    return Err(violation("stdin from an agent"));
                };
                if reading.end(offset)? {
                    self.events.push_back(Event::End { key, stream, offset });
                }
                Ok(())
            }
            Frame::Credit { program, stream, limit } => {
                let key = self.started(program)?;
                if stream != Stream::Stdin {
                    return Err(violation("credit for output"));
                }
                self.stdin_granted(key, limit);
                Ok(())
            }
            Frame::Ack { program, stream, offset } => {
                let key = self.started(program)?;
                if stream != Stream::Stdin {
                    return Err(violation("an ack for output"));
                }
                let Some(state) = self.programs.get_mut(&key) else { return Ok(()) };
                let before = state.stdin.start();
                state.stdin.acked(offset)?;
                if state.stdin.start() > before {
                    self.events.push_back(Event::Ack { key, offset });
                    self.stdin_granted(key, 0);
                }
                Ok(())
            }
        }
    }

    fn stdin_granted(&mut self, key: Key, granted: u64) {
        if let Some(limit) = self.programs.get_mut(&key).and_then(|state| state.stdin.grant(granted)) {
            self.events.push_back(Event::Credit { key, limit });
        }
    }

    fn hello(&mut self, hello: &proto::AgentHello) -> Result<(), LinkError> {
        if hello.min_version > VERSION || hello.version < VERSION {
            return Err(LinkError::Version { min: hello.min_version, max: hello.version, ours: VERSION });
        }
        let instance = Instance::try_from(&hello.instance[..]).map_err(|error| violation(&error.to_string()))?;
        if let Link::Up(up) = &mut self.link {
            up.hello = true;
        }
        self.events.push_back(Event::Linked {
            instance,
            agent_version: hello.agent_version.chars().take(128).collect(),
            features: hello.features,
            memory_budget: hello.memory_budget,
        });
        let other = self.instance.replace(instance).is_some_and(|before| before != instance);
        if other {
            // What the other one knew is gone with it.
            for (session, _) in std::mem::take(&mut self.acks) {
                self.forgotten(session, false);
            }
        }
        for key in self.programs.keys().copied().collect::<Vec<_>>() {
            let Some(program) = self.programs.get(&key) else { continue };
            let lost = program.instance.is_some_and(|before| before != instance);
            if lost && program.wants_link() {
                self.remove(key, Reason::InstanceDiffers, String::new());
            } else if program.wants_link() {
                self.wake(key);
            }
        }
        Ok(())
    }

    /// The key behind a number, once Started has come.
    fn started(&self, number: u16) -> Result<Key, LinkError> {
        let key = self.numbered(number.into())?;
        match self.programs.get(&key).map(|program| program.place) {
            Some(Place::Has(_)) | None => Ok(key),
            Some(Place::None | Place::Asked(_)) => Err(violation("a frame before Started")),
        }
    }

    fn numbered(&self, number: u32) -> Result<Key, LinkError> {
        let Link::Up(up) = &self.link else { return Err(violation("no link")) };
        let key = u16::try_from(number).ok().and_then(|number| up.numbers.get(&number));
        key.copied().ok_or_else(|| violation("a program's number that was not given"))
    }

    fn message(&mut self, message: to_backend::Message) -> Result<(), LinkError> {
        match message {
            to_backend::Message::Hello(_) => return Err(violation("a second hello")),
            to_backend::Message::Started(started) => self.on_started(&started)?,
            to_backend::Message::Answer(answer) => {
                let key = self.numbered(answer.program)?;
                let Some(program) = self.programs.get_mut(&key) else { return Ok(()) };
                let at = program.requests.iter().position(|request| request.sent && request.id == answer.id);
                // One whose deadline ran out was answered already.
                if at.and_then(|at| program.requests.remove(at)).is_some() || program.stdin.answered(answer.id) {
                    let result = result(answer.refusal, answer.message);
                    self.events.push_back(Event::Answer { key, id: answer.id, result });
                }
            }
            to_backend::Message::Gap(gap) => {
                let key = self.numbered(gap.program)?;
                if gap.to > MAX_OFFSET {
                    return Err(violation("a gap up to beyond all offsets"));
                }
                let stream = if gap.stderr { Stream::Stderr } else { Stream::Stdout };
                if let Some(reading) = self.programs.get_mut(&key).and_then(|program| program.reading(stream)) {
                    reading.gap(gap.from, gap.to)?;
                    self.events.push_back(Event::Gap { key, stream, from: gap.from, to: gap.to });
                }
            }
            to_backend::Message::Exit(exit) => self.on_exit(exit)?,
            to_backend::Message::Closed(closed) => {
                let key = self.numbered(closed.program)?;
                if let (Link::Up(up), Ok(number)) = (&mut self.link, u16::try_from(closed.program)) {
                    up.numbers.remove(&number);
                }
                self.remove(key, Reason::read(closed.reason), closed.message);
            }
            to_backend::Message::Forgotten(forgotten) => {
                let session =
                    SessionId::try_from(&forgotten.session[..]).map_err(|error| violation(&error.to_string()))?;
                if self.acks.remove(&session).is_some() {
                    let running = Reason::read(forgotten.refusal) == Reason::Running;
                    self.forgotten(session, running);
                }
            }
            to_backend::Message::Sessions(listed) => {
                if self.lists.remove(&listed.id).is_some() {
                    self.events.push_back(Event::Listed { id: listed.id, sessions: listed.sessions });
                }
            }
            to_backend::Message::FileWritten(file) => {
                if self.files.remove(&file.id).is_some() {
                    let result = result(file.refusal, file.message);
                    self.events.push_back(Event::FileWritten { id: file.id, result });
                }
            }
            to_backend::Message::Pong(_) => {}
            to_backend::Message::Goodbye(goodbye) => return Err(goodbye.into()),
        }
        Ok(())
    }

    fn on_started(&mut self, started: &proto::Started) -> Result<(), LinkError> {
        let key = self.numbered(started.program)?;
        let Some(program) = self.programs.get_mut(&key) else { return Ok(()) };
        let Place::Asked(number) = program.place else { return Err(violation("Started, but nothing was asked for")) };
        if started.stdin_offset > MAX_OFFSET {
            return Err(violation("stdin beyond all offsets"));
        }
        program.place = Place::Has(number);
        program.attempt = Attempt(started.attempt);
        program.terminal = started.terminal;
        match std::mem::replace(&mut program.want, Want::Again) {
            Want::Start(_) | Want::Attach { .. } => {
                let stdin_credit = program.stdin.begin(started.stdin_offset, started.stdin_credit);
                self.events.push_back(Event::Started {
                    key,
                    attempt: program.attempt,
                    resumed: started.resumed,
                    stdin_offset: started.stdin_offset,
                    stdin_credit,
                    stdin_ended: started.stdin_ended,
                    pid: started.pid,
                    terminal: started.terminal,
                    ran: (started.ran_ms > 0).then(|| Duration::from_millis(started.ran_ms)),
                    ended: started.ended,
                });
            }
            Want::Again => {
                let before = program.stdin.start();
                if !program.stdin.resume(started.stdin_offset) {
                    return Err(violation("stdin continues where it never was"));
                }
                if started.stdin_offset > before {
                    self.events.push_back(Event::Ack { key, offset: started.stdin_offset });
                }
                self.events.push_back(Event::Relinked { key });
                self.stdin_granted(key, started.stdin_credit);
            }
        }
        self.wake(key);
        Ok(())
    }

    fn on_exit(&mut self, exit: proto::Exit) -> Result<(), LinkError> {
        let key = self.numbered(exit.program)?;
        let Some(program) = self.programs.get_mut(&key) else { return Ok(()) };
        let stopping = exit.stopping;
        let exit = Exit::try_from(exit.status.unwrap_or_default()).map_err(|error| violation(&error.to_string()))?;
        if !program.stdout.arrived.ended() || !(program.stderr.arrived.ended() || program.terminal) {
            return Err(violation("an exit before the end of the output"));
        }
        if !std::mem::replace(&mut program.exited, true) {
            self.events.push_back(Event::Exit { key, exit, stopping });
        }
        Ok(())
    }
}

impl From<proto::Goodbye> for LinkError {
    fn from(goodbye: proto::Goodbye) -> Self {
        let message = goodbye.message.chars().filter(|c| !c.is_control()).take(1024).collect();
        Self::Goodbye { reason: Reason::read(goodbye.reason), message }
    }
}
