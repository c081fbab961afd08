//! The generated messages of `podbay.agent.v1`, and what a log may see of those with secrets in them.

#![allow(clippy::pedantic, missing_docs, reason = "generated")]

use std::fmt;

include!(concat!(env!("OUT_DIR"), "/podbay.agent.v1.rs"));

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start")
            .field("program", &self.program)
            .field("session", &self.session)
            .field("attempt", &self.attempt)
            .field("arguments", &self.argv.len())
            .field("variables", &self.environment.len())
            .field("pty", &self.pty.is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Variable").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for WriteFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteFile")
            .field("id", &self.id)
            .field("path", &self.path)
            .field("offset", &self.offset)
            .field("len", &self.data.len())
            .finish_non_exhaustive()
    }
}

impl Reason {
    /// The reason behind a number from the peer; one that this version does not know is [`Reason::Unspecified`].
    pub fn read(number: i32) -> Self {
        Self::try_from(number).unwrap_or(Self::Unspecified)
    }
}
