//! The backend's configuration: ContainerSSH's `kubernetes` and `security` sections as they are, and our
//! `ownership`.
//!
//! Reading finds every mistake with its position (`podbay_runtime::config`); what comes out is checked and complete, so
//! nothing below asks again. What isn't built yet is refused by name.

mod connection;
mod ownership;
mod pod;
mod security;
mod timeouts;

pub use connection::{Connection, Explicit, Pem};
pub use ownership::Ownership;
pub use pod::{IDLE, Mode, PodConfig};
pub use security::Security;
pub use timeouts::Timeouts;
pub use timeouts::duration_proto;

use podbay_runtime::config::Section;

/// What the backend's core runs by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach the API (for the adapter).
    pub connection: Connection,
    /// The pods.
    pub pod: PodConfig,
    /// The bounds.
    pub timeouts: Timeouts,
    /// Leases.
    pub ownership: Ownership,
    /// The policy.
    pub security: Security,
}

impl Settings {
    /// Reads `kubernetes`, `ownership` and `security` of a document's root. `None` where a mistake was recorded that leaves no usable
    /// value; the document's `finish` tells all mistakes either way.
    pub fn read(root: &mut Section) -> Option<Self> {
        let mut kubernetes = root.section("kubernetes");
        let connection = Connection::read(&mut kubernetes.section("connection"));
        let timeouts = Timeouts::read(&mut kubernetes.section("timeouts"));
        // ContainerSSH reads this part as JSON, whose keys Go takes in any case.
        let pod = PodConfig::read(&mut kubernetes.section("pod").in_any_case());
        let namespace = pod.as_ref().map_or("default", PodConfig::namespace).to_owned();
        let ownership = Ownership::read(&mut root.section("ownership"), &namespace);
        let security = Security::read(&mut root.section("security"));
        Some(Self { connection: connection?, pod: pod?, timeouts, ownership: ownership?, security })
    }
}

#[cfg(test)]
mod tests;
