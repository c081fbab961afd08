//! What a policy refuses, in the codes and words that frontend and backend have in common.

use crate::v1::{Reason, Refusal};

/// What a policy refused. Its text is for users, and says nothing that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A variable.
    #[error("the policy of this server does not allow this environment variable")]
    Env,
    /// A command.
    #[error("the policy of this server does not allow this command")]
    Exec,
    /// A shell.
    #[error("the policy of this server does not allow a shell")]
    Shell,
    /// A subsystem.
    #[error("the policy of this server does not allow this subsystem")]
    Subsystem,
    /// A terminal.
    #[error("the policy of this server does not allow a terminal")]
    Tty,
    /// A signal.
    #[error("the policy of this server does not allow this signal")]
    Signal,
}

impl Denied {
    /// ContainerSSH's code for the log.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Env => "SECURITY_ENV_REJECTED",
            Self::Exec => "SECURITY_EXEC_REJECTED",
            Self::Shell => "SECURITY_SHELL_REJECTED",
            Self::Subsystem => "SECURITY_SUBSYSTEM_REJECTED",
            Self::Tty => "SECURITY_TTY_REJECTED",
            Self::Signal => "SECURITY_SIGNAL_REJECTED",
        }
    }

    /// For a caller of the contract.
    pub fn refusal(self) -> Refusal {
        Refusal::new(Reason::Policy, self.to_string())
    }
}
