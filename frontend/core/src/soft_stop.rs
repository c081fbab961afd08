//! The soft stop: how one channel's input is held back although the SSH library gives window as bytes *arrive*.
//!
//! The library knows one target window for a whole connection: after a data packet it refills the channel's window up
//! to the target where less than half of it is left, and only then asks for the target of the *next* packets. So a
//! channel whose program does not read can only be slowed by asking for a tiny target, and that target must not meet
//! its healthy neighbours. What makes it work: clients answer tiny grants in the order in which they were given. This
//! type keeps that order and raises the target only while the next to answer is healthy.
//!
//! It owns no bytes, socket or clock. Each method is an event; results say how long reading should wait. The numbers
//! were measured with several clients; docs/design/0002-soft-stop.md has the reasons.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

/// The smallest target that lives: with 1, "less than half of the target" is never true again and the channel is dead.
pub const TINY: u32 = 2;

/// Tiny grants to healthy channels are kept apart by this much, so that no client reads two of them at once and
/// answers them in another order.
const APART: Duration = Duration::from_millis(3);

/// While a stuck channel has sent within this time, or another one [`BULK`], it is still using up a large window: no target is
/// raised for a third.
const DRAINING: Duration = Duration::from_millis(100);

/// A packet of at least so many bytes is no typing.
const BULK: usize = 4096;

/// The pace of a stuck channel's trickle: between these, a sixteenth of the time since other input.
const PACE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
const PACE_DIVISOR: u32 = 16;

/// An entry that others passed this often has nothing to send.
const PASSED: u8 = 2;

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The target window of a connection where nothing is stuck; also the first window of every channel.
    pub normal: u32,
    /// A channel is stuck from this many queued bytes …
    pub high: usize,
    /// … until it is below this many.
    pub low: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { normal: 2 << 20, high: 1 << 20, low: 512 << 10 }
    }
}

/// A client sent more than its window allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a data packet of {len} bytes exceeds the channel's window of {window} bytes")]
pub struct WindowExceeded {
    /// The packet's length.
    pub len: usize,
    /// What the window allowed.
    pub window: u32,
}

/// What to do after input was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// Read nothing more from the socket before this time; bytes that are already in memory pass.
    pub pause_until: Option<Instant>,
    /// The bytes were not queued: the channel has ended, or is not known.
    pub dropped: bool,
    /// The connection is over its cap now: stop reading until [`Freed::uncapped`].
    pub capped: bool,
}

/// What follows from input having been consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freed {
    /// A channel is no longer stuck: end a pause.
    pub unstuck: bool,
    /// The connection is below three quarters of its cap again: read on.
    pub uncapped: bool,
}

/// The target for the next packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The window to refill to.
    pub window: u32,
    /// Process nothing more from this client before this time, not even bytes that are already in memory.
    pub hold_until: Option<Instant>,
    /// A stuck channel got a window that was meant for another. Count it.
    pub stray: bool,
}

/// A tiny window that a channel holds and will answer.
#[derive(Debug, Clone, Copy)]
struct Grant {
    channel: u32,
    at: Instant,
    passed: u8,
    /// When it was counted last. Answers that come together count once: those behind a full socket are in no order.
    passed_at: Option<Instant>,
}

#[derive(Debug)]
enum Fill {
    /// Below high water.
    Healthy,
    /// Above low water since it was above high water; its next trickle may be read at `slot`.
    Stuck { slot: Option<Instant> },
    /// Its program has ended: input is dropped at the normal target.
    Finished,
}

#[derive(Debug)]
struct Channel {
    window: u32,
    queued: usize,
    last_data: Option<Instant>,
    /// Of a packet that no typing makes.
    last_bulk: Option<Instant>,
    fill: Fill,
}

impl Channel {
    const fn stuck(&self) -> bool {
        matches!(self.fill, Fill::Stuck { .. })
    }
}

/// The policy of one connection.
#[derive(Debug)]
pub struct SoftStop {
    limits: Limits,
    channels: HashMap<u32, Channel>,
    order: VecDeque<Grant>,
    /// The target is normal for the head of the list alone.
    raised: bool,
    stuck: usize,
    queued: usize,
    capped: Option<usize>,
    last_other: Option<Instant>,
}

