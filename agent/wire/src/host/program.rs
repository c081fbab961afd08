//! A program as the host sees it.

use super::{LinkKey, Out, input::Input, requests::Requests};
use crate::{
    budget::Budget,
    frame::{Stream, put_ack, put_control, put_credit},
    id::{Attempt, SessionId},
    output::{MAX_PUSH, Output, Policy, Spills},
    program::{Exit, Hangup, Start},
    proto::{self, ToBackend, to_backend},
};
use bytes::BytesMut;
use std::time::{Duration, Instant};

/// Where a program is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// [`super::Action::Spawn`] is under way.
    Starting,
    Running {
        pid: u32,
    },
    Ended {
        pid: u32,
        exit: Exit,
        /// While the container was being stopped.
        stopping: bool,
        at: Instant,
    },
}

/// How far the ending of a program has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    No,
    /// HUP was sent; TERM follows.
    Hup {
        term_at: Instant,
    },
    /// TERM was sent; KILL follows.
    Term {
        kill_at: Instant,
    },
    /// Nothing follows.
    Killed,
}

/// How long a program without a link is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Its link was lost then: the orphan timeout holds.
    Orphan(Instant),
    /// A Detach asked for it.
    Until(Instant),
}

#[derive(Debug)]
pub(super) struct Program {
    pub(super) session: SessionId,
    pub(super) attempt: Attempt,
    /// Who has it, and its number there.
    pub(super) link: Option<(LinkKey, u16)>,
    state: State,
    pub(super) stdin: Input,
    pub(super) stdout: Output,
    /// `None` with a terminal.
    pub(super) stderr: Option<Output>,
    pub(super) requests: Requests,
    pub(super) hangup: Hangup,
    pub(super) orphan_timeout: Duration,
    pub(super) ending: Ending,
    /// Given up: output is thrown away, the exit is not kept.
    pub(super) released: bool,
    pub(super) keep: Keep,
    /// When it was asked for.
    began: Instant,
    /// When its time is over, whoever has it.
    pub(super) limit: Option<Instant>,
    /// The link knows the program by Started; before that, nothing else is sent.
    pub(super) announced: bool,
    exit_sent: bool,
    /// Which output goes first next time.
    turn: Out,
}

impl Program {
    /// A program whose windows are taken from the budget already: see [`Program::needs`].
    pub(super) fn new(
        session: SessionId,
        attempt: Attempt,
        start: &Start,
        config: &super::Config,
        now: Instant,
    ) -> Self {
        let policy = match start.output {
            Policy::Spill { max, keep_last } => Policy::Spill { max: max.min(config.max_spill), keep_last },
            policy @ (Policy::Block | Policy::KeepLast) => policy,
        };
        let output = || Output::new(policy, config.min_window);
        Self {
            session,
            attempt,
            link: None,
            state: State::Starting,
            stdin: Input::new(config.min_window),
            stdout: output(),
            stderr: start.pty.is_none().then(output),
            requests: Requests::default(),
            hangup: start.hangup,
            orphan_timeout: start.orphan_timeout.unwrap_or(config.orphan_timeout),
            ending: Ending::No,
            released: false,
            keep: Keep::Orphan(now),
            began: now,
            limit: start.limit.and_then(|limit| now.checked_add(limit)),
            announced: false,
            exit_sent: false,
            turn: Out::Stdout,
        }
    }

    /// Bytes of the budget for a new program.
    pub(super) fn needs(start: &Start, config: &super::Config) -> usize {
        config.min_window * if start.pty.is_some() { 2 } else { 3 }
    }

    /// Bytes of the budget that it has now.
    pub(super) fn memory(&self) -> usize {
        self.stdin.window() + self.stdout.window() + self.stderr.as_ref().map_or(0, Output::window)
    }

    pub(super) fn terminal(&self) -> bool {
        self.stderr.is_none()
    }

    pub(super) fn running(&mut self, pid: u32) {
        self.state = State::Running { pid };
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match self.state {
            State::Starting => None,
            State::Running { pid } | State::Ended { pid, .. } => Some(pid),
        }
    }

