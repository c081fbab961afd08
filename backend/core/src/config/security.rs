//! `security`: what connections may do. As far as it is built: `maxSessions`.

use podbay_runtime::config::Section;
use std::num::NonZeroU32;

/// ContainerSSH's other keys.
const NOT_BUILT: [&str; 9] =
    ["defaultMode", "forceCommand", "env", "command", "shell", "subsystem", "tty", "signal", "forwarding"];

/// The policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Security {
    /// `maxSessions`: the most sessions open at once on a connection; `None` = no limit.
    pub max_sessions: Option<NonZeroU32>,
}

impl Security {
    pub(super) fn read(section: &mut Section) -> Self {
        for key in NOT_BUILT {
            section.refuse(key, "it is not built yet");
        }
        // ContainerSSH's -1, and a 0 that its reader turns into -1, both mean no limit.
        let max = section.or("maxSessions", -1_i64);
        let max_sessions = match u32::try_from(max) {
            Ok(max) => NonZeroU32::new(max),
            Err(_) if max == -1 => None,
            Err(_) => {
                section.mistake("maxSessions", "must be -1 (no limit) or a positive number");
                None
            }
        };
        Self { max_sessions }
    }

    /// As the contract announces it: 0 = no limit.
    pub fn max_sessions_proto(&self) -> u32 {
        self.max_sessions.map_or(0, NonZeroU32::get)
    }
}
