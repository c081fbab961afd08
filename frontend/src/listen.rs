//! The front door: accepting, and turning away before anything is spent.

use crate::{
    auth::Network,
    config::{FrontendConfig, PenaltyConfig},
    metrics::Turned,
    server::Server,
    ssh,
};
use arc_swap::ArcSwap;
use podbay_frontend_core::{
    Startups,
    penalties::{Offence, Penalties},
};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// After a failed accept (out of file descriptors …): at first and at most this long.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Accepts until `stop`. No error ends it.
pub async fn accept(server: Arc<Server>, listener: TcpListener, stop: CancellationToken) {
    let mut pause = PAUSES.0;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                server.metrics.accept_failed();
                warn!("accept failed: {error}");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(pause) => {}
                }
                pause = (pause * 2).min(PAUSES.1);
                continue;
            }
        };
        pause = PAUSES.0;
        match server.door.enter(peer.ip(), rand::random_range(0..100)) {
            Ok(permit) => {
                server.connections.spawn(ssh::serve(Arc::clone(&server), stream, peer, permit));
            }
            Err(why) => {
                server.metrics.turned(why);
                debug!(%peer, ?why, "turned away");
            }
        }
    }
}

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// In all.
    pub total: usize,
    /// From one address.
    pub per_address: usize,
    /// Not logged in.
    pub startups: Startups,
}

impl Bounds {
    /// As configured.
    pub fn of(config: &FrontendConfig) -> Self {
        Self {
            total: config.max_connections,
            per_address: config.max_connections_per_address,
            startups: config.startups,
        }
    }
}

/// What counts for who comes now.
#[derive(Debug)]
struct Rules {
    bounds: Bounds,
    /// Failures cost something.
    punishing: bool,
    /// Whom they cost nothing.
    exempt: Vec<Network>,
}

#[derive(Debug, Default)]
struct Inside {
    total: usize,
    unauthenticated: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Counts who is inside.
#[derive(Debug, Clone)]
pub struct Door {
    rules: Arc<ArcSwap<Rules>>,
    inside: Arc<Mutex<Inside>>,
    penalties: Arc<Mutex<Penalties>>,
}

/// A place inside; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    door: Door,
    address: IpAddr,
    unauthenticated: bool,
}

impl Rules {
    fn new(bounds: Bounds, penalties: &PenaltyConfig) -> Self {
        Self { bounds, punishing: penalties.costs.is_some(), exempt: penalties.exempt.clone() }
    }
}

impl Door {
    /// Nobody is inside.
    pub fn new(bounds: Bounds, penalties: &PenaltyConfig) -> Self {
        let register = Penalties::new(penalties.costs.clone().unwrap_or_default());
        let rules = Arc::new(ArcSwap::from_pointee(Rules::new(bounds, penalties)));
        Self { rules, inside: Arc::default(), penalties: Arc::new(Mutex::new(register)) }
    }

    /// From now on these count. Who is inside stays, and penalties go on.
    pub fn change(&self, bounds: Bounds, penalties: &PenaltyConfig) {
        if let Some(costs) = penalties.costs.clone() {
            self.penalties.lock().unwrap_or_else(PoisonError::into_inner).change(costs);
        }
        self.rules.store(Arc::new(Rules::new(bounds, penalties)));
    }

