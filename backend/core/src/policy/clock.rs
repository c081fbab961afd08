//! How long a program may run, and how long without a byte: pure, time is a parameter.

use super::Security;
use podbay::v1::{Reason, Refusal};
use podbay_runtime::config::format_duration;
use std::time::Duration;
use tokio::time::Instant;

/// The longest time between a warning and the cut that it warns of; a quarter of shorter limits.
const NOTICE: Duration = Duration::from_mins(1);

/// The limits of one program that runs.
#[derive(Debug, Clone)]
pub struct Clock {
    whole: Option<Limit>,
    idle: Option<Limit>,
}

#[derive(Debug, Clone)]
struct Limit {
    since: Instant,
    bound: Duration,
    warned: bool,
}

/// A program as its agent knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// It was there already.
    pub resumed: bool,
    /// How long it has run; `None` from an agent that does not tell.
    pub ran: Option<Duration>,
    /// It has ended.
    pub ended: bool,
}

/// Given to the agent beyond the limit: the backend's own cut, with its words for the user, comes first.
const SPARE: Duration = Duration::from_secs(10);

/// After how long an agent ends a program by itself, also where nobody is attached to it; `None` = never.
pub fn agents_limit(security: &Security) -> Option<Duration> {
    (!security.max_session_time.is_zero()).then(|| security.max_session_time.saturating_add(SPARE))
}

/// What is due.
#[derive(Debug, Clone, PartialEq)]
pub enum Tick {
    /// Nothing yet.
    Nothing,
    /// A line for the user.
    Warn(String),
    /// The end; how the session ends.
    Cut(Refusal),
}

impl Limit {
    fn new(bound: Duration, since: Instant) -> Option<Self> {
        (!bound.is_zero()).then_some(Self { since, bound, warned: false })
    }

    fn notice(&self) -> Duration {
        NOTICE.min(self.bound / 4)
    }

    /// A bound beyond what a clock can tell never comes.
    fn due(&self) -> Option<Instant> {
        let after = if self.warned { self.bound } else { self.bound.saturating_sub(self.notice()) };
        self.since.checked_add(after)
    }
}

impl Clock {
    /// For a program that has run for so long already.
    pub fn new(security: &Security, now: Instant, ran: Duration) -> Self {
        // A time from before the machine's own is as good as the beginning of it.
        let began = now.checked_sub(ran.min(security.max_session_time)).unwrap_or(now);
        Self { whole: Limit::new(security.max_session_time, began), idle: Limit::new(security.idle_timeout, now) }
    }

    /// For a program that an agent has started or found: its own word counts, and the client's only where it is longer. One that
    /// has ended has no limit any more.
    ///
    /// # Errors
    /// `POLICY` where there is a limit and nobody but the client could say how long the program has run.
    pub fn of_agent(security: &Security, now: Instant, known: &Known, told: Duration) -> Result<Self, Refusal> {
        match known.ran {
            _ if known.ended => Ok(Self { whole: None, ..Self::new(security, now, Duration::ZERO) }),
            None if known.resumed && !security.max_session_time.is_zero() => {
                let text = "sessions last only so long here (security.maxSessionTime), and the podbay-agent in the pod is too old to tell how long this one has";
                Err(Refusal::new(Reason::Policy, text))
            }
            ran => Ok(Self::new(security, now, told.max(ran.unwrap_or_default()))),
        }
    }

    /// A byte has passed, in whatever direction.
    pub fn active(&mut self, now: Instant) {
        if let Some(idle) = &mut self.idle {
            idle.since = now;
            idle.warned = false;
        }
    }

    /// When to [`tick`](Self::tick) next; `None` = never.
    pub fn due(&self) -> Option<Instant> {
        [&self.whole, &self.idle].into_iter().flatten().filter_map(Limit::due).min()
    }

    /// What is due now. A cut comes before a warning, and each warning once (the idle one again after activity).
    pub fn tick(&mut self, now: Instant) -> Tick {
        let over = |limit: &Limit| now.saturating_duration_since(limit.since) >= limit.bound;
        let cut = |text: String| Tick::Cut(Refusal::new(Reason::Policy, text));
        if let Some(limit) = self.whole.as_ref().filter(|limit| over(limit)) {
            return cut(format!("ended: sessions last at most {} here", format_duration(limit.bound)));
        }
        if let Some(limit) = self.idle.as_ref().filter(|limit| over(limit)) {
            return cut(format!("ended: nothing was read or written for {}", format_duration(limit.bound)));
        }
        for (limit, why) in [(&mut self.whole, "its time is over then"), (&mut self.idle, "nothing is read or written")]
        {
            if let Some(limit) = limit
                && !limit.warned
                && limit.due().is_some_and(|due| now >= due)
            {
                limit.warned = true;
                let left = limit.bound.saturating_sub(now.saturating_duration_since(limit.since));
                // Whole seconds, upwards: nobody reads more.
                let left = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
                return Tick::Warn(format!("this session ends in {}: {why}", format_duration(left)));
            }
        }
        Tick::Nothing
    }
}
