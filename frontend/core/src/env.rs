//! The environment that a client may give a program.

use std::collections::BTreeMap;

/// The most variables of one session that come from the client.
const MAX_ENTRIES: usize = 128;

/// The most bytes of names and values together, with a `=` and an end each, as the program will see them.
const MAX_BYTES: usize = 64 * 1024;

/// What a forced command is told; a client that could set it could lie to the command.
const RESERVED: &str = "SSH_ORIGINAL_COMMAND";

/// Why a variable was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A name is `[A-Za-z_][A-Za-z0-9_]*`.
    #[error("the name of an environment variable is letters, digits and _, and begins with no digit")]
    Name,
    /// A value can't contain NUL.
    #[error("the value of an environment variable can't contain NUL")]
    Value,
    /// It tells a forced command what was asked for.
    #[error("this environment variable is the server's to set")]
    Reserved,
    /// 128 variables, 64 KiB.
    #[error("more than {MAX_ENTRIES} environment variables, or more than {MAX_BYTES} bytes of them")]
    TooMuch,
}

/// Variables by name; a later one replaces an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    entries: BTreeMap<String, String>,
    bytes: usize,
}

impl Environment {
    /// Takes a variable, or leaves everything as it was.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), EnvError> {
        let mut chars = name.bytes();
        let first = chars.next().is_some_and(|c| c == b'_' || c.is_ascii_alphabetic());
        if !first || !chars.all(|c| c == b'_' || c.is_ascii_alphanumeric()) {
            return Err(EnvError::Name);
        }
        if name == RESERVED {
            return Err(EnvError::Reserved);
        }
        if value.bytes().any(|c| c == 0) {
            return Err(EnvError::Value);
        }
        let old = self.entries.get(name).map_or(0, |value| size(name, value));
        let bytes = self.bytes - old + size(name, value);
        if bytes > MAX_BYTES || (old == 0 && self.entries.len() >= MAX_ENTRIES) {
            return Err(EnvError::TooMuch);
        }
        self.entries.insert(name.to_owned(), value.to_owned());
        self.bytes = bytes;
        Ok(())
    }

    /// The variables.
    pub fn into_entries(self) -> BTreeMap<String, String> {
        self.entries
    }
}

const fn size(name: &str, value: &str) -> usize {
    name.len() + value.len() + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_of_programs_only() {
        let mut env = Environment::default();
        for name in ["LANG", "_", "a1_B"] {
            assert_eq!(env.set(name, "x=y\n"), Ok(()), "{name}");
        }
        for name in ["", "1a", "A-B", "A=B", "ä", "A B", "A\0"] {
            assert_eq!(env.set(name, ""), Err(EnvError::Name), "{name}");
        }
        assert_eq!(env.set("A", "\0"), Err(EnvError::Value));
        assert_eq!(env.set("SSH_ORIGINAL_COMMAND", "lies"), Err(EnvError::Reserved));
        assert!(env.into_entries().keys().eq(["LANG", "_", "a1_B"]));
    }

    #[test]
    fn is_bounded_and_replaces() {
        let mut env = Environment::default();
        for i in 0..MAX_ENTRIES {
            assert_eq!(env.set(&format!("V{i}"), ""), Ok(()));
        }
        assert_eq!(env.set("ONE_MORE", ""), Err(EnvError::TooMuch));
        assert_eq!(env.set("V0", "new"), Ok(()), "replacing needs no room");
        let mut env = Environment::default();
        assert_eq!(env.set("A", &"x".repeat(MAX_BYTES - 3)), Ok(()));
        assert_eq!(env.set("B", ""), Err(EnvError::TooMuch));
        assert_eq!(env.set("A", "short"), Ok(()));
        assert_eq!(env.set("B", ""), Ok(()));
        assert_eq!(env.into_entries()["A"], "short");
    }
}
