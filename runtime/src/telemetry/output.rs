//! Where lines go. One that can't be written there goes to stderr: a full disk or a lost syslog ends nothing.

use super::{
    Severity, Syslog,
    format::Frame,
    syslog::{Wire, frame},
};
use jiff::Zoned;
use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A file that was moved away is missed this often, and what is out of order is tried again.
const LOOK: Duration = Duration::from_secs(1);

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Destination {
    /// The default.
    #[default]
    Stderr,
    /// As ContainerSSH's default.
    Stdout,
    /// To the end of a file, which is made with mode 0640 where it is missing. Its directory must be there.
    File(PathBuf),
    /// To a syslog server.
    Syslog(Syslog),
}

/// What is open.
#[derive(Debug)]
pub(super) struct Output {
    to: Destination,
    colour: bool,
    open: Mutex<Open>,
}

#[derive(Debug)]
enum Open {
    /// Nothing to open.
    Standard,
    File {
        file: File,
        looked: Instant,
    },
    Syslog(Wire),
    /// Out of order since then.
    Broken(Instant),
}

impl Output {
    /// # Errors
    /// It can't be opened.
    pub fn open(to: Destination) -> io::Result<Self> {
        let open = Mutex::new(open(&to)?);
        let colour = match &to {
            Destination::Stderr => io::stderr().is_terminal(),
            Destination::Stdout => io::stdout().is_terminal(),
            Destination::File(_) | Destination::Syslog(_) => false,
        };
        Ok(Self { to, colour, open })
    }

    /// Writes what `line` makes of an event.
    ///
    /// # Errors
    /// It is not written; and whether this is the first such failure in a row.
    pub fn write(
        &self,
        severity: Severity,
        now: &Zoned,
        line: impl Fn(Frame, bool) -> String,
    ) -> Result<(), (io::Error, bool)> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let was_good = !matches!(*open, Open::Broken(_));
        let written = self.attempt(&mut open, severity, now, &line);
        if written.is_err() && was_good {
            *open = Open::Broken(Instant::now());
        }
        written.map_err(|error| (error, was_good))
    }

    fn attempt(
        &self,
        open: &mut Open,
        severity: Severity,
        now: &Zoned,
        line: &impl Fn(Frame, bool) -> String,
    ) -> io::Result<()> {
        if let Open::Broken(since) = open {
            if since.elapsed() < LOOK {
                return Err(io::Error::other("not tried again yet"));
            }
            *since = Instant::now();
            *open = self::open(&self.to)?;
        }
        if let (Open::File { file, looked }, Destination::File(path)) = (&mut *open, &self.to)
            && looked.elapsed() >= LOOK
        {
            *looked = Instant::now();
            if is_gone(file, path) {
                // What can't be opened anew (yet) goes on where it was.
                *file = append(path).or_else(|_| file.try_clone())?;
            }
        }
        match open {
            Open::File { file, .. } => file.write_all(format!("{}\n", line(Frame::Whole, false)).as_bytes()),
            Open::Syslog(wire) => {
                let Destination::Syslog(syslog) = &self.to else { return Ok(()) };
                wire.send(frame(syslog, severity, now, &line(Frame::Bare, false)).as_bytes())
            }
            Open::Standard | Open::Broken(_) => {
                let line = format!("{}\n", line(Frame::Whole, self.colour));
                match self.to {
                    Destination::Stdout => {
                        let mut stdout = io::stdout().lock();
                        stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush())
                    }
                    Destination::Stderr | Destination::File(_) | Destination::Syslog(_) => {
                        // Nobody is left to tell of a failure.
                        let _ = io::stderr().write_all(line.as_bytes());
                        Ok(())
                    }
                }
            }
        }
    }

    /// Opens anew what can be. What can't goes on as it was.
    pub fn reopen(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match self::open(&self.to) {
            Ok(new) => *open = new,
            Err(error) => {
                drop(open);
                tracing::error!(code = crate::codes::LOG_ROTATE_FAILED, %error, "the log can't be opened anew; it goes on where it was");
            }
        }
    }

    /// Writes a line to stderr.
    #[expect(clippy::unused_self, reason = "it stands for where else it could go")]
    pub fn fall_back(&self, line: &str) {
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    }
}

fn open(to: &Destination) -> io::Result<Open> {
    match to {
        Destination::Stderr | Destination::Stdout => Ok(Open::Standard),
        Destination::File(path) => {
            let file = append(path).map_err(|error| named(&path.display().to_string(), &error))?;
            Ok(Open::File { file, looked: Instant::now() })
        }
        Destination::Syslog(syslog) => {
            Wire::connect(&syslog.destination).map(Open::Syslog).map_err(|error| named(&syslog.destination, &error))
        }
    }
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Names and addresses are in it: for its owner and group.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Whether the path names another file by now, or none.
fn is_gone(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) != (there.dev(), there.ino()),
        (Ok(_), Err(error)) => error.kind() == io::ErrorKind::NotFound,
        (Err(_), _) => false,
    }
}
