//! How programs, exits and silent links end: by what was asked for, and by time.

use super::{
    Action, Host, LinkKey, ProgramKey,
    program::{Ending, Keep},
};
use crate::{id::SessionId, proto::Reason};
use std::time::{Duration, Instant};

/// How often output that a full disk did not take is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Host {
    /// When [`tick`](Self::tick) is due.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let retry_at = self.ticked.map_or(now, |ticked| ticked + RETRY);
        let programs =
            self.programs.values().filter_map(|program| program.deadline(self.config.exit_retention, retry_at));
        let links = self.links.values().map(|link| link.heard + self.config.silence);
        programs.chain(links).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        self.ticked = Some(now);
        let silent =
            |(&key, link): (&LinkKey, &super::link::Link)| (now >= link.heard + self.config.silence).then_some(key);
        for key in self.links.iter().filter_map(silent).collect::<Vec<_>>() {
            self.goodbye(key, Reason::Silent, "nothing was heard from the backend", now);
        }
        for key in self.programs.keys().copied().collect::<Vec<_>>() {
            self.tick_program(key, now);
        }
    }

    fn tick_program(&mut self, key: ProgramKey, now: Instant) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        let attached = program.link.is_some();
        let mut unstuck = program.stdout.retry(attached, self.spills.as_mut());
        unstuck &= program.stderr.as_mut().is_none_or(|stderr| stderr.retry(attached, self.spills.as_mut()));
        if program.forget_at(self.config.exit_retention).is_some_and(|at| now >= at) {
            self.remove(key);
            return;
        }
        if program.exit().is_none() && program.end_at().is_some_and(|at| now >= at) {
            self.begin_ending(key, now);
        }
        self.go_on_ending(key, now);
        if unstuck {
            self.wake(key);
        }
    }

    /// The program has no link any more; its time begins.
    pub(super) fn orphan(&mut self, key: ProgramKey, now: Instant) {
        if let Some(program) = self.programs.get_mut(&key) {
            program.link = None;
            program.keep = Keep::Orphan(now);
        }
    }

    /// Gives a program up.
    pub(super) fn release(&mut self, key: ProgramKey, now: Instant) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        program.released = true;
        if program.exit().is_some() {
            self.remove(key);
        } else {
            self.stdin_closed(key);
            self.begin_ending(key, now);
        }
    }

    /// An exit is known to the session's client.
    pub(super) fn ack_exit(&mut self, session: SessionId, now: Instant) -> Reason {
        let Some(&key) = self.sessions.get(&session) else { return Reason::Unspecified };
        if self.programs.get(&key).is_some_and(|program| program.exit().is_none()) {
            return Reason::Running;
        }
        self.close_program(key, Reason::Forgotten, "", now);
        self.remove(key);
        Reason::Unspecified
    }

    /// Ends all programs and takes no more: the container is being stopped. Their exits can still be told.
    ///
    /// `by_term`: they get TERM alone and as long as the container has, as if each were the container's own program.
    pub fn stop(&mut self, by_term: bool, now: Instant) {
        self.stopping = true;
        if by_term {
            for (&key, program) in self.programs.iter_mut().filter(|(_, program)| program.exit().is_none()) {
                program.ending = Ending::Killed;
                self.actions.push_back(Action::Signal { program: key, name: "TERM".into(), request: None });
            }
            return;
        }
        for key in self.programs.keys().copied().collect::<Vec<_>>() {
            self.begin_ending(key, now);
        }
    }

    /// Says goodbye to all links.
    pub fn say_goodbye(&mut self, now: Instant) {
        for key in self.links.keys().copied().collect::<Vec<_>>() {
            self.goodbye(key, Reason::Shutdown, "the container is being stopped", now);
        }
    }

    pub(super) fn begin_ending(&mut self, key: ProgramKey, now: Instant) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        if program.ending == Ending::No && program.exit().is_none() {
            program.ending = Ending::Hup { term_at: now + program.hangup.term_after };
            self.actions.push_back(Action::Signal { program: key, name: "HUP".into(), request: None });
        }
    }

    fn go_on_ending(&mut self, key: ProgramKey, now: Instant) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        if program.exit().is_some() {
            return;
        }
        let (next, name) = match program.ending {
            Ending::Hup { term_at } if now >= term_at => {
                (Ending::Term { kill_at: now + program.hangup.kill_after }, "TERM")
            }
            Ending::Term { kill_at } if now >= kill_at => (Ending::Killed, "KILL"),
            Ending::No | Ending::Hup { .. } | Ending::Term { .. } | Ending::Killed => return,
        };
        program.ending = next;
        self.actions.push_back(Action::Signal { program: key, name: name.into(), request: None });
    }
}

impl super::program::Program {
    /// When a running program is to be ended: without a link after a while, and with one too when its time is over.
    fn end_at(&self) -> Option<Instant> {
        if self.ending != Ending::No {
            return None;
        }
        let orphaned = self.link.is_none().then(|| match self.keep {
            Keep::Orphan(since) => since + self.orphan_timeout,
            Keep::Until(at) => at,
        });
        orphaned.into_iter().chain(self.limit).min()
    }

    /// When an exit that nobody collects is forgotten.
    fn forget_at(&self, retention: Duration) -> Option<Instant> {
        let ended = self.ended_at()?;
        if self.link.is_some() {
            return None;
        }
        Some(match self.keep {
            Keep::Orphan(since) => ended.max(since) + retention,
            Keep::Until(at) => at.max(ended + retention),
        })
    }

    fn deadline(&self, retention: Duration, retry_at: Instant) -> Option<Instant> {
        let ending = match (self.exit(), self.ending) {
            (Some(_), _) | (None, Ending::No | Ending::Killed) => None,
            (None, Ending::Hup { term_at }) => Some(term_at),
            (None, Ending::Term { kill_at }) => Some(kill_at),
        };
        let over = if self.exit().is_none() { self.end_at() } else { None };
        let stuck = self.stdout.is_stuck() || self.stderr.as_ref().is_some_and(crate::output::Output::is_stuck);
        [ending, over, self.forget_at(retention), stuck.then_some(retry_at)].into_iter().flatten().min()
    }
}
