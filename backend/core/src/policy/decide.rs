//! Who asks for what, and whether it passes.

use super::{Forcer, Mode, Rule, Security};
use podbay::{
    Denied,
    v1::{self, Reason, Refusal, open::Program},
};

/// The variable that tells a forced command what was asked for; nobody else may set it.
pub const ORIGINAL_COMMAND: &str = "SSH_ORIGINAL_COMMAND";

/// The longest original command: what Linux takes as one variable (`MAX_ARG_STRLEN`, 128 KiB with name, `=` and NUL).
const MAX_ORIGINAL: usize = 128 * 1024 - ORIGINAL_COMMAND.len() - 2;

/// A request that the policy decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask<'a> {
    /// A variable by this name, whatever its value.
    Env(&'a str),
    /// A command line.
    Exec(&'a str),
    /// An argument vector: it is no command line, so no entry of a list is equal to it.
    Words,
    /// The shell.
    Shell,
    /// A subsystem.
    Subsystem(&'a str),
    /// A terminal.
    Tty,
    /// A signal, without SIG.
    Signal(&'a str),
}

/// What runs for a program that was asked for and passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runs<'a> {
    /// That.
    AsAsked,
    /// A command line in its place, by a shell.
    Forced {
        /// Whose it is.
        by: Forcer,
        /// The command line.
        command: &'a str,
        /// What was asked for; `None` = the shell.
        original: Option<String>,
    },
}

impl Security {
    /// Whether a request passes.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn admits(&self, ask: Ask<'_>) -> Result<(), Denied> {
        let default = self.default_mode.unwrap_or(Mode::Enable);
        let named = |rule: &Rule, name: &str| {
            let on = |list: &[String]| list.iter().any(|entry| entry == name);
            match rule.mode.unwrap_or(default) {
                Mode::Enable => !on(&rule.deny),
                Mode::Filter => on(&rule.allow),
                Mode::Disable => false,
            }
        };
        let plain = |mode: Option<Mode>| match mode.unwrap_or(default) {
            Mode::Enable => true,
            Mode::Filter | Mode::Disable => false,
        };
        let (passes, denied) = match ask {
            Ask::Env(name) => (name != ORIGINAL_COMMAND && named(&self.env, name), Denied::Env),
            Ask::Exec(line) => {
                let passes = match self.command.mode.unwrap_or(default) {
                    // It has no list of what is denied.
                    Mode::Enable => true,
                    Mode::Filter | Mode::Disable => named(&self.command, line),
                };
                (passes, Denied::Exec)
            }
            Ask::Words => (plain(self.command.mode), Denied::Exec),
            Ask::Shell => (plain(self.shell), Denied::Shell),
            Ask::Subsystem(name) => (named(&self.subsystem, name), Denied::Subsystem),
            Ask::Tty => (plain(self.tty), Denied::Tty),
            Ask::Signal(name) => (named(&self.signal, name), Denied::Signal),
        };
        if passes { Ok(()) } else { Err(denied) }
    }

    /// Whether all that an Open asks for passes, and what runs then. The program as it was asked for is what is matched,
    /// never `forceCommand`.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn runs(&self, open: &v1::Open) -> Result<Runs<'_>, Denied> {
        for name in open.environment.keys() {
            self.admits(Ask::Env(name))?;
        }
        if open.pty.is_some() {
            self.admits(Ask::Tty)?;
        }
        let original = match &open.program {
            // Refused where its parts are read; nothing is forced in its place.
            None => return Ok(Runs::AsAsked),
            Some(Program::Shell(v1::Shell {})) => {
                self.admits(Ask::Shell)?;
                None
            }
            Some(Program::Exec(exec)) if exec.argv.is_empty() => {
                self.admits(Ask::Exec(&exec.command))?;
                Some(exec.command.clone())
            }
            Some(Program::Exec(exec)) => {
                self.admits(Ask::Words)?;
                Some(exec.argv.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "))
            }
            Some(Program::Subsystem(subsystem)) => {
                self.admits(Ask::Subsystem(&subsystem.name))?;
                Some(subsystem.name.clone())
            }
        };
        if self.force_command.is_empty() {
            return Ok(Runs::AsAsked);
        }
        Ok(Runs::Forced { by: self.forced_by, command: &self.force_command, original })
    }
}

impl Runs<'_> {
    /// Whether the original command can be told to the program.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, saying why not.
    pub fn check(&self) -> Result<(), Refusal> {
        let invalid = |text: &str| Err(Refusal::new(Reason::InvalidRequest, text));
        match self {
            Self::Forced { original: Some(original), .. } if original.contains('\0') || original.is_empty() => {
                invalid("a command is not empty and has no NUL")
            }
            Self::Forced { original: Some(original), .. } if original.len() > MAX_ORIGINAL => {
                invalid("a command is too long to be told to the command that is forced here")
            }
            Self::AsAsked | Self::Forced { .. } => Ok(()),
        }
    }
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
