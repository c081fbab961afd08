//! `attach`: joins its stdio to the supervisor's socket, and is nothing but a pipe. What the exec of this command carries is the link.

use crate::supervisor::{EXIT_TAKEN, EXIT_UNAVAILABLE, EXIT_USAGE, READY, socket};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::{AsFd, BorrowedFd},
    io::Errno,
};
use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

/// Exit code: the supervisor closed the connection before it said anything (too many links).
pub const EXIT_REFUSED: u8 = 77;

const BUFFER: usize = 64 * 1024;
const USAGE: &str = "Usage: podbay-agent attach [--spawn] [--socket PATH]";

/// The command `attach`: gives the exit code. `args` follow the command's name.
///
/// It ends when its stdin does or the supervisor closes: 0. Nothing but the link's bytes goes to stdout; what went wrong is a line on
/// stderr and one of the codes 64 (usage), 69 (no supervisor) and 77 (refused by it).
pub fn run(mut args: impl Iterator<Item = OsString>) -> u8 {
    let (mut spawn, mut path) = (false, None::<PathBuf>);
    while let Some(option) = args.next() {
        match (option.to_str(), &path) {
            (Some("--spawn"), _) => spawn = true,
            (Some("--socket"), None) => match args.next().filter(|path| !path.is_empty()) {
                Some(value) => path = Some(value.into()),
                None => return fail(EXIT_USAGE, &format!("--socket needs a path\n{USAGE}")),
            },
            _ => return fail(EXIT_USAGE, &format!("unknown option {}\n{USAGE}", option.display())),
        }
    }
    let stream = match socket::connect(path.as_deref()) {
        Ok(stream) => Ok(stream),
        Err(error) if spawn && is_absent(&error) => spawn_supervisor(path.as_deref()),
        Err(error) => Err(format!("no supervisor: {error}")),
    };
    match stream {
        Ok(stream) => bridge(&stream),
        Err(error) => fail(EXIT_UNAVAILABLE, &error),
    }
}

fn fail(code: u8, message: &str) -> u8 {
    let _ = writeln!(io::stderr(), "podbay-agent: attach: {message}");
    code
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Starts a supervisor that outlives us, and connects to it.
fn spawn_supervisor(path: Option<&Path>) -> Result<UnixStream, String> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["supervise", "--detached"]);
    if let Some(path) = path {
        command.arg("--socket").arg(path);
    }
    // None of our stdio: the exec would not end while somebody has it open.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("a supervisor can't be started: {error}"))?;
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        // It closes it when it listens, or ends.
        out.take(4096).read_to_string(&mut said).map_err(|error| error.to_string())?;
    }
    if said != READY {
        let status = child.wait().map_err(|error| error.to_string())?;
        // Another attach was quicker: its supervisor is as good, once it listens.
        if status.code() != Some(EXIT_TAKEN.into()) {
            return Err(format!("the supervisor ended: {} {status}", said.trim()));
        }
    }
    connect_soon(path)
}

/// The lock is taken a moment before the socket listens.
fn connect_soon(path: Option<&Path>) -> Result<UnixStream, String> {
    let mut last = String::new();
    for _ in 0..100 {
        match socket::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
        thread::sleep(std::time::Duration::from_millis(20));
    }
    Err(format!("no supervisor: {last}"))
}

fn bridge(stream: &UnixStream) -> u8 {
    let result = thread::scope(|scope| {
        // Not joined: it ends with the process, for a read of stdin can't be called off.
        let up = scope.spawn(|| {
            let _ = copy(io::stdin().as_fd(), stream.as_fd());
            // The supervisor sees the end and closes, which ends the other direction.
            let _ = stream.shutdown(Shutdown::Write);
        });
        let down = copy(stream.as_fd(), io::stdout().as_fd());
        if !up.is_finished() {
            // Scoped threads are waited for; stdin may never end.
            std::process::exit(end(&down).into());
        }
        down
    });
    end(&result)
}

fn end(result: &Result<u64, Errno>) -> u8 {
    match result {
        Ok(0) => fail(EXIT_REFUSED, "the supervisor closed the connection: it has too many"),
        // A broken pipe: whoever ran us is gone.
        Ok(_) | Err(_) => 0,
    }
}

/// Copies until the end; gives the number of bytes.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        let len = match rustix::io::read(from, &mut buffer[..]) {
            Ok(0) => return Ok(total),
            Ok(len) => len,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                wait_for(from, PollFlags::IN)?;
                continue;
            }
            Err(errno) => return Err(errno),
        };
        let mut left = &buffer[..len];
        while !left.is_empty() {
            match rustix::io::write(to, left) {
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for(to, PollFlags::OUT)?,
                Err(errno) => return Err(errno),
            }
        }
        total += len as u64;
    }
}

/// Whoever gave us our stdio may have made it not block.
fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags) -> Result<(), Errno> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