    /// The penalties, where the address can have one.
    fn penalties(&self, address: IpAddr) -> Option<MutexGuard<'_, Penalties>> {
        let rules = self.rules.load();
        let exempt = !rules.punishing || rules.exempt.iter().any(|network| network.contains(address));
        (!exempt).then(|| self.penalties.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A peer from there did wrong.
    pub fn punish(&self, address: IpAddr, offence: Offence) {
        if let Some(mut penalties) = self.penalties(address) {
            penalties.punish(network(address), offence, Instant::now());
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a peer in, or says why not. `dice` is a random number below 100.
    pub fn enter(&self, address: IpAddr, dice: u8) -> Result<Permit, Turned> {
        if self.penalties(address).is_some_and(|mut penalties| penalties.refuses(network(address), Instant::now())) {
            return Err(Turned::Penalty);
        }
        let address = network(address);
        let bounds = self.rules.load().bounds;
        let mut inside = self.inside();
        let there = inside.by_address.get(&address).copied().unwrap_or_default();
        if inside.total >= bounds.total {
            return Err(Turned::TooManyConnections);
        }
        if there >= bounds.per_address {
            return Err(Turned::TooManyFromAddress);
        }
        if bounds.startups.refuses(inside.unauthenticated, dice) {
            return Err(Turned::TooManyStartups);
        }
        inside.total += 1;
        inside.unauthenticated += 1;
        inside.by_address.insert(address, there + 1);
        Ok(Permit { door: self.clone(), address, unauthenticated: true })
    }
}

impl Permit {
    /// The peer has logged in.
    pub fn logged_in(&mut self) {
        if std::mem::take(&mut self.unauthenticated) {
            self.door.inside().unauthenticated -= 1;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.logged_in();
        let mut inside = self.door.inside();
        inside.total -= 1;
        if let Some(there) = inside.by_address.get_mut(&self.address) {
            *there -= 1;
            if *there == 0 {
                inside.by_address.remove(&self.address);
            }
        }
    }
}

/// An IPv4 address, or the /64 that one IPv6 host has to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// For the log.
pub fn describe(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|error| error.to_string(), |address: SocketAddr| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use podbay_frontend_core::penalties::Costs;

    #[test]
    fn counts_who_is_inside() {
        let startups = Startups { begin: 2, rate: 100, full: 2 };
        let door = Door::new(Bounds { total: 3, per_address: 2, startups }, &PenaltyConfig::default());
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mut first = door.enter(ip("10.0.0.1"), 0).expect("room");
        let mut second = door.enter(ip("::ffff:10.0.0.1"), 0).expect("room");
        assert_eq!(door.enter(ip("10.0.0.2"), 99).expect_err("full"), Turned::TooManyStartups);
        first.logged_in();
        second.logged_in();
        second.logged_in();
        assert_eq!(door.enter(ip("10.0.0.1"), 0).expect_err("full"), Turned::TooManyFromAddress);
        let third = door.enter(ip("2001:db8::1"), 0).expect("room");
        assert_eq!(door.enter(ip("10.0.0.3"), 0).expect_err("full"), Turned::TooManyConnections);
        drop((first, second, third));
        let inside = door.inside();
        assert_eq!((inside.total, inside.unauthenticated, inside.by_address.len()), (0, 0, 0));
    }

    #[test]
    fn bounds_and_penalties_change_while_people_are_inside() {
        let startups = Startups { begin: 9, rate: 100, full: 9 };
        let bounds = |total| Bounds { total, per_address: 9, startups };
        let costs = |auth_fail| Costs { auth_fail, min: Duration::from_secs(1), ..Costs::default() };
        let config = |costs| PenaltyConfig { costs, exempt: Vec::new() };
        let door = Door::new(bounds(2), &config(None));
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let inside = door.enter(ip("10.0.0.1"), 0).expect("room");
        door.change(bounds(1), &config(None));
        assert_eq!(door.enter(ip("10.0.0.1"), 0).expect_err("full"), Turned::TooManyConnections);
        door.change(bounds(2), &config(Some(costs(Duration::from_mins(1)))));
        door.punish(ip("10.0.0.2"), Offence::AuthFail);
        assert_eq!(door.enter(ip("10.0.0.2"), 0).expect_err("punished"), Turned::Penalty);
        // Other costs take nobody's penalty away; none at all do, and having some again brings it back.
        door.change(bounds(2), &config(Some(costs(Duration::ZERO))));
        assert_eq!(door.enter(ip("10.0.0.2"), 0).expect_err("punished"), Turned::Penalty);
        door.change(bounds(2), &config(None));
        drop(door.enter(ip("10.0.0.2"), 0).expect("room"));
        drop(inside);
        assert_eq!(door.inside().total, 0);
    }

    #[test]
    fn one_network_has_one_penalty_however_many_addresses_it_has() {
        let startups = Startups { begin: 100, rate: 100, full: 100 };
        let penalties =
            PenaltyConfig { exempt: vec!["192.0.2.0/24".parse().expect("a network")], ..PenaltyConfig::default() };
        let door = Door::new(Bounds { total: 100, per_address: 100, startups }, &penalties);
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        for n in 0..10_000_u16 {
            door.punish(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, n, n, n, n).into(), Offence::AuthFail);
            door.punish(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a00, 1).into(), Offence::AuthFail);
            door.punish(ip("192.0.2.7"), Offence::AuthFail);
        }
        let remembered = door.penalties(ip("10.0.0.1")).expect("not exempt").len();
        assert_eq!(remembered, 2);
        for (address, turned) in [
            ("2001:db8::ffff", true),
            ("2001:db8:0:1::", false),
            // The same peer, whichever socket it came by.
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("10.0.0.2", false),
            ("192.0.2.7", false),
        ] {
            assert_eq!(door.enter(ip(address), 0).err(), turned.then_some(Turned::Penalty), "{address}");
        }
    }

    #[test]
    fn one_ipv6_host_is_one_address() {
        let ip = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:1"));
        assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
    }
}
