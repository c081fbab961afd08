//! What the requests on a session channel mean, and how they are answered.
//!
//! RFC 4254 section 6: a terminal and environment first, then one program, then sizes and signals. Requests are
//! answered in their order; the ones for a program are answered once it is known whether it starts.

use crate::{EnvError, Environment, exit::is_signal_name};

/// The longest TERM.
const MAX_TERM: usize = 128;

/// The longest command line.
const MAX_COMMAND: usize = 128 * 1024;

/// The longest name of a subsystem.
const MAX_SUBSYSTEM: usize = 256;

/// A terminal's size; zero columns or rows mean: not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowSize {
    /// Cells.
    pub columns: u16,
    /// Cells.
    pub rows: u16,
    /// Pixels.
    pub width: u16,
    /// Pixels.
    pub height: u16,
}

impl WindowSize {
    /// Clamps what a client sent.
    pub fn new(columns: u32, rows: u32, width: u32, height: u32) -> Self {
        let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        Self { columns: clamp(columns), rows: clamp(rows), width: clamp(width), height: clamp(height) }
    }
}

/// A terminal as the client asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PtyRequest {
    /// TERM.
    pub term: String,
    /// The size so far.
    pub size: WindowSize,
    /// RFC 4254 section 8 opcodes and their values.
    pub modes: Vec<(u8, u32)>,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// The configured shell.
    Shell,
    /// A command line for a shell in the container.
    Exec(String),
    /// A subsystem by name.
    Subsystem(String),
}

/// A channel request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// pty-req.
    Pty(PtyRequest),
    /// env.
    Env {
        /// Name.
        name: String,
        /// Value.
        value: String,
    },
    /// shell, exec or subsystem; an exec's bytes need not be text.
    Program(Result<Program, NotText>),
    /// window-change.
    Resize(WindowSize),
    /// signal, by its name without SIG.
    Signal(String),
    /// x11-req, auth-agent-req and others that are not built.
    Unsupported,
}

impl Request {
    /// What it names, where that may stand in a log: commands may be secrets.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Env { name, .. } | Self::Signal(name) | Self::Program(Ok(Program::Subsystem(name))) => Some(name),
            Self::Program(Ok(Program::Shell | Program::Exec(_)) | Err(NotText))
            | Self::Pty(_)
            | Self::Resize(_)
            | Self::Unsupported => None,
        }
    }
}

/// A command line that is not UTF-8: the contract carries text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotText;

/// All that is needed to start a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// What.
    pub program: Program,
    /// A terminal, or pipes.
    pub pty: Option<PtyRequest>,
    /// The client's variables.
    pub env: Environment,
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Answer success now; nothing else to do.
    Accept,
    /// Answer failure now; the reason is for the log.
    Refuse(Refused),
    /// Start a program; the answer follows when it is known whether it starts.
    Start(Box<Start>),
    /// Tell the program the new size and answer success now.
    Resize(WindowSize),
    /// Send the program a signal and answer success now.
    Signal(String),
}

/// Why a request is answered with failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Only one per channel.
    #[error("a program was already asked for on this channel")]
    AlreadyRunning,
    /// Comes before the program.
    #[error("too late: a program was already asked for on this channel")]
    TooLate,
    /// Only one per channel.
    #[error("the channel has a terminal already")]
    SecondPty,
    /// Sizes need one.
    #[error("the channel has no terminal")]
    NoPty,
    /// Nothing to send a signal to.
    #[error("no program runs on this channel")]
    NotRunning,
    /// A field is too long, empty or malformed.
    #[error("a field of the request is empty, too long or malformed")]
    Malformed,
    /// The variable is not taken.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// Not built.
    #[error("not supported")]
    Unsupported,
}

/// A session channel from its opening to its end.
#[derive(Debug)]
pub enum ChannelState {
    /// Nothing runs yet.
    Setup {
        /// Asked for so far.
        pty: Option<PtyRequest>,
        /// Given so far.
        env: Environment,
    },
    /// A program was asked for; it starts, runs, or has ended.
    Running {
        /// Whether it has a terminal.
        pty: bool,
    },
}

impl Default for ChannelState {
    fn default() -> Self {
        Self::Setup { pty: None, env: Environment::default() }
    }
}

