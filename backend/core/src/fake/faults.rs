//! Faults by kind of call.

use crate::cluster::ClusterError;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each is the function of its name
pub enum Call {
    CreatePod,
    TryPod,
    GetPod,
    ListPods,
    AnnotatePod,
    DeletePod,
    PatchPod,
    WatchPod,
    PodEvents,
    Stream,
    ListLeases,
    GetLease,
    CreateLease,
    ReplaceLease,
    DeleteLease,
    Ping,
}

/// What goes wrong with a call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It acts at once and answers after this time (unary: after the bound with `Timeout`).
    Slow(Duration),
    /// It doesn't act.
    Fail(ClusterError),
    /// It acts, and the caller gets this error all the same.
    LoseAnswer(ClusterError),
    /// It doesn't act, and there is no answer (unary: after the bound, `Timeout`).
    Hang,
}

#[derive(Default)]
pub(super) struct Faults {
    waiting: BTreeMap<Call, VecDeque<(usize, Fault)>>,
    counts: BTreeMap<Call, usize>,
}

impl Faults {
    pub fn add(&mut self, call: Call, times: usize, fault: Fault) {
        if times > 0 {
            self.waiting.entry(call).or_default().push_back((times, fault));
        }
    }

    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    pub fn count(&self, call: Call) -> usize {
        self.counts.get(&call).copied().unwrap_or(0)
    }

    /// Counts the call and takes its fault.
    pub fn next(&mut self, call: Call) -> Option<Fault> {
        *self.counts.entry(call).or_default() += 1;
        let queue = self.waiting.get_mut(&call)?;
        let (times, fault) = queue.front_mut()?;
        let fault = fault.clone();
        *times -= 1;
        if *times == 0 {
            queue.pop_front();
        }
        Some(fault)
    }
}
