//! Sessions: one program, one stream of frames. Here without an agent or with `containerssh-agent`: one exec or attach each.
//!
//! [`Machine`] decides what may be sent and kept, without I/O; [`Sessions::run`] joins it with a cluster's streams and keeps
//! the deadlines. What an agent level lacks is refused by name.

mod console;
mod detach;
mod driver;
mod durable;
mod ending;
mod leftover;
mod machine;
mod open;
mod places;
mod program;
mod proof;
mod reach;
mod records;
mod rules;
mod run;
mod start;

pub use driver::{Report, ToClient};
pub(crate) use ending::{is_missing, is_over};
pub use machine::{Credits, Machine};
pub use open::{Opening, first_frame};
pub use run::Stopping;

use crate::{images::Images, lifecycle::Lifecycle, link::Links, ownership::Leases};
use places::Places;
use podbay::v1::{Reason, Refusal};

/// Starts programs and carries their bytes. Clones share everything.
#[derive(Debug, Clone)]
pub struct Sessions {
    lifecycle: Lifecycle,
    leases: Leases,
    /// Images that were seen to have no shell.
    bare: Images<()>,
    links: Links,
    places: Places,
}

impl Sessions {
    /// With pods by `lifecycle`; `leases` say whether a connection may still have new ones.
    pub fn new(lifecycle: Lifecycle, leases: Leases) -> Self {
        let links = Links::new(std::sync::Arc::clone(lifecycle.cluster()));
        Self { lifecycle, leases, bare: Images::default(), links, places: Places::default() }
    }

    /// The same, with pods by another lifecycle of the same cluster.
    #[must_use]
    pub fn with_lifecycle(&self, lifecycle: Lifecycle) -> Self {
        Self { lifecycle, ..self.clone() }
    }

    /// The links to pods.
    pub fn links(&self) -> &Links {
        &self.links
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
            agent: None,
            security: crate::policy::Security::default(),
            only_shells: false,
            stays: false,
            target: Target::Pod {
                namespace: "ns".into(),
                name: "p".into(),
                uid: "u".into(),
                image_id: "sha256:1".into(),
            },
        }
    }
}
