//! What the minicluster and a supervisor say to each other: one JSON value per line on the supervisor's stdin and stdout.

use serde::{Deserialize, Serialize};

/// To the supervisor. The end of its stdin means the same as [`Request::End`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Start a program; answered by [`Event::Started`] or [`Event::Failed`].
    Start(Box<Start>),
    /// Send a signal to a program that was started here; ignored when it is gone.
    Signal { id: u64, signal: i32 },
    /// Kill everything and exit.
    End,
}

/// A program to start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Chosen by the minicluster, never used twice.
    pub id: u64,
    /// The container's own program: when it ends, so does everything else.
    pub main: bool,
    /// The host's executable, an absolute path.
    pub program: String,
    /// All of argv; never empty.
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub stdio: Stdio,
}

/// What the program's stdin, stdout and stderr are: paths that the stub opens. Pipes are named by `/proc/PID/fd/N` of the
/// minicluster, which holds both ends until the program has started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Stdio {
    /// A pseudo-terminal's other end; it becomes the controlling terminal.
    Terminal(String),
    /// `None` is `/dev/null`.
    Pipes { stdin: Option<String>, stdout: Option<String>, stderr: Option<String> },
}

/// From the supervisor. The end of its stdout means that it and everything below it are gone.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    Started { id: u64 },
    Failed { id: u64, errno: i32, message: String },
    Exited { id: u64, exit: Exit },
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// The exit code as container runtimes report it: 128 + n for a signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}
