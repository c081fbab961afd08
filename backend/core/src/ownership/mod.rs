//! Ownership: an owner's lease keeps its pods; an owner whose lease stands still loses them.
//!
//! The rule and its reasons: docs/design/0003-ownership.md. No wall clock is ever compared: a lease's *change* is the sign
//! of life, and time is what one reaper has itself watched. The one exception is a pod that Detach keeps: until the time in its
//! annotation, by the wall clock, no owner's end is its end (docs/design/0008-detach.md).

mod agents;
mod idle;
mod lease;
mod mark;
mod observe;
mod reaper;
mod sweep;
mod work;

pub use agents::Agents;
pub use lease::{EXPIRED, Leases, lease_name};
pub use mark::Closing;
pub use observe::{Item, Observations};
pub use reaper::{Reaper, Scope};
pub use sweep::Sweep;
