//! The layer that makes lines of events.

use super::{
    Format, Severity,
    output::Output,
    record::{Record, Value},
};
use jiff::Zoned;
use std::sync::{Arc, PoisonError, RwLock};
use tracing::{Event, Subscriber};
use tracing_subscriber::{Layer, layer::Context};

/// How grave a line must be; it can change.
#[derive(Debug)]
pub(super) struct Least(RwLock<Severity>);

impl Least {
    pub fn new(severity: Severity) -> Self {
        Self(RwLock::new(severity))
    }

    pub fn set(&self, severity: Severity) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = severity;
    }

    fn lets(&self, severity: Severity) -> bool {
        severity <= *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes each event that is grave enough.
#[derive(Debug)]
pub(super) struct Lines {
    format: Format,
    least: Arc<Least>,
    output: Arc<Output>,
}

impl Lines {
    pub fn new(format: Format, least: Arc<Least>, output: Arc<Output>) -> Self {
        Self { format, least, output }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let record = Record::of(event);
        let severity = Severity::of(record.level, record.code.as_deref());
        if !self.least.lets(severity) {
            return;
        }
        let now = Zoned::now();
        let line = |frame, colour| self.format.line(&record, &now, frame, colour);
        let Err((error, first)) = self.output.write(severity, &now, line) else { return };
        // Nothing else can tell of it.
        if first {
            let fields = vec![("error", Value::Shown(error.to_string()))];
            let failed = Record {
                level: tracing::Level::ERROR,
                target: module_path!().to_owned(),
                message: "the log can't be written where it belongs; it goes to stderr until it can".to_owned(),
                code: Some(crate::codes::LOG_WRITE_FAILED.to_owned()),
                fields,
            };
            self.output.fall_back(&self.format.line(&failed, &now, super::format::Frame::Whole, false));
        }
        self.output.fall_back(&self.format.line(&record, &now, super::format::Frame::Whole, false));
    }
}
