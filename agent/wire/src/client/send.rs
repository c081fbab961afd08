//! What a client sends, and when.

use super::{Client, Event, Key, LinkError, link::Link, program::Place};
use crate::{
    frame::{MAX_DATA, put_control},
    proto::{self, Reason, to_agent},
};
use bytes::BytesMut;
use std::time::Instant;

impl Client {
    /// Appends frames to send to `out` until it has about `target` bytes (at most one frame more), or there are no more.
    pub fn transmit(&mut self, out: &mut BytesMut, target: usize, now: Instant) {
        while out.len() < target {
            let Link::Up(up) = &mut self.link else { return };
            if !up.control.is_empty() {
                out.extend_from_slice(&up.control.split());
                continue;
            }
            if !up.hello {
                return;
            }
            if self.queue_requests() {
                continue;
            }
            let Some(key) = self.ready.pop_front() else { return };
            self.transmit_program(key, out, now);
        }
    }

    fn transmit_program(&mut self, key: Key, out: &mut BytesMut, now: Instant) {
        let (Link::Up(up), Some(instance)) = (&mut self.link, self.instance) else { return };
        let Some(program) = self.programs.get_mut(&key) else { return };
        program.queued = false;
        match program.place {
            Place::None if !program.wants_link() => {}
            Place::None => {
                let Some(number) = up.number() else { return };
                up.numbers.insert(number, key);
                put_control(&program.ask(number, instance), out);
            }
            Place::Asked(_) => {}
            Place::Has(number) => {
                if program.transmit(number, out, now) {
                    self.wake(key);
                }
            }
        }
    }

    /// Puts one message of no program into the link's queue, if there is one to send.
    fn queue_requests(&mut self) -> bool {
        let Link::Up(up) = &mut self.link else { return false };
        if let Some((session, sent)) = self.acks.iter_mut().find(|(_, sent)| !**sent) {
            *sent = true;
            up.put(to_agent::Message::AckExit(proto::AckExit { session: (*session).into() }));
            return true;
        }
        if let Some((id, (session, sent))) = self.lists.iter_mut().find(|(_, (_, sent))| !*sent) {
            *sent = true;
            let session = session.map(Into::into).unwrap_or_default();
            up.put(to_agent::Message::List(proto::List { id: *id, session }));
            return true;
        }
        let turn = std::mem::take(&mut self.programs_turn) && !self.ready.is_empty();
        let Some((id, file)) = self.files.iter_mut().find(|(_, file)| !turn && file.sent.is_some()) else {
            return false;
        };
        self.programs_turn = true;
        let at = file.sent.unwrap_or_default();
        let end = file.data.len().min(at + MAX_DATA);
        let last = end == file.data.len();
        file.sent = (!last).then_some(end);
        up.put(to_agent::Message::WriteFile(proto::WriteFile {
            id: *id,
            path: file.path.clone(),
            mode: file.mode,
            offset: at as u64,
            data: file.data.slice(at..end),
            last,
        }));
        true
    }

    /// Whether [`transmit`](Self::transmit) may have something.
    pub fn wants_output(&self) -> bool {
        let Link::Up(up) = &self.link else { return false };
        let requests = || {
            self.acks.values().any(|sent| !sent)
                || self.lists.values().any(|(_, sent)| !sent)
                || self.files.values().any(|file| file.sent.is_some())
        };
        !up.control.is_empty() || (up.hello && (!self.ready.is_empty() || requests()))
    }

    /// When [`tick`](Self::tick) is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let requests =
            self.programs.values().flat_map(|program| program.requests.iter().map(|request| request.deadline));
        let link = match &self.link {
            Link::Down => None,
            Link::Up(up) => Some((up.heard + self.config.silence).min(up.pinged + self.config.ping_every)),
        };
        requests.chain(link).min()
    }

    /// Does what is due. After an error the link is [down](Self::disconnected).
    pub fn tick(&mut self, now: Instant) -> Result<(), LinkError> {
        for (&key, program) in &mut self.programs {
            while let Some(at) = program.requests.iter().position(|request| now >= request.deadline) {
                let Some(request) = program.requests.remove(at) else { break };
                let result = Err((Reason::Deadline, "no answer from the agent in time".to_owned()));
                self.events.push_back(Event::Answer { key, id: request.id, result });
            }
        }
        let Link::Up(up) = &mut self.link else { return Ok(()) };
        if now >= up.heard + self.config.silence {
            self.disconnected();
            return Err(LinkError::Silent);
        }
        if now >= up.pinged + self.config.ping_every {
            up.pinged = now;
            if up.hello && up.control.is_empty() {
                up.put(to_agent::Message::Ping(proto::Ping { id: 1 }));
            }
        }
        Ok(())
    }
}
