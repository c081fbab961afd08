//! What ContainerSSH counts, under its names and labels, so that dashboards and alerts made for it go on working.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// There is no lookup of countries: as ContainerSSH's provider `dummy`.
const COUNTRY: Country = Country { country: "XX" };

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Country {
    country: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    authtype: &'static str,
    retry: &'static str,
    country: &'static str,
}

/// The metrics. Clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Equivalents {
    connections: Family<Country, Counter>,
    current: Family<Country, Gauge>,
    handshakes: Family<Country, Counter>,
    failed_handshakes: Family<Country, Counter>,
    successes: Family<Attempt, Counter>,
    failures: Family<Attempt, Counter>,
}

impl Equivalents {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let made = Self::default();
        let m = made.clone();
        // The unit is the end of the name.
        let unit = |unit: &str| Unit::Other(unit.to_owned());
        let (connections, handshakes) = (unit("connections"), unit("handshakes"));
        registry.register_with_unit("containerssh_ssh", "Accepted connections", connections.clone(), m.connections);
        registry.register_with_unit("containerssh_ssh_current", "Connections now", connections, m.current);
        let help = "Connections that logged in and that the backend has opened";
        registry.register_with_unit("containerssh_ssh_successful", help, handshakes.clone(), m.handshakes);
        let help = "Connections that did not come so far";
        registry.register_with_unit("containerssh_ssh_failed", help, handshakes, m.failed_handshakes);
        registry.register_with_unit("containerssh_auth", "Accepted attempts to log in", unit("success"), m.successes);
        registry.register_with_unit("containerssh_auth", "Refused attempts to log in", unit("failures"), m.failures);
        // Alerts see a first one only where there was a 0 before.
        for family in [&made.connections, &made.handshakes, &made.failed_handshakes] {
            drop(family.get_or_create(&COUNTRY));
        }
        drop(made.current.get_or_create(&COUNTRY));
        made
    }

    pub(crate) fn accepted(&self) {
        self.connections.get_or_create(&COUNTRY).inc();
    }

    pub(crate) fn entered(&self) {
        self.current.get_or_create(&COUNTRY).inc();
    }

    pub(crate) fn left(&self) {
        self.current.get_or_create(&COUNTRY).dec();
    }

    pub(crate) fn handshake(&self, success: bool) {
        let family = if success { &self.handshakes } else { &self.failed_handshakes };
        family.get_or_create(&COUNTRY).inc();
    }

    pub(crate) fn auth(&self, authtype: &'static str, success: bool, retried: bool) {
        let attempt = Attempt { authtype, retry: if retried { "1" } else { "0" }, country: COUNTRY.country };
        let family = if success { &self.successes } else { &self.failures };
        family.get_or_create(&attempt).inc();
    }
}