impl SoftStop {
    /// A connection without channels.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            channels: HashMap::new(),
            order: VecDeque::new(),
            raised: false,
            stuck: 0,
            queued: 0,
            capped: None,
            last_other: None,
        }
    }

    /// Bytes queued on all channels.
    pub const fn queued(&self) -> usize {
        self.queued
    }

    /// How many channels are stuck.
    pub const fn stuck(&self) -> usize {
        self.stuck
    }

    /// Whether reading is stopped by the cap.
    pub const fn capped(&self) -> bool {
        self.capped.is_some()
    }

    /// The channel with the most queued bytes.
    pub fn fullest(&self) -> Option<u32> {
        self.channels.iter().filter(|(_, c)| c.queued > 0).max_by_key(|(_, c)| c.queued).map(|(id, _)| *id)
    }

    /// A channel was opened with the normal window.
    pub fn opened(&mut self, channel: u32) {
        let window = self.limits.normal;
        self.forget(channel);
        self.channels
            .insert(channel, Channel { window, queued: 0, last_data: None, last_bulk: None, fill: Fill::Healthy });
    }

    /// The client will send no more on this channel.
    pub fn eof(&mut self, channel: u32) {
        self.order.retain(|grant| grant.channel != channel);
    }

    /// Nobody takes this channel's input any more: what is queued is dropped, and so is what still comes.
    pub fn finished(&mut self, channel: u32) -> Freed {
        let Some(state) = self.channels.get_mut(&channel) else { return Freed::default() };
        let was_stuck = state.stuck();
        let queued = std::mem::take(&mut state.queued);
        state.fill = Fill::Finished;
        self.stuck -= usize::from(was_stuck);
        self.order.retain(|grant| grant.channel != channel);
        self.free(queued, was_stuck)
    }

    /// The channel is closed in both directions.
    pub fn closed(&mut self, channel: u32) -> Freed {
        let freed = self.finished(channel);
        self.channels.remove(&channel);
        freed
    }

    /// Input other than a stuck channel's: a request, a window adjustment.
    pub fn other_input(&mut self, now: Instant) {
        self.last_other = Some(now);
    }

    /// A packet of `len` bytes arrived, after which (and after a refill) the channel's window is `window`. `cap` bounds
    /// what the connection may have queued; going above it stops reading.
    ///
    /// # Errors
    /// The packet is longer than the window was: end the connection.
    pub fn data(
        &mut self,
        channel: u32,
        len: usize,
        window: u32,
        cap: usize,
        now: Instant,
    ) -> Result<Taken, WindowExceeded> {
        let high = self.limits.high;
        let Some(state) = self.arrived(channel, len, window, now)? else {
            return Ok(Taken { dropped: true, ..Taken::default() });
        };
        state.queued += len;
        if matches!(state.fill, Fill::Healthy) && state.queued >= high {
            state.fill = Fill::Stuck { slot: None };
            self.stuck += 1;
        }
        self.queued += len;
        let capped = self.capped.is_none() && self.queued > cap;
        if capped {
            self.capped = Some(cap);
        }
        Ok(Taken { pause_until: self.pace(channel, window, now), dropped: false, capped })
    }

    /// A packet that nobody wants (extended data from a client) arrived: it counts against the window only.
    ///
    /// # Errors
    /// As [`data`](Self::data).
    pub fn unwanted(&mut self, channel: u32, len: usize, window: u32, now: Instant) -> Result<(), WindowExceeded> {
        self.arrived(channel, len, window, now).map(drop)
    }

    fn arrived(
        &mut self,
        channel: u32,
        len: usize,
        window: u32,
        now: Instant,
    ) -> Result<Option<&mut Channel>, WindowExceeded> {
        let Some(state) = self.channels.get_mut(&channel) else { return Ok(None) };
        if u32::try_from(len).map_or(true, |len| len > state.window) {
            return Err(WindowExceeded { len, window: state.window });
        }
        state.window = window;
        state.last_data = Some(now);
        if len >= BULK {
            state.last_bulk = Some(now);
        }
        Ok((!matches!(state.fill, Fill::Finished)).then_some(state))
    }

    /// A stuck channel's trickle waits for its slot, unless a healthy channel waits behind it.
    fn pace(&mut self, channel: u32, window: u32, now: Instant) -> Option<Instant> {
        let healthy_waits = self.order.iter().any(|grant| !self.is_stuck(grant.channel));
        let since = self.last_other.map(|at| now.saturating_duration_since(at));
        let Some(Channel { fill: Fill::Stuck { slot }, .. }) = self.channels.get_mut(&channel) else {
            self.last_other = Some(now);
            return None;
        };
        if window > TINY || healthy_waits {
            return None;
        }
        let step = since.map_or(PACE.1, |since| (since / PACE_DIVISOR).clamp(PACE.0, PACE.1));
        let at = slot.map_or(now, |last| (last + step).max(now));
        *slot = Some(at);
        (at > now).then_some(at)
    }

    /// The consumer took `len` bytes of the channel's queue.
    pub fn consumed(&mut self, channel: u32, len: usize) -> Freed {
        let Some(state) = self.channels.get_mut(&channel) else { return Freed::default() };
        let len = len.min(state.queued);
        state.queued -= len;
        let unstuck = state.stuck() && state.queued < self.limits.low;
        if unstuck {
            state.fill = Fill::Healthy;
            self.stuck -= 1;
        }
        self.free(len, unstuck)
    }

    fn free(&mut self, len: usize, unstuck: bool) -> Freed {
        self.queued -= len;
        let uncapped = self.capped.is_some_and(|cap| self.queued < cap / 4 * 3);
        if uncapped {
            self.capped = None;
        }
        Freed { unstuck, uncapped }
    }

    /// The library refilled the channel's window up to `current`; which target should it use from now on?
    pub fn adjust_window(&mut self, channel: u32, current: u32, now: Instant) -> Target {
        let normal = self.limits.normal;
        if self.stuck == 0 {
            self.order.clear();
            self.raised = false;
            return Target { window: normal, hold_until: None, stray: false };
        }
        let (stuck, tiny) = (self.is_stuck(channel), current <= TINY);
        let stray = self.answered(channel, stuck && !tiny, now);
        let hold_until = (tiny && self.receives(channel)).then(|| {
            self.order.push_back(Grant { channel, at: now, passed: 0, passed_at: None });
            now + APART
        });
        self.raised = self.may_raise(now);
        let window = if self.raised { normal } else { TINY };
        Target { window, hold_until: hold_until.filter(|_| !stuck), stray }
    }

    /// Takes the channel's grant off the list. Answers come in the order of the grants, so whoever was passed over is
    /// idle; the head is, where a stuck channel got the window that was meant for it.
    fn answered(&mut self, channel: u32, got_the_heads: bool, now: Instant) -> bool {
        let Some(position) = self.order.iter().position(|grant| grant.channel == channel) else {
            // It was taken for idle. (A channel that has just become stuck gets what it was due before.)
            return got_the_heads && self.raised;
        };
        let by = if got_the_heads { PASSED } else { 1 };
        for grant in self.order.iter_mut().take(position) {
            let counted = grant.passed_at.is_some_and(|at| now.saturating_duration_since(at) < APART);
            if got_the_heads || !counted {
                grant.passed = grant.passed.saturating_add(by);
                grant.passed_at = Some(now);
            }
        }
        self.order.remove(position);
        self.order.retain(|grant| grant.passed < PASSED);
        got_the_heads
    }

    fn may_raise(&self, now: Instant) -> bool {
        let Some(head) = self.order.front() else { return false };
        let near = self.order.iter().skip(1).any(|grant| grant.at.saturating_duration_since(head.at) < APART / 2);
        // A large window in use: a stuck channel's own, or one by which another fills the client's socket. Behind a full socket
        // grants wait together, and are answered in the order of the channels.
        let draining = self.channels.iter().any(|(id, channel)| {
            let last = if channel.stuck() { channel.last_data } else { channel.last_bulk };
            let recent = last.is_some_and(|at| now.saturating_duration_since(at) < DRAINING);
            *id != head.channel && channel.window > TINY && recent
        });
        // Whoever answers before the head may be the first of several that waited together.
        !self.is_stuck(head.channel) && head.passed == 0 && !near && !draining
    }

    fn is_stuck(&self, channel: u32) -> bool {
        self.channels.get(&channel).is_some_and(Channel::stuck)
    }

    fn receives(&self, channel: u32) -> bool {
        self.channels.get(&channel).is_some_and(|channel| !matches!(channel.fill, Fill::Finished))
    }

    fn forget(&mut self, channel: u32) {
        self.closed(channel);
    }
}
