//! The minicluster's ends of a program's stdio: pipes and pseudo-terminals, read in chunks that can go out on a WebSocket
//! as they are.

use crate::helper::wire::Stdio;
use bytes::Bytes;
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    fs::File,
    io, mem,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    process,
    sync::Arc,
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe};

/// Bytes read at once: what the kubelet and the API server use.
const READ: usize = 32 * 1024;
/// Below this a chunk is copied out of the read buffer, so that a key press does not keep 32 KiB alive.
const SMALL: usize = 4 * 1024;

/// A pseudo-terminal's master. It is hung up when this and the reader and writer that came with it are dropped.
#[derive(Debug)]
pub(crate) struct Terminal(OwnedFd);

impl Terminal {
    /// Sets its size; the kernel tells the foreground process group.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.0, size)?)
    }
}

/// Where a program's output comes from.
pub(crate) type Reader = pipe::Receiver;

/// Where a program's stdin goes. Dropping a pipe's is its end of file; dropping a terminal's does nothing.
pub(crate) type Writer = pipe::Sender;

/// Reads one output stream. Each chunk begins with the byte of its channel (stdout 1, stderr 2).
#[derive(Debug)]
pub(crate) struct Chunks {
    reader: Reader,
    channel: u8,
    buffer: Vec<u8>,
}

impl Chunks {
    pub fn new(reader: Reader, channel: u8) -> Self {
        Self { reader, channel, buffer: Vec::new() }
    }

    /// The next chunk; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(READ + 1);
        }
        self.buffer.clear();
        self.buffer.push(self.channel);
        let n = match self.reader.read_buf(&mut self.buffer).await {
            // A terminal's way to say that its other end is closed by all.
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => 0,
            result => result?,
        };
        Ok(match n {
            0 => None,
            1..SMALL => Some(Bytes::copy_from_slice(&self.buffer)),
            _ => Some(Bytes::from(mem::take(&mut self.buffer))),
        })
    }
}

/// Our ends of a program's stdio.
#[derive(Debug)]
pub(crate) struct Ends {
    pub stdin: Option<Writer>,
    pub stdout: Option<Reader>,
    pub stderr: Option<Reader>,
    pub terminal: Option<Arc<Terminal>>,
    /// The program's ends, which must stay open until it has opened them itself.
    pub theirs: Theirs,
}

/// The program's ends. Drop it once the program has started.
#[derive(Debug, Default)]
pub(crate) struct Theirs(#[allow(dead_code, reason = "held open, not used")] Vec<OwnedFd>);

/// Which streams a program has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Makes pipes or a pseudo-terminal, and the names under which the program's stub opens the other ends.
pub(crate) fn open(wanted: Wanted) -> io::Result<(Ends, Stdio)> {
    if wanted.tty { open_terminal(wanted) } else { open_pipes(wanted) }
}

fn open_terminal(wanted: Wanted) -> io::Result<(Ends, Stdio)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?.into_string().map_err(io::Error::other)?;
    // Without an open other end the master reads as hung up.
    let held =
        rustix::fs::open(name.as_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
    // Not pipes, but read, written and polled as pipes are, and non-blocking as these constructors ask. `AsyncFd`, made for
    // it, can only be made by `unsafe` code.
    let reader = Reader::from_file_unchecked(File::from(master.try_clone()?))?;
    let writer = Writer::from_file_unchecked(File::from(master.try_clone()?))?;
    let ends = Ends {
        stdin: wanted.stdin.then_some(writer),
        stdout: Some(reader),
        stderr: None,
        terminal: Some(Arc::new(Terminal(master))),
        theirs: Theirs(vec![held]),
    };
    Ok((ends, Stdio::Terminal(name)))
}

fn open_pipes(wanted: Wanted) -> io::Result<(Ends, Stdio)> {
    let mut theirs = Vec::new();
    // Opening it by this name gives the program a description of its own: blocking, whatever ours is.
    let name = |fd: RawFd| format!("/proc/{}/fd/{fd}", process::id());
    let mut keep = |fd: OwnedFd| {
        let name = name(fd.as_raw_fd());
        theirs.push(fd);
        name
    };
    let mut output = |wanted: bool| -> io::Result<_> {
        if !wanted {
            return Ok((None, None));
        }
        let (sender, receiver) = pipe::pipe()?;
        Ok((Some(receiver), Some(keep(sender.into_nonblocking_fd()?))))
    };
    let (stdout, stdout_name) = output(wanted.stdout)?;
    let (stderr, stderr_name) = output(wanted.stderr)?;
    let (stdin, stdin_name) = if wanted.stdin {
        let (sender, receiver) = pipe::pipe()?;
        (Some(sender), Some(keep(receiver.into_nonblocking_fd()?)))
    } else {
        (None, None)
    };
    let ends = Ends { stdin, stdout, stderr, terminal: None, theirs: Theirs(theirs) };
    Ok((ends, Stdio::Pipes { stdin: stdin_name, stdout: stdout_name, stderr: stderr_name }))
}