impl ChannelState {
    /// Takes a request.
    pub fn request(&mut self, request: Request) -> Step {
        match self {
            Self::Setup { pty, env } => match request {
                Request::Pty(_) if pty.is_some() => Step::Refuse(Refused::SecondPty),
                Request::Pty(asked) if asked.term.len() > MAX_TERM || asked.term.contains('\0') => {
                    Step::Refuse(Refused::Malformed)
                }
                Request::Pty(asked) => {
                    *pty = Some(asked);
                    Step::Accept
                }
                Request::Env { name, value } => match env.set(&name, &value) {
                    Ok(()) => Step::Accept,
                    Err(error) => Step::Refuse(error.into()),
                },
                Request::Program(Ok(program)) if is_sound(&program) => {
                    let start = Start { program, pty: pty.take(), env: std::mem::take(env) };
                    *self = Self::Running { pty: start.pty.is_some() };
                    Step::Start(Box::new(start))
                }
                Request::Program(Ok(_) | Err(NotText)) => Step::Refuse(Refused::Malformed),
                Request::Resize(size) => match pty {
                    Some(pty) => {
                        pty.size = size;
                        Step::Accept
                    }
                    None => Step::Refuse(Refused::NoPty),
                },
                Request::Signal(_) => Step::Refuse(Refused::NotRunning),
                Request::Unsupported => Step::Refuse(Refused::Unsupported),
            },
            Self::Running { pty } => match request {
                Request::Pty(_) | Request::Env { .. } => Step::Refuse(Refused::TooLate),
                Request::Program(_) => Step::Refuse(Refused::AlreadyRunning),
                Request::Resize(size) if *pty => Step::Resize(size),
                Request::Resize(_) => Step::Refuse(Refused::NoPty),
                Request::Signal(name) if is_signal_name(&name) => Step::Signal(name),
                Request::Signal(_) => Step::Refuse(Refused::Malformed),
                Request::Unsupported => Step::Refuse(Refused::Unsupported),
            },
        }
    }
}

fn is_sound(program: &Program) -> bool {
    let (text, max) = match program {
        Program::Shell => return true,
        Program::Exec(command) => (command, MAX_COMMAND),
        Program::Subsystem(name) => (name, MAX_SUBSYSTEM),
    };
    !text.trim().is_empty() && text.len() <= max && !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pty(term: &str) -> Request {
        Request::Pty(PtyRequest { term: term.to_owned(), size: WindowSize::new(80, 24, 0, 0), modes: vec![(3, 127)] })
    }

    fn env(name: &str) -> Request {
        Request::Env { name: name.to_owned(), value: "v".to_owned() }
    }

    fn exec(command: &str) -> Request {
        Request::Program(Ok(Program::Exec(command.to_owned())))
    }

    #[test]
    fn a_login_is_gathered_and_started_once() {
        let mut channel = ChannelState::default();
        assert_eq!(channel.request(pty("xterm")), Step::Accept);
        assert_eq!(channel.request(pty("xterm")), Step::Refuse(Refused::SecondPty));
        assert_eq!(channel.request(env("LANG")), Step::Accept);
        assert_eq!(channel.request(Request::Resize(WindowSize::new(100, 70_000, 0, 0))), Step::Accept);
        assert_eq!(channel.request(Request::Signal("TERM".to_owned())), Step::Refuse(Refused::NotRunning));
        let Step::Start(start) = channel.request(Request::Program(Ok(Program::Shell))) else { panic!("no start") };
        assert_eq!(start.program, Program::Shell);
        let pty = start.pty.expect("the terminal");
        assert_eq!((pty.size.columns, pty.size.rows, pty.modes), (100, u16::MAX, vec![(3, 127)]));
        assert_eq!(start.env.into_entries().len(), 1);
        assert_eq!(channel.request(exec("x")), Step::Refuse(Refused::AlreadyRunning));
        assert_eq!(channel.request(env("LATE")), Step::Refuse(Refused::TooLate));
        let size = WindowSize::new(1, 2, 3, 4);
        assert_eq!(channel.request(Request::Resize(size)), Step::Resize(size));
        assert_eq!(channel.request(Request::Signal("USR2".to_owned())), Step::Signal("USR2".to_owned()));
        assert_eq!(channel.request(Request::Unsupported), Step::Refuse(Refused::Unsupported));
    }

    #[test]
    fn without_a_terminal_there_is_no_size() {
        let mut channel = ChannelState::default();
        let resize = || Request::Resize(WindowSize::default());
        assert_eq!(channel.request(resize()), Step::Refuse(Refused::NoPty));
        assert!(matches!(channel.request(exec("true")), Step::Start(_)));
        assert_eq!(channel.request(resize()), Step::Refuse(Refused::NoPty));
    }

    #[test]
    fn a_refused_program_leaves_the_channel_usable() {
        let mut channel = ChannelState::default();
        for bad in ["", "  \n", "a\0b", &"x".repeat(MAX_COMMAND + 1)] {
            assert_eq!(channel.request(exec(bad)), Step::Refuse(Refused::Malformed));
        }
        assert_eq!(channel.request(Request::Program(Err(NotText))), Step::Refuse(Refused::Malformed));
        assert!(matches!(channel.request(exec("true")), Step::Start(_)));
    }

    fn any_request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(pty("vt100")),
            ".{0,3}".prop_map(|name| env(&name)),
            ".{0,3}".prop_map(|command| exec(&command)),
            Just(Request::Program(Ok(Program::Shell))),
            Just(Request::Resize(WindowSize::default())),
            ".{0,3}".prop_map(Request::Signal),
            Just(Request::Unsupported),
        ]
    }

    proptest! {
        #[test]
        fn one_program_and_nothing_for_it_before(requests in prop::collection::vec(any_request(), 0..40)) {
            let mut channel = ChannelState::default();
            let mut started = 0;
            for request in requests {
                match channel.request(request) {
                    Step::Start(_) => started += 1,
                    Step::Resize(_) | Step::Signal(_) => prop_assert_eq!(started, 1),
                    Step::Accept | Step::Refuse(_) => {}
                }
            }
            prop_assert!(started <= 1);
        }
    }
}
