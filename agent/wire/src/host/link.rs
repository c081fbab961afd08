//! One link: its bytes in and out.

use super::{CONTROL_QUEUE, Host, LinkKey, ProgramKey};
use crate::{
    frame::{Decoder, MAGIC, MAX_TO_AGENT, VERSION, put_control},
    proto::{self, Reason, ToAgent, ToBackend, to_backend},
};
use bytes::{BufMut as _, BytesMut};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

#[derive(Debug)]
pub(super) struct Link {
    pub(super) decoder: Decoder<ToAgent>,
    pub(super) phase: Phase,
    /// Messages that wait to be sent.
    pub(super) control: BytesMut,
    /// The programs that this link has.
    pub(super) programs: BTreeMap<u16, ProgramKey>,
    /// Those with something to send, each once.
    pub(super) ready: VecDeque<u16>,
    pub(super) heard: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its hello has not come.
    New,
    Open,
    /// Goodbye was said; nothing more is read.
    Closing,
}

impl Link {
    pub(super) fn put(&mut self, message: to_backend::Message) {
        put_control(&ToBackend { message: Some(message) }, &mut self.control);
    }
}

impl Host {
    /// A peer connected. Where there are too many links, one without programs has to go; `None` when there is none: close the new
    /// one.
    pub fn link_opened(&mut self, now: Instant) -> Option<LinkKey> {
        let open = self.links.iter().filter(|(_, link)| link.phase != Phase::Closing);
        if open.clone().count() >= self.config.max_links {
            let idle = open.filter(|(_, link)| link.programs.is_empty()).min_by_key(|(_, link)| link.heard);
            let idle = idle.map(|(key, _)| *key)?;
            self.goodbye(idle, Reason::Limit, "too many links, and this one had no program", now);
        }
        if self.links.len() >= self.config.max_links * 2 {
            return None;
        }
        let key = LinkKey(self.key());
        let mut link = Link {
            decoder: Decoder::new(MAX_TO_AGENT),
            phase: Phase::New,
            control: BytesMut::new(),
            programs: BTreeMap::new(),
            ready: VecDeque::new(),
            heard: now,
        };
        link.control.put_slice(&MAGIC);
        link.put(to_backend::Message::Hello(proto::AgentHello {
            version: VERSION,
            min_version: VERSION,
            features: self.config.features,
            agent_version: self.config.agent_version.clone(),
            instance: self.config.instance.into(),
            memory_budget: self.config.budget as u64,
        }));
        self.links.insert(key, link);
        Some(key)
    }

    /// The peer is gone. Its programs run on.
    pub fn link_closed(&mut self, key: LinkKey, now: Instant) {
        if let Some(link) = self.links.remove(&key) {
            for program in link.programs.into_values() {
                self.orphan(program, now);
            }
        }
    }

    /// Whether to read from the link: false while too many answers wait for it to take them, and once it is closing.
    pub fn wants_input(&self, key: LinkKey) -> bool {
        self.links.get(&key).is_some_and(|link| link.phase != Phase::Closing && link.control.len() < CONTROL_QUEUE)
    }

    /// Whether the link is to be closed once all that [`transmit`](Self::transmit) gives is sent.
    pub fn is_closing(&self, key: LinkKey) -> bool {
        self.links.get(&key).is_none_or(|link| link.phase == Phase::Closing)
    }

    /// Whether [`transmit`](Self::transmit) has something.
    pub fn wants_output(&self, key: LinkKey) -> bool {
        self.links.get(&key).is_some_and(|link| !link.control.is_empty() || !link.ready.is_empty())
    }

    /// Bytes that arrived on a link; give at most 64 KiB at once. A peer that breaks the protocol is told why, and the link
    /// [closes](Self::is_closing).
    pub fn receive(&mut self, key: LinkKey, bytes: &[u8], now: Instant) {
        let Some(link) = self.links.get_mut(&key) else { return };
        if link.phase != Phase::Closing {
            link.heard = now;
            link.decoder.push(bytes);
            self.read(key, now);
        }
    }

    /// Acts on the frames that have arrived, as far as there is room for the answers.
    fn read(&mut self, key: LinkKey, now: Instant) {
        while self.wants_input(key) {
            let Some(link) = self.links.get_mut(&key) else { return };
            let violation = match link.decoder.next() {
                Ok(None) => return,
                Ok(Some(frame)) => self.frame(key, frame, now).err(),
                Err(error) => Some(Violation(error.to_string())),
            };
            if let Some(Violation(message)) = violation {
                self.goodbye(key, Reason::Violation, &message, now);
            }
        }
    }

    /// Appends frames for the link to `out` until it has about `target` bytes (at most one frame more), or there are no more.
    pub fn transmit(&mut self, key: LinkKey, out: &mut BytesMut, target: usize, now: Instant) {
        while out.len() < target {
            let Some(link) = self.links.get_mut(&key) else { return };
            if !link.control.is_empty() {
                let waited = link.control.len() >= CONTROL_QUEUE;
                let len = link.control.len().min(target - out.len());
                out.extend_from_slice(&link.control.split_to(len));
                if waited {
                    // Requests may have waited for this room.
                    self.read(key, now);
                }
                continue;
            }
            let Some(number) = link.ready.pop_front() else { return };
            let Some(program) = link.programs.get(&number).and_then(|program| self.programs.get_mut(program)) else {
                continue;
            };
            if program.transmit(number, out) {
                link.ready.push_back(number);
            }
        }
    }

    /// Says why the link ends, and lets go of its programs.
    pub(super) fn goodbye(&mut self, key: LinkKey, reason: Reason, message: &str, now: Instant) {
        let Some(link) = self.links.get_mut(&key) else { return };
        if link.phase == Phase::Closing {
            return;
        }
        link.phase = Phase::Closing;
        link.put(to_backend::Message::Goodbye(proto::Goodbye { reason: reason.into(), message: cut(message) }));
        link.ready.clear();
        for program in std::mem::take(&mut link.programs).into_values() {
            self.orphan(program, now);
        }
    }

    /// Puts the program in its link's queue.
    pub(super) fn wake(&mut self, key: ProgramKey) {
        let Some((link, number)) = self.programs.get(&key).and_then(|program| program.link) else { return };
        if let Some(link) = self.links.get_mut(&link)
            && !link.ready.contains(&number)
        {
            link.ready.push_back(number);
        }
    }
}

/// The peer broke the protocol; says how.
#[derive(Debug)]
pub(super) struct Violation(pub(super) String);

impl From<crate::flow::FlowError> for Violation {
    fn from(error: crate::flow::FlowError) -> Self {
        Self(error.to_string())
    }
}

/// At most 1 KiB.
pub(super) fn cut(message: &str) -> String {
    let end = (0..=message.len().min(1024)).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
    message[..end].to_owned()
}
