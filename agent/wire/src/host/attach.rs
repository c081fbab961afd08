//! What a link asks for.

use super::{
    Action, Host, LinkKey, ProgramKey, Refusal, file_piece_is_sound,
    link::{Link, Phase, Violation, cut},
    program::{Ending, Keep, Program},
    requests::{Answer, Verdict},
};
use crate::{
    frame::{Frame, Stream, VERSION},
    id::{Attempt, Instance, SessionId},
    program::{Size, Start, time},
    proto::{self, Reason, ToAgent, to_agent, to_backend},
};
use std::{collections::BTreeMap, time::Instant};

/// Who wants which program.
#[derive(Debug, Clone, Copy)]
struct Claim {
    link: LinkKey,
    number: u16,
    session: SessionId,
    attempt: Attempt,
    take_over: bool,
    from: proto::OutputState,
}

/// The program behind a number on a link. None: it was taken by another link, and the peer's frame crossed our Closed.
fn find<'a>(
    links: &BTreeMap<LinkKey, Link>,
    programs: &'a mut BTreeMap<ProgramKey, Program>,
    link: LinkKey,
    number: u16,
) -> Option<(ProgramKey, &'a mut Program)> {
    let key = *links.get(&link)?.programs.get(&number)?;
    Some((key, programs.get_mut(&key)?))
}

fn number(program: u32) -> Result<u16, Violation> {
    u16::try_from(program).map_err(|_| Violation("a program's number above 65535".into()))
}

fn session(bytes: &[u8]) -> Result<SessionId, Violation> {
    SessionId::try_from(bytes).map_err(|error| Violation(error.to_string()))
}

impl Host {
    /// Acts on one frame.
    pub(super) fn frame(&mut self, key: LinkKey, frame: Frame<ToAgent>, now: Instant) -> Result<(), Violation> {
        let phase = self.links.get(&key).map_or(Phase::Closing, |link| link.phase);
        match frame {
            Frame::Control(ToAgent { message: Some(to_agent::Message::Hello(hello)) }) if phase == Phase::New => {
                self.hello(key, &hello, now);
                Ok(())
            }
            _ if phase == Phase::New => Err(Violation("the first frame is no hello".into())),
            Frame::Control(ToAgent { message }) => {
                // An empty message is one that a later version defined.
                message.map_or(Ok(()), |message| self.message(key, message, now))
            }
            Frame::Data { program, stream: Stream::Stdin, offset, data } => {
                let Some((program_key, program)) = find(&self.links, &mut self.programs, key, program) else {
                    return Ok(());
                };
                program.stdin.receive(offset, &data)?;
                self.wake(program_key);
                Ok(())
            }
            Frame::Credit { program, stream, limit } => self.credit(key, program, stream, limit),
            Frame::Ack { program, stream, offset } => self.ack(key, program, stream, offset),
            Frame::Data { .. } | Frame::End { .. } => Err(Violation("output from a backend".into())),
        }
    }

    fn credit(&mut self, key: LinkKey, program: u16, stream: Stream, limit: u64) -> Result<(), Violation> {
        let Some((program_key, program)) = find(&self.links, &mut self.programs, key, program) else { return Ok(()) };
        match (stream, &mut program.stderr) {
            (Stream::Stdin, _) => return Err(Violation("credit for stdin".into())),
            (Stream::Stdout, _) => program.stdout.credit(limit),
            (Stream::Stderr, Some(stderr)) => stderr.credit(limit),
            (Stream::Stderr, None) => {}
        }
        self.wake(program_key);
        Ok(())
    }

    fn ack(&mut self, key: LinkKey, program: u16, stream: Stream, offset: u64) -> Result<(), Violation> {
        let Some((_, program)) = find(&self.links, &mut self.programs, key, program) else { return Ok(()) };
        let output = match (stream, &mut program.stderr) {
            (Stream::Stdin, _) => return Err(Violation("an ack for stdin".into())),
            (Stream::Stdout, _) => &mut program.stdout,
            (Stream::Stderr, Some(stderr)) => stderr,
            (Stream::Stderr, None) => return Ok(()),
        };
        output.ack(offset)?;
        if self.budget.is_short() {
            output.shrink(self.config.min_window, &mut self.budget);
        }
        Ok(())
    }

