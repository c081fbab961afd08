//! Becoming another program.
//!
//! std's `Command::exec` would do, but for this: it executes by the C library's `execvp`, and glibc's gives a file that the
//! kernel refuses (a program for another processor, say) to `/bin/sh`, whose syntax errors then hide the cause.

use rustix::io::Errno;
use std::{
    convert::Infallible,
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt as _,
    sync::{Arc, atomic::AtomicBool},
};

/// Where programs are searched for when the environment has no `PATH`: musl's rule.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/bin:/usr/bin";

/// Becomes the program at a path; nothing is searched for. `argv` includes the program's name; `environment` is all of it, as
/// `NAME=VALUE`. Stays in what it inherits: folder, descriptors, mask; dispositions go back to the defaults where Rust's runtime
/// has changed them.
///
/// # Errors
/// Returns only if that failed: the kernel's reason.
pub fn exec(path: &OsStr, argv: &[CString], environment: &[CString]) -> Result<Infallible, Errno> {
    // Rust's runtime ignores SIGPIPE, and what is ignored stays so over an exec; what is caught goes back to the default.
    // Safe code can only catch.
    signal_hook::flag::register(signal_hook::consts::SIGPIPE, Arc::new(AtomicBool::new(false)))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    let path = CString::new(path.as_bytes()).map_err(|_| Errno::INVAL)?;
    let Err(error) = nix::unistd::execve(&path, argv, environment);
    Err(Errno::from_raw_os_error(error as i32))
}

/// Becomes a program by its name, as a shell would find it: one with a `/` is a path, others are searched for in `path` (the
/// environment's `PATH`), where an empty entry is the current folder.
///
/// # Errors
/// As [`exec`]. If none could be executed: `EACCES` where one was found that may not be, else `ENOENT`.
pub fn exec_searched(
    path: Option<&OsStr>,
    name: &OsStr,
    argv: &[CString],
    environment: &[CString],
) -> Result<Infallible, Errno> {
    if name.is_empty() {
        return Err(Errno::NOENT);
    }
    if name.as_bytes().contains(&b'/') {
        return exec(name, argv, environment);
    }
    let mut result = Errno::NOENT;
    for folder in path.unwrap_or(OsStr::new(DEFAULT_PATH)).as_bytes().split(|&byte| byte == b':') {
        let folder = if folder.is_empty() { b"." } else { folder };
        let candidate = [folder, b"/", name.as_bytes()].concat();
        let Err(error) = exec(OsStr::from_bytes(&candidate), argv, environment);
        match error {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => {}
            Errno::ACCESS => result = Errno::ACCESS,
            other => return Err(other),
        }
    }
    Err(result)
}
