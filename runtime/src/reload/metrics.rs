//! What became of readings of the configuration.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{
    sync::atomic::AtomicU64,
    time::{SystemTime, UNIX_EPOCH},
};

/// How a reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// In use from now on.
    Ok,
    /// Bad: the old one stays in use.
    Refused,
    /// What is in use already.
    Unchanged,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Ok, Self::Refused, Self::Unchanged];

    const fn label(self) -> Label {
        let result = match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Unchanged => "unchanged",
        };
        Label { result }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    result: &'static str,
}

/// The metrics, of the same names in all processes. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct ReloadMetrics {
    reloads: Family<Label, Counter>,
    good_at: Gauge<f64, AtomicU64>,
    last_good: Gauge,
    restart: Gauge,
}

impl ReloadMetrics {
    /// Registers them. The configuration that the process begins with is a good one.
    pub fn new(registry: &mut Registry) -> Self {
        let made = Self::default();
        let m = made.clone();
        let name = "podbay_config_reloads";
        registry.register(name, "Readings of the configuration after the start, by result", m.reloads);
        let name = "podbay_config_last_good_timestamp_seconds";
        registry.register(name, "When the configuration was last read and found good", m.good_at);
        let name = "podbay_config_last_reload_successful";
        registry.register(name, "0 while the file as it stands is refused, else 1", m.last_good);
        let name = "podbay_config_keys_waiting_for_restart";
        registry.register(name, "Changed keys that count after a restart only", m.restart);
        for outcome in Outcome::ALL {
            // So that the first one is seen as an increase.
            drop(made.reloads.get_or_create(&outcome.label()));
        }
        made.good();
        made
    }

    fn good(&self) {
        self.good_at.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        self.last_good.set(1);
    }

    pub(super) fn count(&self, outcome: Outcome) {
        match outcome {
            Outcome::Ok | Outcome::Unchanged => self.good(),
            Outcome::Refused => {
                self.last_good.set(0);
            }
        }
        self.reloads.get_or_create(&outcome.label()).inc();
    }

    /// How many readings ended so.
    pub fn counted(&self, outcome: Outcome) -> u64 {
        self.reloads.get_or_create(&outcome.label()).get()
    }

    pub(super) fn waiting_for_restart(&self, keys: usize) {
        self.restart.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }
}