    fn hello(&mut self, key: LinkKey, hello: &proto::BackendHello, now: Instant) {
        if hello.min_version > VERSION || hello.version < VERSION {
            let message =
                format!("this agent speaks version {VERSION}, the backend {} to {}", hello.min_version, hello.version);
            self.goodbye(key, Reason::Version, &message, now);
        } else if let Some(link) = self.links.get_mut(&key) {
            link.phase = Phase::Open;
        }
    }

    fn message(&mut self, key: LinkKey, message: to_agent::Message, now: Instant) -> Result<(), Violation> {
        match message {
            to_agent::Message::Hello(_) => return Err(Violation("a second hello".into())),
            to_agent::Message::Start(start) => self.start(key, start, now)?,
            to_agent::Message::Attach(attach) => self.attach(key, &attach, now)?,
            to_agent::Message::Eof(eof) => self.eof(key, &eof)?,
            to_agent::Message::Signal(signal) => {
                let action = |program| Action::Signal { program, name: signal.name, request: Some(signal.id) };
                self.request(key, signal.program, signal.id, false, action)?;
            }
            to_agent::Message::Resize(resize) => {
                let size = Size::from(resize.size.unwrap_or_default());
                let action = |program| Action::Resize { program, size, request: resize.id };
                self.request(key, resize.program, resize.id, true, action)?;
            }
            to_agent::Message::Detach(detach) => {
                if let Some((program, state)) = find(&self.links, &mut self.programs, key, number(detach.program)?) {
                    state.keep = match detach.keep_ms {
                        // Its client is lost and did not ask for anything: as if the link were lost.
                        0 => Keep::Orphan(now),
                        keep => Keep::Until(now + time(keep).min(self.config.max_keep)),
                    };
                    self.close_program(program, Reason::Detached, "", now);
                }
            }
            to_agent::Message::Release(release) => {
                if let Some((program, _)) = find(&self.links, &mut self.programs, key, number(release.program)?) {
                    self.close_program(program, Reason::Released, "", now);
                    self.release(program, now);
                }
            }
            to_agent::Message::AckExit(ack) => {
                let id = session(&ack.session)?;
                let refusal = self.ack_exit(id, now);
                self.put(
                    key,
                    to_backend::Message::Forgotten(proto::Forgotten { session: id.into(), refusal: refusal.into() }),
                );
            }
            to_agent::Message::List(list) => {
                let only = if list.session.is_empty() { None } else { Some(session(&list.session)?) };
                // What was given up is nobody's session any more.
                let sessions = self.programs.values().filter(|program| !program.released);
                let sessions = sessions.filter(|program| only.is_none_or(|only| only == program.session));
                let sessions = sessions.map(Program::describe).collect();
                self.put(key, to_backend::Message::Sessions(proto::Sessions { id: list.id, sessions }));
            }
            to_agent::Message::WriteFile(piece) => {
                if file_piece_is_sound(&piece) {
                    self.actions.push_back(Action::WriteFile { link: key, piece });
                } else {
                    let refusal = Refusal { reason: Reason::Invalid, message: "the path is not absolute".into() };
                    self.file_written(key, piece.id, Err(refusal));
                }
            }
            to_agent::Message::Ping(ping) => self.put(key, to_backend::Message::Pong(proto::Pong { id: ping.id })),
            to_agent::Message::Goodbye(_) => self.goodbye(key, Reason::Unspecified, "", now),
        }
        Ok(())
    }

    fn put(&mut self, key: LinkKey, message: to_backend::Message) {
        if let Some(link) = self.links.get_mut(&key) {
            link.put(message);
        }
    }

    /// A file was written whole, or was not.
    pub fn file_written(&mut self, key: LinkKey, id: u64, result: Result<(), Refusal>) {
        let (reason, message) =
            result.err().map_or((Reason::Unspecified, String::new()), |r| (r.reason, cut(&r.message)));
        self.put(key, to_backend::Message::FileWritten(proto::FileWritten { id, refusal: reason.into(), message }));
    }

