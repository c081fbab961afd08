//! The soft stop against a model of what surrounds it: the SSH library's window rule, a network with a delay, and
//! clients that keep to the order of grants, or don't.

use podbay_frontend_core::{Limits, SoftStop};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

const PACKET: u32 = 32 * 1024;
const CAP: usize = 64 << 20;
/// What a stuck channel may hold where the client keeps to the order: high water and one and a half windows, and the
/// trickle.
const HELD: usize = (4 << 20) + (64 << 10);

/// How a client serves grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Each as it arrives.
    InOrder,
    /// All that arrived within this time at once, in the order of the channels, as OpenSSH does.
    Batches(Duration),
    /// The last first, in batches.
    Backwards(Duration),
}

struct Lane {
    /// The client's view of the window.
    room: u32,
    /// The server's view.
    window: u32,
    /// Bytes the client still has to send.
    wants: usize,
    /// Bytes that reached the server.
    arrived: usize,
    /// Whether its program takes what arrives.
    reads: bool,
    most_queued: usize,
    queued: usize,
}

struct World {
    now: Instant,
    delay: Duration,
    habit: Habit,
    policy: SoftStop,
    target: u32,
    lanes: BTreeMap<u32, Lane>,
    /// Packets under way: when they arrive, channel, length.
    uplink: VecDeque<(Instant, u32, u32)>,
    /// Grants under way.
    downlink: VecDeque<(Instant, u32, u32)>,
    gate: Instant,
    strays: usize,
    most_queued: usize,
    capped: bool,
}

impl World {
    fn new(delay: Duration, habit: Habit, lanes: &[(u32, bool, usize)]) -> Self {
        let now = Instant::now();
        let limits = Limits::default();
        let mut policy = SoftStop::new(limits);
        let lanes = lanes.iter().map(|&(id, reads, wants)| {
            policy.opened(id);
            let lane = Lane {
                room: limits.normal,
                window: limits.normal,
                wants,
                arrived: 0,
                reads,
                most_queued: 0,
                queued: 0,
            };
            (id, lane)
        });
        let lanes = lanes.collect();
        Self {
            now,
            delay,
            habit,
            policy,
            target: limits.normal,
            lanes,
            uplink: VecDeque::new(),
            downlink: VecDeque::new(),
            gate: now,
            strays: 0,
            most_queued: 0,
            capped: false,
        }
    }

    /// The client sends what its windows allow, a packet of each channel in turn, while its socket takes it.
    fn client_sends(&mut self, order: &[u32]) {
        loop {
            let backlog: u64 = self.uplink.iter().map(|(_, _, len)| u64::from(*len)).sum();
            let mut sent = false;
            for id in order {
                let lane = self.lanes.get_mut(id).expect("a channel");
                let len = lane.room.min(PACKET).min(u32::try_from(lane.wants).unwrap_or(u32::MAX));
                if len > 0 && backlog < 1 << 20 {
                    lane.room -= len;
                    lane.wants -= len as usize;
                    self.uplink.push_back((self.now + self.delay, *id, len));
                    sent = true;
                }
            }
            if !sent {
                return;
            }
        }
    }

    fn grants_arrive(&mut self) {
        let due = |at: Instant, now: Instant| at <= now;
        match self.habit {
            Habit::InOrder => {
                while let Some((at, id, by)) = self.downlink.front().copied() {
                    if !due(at, self.now) {
                        break;
                    }
                    self.downlink.pop_front();
                    self.lanes.get_mut(&id).expect("a channel").room += by;
                    self.client_sends(&[id]);
                }
            }
            Habit::Batches(_) | Habit::Backwards(_) => {
                while let Some((at, id, by)) = self.downlink.front().copied() {
                    if !due(at, self.now) {
                        break;
                    }
                    self.downlink.pop_front();
                    self.lanes.get_mut(&id).expect("a channel").room += by;
                }
            }
        }
        let mut order: Vec<u32> = self.lanes.keys().copied().collect();
        if matches!(self.habit, Habit::Backwards(_)) {
            order.reverse();
        }
        self.client_sends(&order);
    }

