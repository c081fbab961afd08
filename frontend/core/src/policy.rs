//! What the backend's policy lets pass, as it has told: so that clients are answered truthfully and at once. The backend
//! enforces it whatever is answered here.

use crate::{Program, Request, Start, channel::NotText};
use podbay::{
    Denied,
    v1::{self, rule::Mode},
};

/// The policy of a connection. The default lets everything pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Variables.
    pub env: Rule,
    /// Command lines.
    pub command: Rule,
    /// The shell.
    pub shell: Rule,
    /// Subsystems.
    pub subsystem: Rule,
    /// Terminals.
    pub tty: Rule,
    /// Signals.
    pub signal: Rule,
}

/// Which requests of one kind pass. Names are compared byte by byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// All but these.
    But(Vec<String>),
    /// Only these.
    Only(Vec<String>),
}

impl Default for Rule {
    fn default() -> Self {
        Self::But(Vec::new())
    }
}

impl From<Option<&v1::Rule>> for Rule {
    fn from(rule: Option<&v1::Rule>) -> Self {
        let Some(rule) = rule else { return Self::default() };
        match rule.mode() {
            Mode::Unspecified | Mode::Enable => Self::But(rule.names.clone()),
            Mode::Filter => Self::Only(rule.names.clone()),
            Mode::Disable => Self::Only(Vec::new()),
        }
    }
}

impl From<&v1::Policy> for Policy {
    fn from(policy: &v1::Policy) -> Self {
        Self {
            env: policy.env.as_ref().into(),
            command: policy.command.as_ref().into(),
            shell: policy.shell.as_ref().into(),
            subsystem: policy.subsystem.as_ref().into(),
            tty: policy.tty.as_ref().into(),
            signal: policy.signal.as_ref().into(),
        }
    }
}

impl Rule {
    /// Whether a request by this name passes.
    pub fn passes(&self, name: &str) -> bool {
        match self {
            Self::But(names) => !names.iter().any(|other| other == name),
            Self::Only(names) => names.iter().any(|other| other == name),
        }
    }

    /// The same for a request without a name.
    const fn passes_any(&self) -> bool {
        match self {
            Self::But(_) => true,
            Self::Only(_) => false,
        }
    }
}

impl Policy {
    /// What stands against a request. Sizes are nobody's business; what is not built is refused elsewhere.
    pub fn refuses(&self, request: &Request) -> Option<Denied> {
        match request {
            Request::Pty(_) => (!self.tty.passes_any()).then_some(Denied::Tty),
            Request::Env { name, .. } => (!self.env.passes(name)).then_some(Denied::Env),
            Request::Program(Ok(program)) => self.refuses_program(program),
            Request::Signal(name) => (!self.signal.passes(name)).then_some(Denied::Signal),
            Request::Program(Err(NotText)) | Request::Resize(_) | Request::Unsupported => None,
        }
    }

    /// The same for all that a start consists of, where it was gathered before the policy was known; but for variables,
    /// which are left out.
    pub fn refuses_start(&self, start: &Start) -> Option<Denied> {
        let tty = (start.pty.is_some() && !self.tty.passes_any()).then_some(Denied::Tty);
        self.refuses_program(&start.program).or(tty)
    }

    fn refuses_program(&self, program: &Program) -> Option<Denied> {
        let (passes, denied) = match program {
            Program::Shell => (self.shell.passes_any(), Denied::Shell),
            Program::Exec(line) => (self.command.passes(line), Denied::Exec),
            Program::Subsystem(name) => (self.subsystem.passes(name), Denied::Subsystem),
        };
        (!passes).then_some(denied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChannelState, Environment, PtyRequest, Step, WindowSize};
    use proptest::prelude::*;

    fn rule(mode: Mode, names: &[&str]) -> v1::Rule {
        v1::Rule { mode: mode.into(), names: names.iter().map(ToString::to_string).collect() }
    }

    fn exec(line: &str) -> Request {
        Request::Program(Ok(Program::Exec(line.to_owned())))
    }

    #[test]
    fn rules_are_read_and_kept_exactly() {
        let policy = Policy::from(&v1::Policy {
            env: Some(rule(Mode::Enable, &["LD_PRELOAD"])),
            command: Some(rule(Mode::Filter, &["ls"])),
            tty: Some(rule(Mode::Disable, &[])),
            ..v1::Policy::default()
        });
        let env = |name: &str| policy.refuses(&Request::Env { name: name.to_owned(), value: String::new() });
        assert_eq!((env("LD_PRELOAD"), env("LANG"), env("ld_preload")), (Some(Denied::Env), None, None));
        for (line, refused) in [("ls", None), ("ls ", Some(Denied::Exec)), ("", Some(Denied::Exec))] {
            assert_eq!(policy.refuses(&exec(line)), refused, "{line:?}");
        }
        assert_eq!(policy.refuses(&Request::Program(Ok(Program::Shell))), None);
        assert_eq!(policy.refuses(&Request::Resize(WindowSize::default())), None);
        let pty = PtyRequest { term: String::new(), size: WindowSize::default(), modes: Vec::new() };
        let start =
            |line: &str, pty| Start { program: Program::Exec(line.to_owned()), pty, env: Environment::default() };
        assert_eq!(policy.refuses_start(&start("ls", None)), None);
        assert_eq!(policy.refuses_start(&start("ls", Some(pty.clone()))), Some(Denied::Tty));
        assert_eq!(policy.refuses_start(&start("id", Some(pty))), Some(Denied::Exec), "which is answered first");
        assert_eq!(
            Policy::from(&v1::Policy::default()),
            Policy::default(),
            "a backend that tells nothing decides itself"
        );
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let pty = PtyRequest { term: String::new(), size: WindowSize::default(), modes: Vec::new() };
        prop_oneof![
            Just(Request::Pty(pty)),
            "[AB]".prop_map(|name| Request::Env { name, value: String::new() }),
            "[AB]".prop_map(|line| exec(&line)),
            Just(Request::Program(Ok(Program::Shell))),
            "[AB]".prop_map(|name| Request::Program(Ok(Program::Subsystem(name)))),
            Just(Request::Signal("TERM".to_owned())),
        ]
    }

    proptest! {
        /// As the channel's requests are handled: whatever comes in whatever order, what is off never gets through.
        #[test]
        fn nothing_gets_past_a_disable(off in any::<[bool; 6]>(), requests in prop::collection::vec(any_request(), 0..30)) {
            let rule = |off: bool| if off { Rule::Only(Vec::new()) } else { Rule::default() };
            let [env, command, shell, subsystem, tty, signal] = off.map(rule);
            let policy = Policy { env, command, shell, subsystem, tty, signal };
            let mut channel = ChannelState::default();
            for request in requests {
                if policy.refuses(&request).is_some() {
                    continue;
                }
                match channel.request(request) {
                    Step::Start(start) => {
                        prop_assert_eq!(policy.refuses_start(&start), None);
                        prop_assert!(!off[0] || start.env.into_entries().is_empty());
                        prop_assert!(!off[4] || start.pty.is_none());
                        let is_off = match start.program {
                            Program::Exec(_) => off[1],
                            Program::Shell => off[2],
                            Program::Subsystem(_) => off[3],
                        };
                        prop_assert!(!is_off);
                    }
                    Step::Signal(_) => prop_assert!(!off[5]),
                    Step::Accept | Step::Refuse(_) | Step::Resize(_) => {}
                }
            }
        }
    }
}