    fn refuse(&mut self, link: LinkKey, number: u16, reason: Reason, message: &str) {
        let closed = proto::Closed { program: number.into(), reason: reason.into(), message: cut(message) };
        self.put(link, to_backend::Message::Closed(closed));
    }

    /// Takes a program from its link and says why.
    pub(super) fn close_program(&mut self, key: ProgramKey, reason: Reason, message: &str, now: Instant) {
        let Some((link, number)) = self.programs.get_mut(&key).and_then(|program| program.link.take()) else { return };
        if let Some(state) = self.links.get_mut(&link) {
            state.programs.remove(&number);
        }
        self.refuse(link, number, reason, message);
        if reason != Reason::Detached {
            self.orphan(key, now);
        }
    }

    fn claim(
        &self,
        link: LinkKey,
        program: u32,
        id: &[u8],
        attempt: u64,
        from: Option<proto::OutputState>,
    ) -> Result<Claim, Violation> {
        let number = number(program)?;
        if self.links.get(&link).is_some_and(|link| link.programs.contains_key(&number)) {
            return Err(Violation("a program's number that is in use".into()));
        }
        let attempt = Attempt(attempt);
        Ok(Claim { link, number, session: session(id)?, attempt, take_over: false, from: from.unwrap_or_default() })
    }

    fn start(&mut self, link: LinkKey, start: proto::Start, now: Instant) -> Result<(), Violation> {
        let claim = self.claim(link, start.program, &start.session, start.attempt, start.from)?;
        if let Some(&key) = self.sessions.get(&claim.session) {
            self.take(key, &claim, now);
            return Ok(());
        }
        match self.admit(&claim, start) {
            Err(Refusal { reason, message }) => self.refuse(link, claim.number, reason, &message),
            Ok(start) => {
                let key = ProgramKey(self.key());
                let mut program = Program::new(claim.session, claim.attempt, &start, &self.config, now);
                program.begin(claim.from);
                self.programs.insert(key, program);
                self.sessions.insert(claim.session, key);
                self.give(key, &claim);
                self.actions.push_back(Action::Spawn { program: key, start: Box::new(start) });
            }
        }
        Ok(())
    }

    /// Whether a new program may start; takes its memory.
    fn admit(&mut self, claim: &Claim, start: proto::Start) -> Result<Start, Refusal> {
        let refuse = |reason, message: &str| Err(Refusal { reason, message: message.into() });
        if self.stopping {
            return refuse(Reason::Shutdown, "the container is being stopped");
        }
        if self.over.contains(&claim.session) {
            return refuse(Reason::SessionOver, "");
        }
        if claim.from.stdout > 0 || claim.from.stderr > 0 {
            return refuse(Reason::UnknownSession, "the program that this output came from is gone");
        }
        let start = match Start::try_from(start) {
            Ok(start) => start,
            Err(error) => return refuse(Reason::Invalid, &error.to_string()),
        };
        if self.programs.len() >= self.config.max_programs {
            return refuse(Reason::Limit, &format!("{} programs at once are the most", self.config.max_programs));
        }
        if !self.budget.take(Program::needs(&start, &self.config)) {
            return refuse(
                Reason::OutOfMemory,
                &format!("the agent's {} bytes for windows are used up", self.budget.total()),
            );
        }
        Ok(start)
    }

    fn attach(&mut self, link: LinkKey, attach: &proto::Attach, now: Instant) -> Result<(), Violation> {
        let mut claim = self.claim(link, attach.program, &attach.session, attach.attempt, attach.from)?;
        claim.take_over = attach.take_over;
        let instance = if attach.instance.is_empty() {
            self.config.instance
        } else {
            Instance::try_from(&attach.instance[..]).map_err(|error| Violation(error.to_string()))?
        };
        let known = self.sessions.get(&claim.session).copied();
        match known {
            _ if instance != self.config.instance => self.refuse(link, claim.number, Reason::InstanceDiffers, ""),
            Some(key) => self.take(key, &claim, now),
            None if self.over.contains(&claim.session) => self.refuse(link, claim.number, Reason::SessionOver, ""),
            None => self.refuse(link, claim.number, Reason::UnknownSession, ""),
        }
        Ok(())
    }

