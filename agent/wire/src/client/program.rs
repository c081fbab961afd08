//! One program as the backend sees it.

use super::{
    MAX_REQUESTS, RequestError, ResumeFrom,
    streams::{Reading, Writing},
};
use crate::{
    frame::{Stream, put_control},
    id::{Attempt, Instance, SessionId},
    program::{Size, milliseconds},
    proto::{self, ToAgent, to_agent},
};
use bytes::BytesMut;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How a program is got, until Started.
#[derive(Debug)]
pub(super) enum Want {
    Start(Box<proto::Start>),
    Attach {
        take_over: bool,
    },
    /// It was; a new link attaches.
    Again,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    Detach(Option<Duration>),
    Release,
}

#[derive(Debug)]
pub(super) enum RequestKind {
    Signal(String),
    Resize(Size),
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) kind: RequestKind,
    pub(super) deadline: Instant,
    pub(super) sent: bool,
}

/// Where the program stands on the link of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing is sent.
    None,
    /// Start or Attach is sent.
    Asked(u16),
    /// Started has come.
    Has(u16),
}

#[derive(Debug)]
pub(super) struct Program {
    pub(super) session: SessionId,
    pub(super) attempt: Attempt,
    pub(super) want: Want,
    /// Who was asked for it, or has it: a Start is never sent to two, for it may have run.
    pub(super) instance: Option<Instance>,
    pub(super) place: Place,
    pub(super) stdin: Writing,
    pub(super) stdout: Reading,
    pub(super) stderr: Reading,
    pub(super) requests: VecDeque<Request>,
    last_id: u64,
    pub(super) closing: Option<Closing>,
    closing_sent: bool,
    pub(super) exited: bool,
    pub(super) terminal: bool,
    /// In the client's queue.
    pub(super) queued: bool,
}

impl Program {
    pub(super) fn new(session: SessionId, attempt: Attempt, want: Want, from: ResumeFrom, window: usize) -> Self {
        Self {
            session,
            attempt,
            want,
            instance: None,
            place: Place::None,
            stdin: Writing::new(window),
            stdout: Reading::new(from.stdout, from.stdout_credit),
            stderr: Reading::new(from.stderr, from.stderr_credit),
            requests: VecDeque::new(),
            last_id: 0,
            closing: None,
            closing_sent: false,
            exited: false,
            terminal: false,
            queued: false,
        }
    }

    pub(super) fn wants_link(&self) -> bool {
        !self.exited || self.closing.is_some()
    }

    pub(super) fn reading(&mut self, stream: Stream) -> Option<&mut Reading> {
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(&mut self.stdout),
            Stream::Stderr => Some(&mut self.stderr),
        }
    }

    pub(super) fn request(&mut self, request: Request) -> Result<(), RequestError> {
        if request.id <= self.last_id {
            return Err(RequestError::Id);
        }
        if self.requests.len() >= MAX_REQUESTS {
            return Err(RequestError::TooMany);
        }
        self.last_id = request.id;
        self.requests.push_back(request);
        Ok(())
    }

    /// Takes out a resize that was not sent yet.
    pub(super) fn overtake(&mut self) -> Option<u64> {
        let old = |request: &Request| !request.sent && matches!(request.kind, RequestKind::Resize(_));
        let at = self.requests.iter().position(old)?;
        self.requests.remove(at).map(|request| request.id)
    }

    /// Returns whether the agent has to be told. A program that was given up is not kept by a later word.
    pub(super) fn close(&mut self, closing: Closing) -> bool {
        match (self.closing, closing) {
            (None, _) | (Some(Closing::Detach(_)), Closing::Release) => self.closing = Some(closing),
            // Who leaves after its own word, by which the program is given up or kept for long, does not take that back.
            (Some(Closing::Release), _) | (Some(Closing::Detach(_)), Closing::Detach(_)) => {}
        }
        self.instance.is_some()
    }

    /// The link is gone.
    pub(super) fn unlinked(&mut self) {
        self.place = Place::None;
        self.closing_sent = false;
        self.queued = false;
        self.requests.iter_mut().for_each(|request| request.sent = false);
    }

    /// The Start or Attach for this link.
    pub(super) fn ask(&mut self, number: u16, instance: Instance) -> ToAgent {
        self.place = Place::Asked(number);
        if self.instance.is_some() {
            self.attempt = self.attempt.relink();
        }
        // A Start may be repeated to the same instance only; who changes between is caught before.
        self.instance = Some(instance);
        self.stdout.ask();
        self.stderr.ask();
        let from = proto::OutputState {
            stdout: self.stdout.arrived.received(),
            stdout_credit: self.stdout.granted,
            stderr: self.stderr.arrived.received(),
            stderr_credit: self.stderr.granted,
        };
        let attach = |take_over| proto::Attach {
            program: number.into(),
            session: self.session.into(),
            attempt: self.attempt.0,
            take_over,
            instance: instance.into(),
            from: Some(from),
        };
        let message = match &self.want {
            Want::Start(start) => {
                let mut start = (**start).clone();
                start.program = number.into();
                start.session = self.session.into();
                start.attempt = self.attempt.0;
                start.from = Some(from);
                to_agent::Message::Start(start)
            }
            Want::Attach { take_over } => to_agent::Message::Attach(attach(*take_over)),
            Want::Again => to_agent::Message::Attach(attach(false)),
        };
        ToAgent { message: Some(message) }
    }

    /// Appends a few frames for the program that the link has; returns whether there may be more.
    pub(super) fn transmit(&mut self, number: u16, out: &mut BytesMut, now: Instant) -> bool {
        self.stdout.transmit(number, Stream::Stdout, out);
        self.stderr.transmit(number, Stream::Stderr, out);
        for request in self.requests.iter_mut().filter(|request| !request.sent) {
            request.sent = true;
            put_control(&request.message(number, now), out);
        }
        if let (Some(closing), false) = (self.closing, self.closing_sent) {
            self.closing_sent = true;
            let program = number.into();
            let message = match closing {
                Closing::Detach(keep) => {
                    let keep_ms = keep.map_or(0, |keep| milliseconds(keep).max(1));
                    to_agent::Message::Detach(proto::Detach { program, keep_ms })
                }
                Closing::Release => to_agent::Message::Release(proto::Release { program }),
            };
            put_control(&ToAgent { message: Some(message) }, out);
        }
        !self.closing_sent && self.stdin.transmit(number, out)
    }
}

impl Request {
    fn message(&self, number: u16, now: Instant) -> ToAgent {
        let (program, id) = (number.into(), self.id);
        let message = match &self.kind {
            RequestKind::Signal(name) => {
                let deadline_ms = milliseconds(self.deadline.saturating_duration_since(now));
                to_agent::Message::Signal(proto::Signal { program, id, name: name.clone(), deadline_ms })
            }
            RequestKind::Resize(size) => {
                to_agent::Message::Resize(proto::Resize { program, id, size: Some((*size).into()) })
            }
        };
        ToAgent { message: Some(message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_said_of_its_program_outlives_its_leaving() {
        let said = |closings: &[Closing]| {
            let session = SessionId([1; 16]);
            let mut program = Program::new(session, Attempt::default(), Want::Again, ResumeFrom::default(), 1);
            for closing in closings {
                program.close(*closing);
            }
            program.closing
        };
        let (lost, kept) = (Closing::Detach(None), Closing::Detach(Some(Duration::from_secs(9))));
        assert_eq!(said(&[Closing::Release, lost]), Some(Closing::Release));
        assert_eq!(said(&[kept, lost]), Some(kept));
        assert_eq!(said(&[lost, Closing::Release]), Some(Closing::Release));
    }
}