    /// The library takes one packet: its window rule, then the two callbacks.
    fn packet(&mut self, id: u32, len: u32) {
        let lane = self.lanes.get_mut(&id).expect("a channel");
        assert!(len <= lane.window, "the model client exceeds its window");
        lane.window -= len;
        if lane.window < self.target / 2 {
            let by = self.target - lane.window;
            lane.window = self.target;
            let client = match self.habit {
                Habit::InOrder => self.now + self.delay,
                Habit::Batches(every) | Habit::Backwards(every) => self.wakes(self.now + self.delay, every),
            };
            self.downlink.push_back((client, id, by));
            let target = self.policy.adjust_window(id, self.target, self.now);
            self.target = target.window;
            self.strays += usize::from(target.stray);
            self.gate = self.gate.max(target.hold_until.unwrap_or(self.now));
        }
        let lane = self.lanes.get_mut(&id).expect("a channel");
        let taken = self.policy.data(id, len as usize, lane.window, CAP, self.now).expect("within the window");
        lane.arrived += len as usize;
        lane.queued += len as usize;
        lane.most_queued = lane.most_queued.max(lane.queued);
        self.capped |= taken.capped;
        self.most_queued = self.most_queued.max(self.policy.queued());
        self.gate = self.gate.max(taken.pause_until.unwrap_or(self.now));
        if lane.reads {
            lane.queued = 0;
            self.policy.consumed(id, len as usize);
        }
    }

    fn wakes(&self, at: Instant, every: Duration) -> Instant {
        let since = at.duration_since(self.now.checked_sub(Duration::from_hours(1)).unwrap());
        let rest = since.as_nanos() % every.as_nanos().max(1);
        at + every.checked_sub(Duration::from_nanos(u64::try_from(rest).expect("small"))).unwrap()
    }

    /// Runs until nothing moves, the condition holds, or `limit` has passed.
    fn run(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        self.grants_arrive();
        while !done(self) && !self.capped {
            let reading = self.uplink.front().map(|(at, ..)| (*at).max(self.gate));
            let granting = self.downlink.front().map(|(at, ..)| *at);
            let Some(next) = reading.into_iter().chain(granting).min() else { return };
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if granting.is_some_and(|at| at <= self.now) {
                self.grants_arrive();
            } else if let Some((_, id, len)) = self.uplink.pop_front() {
                self.now += Duration::from_nanos(u64::from(len) * 3 + 2_000); // about 300 MB/s
                self.packet(id, len);
                let order: Vec<u32> = self.lanes.keys().copied().collect();
                self.client_sends(&order);
            }
        }
    }

    /// The programs that did not read begin to.
    fn release(&mut self) {
        for (id, lane) in &mut self.lanes {
            lane.reads = true;
            let queued = std::mem::take(&mut lane.queued);
            if self.policy.consumed(*id, queued).unstuck {
                self.gate = self.now;
            }
        }
    }

    fn healthy_done(&self, healthy: &[u32]) -> bool {
        healthy.iter().all(|id| self.lanes[id].wants == 0 && self.lanes[id].arrived > 0)
            && !self.uplink.iter().any(|(_, id, _)| healthy.contains(id))
    }
}

fn habits() -> impl Strategy<Value = Habit> {
    prop_oneof![Just(Habit::InOrder), (50u64..1_000).prop_map(|us| Habit::Batches(Duration::from_micros(us)))]
}

fn bad_habits() -> impl Strategy<Value = Habit> {
    prop_oneof![
        (5u64..60).prop_map(|ms| Habit::Backwards(Duration::from_millis(ms))),
        (5u64..60).prop_map(|ms| Habit::Batches(Duration::from_millis(ms))),
    ]
}

/// Channels that don't read, and channels that do, in any order of opening.
fn lanes() -> impl Strategy<Value = (Vec<u32>, Vec<u32>)> {
    (1usize..4, 1usize..4).prop_flat_map(|(stuck, healthy)| {
        let all: Vec<u32> = (0..u32::try_from(stuck + healthy).expect("few")).collect();
        Just(all).prop_shuffle().prop_map(move |mut all| {
            let healthy = all.split_off(stuck);
            (all, healthy)
        })
    })
}

