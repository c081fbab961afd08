//! When something has stood still for so long that its owner is dead. Pure; times are of one process's monotonic clock.

use std::{collections::BTreeMap, time::Duration};

/// Something that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item<K, V> {
    /// What.
    pub key: K,
    /// Differs after every change of it.
    pub version: V,
    /// How long it must stand still.
    pub duration: Duration,
}

/// What one observer has seen, for as long as it has looked without a break.
#[derive(Debug, Clone)]
pub struct Observations<K, V> {
    /// The longest break between looks that may pass for looking.
    max_gap: Duration,
    /// The end of the last successful read.
    last: Option<Duration>,
    seen: BTreeMap<K, (V, Duration)>,
}

impl<K: Ord + Clone, V: Eq> Observations<K, V> {
    /// An observer that has seen nothing. `max_gap`: a longer time between two reads means that this process (or its API)
    /// stood still and that owners may have stood still with it.
    pub fn new(max_gap: Duration) -> Self {
        Self { max_gap, last: None, seen: BTreeMap::new() }
    }

    /// A read failed: whatever kept us from reading may keep owners from renewing. All observation starts anew.
    pub fn failed(&mut self) {
        self.last = None;
        self.seen.clear();
    }

    /// A read that began at `started` and whose answer was there at `ended` found these items. Gives those that did not change
    /// for their whole duration, from the *end* of the first read that saw them so to the *start* of this one: whenever
    /// within its time each read looked, the item stood still at least so long. What is not among the items any more is forgotten.
    pub fn read(&mut self, started: Duration, ended: Duration, items: impl IntoIterator<Item = Item<K, V>>) -> Vec<K> {
        let broken = match self.last {
            Some(last) => started.saturating_sub(last) > self.max_gap,
            None => true,
        };
        if broken || ended.saturating_sub(started) > self.max_gap {
            self.seen.clear();
        }
        self.last = Some(ended);
        let mut expired = Vec::new();
        let before = std::mem::take(&mut self.seen);
        let mut before = before;
        for Item { key, version, duration } in items {
            let since = match before.remove(&key) {
                Some((seen, since)) if seen == version => since,
                _ => ended,
            };
            if started.checked_sub(since).is_some_and(|stood| stood >= duration) {
                expired.push(key.clone());
            }
            self.seen.insert(key, (version, since));
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DURATION: u64 = 90;
    const GAP: u64 = 20;

    /// What happens between two looks.
    #[derive(Debug, Clone)]
    enum Event {
        /// Time passes, then a read that takes `takes`.
        Read { after: u64, takes: u64, works: bool },
        /// The owner renews.
        Renew,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..2 * GAP, 0..2 * GAP, prop::bool::weighted(0.9)).prop_map(|(after, takes, works)| Event::Read { after, takes, works }),
            8 => (0..GAP, 0..3u64).prop_map(|(after, takes)| Event::Read { after, takes, works: true }),
            1 => Just(Event::Renew),
        ]
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever happens: who is called expired was read unchanged for the whole duration, without a failed read or a break
        /// in between. Judged from the whole history, which the observer doesn't keep.
        #[test]
        fn only_what_was_watched_unchanged_expires(events in prop::collection::vec(event(), 1..120)) {
            let mut observations = Observations::new(seconds(GAP));
            let (mut now, mut version) = (0u64, 0u64);
            // The reads so far: (started, ended, version or failed).
            let mut history: Vec<(u64, u64, Option<u64>)> = Vec::new();
            for event in events {
                let Event::Read { after, takes, works } = event else { version += 1; continue };
                let started = now + after;
                now = started + takes;
                history.push((started, now, works.then_some(version)));
                if !works {
                    observations.failed();
                    continue;
                }
                let item = Item { key: (), version, duration: seconds(DURATION) };
                let expired = !observations.read(seconds(started), seconds(now), [item]).is_empty();

                let mut watched_since = now;
                let mut next_start = None;
                for &(begin, end, seen) in history.iter().rev() {
                    let gap = next_start.is_some_and(|next: u64| next - end > GAP);
                    if seen != Some(version) || gap {
                        break;
                    }
                    watched_since = end;
                    if end - begin > GAP {
                        break; // this read itself was a break: nothing before it counts
                    }
                    next_start = Some(begin);
                }
                prop_assert_eq!(expired, started.saturating_sub(watched_since) >= DURATION && started >= watched_since);
            }
        }
    }

    #[test]
    fn what_vanishes_and_comes_back_is_new() {
        let mut observations = Observations::new(seconds(GAP));
        let item = |version| Item { key: 'a', version, duration: seconds(DURATION) };
        let mut now = 0;
        let mut look = |items: Vec<Item<char, u32>>| {
            now += 10;
            observations.read(seconds(now), seconds(now), items)
        };
        for _ in 0..9 {
            assert!(look(vec![item(1)]).is_empty());
        }
        assert!(look(vec![]).is_empty());
        for _ in 0..9 {
            assert!(look(vec![item(1)]).is_empty());
        }
        assert_eq!(look(vec![item(1)]), ['a']);
        assert!(look(vec![item(2)]).is_empty(), "a renewal in the last moment");
    }
}