    /// Gives a program that is there to another link, if that may have it.
    fn take(&mut self, key: ProgramKey, claim: &Claim, now: Instant) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        let attempt = if claim.take_over { program.attempt.take_over() } else { claim.attempt };
        let refusal = if program.released {
            Some(Reason::SessionOver)
        } else if attempt <= program.attempt {
            Some(Reason::AttemptTooLow)
        } else if !program.reaches(claim.from) {
            Some(Reason::BadOffset)
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.refuse(claim.link, claim.number, reason, "");
            return;
        }
        program.attempt = attempt;
        if !self.stopping && !program.is_over(now) {
            // Somebody wants it after all.
            program.ending = Ending::No;
        }
        self.close_program(key, Reason::Superseded, "", now);
        if let Some(program) = self.programs.get_mut(&key) {
            program.begin(claim.from);
        }
        self.give(key, claim);
        self.send_started(key, true, now);
    }

    fn give(&mut self, key: ProgramKey, claim: &Claim) {
        if let (Some(program), Some(link)) = (self.programs.get_mut(&key), self.links.get_mut(&claim.link)) {
            program.attached(claim.link, claim.number);
            link.programs.insert(claim.number, key);
        }
    }

    /// Tells the program's link that it has it; only once it runs.
    pub(super) fn send_started(&mut self, key: ProgramKey, resumed: bool, now: Instant) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        let (Some(pid), Some((link, number))) = (program.pid(), program.link) else { return };
        program.announced = true;
        let started = proto::Started {
            program: number.into(),
            attempt: program.attempt.0,
            resumed,
            stdin_offset: program.stdin.received(),
            stdin_credit: program.stdin.granted(),
            stdin_ended: program.stdin.ended(),
            pid,
            terminal: program.terminal(),
            ran_ms: u64::try_from(program.ran(now).as_millis()).unwrap_or(u64::MAX),
            ended: program.exit().is_some(),
        };
        self.put(link, to_backend::Message::Started(started));
        self.wake(key);
    }

    fn eof(&mut self, key: LinkKey, eof: &proto::Eof) -> Result<(), Violation> {
        let Some((_, program)) = find(&self.links, &mut self.programs, key, number(eof.program)?) else {
            return Ok(());
        };
        program.stdin.end(eof.offset)?;
        let answer = proto::Answer { program: eof.program, id: eof.id, refusal: 0, message: String::new() };
        self.put(key, to_backend::Message::Answer(answer));
        Ok(())
    }

    fn request(
        &mut self,
        link: LinkKey,
        program: u32,
        id: u64,
        needs_terminal: bool,
        action: impl FnOnce(ProgramKey) -> Action,
    ) -> Result<(), Violation> {
        let Some((key, program)) = find(&self.links, &mut self.programs, link, number(program)?) else { return Ok(()) };
        match program.requests.judge(id) {
            Verdict::Invalid => return Err(Violation("a request with id 0".into())),
            Verdict::Repeat => self.send_answer(key, id),
            Verdict::Act if program.exit().is_some() => {
                let refusal = Refusal { reason: Reason::Ended, message: "the program has ended".into() };
                self.answered(key, id, Err(refusal));
            }
            Verdict::Act if needs_terminal && !program.terminal() => {
                let refusal = Refusal { reason: Reason::NoTerminal, message: "the program has no terminal".into() };
                self.answered(key, id, Err(refusal));
            }
            Verdict::Act => self.actions.push_back(action(key)),
        }
        Ok(())
    }

    /// Tells the program's link the answer to a request, once there is one.
    pub(super) fn send_answer(&mut self, key: ProgramKey, id: u64) {
        let Some(program) = self.programs.get(&key) else { return };
        let Some((link, number)) = program.link else { return };
        let (reason, message) = match program.requests.answer(id) {
            Some(Answer::Pending) => return,
            Some(Answer::Done) => (Reason::Unspecified, String::new()),
            Some(Answer::Refused(refusal)) => (refusal.reason, cut(&refusal.message)),
            // So old that its answer was forgotten.
            None => (Reason::Deadline, String::new()),
        };
        let answer = proto::Answer { program: number.into(), id, refusal: reason.into(), message };
        self.put(link, to_backend::Message::Answer(answer));
    }
}
