//! Waiting for what can be done next, and doing it.

use super::{Supervisor, child::Token, peer::Presence};
use podbay_agent_wire::host::{LinkKey, Out, ProgramKey};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::AsFd as _,
    io::Errno,
};
use std::{io, time::Instant};

#[derive(Debug, Clone, Copy)]
enum Source {
    Listener,
    Signals,
    Peer(LinkKey),
    Child(ProgramKey, Token),
}

impl Supervisor {
    /// Waits until something is ready or due, and does what is ready.
    pub(super) fn wait(&mut self, now: Instant) -> io::Result<()> {
        let mut sources = vec![Source::Listener, Source::Signals];
        let mut fds = vec![
            PollFd::from_borrowed_fd(
                self.place.listener.as_fd(),
                if now >= self.accept_at { PollFlags::IN } else { PollFlags::empty() },
            ),
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
        ];
        for (&key, peer) in &self.peers {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, self.host.wants_input(key));
            flags.set(PollFlags::OUT, peer.waits() || self.host.wants_output(key));
            // One that waits for nothing can only have hung up, and that is always told.
            sources.push(Source::Peer(key));
            fds.push(PollFd::from_borrowed_fd(peer.stream().as_fd(), flags));
        }
        for (&key, child) in &self.children {
            child.interest(key, &mut self.host, |token, fd, flags| {
                sources.push(Source::Child(key, token));
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            });
        }
        let timeout = self.next_deadline(now).map(|at| {
            let left = at.saturating_duration_since(now);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<(Source, PollFlags)> =
            sources.into_iter().zip(fds.iter().map(PollFd::revents)).filter(|(_, flags)| !flags.is_empty()).collect();
        drop(fds);
        let now = Instant::now();
        for (source, flags) in ready {
            self.ready(source, flags, now)?;
        }
        Ok(())
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let drains = self
            .children
            .values()
            .filter_map(|child| child.drain_at(self.options.drain_pipes, self.options.drain_terminal));
        let peers = self.peers.values().filter_map(super::Peer::deadline);
        let phase = match self.phase {
            super::Phase::Serving => self.options.detached.then(|| self.busy_at + super::IDLE_EXIT),
            super::Phase::Ending => None,
            super::Phase::LastWords(until) | super::Phase::Leaving(until) => Some(until),
        };
        let accept = (now < self.accept_at).then_some(self.accept_at);
        drains.chain(peers).chain(phase).chain(accept).chain(self.host.next_deadline(now)).min()
    }

    fn ready(&mut self, source: Source, flags: PollFlags, now: Instant) -> io::Result<()> {
        match source {
            Source::Listener => self.accept(now),
            Source::Signals => self.signalled(now)?,
            Source::Peer(key) => {
                let Some(peer) = self.peers.get_mut(&key) else { return Ok(()) };
                let broken = flags.intersects(PollFlags::ERR | PollFlags::NVAL)
                    || (flags.contains(PollFlags::HUP) && !flags.contains(PollFlags::IN));
                let presence = if broken {
                    Presence::Gone
                } else if flags.contains(PollFlags::IN) {
                    peer.read(key, &mut self.host, &mut self.buffer, now)
                } else {
                    Presence::There
                };
                if presence == Presence::Gone {
                    self.peer_gone(key, now);
                }
            }
            Source::Child(key, Token::Launching) => self.launched(key, now),
            Source::Child(key, token) => {
                let Self { children, host, buffer, .. } = self;
                let Some(child) = children.get_mut(&key) else { return Ok(()) };
                match token {
                    Token::Launching => {}
                    Token::Stdin => child.write_stdin(key, host),
                    Token::Output(out) => child.read_output(key, out, host, buffer, now),
                    Token::Terminal => {
                        if flags.intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP) {
                            child.write_stdin(key, host);
                        }
                        if flags.intersects(PollFlags::IN | PollFlags::ERR | PollFlags::HUP) {
                            child.read_output(key, Out::Stdout, host, buffer, now);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
