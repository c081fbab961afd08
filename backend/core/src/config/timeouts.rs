//! `kubernetes.timeouts`.

use podbay::v1;
use podbay_runtime::config::Section;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The bounds; each positive. What each bounds: the table in docs/failures.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// Create a pod and wait until it is ready, retries included.
    pub pod_start: Duration,
    /// Delete a pod and see it gone; read an exit code.
    pub pod_stop: Duration,
    /// From `Open` to `Started`.
    pub command_start: Duration,
    /// Deliver a signal.
    pub signal: Duration,
    /// Deliver a window size.
    pub window: Duration,
    /// One plain request to the API.
    pub http: Duration,
    /// How long a session waits for its pod's agent to be reached again, while its program runs on. Absent in handles from before
    /// there was one.
    #[serde(default = "relink")]
    pub relink: Duration,
}

/// Less than the agent's orphan timeout (10 minutes), so that the wait ends before the program.
const fn relink() -> Duration {
    Duration::from_mins(5)
}

impl Default for Timeouts {
    fn default() -> Self {
        let minute = Duration::from_mins(1);
        Self {
            pod_start: minute,
            pod_stop: minute,
            command_start: minute,
            signal: minute,
            window: minute,
            http: Duration::from_secs(15),
            relink: relink(),
        }
    }
}

impl Timeouts {
    pub(super) fn read(section: &mut Section) -> Self {
        let default = Self::default();
        let mut or = |key, default: Duration| section.filled(key, default);
        Self {
            pod_start: or("podStart", default.pod_start),
            pod_stop: or("podStop", default.pod_stop),
            command_start: or("commandStart", default.command_start),
            signal: or("signal", default.signal),
            window: or("window", default.window),
            http: or("http", default.http),
            relink: or("relink", default.relink),
        }
    }

    /// As the contract announces them. A bound longer than Protobuf's (10 000 years) is announced as that.
    pub fn to_proto(&self) -> v1::Timeouts {
        let proto = |duration| Some(duration_proto(duration));
        v1::Timeouts {
            pod_start: proto(self.pod_start),
            pod_stop: proto(self.pod_stop),
            command_start: proto(self.command_start),
            signal: proto(self.signal),
            window: proto(self.window),
        }
    }
}

/// As the contract writes it; at most what its 64 bits of seconds hold.
pub fn duration_proto(duration: Duration) -> prost_types::Duration {
    const MOST: u64 = 315_576_000_000;
    prost_types::Duration { seconds: duration.as_secs().min(MOST) as i64, nanos: duration.subsec_nanos() as i32 }
}