fn world(delay_us: u64, habit: Habit, stuck: &[u32], healthy: &[u32], offered: usize, bulk: usize) -> World {
    let mut lanes: Vec<_> = stuck.iter().map(|id| (*id, false, offered)).collect();
    lanes.extend(healthy.iter().map(|id| (*id, true, 0)));
    let mut world = World::new(Duration::from_micros(delay_us), habit, &lanes);
    // First the stuck ones fill up, alone.
    world.run(Duration::from_secs(2), |_| false);
    for id in healthy {
        world.lanes.get_mut(id).expect("a channel").wants = bulk;
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// A client that keeps to the order: a stuck channel holds 4 MiB and gains nothing while its neighbours send, they
    /// make good progress, and once its program reads, all of it arrives.
    #[test]
    fn a_stuck_channel_is_bounded_and_stops_nobody(
        delay_us in 20u64..20_000,
        habit in habits(),
        (stuck, healthy) in lanes(),
        bulk in (4usize << 20)..(24 << 20),
    ) {
        let offered = 40 << 20;
        let mut world = world(delay_us, habit, &stuck, &healthy, offered, bulk);
        let before = world.now;
        world.run(Duration::from_mins(1), |world| world.healthy_done(&healthy));
        prop_assert!(world.healthy_done(&healthy), "after {:?}", world.now - before);
        let windows = healthy.len() * (bulk >> 20).div_ceil(2);
        let fair = Duration::from_millis(500) + (4 * world.delay + Duration::from_millis(60)) * u32::try_from(windows).expect("few");
        prop_assert!(world.now - before < fair, "{:?} for {windows} windows, fair is {fair:?}", world.now - before);
        prop_assert!(world.strays <= healthy.len(), "{} stray grants", world.strays);
        for id in &stuck {
            let most = world.lanes[id].most_queued;
            prop_assert!(most <= HELD + world.strays * (2 << 20), "channel {id} held {most}, strays {}", world.strays);
        }
        world.release();
        world.run(Duration::from_mins(1), |_| false);
        for id in &stuck {
            prop_assert_eq!(world.lanes[id].arrived, offered);
        }
        prop_assert_eq!((world.policy.queued(), world.policy.stuck()), (0, 0));
    }

    /// A client that does not: it gains windows, but the cap is never passed by more than what was granted at once, and
    /// its healthy channels go on or the cap says stop.
    #[test]
    fn a_client_without_order_is_bounded_by_the_cap(
        delay_us in 20u64..20_000,
        habit in bad_habits(),
        (stuck, healthy) in lanes(),
        bulk in (4usize << 20)..(24 << 20),
    ) {
        let mut world = world(delay_us, habit, &stuck, &healthy, 200 << 20, bulk);
        world.run(Duration::from_mins(2), |world| world.healthy_done(&healthy));
        prop_assert!(world.most_queued <= CAP + PACKET as usize);
        prop_assert!(world.capped || world.healthy_done(&healthy));
        for id in &stuck {
            prop_assert!(world.lanes[id].most_queued <= HELD + (world.strays + healthy.len()) * (2 << 20));
        }
    }

    /// Whatever happens in whatever order: the counts hold, nothing panics, and a connection without channels is as new.
    #[test]
    fn counts_hold(events in prop::collection::vec((0u8..9, 0u32..5, 0usize..(3 << 20)), 0..300)) {
        let mut policy = SoftStop::new(Limits::default());
        let mut queued: BTreeMap<u32, usize> = BTreeMap::new();
        let mut now = Instant::now();
        for (event, id, n) in events {
            now += Duration::from_micros(n as u64 / 10);
            match event {
                0 => { policy.opened(id); queued.insert(id, 0); }
                1 => policy.eof(id),
                2 => { policy.closed(id); queued.remove(&id); }
                3 => { policy.finished(id); queued.entry(id).and_modify(|q| *q = 0); }
                4 => policy.other_input(now),
                5 => { policy.adjust_window(id, if n % 2 == 0 { 2 } else { 2 << 20 }, now); }
                6 => { policy.consumed(id, n); queued.entry(id).and_modify(|q| *q = q.saturating_sub(n)); }
                _ => if let Ok(taken) = policy.data(id, n, 2 << 20, CAP, now) && !taken.dropped {
                    *queued.get_mut(&id).expect("only known channels take bytes") += n;
                },
            }
            prop_assert_eq!(policy.queued(), queued.values().sum::<usize>());
            prop_assert!(policy.stuck() <= queued.values().filter(|q| **q > 0).count());
            prop_assert_eq!(policy.fullest().is_some(), policy.queued() > 0);
        }
        for id in 0..5 { policy.closed(id); }
        prop_assert_eq!((policy.queued(), policy.stuck(), policy.capped()), (0, 0, false));
    }
}

#[test]
fn the_cap_stops_reading_until_three_quarters() {
    let mut policy = SoftStop::new(Limits::default());
    let now = Instant::now();
    policy.opened(1);
    assert!(!policy.data(1, 1000, 2 << 20, 1000, now).expect("fits").capped);
    assert!(policy.data(1, 1, 2 << 20, 1000, now).expect("fits").capped);
    assert!(!policy.data(1, 1, 2 << 20, 1000, now).expect("fits").capped, "told once");
    assert_eq!(policy.fullest(), Some(1));
    assert!(!policy.consumed(1, 252).uncapped);
    assert!(policy.consumed(1, 1).uncapped && !policy.capped());
}

#[test]
fn a_packet_beyond_the_window_is_refused() {
    let mut policy = SoftStop::new(Limits::default());
    let now = Instant::now();
    policy.opened(1);
    policy.data(1, 2 << 20, 0, CAP, now).expect("the whole window");
    assert!(policy.data(1, 1, 0, CAP, now).is_err());
    assert!(policy.unwanted(1, 1, 0, now).is_err());
    assert!(policy.data(2, 1, 0, CAP, now).expect("unknown").dropped);
}
