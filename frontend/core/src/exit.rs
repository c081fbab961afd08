//! How a program's end looks to an SSH client.

/// The status for everything that is not the program's own end, as `ssh` itself uses it for a failed connection.
pub const LOST: u32 = 255;

/// How a program ended, as the backend tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It exited. 0 to 255; anything else is not believed.
    Code(u32),
    /// A signal ended it.
    Signal {
        /// Name without SIG.
        name: String,
        /// A core was dumped.
        core_dumped: bool,
        /// For the user; may be empty.
        message: String,
    },
    /// How it ended is not known, or it never started; the sentence says why.
    Lost(String),
}

/// What the client is told, after all output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// An exit-status.
    Status(u32),
    /// An exit-signal.
    Signal {
        /// Name without SIG.
        name: String,
        /// A core was dumped.
        core_dumped: bool,
        /// For the user.
        message: String,
    },
    /// A sentence on stderr, then an exit-status that is never 0.
    Failed {
        /// The sentence.
        message: String,
        /// The status.
        status: u32,
    },
}

impl Ending {
    /// What the client is told.
    pub fn report(self) -> Report {
        match self {
            Self::Code(code) if code <= 255 => Report::Status(code),
            Self::Code(code) => Report::Failed {
                message: format!("the program ended with a status that is none: {code}"),
                status: LOST,
            },
            Self::Signal { name, core_dumped, message } if is_signal_name(&name) => {
                Report::Signal { name, core_dumped, message }
            }
            Self::Signal { .. } => {
                Report::Failed { message: "the program was ended by an unknown signal".to_owned(), status: LOST }
            }
            Self::Lost(message) => Report::Failed { message, status: LOST },
        }
    }
}

/// RFC 4254 section 6.10: a name without SIG, or `name@domain` for local ones. At most 32 bytes here.
pub fn is_signal_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'@' | b'.' | b'-' | b'+' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_code_is_a_success() {
        assert_eq!(Ending::Code(0).report(), Report::Status(0));
        assert_eq!(Ending::Code(255).report(), Report::Status(255));
        for ending in [
            Ending::Code(256),
            Ending::Lost("gone".to_owned()),
            Ending::Signal { name: String::new(), core_dumped: false, message: String::new() },
            Ending::Signal { name: "A B".to_owned(), core_dumped: false, message: String::new() },
        ] {
            assert!(matches!(ending.clone().report(), Report::Failed { status: LOST, .. }), "{ending:?}");
        }
    }

    #[test]
    fn a_signal_keeps_its_name() {
        let ending = Ending::Signal { name: "TERM".to_owned(), core_dumped: true, message: "m".to_owned() };
        let report = Report::Signal { name: "TERM".to_owned(), core_dumped: true, message: "m".to_owned() };
        assert_eq!(ending.report(), report);
        assert!(is_signal_name("INFO@openssh.com") && !is_signal_name(&"X".repeat(33)));
    }
}
