//! What an Open's program is, as words: what was asked for, or what is forced in its place. Pure.

use super::open::invalid;
use crate::{config::EXEC_DISABLED, handle::Contents, policy::Forcer, wrapper};
use podbay::v1::{self, Reason, Refusal, open::Program};

/// The longest command line, or arguments together.
pub(super) const MAX_COMMAND: usize = 128 * 1024;

/// What sshd takes for its own SFTP server where it is forced.
const INTERNAL_SFTP: &str = "internal-sftp";

/// What runs where nothing is forced.
///
/// # Errors
/// `INVALID_REQUEST`, `POLICY`, and `SUBSYSTEM_UNKNOWN`.
pub(super) fn argv(program: Option<&Program>, contents: &Contents) -> Result<Vec<String>, Refusal> {
    match program {
        None => Err(invalid("Open names no program: shell, exec or subsystem")),
        Some(Program::Exec(_) | Program::Subsystem(_)) if contents.only_shells => {
            tracing::info!(code = EXEC_DISABLED, connection = %contents.connection, "a program was refused: kuberun.pod.disableCommand");
            Err(Refusal::new(Reason::Policy, "commands are disabled here; ask for a shell"))
        }
        Some(Program::Shell(v1::Shell {})) => Ok(contents.shell.clone()),
        Some(Program::Exec(exec)) if exec.argv.is_empty() => {
            let command = &exec.command;
            if command.is_empty() || command.len() > MAX_COMMAND || command.contains('\0') {
                return Err(invalid("a command has 1 byte to 128 KiB and no NUL"));
            }
            // One argument, always: nothing of it is split or interpreted on this side.
            Ok(vec![wrapper::SHELL.to_owned(), "-c".to_owned(), command.clone()])
        }
        Some(Program::Exec(exec)) => {
            let size: usize = exec.argv.iter().map(|argument| argument.len() + 1).sum();
            let first = exec.argv.first().map(String::as_str).unwrap_or_default();
            if size > MAX_COMMAND || exec.argv.iter().any(|argument| argument.contains('\0')) {
                return Err(invalid("an argument vector has at most 128 KiB and no NUL"));
            }
            if first.is_empty() || first.starts_with('-') {
                return Err(invalid("a program's name is not empty and does not begin with '-'"));
            }
            Ok(exec.argv.clone())
        }
        Some(Program::Subsystem(subsystem)) => {
            let path = contents.subsystems.get(&subsystem.name).ok_or_else(|| {
                let text = format!("the subsystem {:?} is not configured", subsystem.name);
                Refusal::new(Reason::SubsystemUnknown, text)
            })?;
            Ok(vec![path.clone()])
        }
    }
}

/// What runs in the place of a program, and what it is told of that as the original command (`None` = nothing).
///
/// A login's command keeps to what sshd does with a certificate's: what is replaced must be there, of a subsystem its program is
/// told, and `internal-sftp` is SFTP's own server.
///
/// # Errors
/// As [`argv`] for what was asked for, where that counts; `POLICY` for all but SFTP where that is forced.
pub(super) fn forced(
    (by, command, original): (Forcer, &str, Option<String>),
    program: Option<&Program>,
    contents: &Contents,
) -> Result<(Vec<String>, Option<String>), Refusal> {
    let by_shell = || vec![wrapper::SHELL.to_owned(), "-c".to_owned(), command.to_owned()];
    match (by, program) {
        (Forcer::Policy, _) => {
            if contents.only_shells {
                argv(program, contents)?;
            }
            Ok((by_shell(), original))
        }
        (Forcer::Login, Some(Program::Subsystem(_))) => {
            let told = argv(program, contents)?.into_iter().next();
            Ok((internal_sftp(command, contents).unwrap_or_else(|| Ok(by_shell()))?, told))
        }
        (Forcer::Login, Some(Program::Shell(_) | Program::Exec(_)) | None) => {
            argv(program, contents)?;
            match internal_sftp(command, contents) {
                Some(_) => Err(Refusal::new(Reason::Policy, "this login allows sftp only")),
                None => Ok((by_shell(), original)),
            }
        }
    }
}

/// `internal-sftp`, with the arguments that OpenSSH's own server has too: there is no other in a pod than the configured one.
fn internal_sftp(command: &str, contents: &Contents) -> Option<Result<Vec<String>, Refusal>> {
    let mut words = command.split_ascii_whitespace();
    if words.next() != Some(INTERNAL_SFTP) {
        return None;
    }
    let refused = |text: &str| Err(Refusal::new(Reason::Policy, text));
    if command.contains(['\'', '"', '\\']) {
        return Some(refused("this login forces internal-sftp, with quoted arguments, which are not supported"));
    }
    let Some(server) = contents.subsystems.get("sftp") else {
        return Some(refused("this login allows sftp only, which is not configured"));
    };
    Some(Ok([server.as_str()].into_iter().chain(words).map(str::to_owned).collect()))
}
