//! What failed logins cost the address that they come from, as OpenSSH's `PerSourcePenalties`. Pure: time is passed in.
//!
//! Each offence adds to a source's penalty. Once a penalty has reached `min` the source is refused until it has passed. Tables are bounded;
//! what a full one does is the operator's choice.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

/// For ever.
const FAR: Duration = Duration::from_hours(100 * 365 * 24);

/// What a connection did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// It tried to log in, and failed.
    AuthFail,
    /// It ended without a try.
    NoAuth,
    /// It was not in within the login grace time.
    GraceExceeded,
}

/// What happens with a new source while the table is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// It takes the place of the penalty that would pass first.
    Permissive,
    /// Nobody is let in until a penalty has passed.
    DenyAll,
}

/// What offences cost. The defaults are OpenSSH's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Costs {
    /// `authfail`
    pub auth_fail: Duration,
    /// `noauth`
    pub no_auth: Duration,
    /// `grace-exceeded`
    pub grace_exceeded: Duration,
    /// `min`: a smaller penalty has no effect yet.
    pub min: Duration,
    /// `max`: no penalty is longer.
    pub max: Duration,
    /// `max-sources4`, `max-sources6`: so many are remembered.
    pub max_sources: [usize; 2],
    /// `overflow`
    pub overflow: Overflow,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            auth_fail: Duration::from_secs(5),
            no_auth: Duration::from_secs(1),
            grace_exceeded: Duration::from_secs(10),
            min: Duration::from_secs(15),
            max: Duration::from_mins(10),
            max_sources: [65_536; 2],
            overflow: Overflow::Permissive,
        }
    }
}

/// Whose penalties are how long. A remembered source costs some 200 bytes: 26 MB with both tables of the default size full. Sources are addresses as the caller groups them: an IPv6 /64 is one.
#[derive(Debug)]
pub struct Penalties {
    costs: Costs,
    /// IPv4 and IPv6: one must not push out the other.
    tables: [Table; 2],
}

#[derive(Debug, Default)]
struct Table {
    /// When it has passed, and whether it has effect.
    sources: HashMap<IpAddr, (Instant, bool)>,
    /// The same by time.
    by_end: BTreeSet<(Instant, IpAddr)>,
}

impl Penalties {
    /// Nobody has one.
    pub fn new(costs: Costs) -> Self {
        Self { costs, tables: [Table::default(), Table::default()] }
    }

    /// From now on offences cost this. Penalties that are there stay as long as they were; a table that is larger than it may be
    /// takes no new source without losing one, until penalties have passed.
    pub fn change(&mut self, costs: Costs) {
        self.costs = costs;
    }

    /// Whether the source is refused now.
    pub fn refuses(&mut self, source: IpAddr, now: Instant) -> bool {
        let (table, most) = of(&mut self.tables, &self.costs, source);
        table.forget(now);
        match table.sources.get(&source) {
            Some((_, active)) => *active,
            None => self.costs.overflow == Overflow::DenyAll && table.sources.len() >= most,
        }
    }

    /// Adds to the source's penalty.
    pub fn punish(&mut self, source: IpAddr, offence: Offence, now: Instant) {
        let cost = match offence {
            Offence::AuthFail => self.costs.auth_fail,
            Offence::NoAuth => self.costs.no_auth,
            Offence::GraceExceeded => self.costs.grace_exceeded,
        };
        let (min, max, overflow) = (self.costs.min, self.costs.max, self.costs.overflow);
        let (table, most) = of(&mut self.tables, &self.costs, source);
        table.forget(now);
        if cost.is_zero() || most == 0 {
            return;
        }
        let before = table.remove(source);
        if before.is_none() && table.sources.len() >= most {
            match overflow {
                Overflow::Permissive => {
                    if let Some((_, first)) = table.by_end.first().copied() {
                        table.remove(first);
                    }
                }
                Overflow::DenyAll => return,
            }
        }
        let (end, active) = before.unwrap_or((now, false));
        let left = end.saturating_duration_since(now).saturating_add(cost).min(max);
        // A time that no clock tells is as far as the longest that is configured sensibly.
        let end = now.checked_add(left).unwrap_or(now + FAR);
        table.insert(source, (end, active || left >= min));
    }

    /// How many sources have one, of effect or not.
    pub fn len(&self) -> usize {
        self.tables.iter().map(|table| table.sources.len()).sum()
    }

    /// Whether nobody has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn of<'a>(tables: &'a mut [Table; 2], costs: &Costs, source: IpAddr) -> (&'a mut Table, usize) {
    let ([four, six], [most_four, most_six]) = (tables, costs.max_sources);
    if source.is_ipv4() { (four, most_four) } else { (six, most_six) }
}

impl Table {
    fn insert(&mut self, source: IpAddr, penalty: (Instant, bool)) {
        self.by_end.insert((penalty.0, source));
        self.sources.insert(source, penalty);
    }

    fn remove(&mut self, source: IpAddr) -> Option<(Instant, bool)> {
        let penalty = self.sources.remove(&source)?;
        self.by_end.remove(&(penalty.0, source));
        Some(penalty)
    }

