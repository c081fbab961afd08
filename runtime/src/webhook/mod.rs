//! ContainerSSH's webhooks as a caller: the HTTP client's keys, one bounded exchange of JSON, and the facts about a user that requests and answers
//! carry. What is asked and what follows from an answer is the programs' own.

mod client;
mod config;
mod facts;
mod metrics;
mod unique;

pub use client::{Answer, CallError, Client, GaveUp};
pub use config::{Endpoint, endpoint, endpoint_at};
pub use facts::{Entry, Facts, FactsError, Json, MAX_FILES, as_named};
pub use metrics::{CallMetrics, Counted, Service};

#[cfg(test)]
mod tests;