    /// Whether it may run no longer.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.limit.is_some_and(|limit| now >= limit)
    }

    /// How long it has run by now, or until its end; at least a millisecond, since zero stands for supervisors that don't tell.
    pub(super) fn ran(&self, now: Instant) -> Duration {
        self.ended_at().unwrap_or(now).saturating_duration_since(self.began).max(Duration::from_millis(1))
    }

    pub(super) fn ended(&mut self, exit: Exit, stopping: bool, now: Instant) {
        match self.state {
            State::Starting | State::Ended { .. } => {}
            State::Running { pid } => self.state = State::Ended { pid, exit, stopping, at: now },
        }
    }

    fn ended_by_stop(&self) -> bool {
        matches!(self.state, State::Ended { stopping: true, .. })
    }

    pub(super) fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Starting | State::Running { .. } => None,
            State::Ended { exit, .. } => Some(exit),
        }
    }

    pub(super) fn ended_at(&self) -> Option<Instant> {
        match self.state {
            State::Starting | State::Running { .. } => None,
            State::Ended { at, .. } => Some(at),
        }
    }

    pub(super) fn output_mut(&mut self, out: Out) -> Option<&mut Output> {
        match out {
            Out::Stdout => Some(&mut self.stdout),
            Out::Stderr => self.stderr.as_mut(),
        }
    }

    pub(super) fn output_room(&mut self, out: Out, max_window: usize, budget: &mut Budget) -> usize {
        if self.released {
            return MAX_PUSH;
        }
        let attached = self.link.is_some();
        self.output_mut(out).map_or(0, |output| output.room(attached, max_window, budget))
    }

    pub(super) fn push_output(&mut self, out: Out, bytes: &[u8], spills: &mut dyn Spills) {
        if self.released {
            return;
        }
        let attached = self.link.is_some();
        if let Some(output) = self.output_mut(out) {
            output.push(bytes, attached, spills);
        }
    }

    /// Whether output may continue from there.
    pub(super) fn reaches(&self, from: proto::OutputState) -> bool {
        from.stdout <= self.stdout.end() && from.stderr <= self.stderr.as_ref().map_or(from.stderr, Output::end)
    }

    /// Output continues from there, for a new link: offsets that [`reaches`](Self::reaches) found good.
    pub(super) fn begin(&mut self, from: proto::OutputState) {
        let good = self.stdout.resume(from.stdout, from.stdout_credit).is_ok()
            && self.stderr.as_mut().is_none_or(|stderr| stderr.resume(from.stderr, from.stderr_credit).is_ok());
        debug_assert!(good, "asked before");
    }

    /// For a list.
    pub(super) fn describe(&self) -> proto::Session {
        let stderr = self.stderr.as_ref();
        proto::Session {
            session: self.session.into(),
            attempt: self.attempt.0,
            attached: self.link.is_some(),
            stdout_held: self.stdout.held(),
            stdout_end: self.stdout.end(),
            stderr_held: stderr.map_or(0, Output::held),
            stderr_end: stderr.map_or(0, Output::end),
            exit: self.exit().filter(|_| self.complete()).map(Into::into),
            kept: self.link.is_none() && matches!(self.keep, Keep::Until(_)),
        }
    }

    /// All output is here, and the exit.
    pub(super) fn complete(&self) -> bool {
        self.exit().is_some() && self.stdout.ended() && self.stderr.as_ref().is_none_or(Output::ended)
    }

    /// A link has the program now; it is told by Started first.
    pub(super) fn attached(&mut self, link: LinkKey, number: u16) {
        self.link = Some((link, number));
        self.announced = false;
        self.exit_sent = false;
        self.stdin.ack = false;
        self.stdin.credit = false;
    }

    /// Appends a few frames; returns whether there may be more.
    pub(super) fn transmit(&mut self, number: u16, out: &mut BytesMut) -> bool {
        if !self.announced {
            return false;
        }
        if std::mem::take(&mut self.stdin.ack) {
            put_ack(number, Stream::Stdin, self.stdin.received(), out);
        }
        if std::mem::take(&mut self.stdin.credit) {
            put_credit(number, Stream::Stdin, self.stdin.granted(), out);
        }
        // Alternately, so that neither keeps the other waiting.
        self.turn = match self.turn {
            Out::Stdout => Out::Stderr,
            Out::Stderr => Out::Stdout,
        };
        let other = match self.turn {
            Out::Stdout => Out::Stderr,
            Out::Stderr => Out::Stdout,
        };
        let sent = self.transmit_output(self.turn, number, out) || self.transmit_output(other, number, out);
        if sent {
            return true;
        }
        let all = self.stdout.all_sent() && self.stderr.as_ref().is_none_or(Output::all_sent);
        if let (true, false, Some(exit)) = (all, self.exit_sent, self.exit()) {
            let exit =
                proto::Exit { program: number.into(), status: Some(exit.into()), stopping: self.ended_by_stop() };
            put_control(&ToBackend { message: Some(to_backend::Message::Exit(exit)) }, out);
            self.exit_sent = true;
        }
        false
    }

    fn transmit_output(&mut self, which: Out, number: u16, out: &mut BytesMut) -> bool {
        match (which, &mut self.stderr) {
            (Out::Stdout, _) => self.stdout.transmit(number, Stream::Stdout, out),
            (Out::Stderr, Some(stderr)) => stderr.transmit(number, Stream::Stderr, out),
            (Out::Stderr, None) => false,
        }
    }
}
