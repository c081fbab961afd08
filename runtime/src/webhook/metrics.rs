//! What is counted of calls: under ContainerSSH's names, and how long they take.

use super::CallError;
use crate::codes;
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::{fmt, time::Duration};

/// Whose webhook it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Authentication's: `containerssh_auth_server_…`, with the label `authtype`.
    Auth,
    /// Configuration's: `containerssh_config_server_…`.
    Config,
}

type Labels = Vec<(&'static str, &'static str)>;

/// The counters of one webhook. Clones are one.
#[derive(Clone)]
pub struct CallMetrics {
    service: Service,
    requests: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
}

impl fmt::Debug for CallMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallMetrics").field("service", &self.service).finish_non_exhaustive()
    }
}

/// From 1 ms to a minute: as long as a call can take.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 3.0, 11))
}

/// One question, as it is counted.
#[derive(Debug, Clone, Copy)]
pub struct Counted<'a> {
    metrics: &'a CallMetrics,
    /// What is asked: `password`, `pubkey` or `authorization`.
    authtype: Option<&'static str>,
}

impl CallMetrics {
    /// Registered nowhere yet.
    pub fn new(service: Service) -> Self {
        Self {
            service,
            requests: Family::default(),
            failures: Family::default(),
            seconds: Family::new_with_constructor(seconds),
        }
    }

    /// Registers them; how long calls take is under the name `ours`, in seconds.
    pub fn register(&self, registry: &mut Registry, ours: &str) {
        let (name, what) = match self.service {
            Service::Auth => ("containerssh_auth_server", "authentication"),
            Service::Config => ("containerssh_config_server", "config"),
        };
        let unit = |unit: &str| Unit::Other(unit.to_owned());
        let help = format!("Calls of the {what} webhook");
        registry.register_with_unit(name, help, unit("requests"), self.requests.clone());
        let help = format!("Failed calls of the {what} webhook (type soft), and questions that were given up (hard)");
        registry.register_with_unit(name, help, unit("failures"), self.failures.clone());
        let help = format!("Time of calls of the {what} webhook");
        registry.register_with_unit(ours, help, Unit::Seconds, self.seconds.clone());
    }

    /// For a question that has no `authtype`.
    pub fn plain(&self) -> Counted<'_> {
        Counted { metrics: self, authtype: None }
    }

    /// For a question about authentication.
    pub fn of(&self, authtype: &'static str) -> Counted<'_> {
        Counted { metrics: self, authtype: Some(authtype) }
    }

    /// ContainerSSH's code for an error.
    pub const fn reason(&self, error: &CallError) -> &'static str {
        match error {
            CallError::Connection(_) | CallError::Timeout(_) => codes::HTTP_CLIENT_CONNECTION_FAILED,
            CallError::Redirect(_) => codes::HTTP_CLIENT_REDIRECTS_DISABLED,
            CallError::TooLarge | CallError::Decode(_) => codes::HTTP_CLIENT_DECODE_FAILED,
            CallError::Status(..) => match self.service {
                Service::Auth => codes::AUTH_INVALID_STATUS,
                Service::Config => codes::CONFIG_INVALID_STATUS_CODE,
            },
        }
    }
}

impl Counted<'_> {
    fn labels(&self, tries: u32, more: &[(&'static str, &'static str)]) -> Labels {
        let retry = ("retry", if tries > 1 { "1" } else { "0" });
        let mut labels: Labels =
            self.authtype.map(|authtype| ("authtype", authtype)).into_iter().chain([retry]).collect();
        labels.extend(more);
        // As ContainerSSH writes them.
        labels.sort_unstable();
        labels
    }

    pub(super) fn asking(&self, tries: u32) {
        self.metrics.requests.get_or_create(&self.labels(tries, &[])).inc();
    }

    pub(super) fn took(&self, took: Duration) {
        let labels: Labels = self.authtype.map(|authtype| ("authtype", authtype)).into_iter().collect();
        self.metrics.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// One call has failed (`soft`), or the question is given up (`hard`).
    pub(super) fn failed(&self, tries: u32, error: &CallError, kind: &'static str) {
        let labels = self.labels(tries, &[("type", kind), ("reason", self.metrics.reason(error))]);
        self.metrics.failures.get_or_create(&labels).inc();
    }

    /// ContainerSSH's code for an error.
    pub const fn reason(&self, error: &CallError) -> &'static str {
        self.metrics.reason(error)
    }
}
