//! Process 1's duties: signals, reaping, and how it all ends.

use super::{FORWARDED, IDLE_EXIT, LAST_WORDS, Phase, Supervisor, child, child::Stage, system};
use crate::{process::Exit, signal::Signal};
use podbay_agent_wire::host::ProgramKey;
use rustix::{
    io::Errno,
    process::{WaitOptions, wait},
};
use std::{io, time::Instant};

fn forwarded(number: i32) -> Option<Signal> {
    FORWARDED.iter().find(|(signal, _)| *signal as i32 == number).map(|(_, signal)| *signal)
}

impl Supervisor {
    /// Reaps everything that has ended, ours or orphaned.
    pub(super) fn reap(&mut self, now: Instant) {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => (pid, status),
                Err(Errno::INTR) => continue,
                Ok(None) | Err(_) => return,
            };
            let Some(exit) = Exit::from_wait_status(status.as_raw()) else { continue };
            if let Some(idle) = &mut self.idle
                && idle.pid() == pid
            {
                idle.reaped(exit);
                self.end(exit.shell_code(), now);
            } else if let Some(key) = self.by_pid.remove(&pid.as_raw_nonzero().get()) {
                self.program_exited(key, exit, now);
            }
        }
    }

    pub(super) fn program_exited(&mut self, key: ProgramKey, exit: Exit, now: Instant) {
        let Some(child) = self.children.get_mut(&key) else { return };
        child.exited(exit, now);
        if matches!(child.stage, Stage::Launching { .. }) {
            // It is told once the stub's last word is read.
            return;
        }
        let oom_kills = system::oom_kills();
        let killed = matches!(exit, Exit::Signal { number: 9, .. });
        let out_of_memory = killed && oom_kills > std::mem::replace(&mut self.oom_kills, oom_kills);
        if self.options.session {
            self.session_exit = Some(exit);
            self.code = exit.shell_code();
            system::write_termination_message(&self.options.termination_log, exit);
        }
        self.host.exited(key, child::exit(exit, out_of_memory), now);
    }

    /// Signals that came.
    pub(super) fn signalled(&mut self, now: Instant) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal().map_err(io::Error::from)? {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            if let (Some(idle), Some(signal)) = (&self.idle, forwarded(number)) {
                // One that has ended gives its exit code in a moment.
                let _ = idle.signal_group(signal);
            }
            if self.ends_on.iter().any(|signal| *signal as i32 == number) {
                let code = self.code;
                self.end(code, now);
            }
        }
        // Whatever woke us: a signal stands for many children.
        self.reap(now);
        Ok(())
    }

    /// The end begins: programs are ended, and ends can still be fetched.
    pub(super) fn end(&mut self, code: u8, now: Instant) {
        self.code = code;
        if self.phase == Phase::Serving {
            self.phase = Phase::Ending;
            // A session's program stands for its container: the kubelet sends TERM, and KILL after the grace period.
            self.host.stop(self.options.session, now);
        }
    }

    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        if self.host.programs() > 0 || !self.peers.is_empty() {
            self.busy_at = now;
        }
        match self.phase {
            Phase::Serving => return self.options.detached && now >= self.busy_at + IDLE_EXIT,
            Phase::Ending => {
                let idles = self.idle.as_ref().is_some_and(|idle| idle.exit().is_none());
                if !idles && self.host.running() == 0 {
                    self.phase = Phase::LastWords(now + LAST_WORDS);
                }
            }
            Phase::LastWords(_) | Phase::Leaving(_) => {}
        }
        if let Phase::LastWords(until) = self.phase
            && (self.host.programs() == 0 || self.peers.is_empty() || now >= until)
        {
            self.phase = Phase::Leaving(now + LAST_WORDS);
            self.host.say_goodbye(now);
            self.write_to_peers(now);
        }
        matches!(self.phase, Phase::Leaving(until) if self.peers.is_empty() || now >= until)
    }
}
