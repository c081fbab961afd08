//! The helper processes: one supervisor per running container, and a short-lived stub that turns into each program.
//!
//! A container's programs are children of its supervisor, which is a child subreaper: whatever daemonises comes back to it,
//! and when the container ends, when it is told to, or when the minicluster dies in whatever way (its end of the
//! supervisor's stdin closes), it kills everything below it. The stub makes the session and the controlling terminal and
//! then executes the program; that way none of it needs `pre_exec`, and the crate no `unsafe`.
//!
//! Both are the embedding program itself, executed again: call [`maybe_run`] first in `main`.

mod start;
mod supervise;
pub(crate) mod tree;
pub(crate) mod wire;

use std::{
    env, io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicBool, Ordering},
};

/// First argument that makes a program a helper. Not a name a user types by accident.
pub(crate) const MARK: &str = "--podbay-minicluster-helper";
const SUPERVISE: &str = "supervise";
const START: &str = "start";

/// The program itself, also when its file was replaced or removed since.
const SELF: &str = "/proc/self/exe";

static CAN_RUN: AtomicBool = AtomicBool::new(false);

/// Becomes a helper process if this process was started as one (then it never returns), else does nothing but remember
/// that this program can be one.
///
/// Call it first in `main`, before threads and async runtimes: the supervisor must be single-threaded.
pub fn maybe_run() {
    let mut args = env::args_os().skip(1);
    if args.next().is_none_or(|first| first != MARK) {
        CAN_RUN.store(true, Ordering::Relaxed);
        return;
    }
    let code = match args.next().as_deref().and_then(|role| role.to_str()) {
        Some(SUPERVISE) => supervise::run(),
        Some(START) => start::run(args),
        _ => {
            eprintln!("{MARK}: this is a part of podbay's minicluster and not to be called by hand");
            2
        }
    };
    process::exit(code)
}

/// The program to start helpers from: this one if it called [`maybe_run`], else `podbay-minicluster` beside the running
/// executable or one folder above (where Cargo puts it, seen from a test binary).
///
/// # Errors
/// `NotFound`, with what to do.
pub fn find() -> io::Result<PathBuf> {
    if CAN_RUN.load(Ordering::Relaxed) {
        return Ok(PathBuf::from(SELF));
    }
    let own = env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("podbay-minicluster"))
        .find(|program| program.is_file())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no helper program: call podbay_minicluster::helper::maybe_run() first in main, set Options::helper, \
                 or build the podbay-minicluster program (cargo build -p podbay-minicluster)",
            )
        })
}

/// The command that starts a supervisor.
pub(crate) fn supervisor_command(program: &Path) -> process::Command {
    let mut command = process::Command::new(program);
    command.args([MARK, SUPERVISE]);
    command
}
