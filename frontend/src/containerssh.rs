//! What ContainerSSH counts, under its names and labels, so that dashboards and alerts made for it go on working.

use crate::metrics::Method;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
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
        registry.register("containerssh_ssh_connections", "Accepted connections", m.connections);
        registry.register("containerssh_ssh_current_connections", "Connections now", m.current);
        registry.register("containerssh_ssh_successful_handshakes", "Connections that logged in", m.handshakes);
        registry.register("containerssh_ssh_failed_handshakes", "Connections that did not log in", m.failed_handshakes);
        registry.register("containerssh_auth_success", "Accepted attempts to log in", m.successes);
        registry.register("containerssh_auth_failures", "Refused attempts to log in", m.failures);
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

    pub(crate) fn logged_in(&self) {
        self.handshakes.get_or_create(&COUNTRY).inc();
    }

    pub(crate) fn not_logged_in(&self) {
        self.failed_handshakes.get_or_create(&COUNTRY).inc();
    }

    pub(crate) fn auth(&self, method: Method, success: bool) {
        // Another method of the contract's own would have no equivalent: there is none.
        let authtype = if method == Method::Password { "password" } else { "pubkey" };
        let attempt = Attempt { authtype, retry: "0", country: COUNTRY.country };
        let family = if success { &self.successes } else { &self.failures };
        family.get_or_create(&attempt).inc();
    }
}
