//! Sessions without an agent: one program, one exec or attach, one stream of frames.
//!
//! [`Machine`] decides what may be sent and kept, without I/O; [`Sessions::run`] joins it with a cluster's streams and keeps
//! the deadlines. Continuing, detaching and signalling need the agent, and are refused by name.

mod driver;
mod ending;
mod machine;
mod open;
mod places;
mod reach;
mod shells;
mod start;

pub use driver::{Report, ToClient};
pub use machine::{Credits, Machine};
pub use open::{Opening, first_frame};

use crate::{lifecycle::Lifecycle, ownership::Leases};
use places::Places;
use podbay::v1::{Reason, Refusal};
use shells::Shells;

/// Starts programs and carries their bytes. Clones share everything.
#[derive(Debug, Clone)]
pub struct Sessions {
    lifecycle: Lifecycle,
    leases: Leases,
    shells: Shells,
    places: Places,
}

impl Sessions {
    /// With pods by `lifecycle`; `leases` say whether a connection may still have new ones.
    pub fn new(lifecycle: Lifecycle, leases: Leases) -> Self {
        Self { lifecycle, leases, shells: Shells::default(), places: Places::default() }
    }
}

fn violation(text: &str) -> Refusal {
    Refusal::new(Reason::ProtocolViolation, text)
}

#[cfg(test)]
mod testing {
    use crate::{
        config::Timeouts,
        handle::{Contents, Target},
        identity::User,
    };
    use podbay::{ConnectionId, OwnerId};

    pub fn contents() -> Contents {
        Contents {
            connection: ConnectionId::from_bytes([1; 16]),
            owner: OwnerId::from_bytes([2; 16]),
            user: User::named("alice"),
            timeouts: Timeouts::default(),
            console: "shell".into(),
            shell: vec!["/bin/bash".into()],
            subsystems: [("sftp".to_owned(), "/usr/lib/openssh/sftp-server".to_owned())].into(),
            environment: std::collections::BTreeMap::new(),
            max_sessions: None,
            target: Target::Pod {
                namespace: "ns".into(),
                name: "p".into(),
                uid: "u".into(),
                image_id: "sha256:1".into(),
            },
        }
    }
}