    /// Drops what has passed.
    fn forget(&mut self, now: Instant) {
        while let Some((end, source)) = self.by_end.first().copied().filter(|(end, _)| *end <= now) {
            self.by_end.remove(&(end, source));
            self.sources.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const SECOND: Duration = Duration::from_secs(1);

    fn ip(n: u32) -> IpAddr {
        Ipv4Addr::from(n).into()
    }

    #[test]
    fn three_failures_are_too_many_until_their_penalty_has_passed() {
        let (mut penalties, now) = (Penalties::new(Costs::default()), Instant::now());
        for _ in 0..2 {
            penalties.punish(ip(1), Offence::AuthFail, now);
            assert!(!penalties.refuses(ip(1), now));
        }
        penalties.punish(ip(1), Offence::AuthFail, now);
        assert!(penalties.refuses(ip(1), now) && !penalties.refuses(ip(2), now));
        assert!(penalties.refuses(ip(1), now + 14 * SECOND), "in effect until it has passed");
        assert!(!penalties.refuses(ip(1), now + 15 * SECOND));
        assert!(penalties.is_empty());
    }

    #[test]
    fn a_penalty_has_a_longest_length() {
        let (mut penalties, now) = (Penalties::new(Costs::default()), Instant::now());
        for _ in 0..1000 {
            penalties.punish(ip(1), Offence::GraceExceeded, now);
        }
        assert!(penalties.refuses(ip(1), now + 599 * SECOND) && !penalties.refuses(ip(1), now + 600 * SECOND));
    }

    #[test]
    fn a_full_table_does_what_is_configured() {
        let costs = |overflow| Costs { min: SECOND, max_sources: [2, 2], overflow, ..Costs::default() };
        let now = Instant::now();
        let full = |overflow| {
            let mut penalties = Penalties::new(costs(overflow));
            penalties.punish(ip(1), Offence::AuthFail, now);
            penalties.punish(ip(2), Offence::GraceExceeded, now);
            penalties.punish(ip(3), Offence::AuthFail, now);
            penalties
        };
        let mut permissive = full(Overflow::Permissive);
        let refused = |penalties: &mut Penalties| [1, 2, 3, 4].map(|n| penalties.refuses(ip(n), now));
        assert_eq!(refused(&mut permissive), [false, true, true, false]);
        let mut denies = full(Overflow::DenyAll);
        assert_eq!(refused(&mut denies), [true; 4]);
        assert!(!denies.refuses("::1".parse().expect("an address"), now), "the other family has its own table");
        assert!(!denies.refuses(ip(4), now + 5 * SECOND));
    }

    #[test]
    fn a_flood_neither_grows_the_tables_nor_frees_who_is_guilty_nor_costs_the_innocent() {
        const FLOOD: u32 = 50_000;
        for overflow in [Overflow::Permissive, Overflow::DenyAll] {
            let costs = Costs { max_sources: [500; 2], overflow, ..Costs::default() };
            let (mut penalties, began) = (Penalties::new(costs), Instant::now());
            let (guilty, innocent) = (ip(1), ip(2));
            for _ in 0..200 {
                penalties.punish(guilty, Offence::AuthFail, began);
            }
            // Each time another /64 and another IPv4 address, for eight seconds.
            let at = |n: u32| began + SECOND * 8 * n / FLOOD;
            for n in 0..FLOOD {
                let six = Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(n) << 64).into();
                penalties.punish(six, Offence::AuthFail, at(n));
                penalties.punish(ip(0x0a00_0000 + n), Offence::AuthFail, at(n));
                assert!(penalties.len() <= 1000, "{}", penalties.len());
            }
            let now = at(FLOOD);
            for table in &penalties.tables {
                assert!(table.sources.capacity() <= 4 * 500, "{}", table.sources.capacity());
                assert_eq!(table.sources.len(), table.by_end.len());
            }
            assert!(penalties.refuses(guilty, now), "{overflow:?}: its penalty is longer than any of the flood's");
            assert_eq!(penalties.refuses(innocent, now), overflow == Overflow::DenyAll);
            // A flood is over when it is over.
            assert!(!penalties.refuses(IpAddr::from(Ipv6Addr::LOCALHOST), now + 6 * SECOND));
            assert!(!penalties.refuses(innocent, now + 6 * SECOND) && penalties.len() == 1, "{}", penalties.len());
            assert!(penalties.refuses(guilty, now + 580 * SECOND));
            assert!(!penalties.refuses(guilty, began + 600 * SECOND) && penalties.is_empty());
        }
    }

    #[test]
    fn times_that_no_clock_tells_are_long_and_nothing_worse() {
        let costs = Costs { auth_fail: Duration::MAX, max: Duration::MAX, ..Costs::default() };
        let (mut penalties, now) = (Penalties::new(costs), Instant::now());
        for _ in 0..3 {
            penalties.punish(ip(1), Offence::AuthFail, now);
        }
        assert!(penalties.refuses(ip(1), now + SECOND * 3600 * 24 * 365));
    }

    proptest! {
        #[test]
        fn tables_stay_bounded_and_whole(events in prop::collection::vec((0u32..40, 0u64..30, 0usize..3), 0..300)) {
            let mut penalties = Penalties::new(Costs { max_sources: [8, 8], ..Costs::default() });
            let mut now = Instant::now();
            for (source, wait, offence) in events {
                now += Duration::from_secs(wait);
                penalties.punish(ip(source), [Offence::AuthFail, Offence::NoAuth, Offence::GraceExceeded][offence], now);
                let table = &penalties.tables[0];
                prop_assert!(penalties.len() <= 8 && table.by_end.len() == table.sources.len());
                for (source, (end, _)) in &table.sources {
                    prop_assert!(table.by_end.contains(&(*end, *source)) && *end > now && *end <= now + Duration::from_mins(10));
                }
            }
            prop_assert!(!penalties.refuses(ip(0), now + Duration::from_mins(10)) && penalties.is_empty());
        }
    }
}
