//! A pod's podbay-agent on the fake cluster: its machine is the real one, its programs are the test's.
//!
//! The machine can't be sent between threads, so it stays in the test's: only for runtimes of one thread.
#![allow(dead_code)] // each test file uses its part

use bytes::BytesMut;
use futures::{FutureExt as _, future::BoxFuture};
use podbay_agent_wire::{
    host::{Action, Config, Host, LinkKey, Out, ProgramKey},
    id::Instance,
    program::Exit,
};
use podbay_backend_core::{
    cluster::{Input, Output, StreamEnd},
    fake::Program,
};
use std::cell::RefCell;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

thread_local! {
    static AGENTS: RefCell<Vec<State>> = const { RefCell::new(Vec::new()) };
}

/// Clones are the same one.
#[derive(Clone)]
pub struct Agent {
    n: usize,
    changed: watch::Sender<u64>,
}

struct State {
    host: Host,
    programs: Vec<ProgramKey>,
    signals: Vec<(usize, String)>,
}

/// What its links get of it.
struct Link {
    agent: Agent,
    key: LinkKey,
}

impl State {
    fn act(&mut self) {
        while let Some(action) = self.host.next_action() {
            match action {
                Action::Spawn { program, .. } => {
                    self.programs.push(program);
                    self.host.spawned(program, Ok(1), now());
                }
                Action::Signal { program, name, request } => {
                    let n = self.programs.iter().position(|known| *known == program).expect("one of ours");
                    self.signals.push((n, name));
                    if let Some(request) = request {
                        self.host.answered(program, request, Ok(()));
                    }
                }
                Action::Resize { program, request, .. } => self.host.answered(program, request, Ok(())),
                Action::Forget { .. } | Action::WriteFile { .. } => {}
            }
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Agent {
    pub fn new(instance: u8) -> Self {
        let host = Host::new(Config::new(Instance([instance; 16])));
        let state = State { host, programs: Vec::new(), signals: Vec::new() };
        let n = AGENTS.with_borrow_mut(|agents| {
            agents.push(state);
            agents.len() - 1
        });
        Self { n, changed: watch::Sender::new(0) }
    }

    /// As what an exec of `attach` runs.
    pub fn attach(&self, program: Program) -> BoxFuture<'static, StreamEnd> {
        let agent = self.clone();
        async move { agent.serve(program).await }.boxed()
    }

    async fn serve(self, mut program: Program) -> StreamEnd {
        let mut changed = self.changed.subscribe();
        let Some(key) = self.with(|state| state.host.link_opened(now())) else { return StreamEnd::ExitCode(69) };
        let link = Link { agent: self.clone(), key };
        loop {
            let mut out = BytesMut::new();
            self.with(|state| state.host.transmit(key, &mut out, 64 * 1024, now()));
            if !out.is_empty() && program.output.send(Output::Stdout(out.freeze())).await.is_err() {
                return StreamEnd::Success;
            }
            let (closing, more, due) = self
                .with(|State { host, .. }| (host.is_closing(key), host.wants_output(key), host.next_deadline(now())));
            if closing && !more {
                drop(link);
                return StreamEnd::Success;
            }
            let due = due.map(Instant::from_std);
            tokio::select! {
                input = program.input.recv() => match input {
                    Some(Input::Stdin(bytes)) => self.does(|host| host.receive(key, &bytes, now())),
                    Some(Input::CloseStdin) | None => return StreamEnd::Success,
                },
                _ = changed.changed() => {}
                () = std::future::ready(()), if more => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.does(|host| host.tick(now())),
            }
        }
    }

    fn with<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        AGENTS.with_borrow_mut(|agents| what(&mut agents[self.n]))
    }

    /// Does this, and what follows.
    fn does(&self, what: impl FnOnce(&mut Host)) {
        self.with(|state| {
            what(&mut state.host);
            state.act();
        });
        self.changed.send_modify(|n| *n += 1);
    }

    fn of(&self, n: usize) -> ProgramKey {
        self.with(|state| state.programs[n])
    }

    /// How many programs were started.
    pub fn started(&self) -> usize {
        self.with(|state| state.programs.len())
    }

    /// The signals so far, with the number of the program.
    pub fn signals(&self) -> Vec<(usize, String)> {
        self.with(|state| state.signals.clone())
    }

    /// The n-th program writes this.
    pub fn says(&self, n: usize, text: &str) {
        let key = self.of(n);
        self.does(|host| {
            assert!(host.output_room(key, Out::Stdout) >= text.len());
            host.output(key, Out::Stdout, text.as_bytes());
        });
    }

    /// The n-th program ends.
    pub fn exits(&self, n: usize, exit: Exit) {
        self.closes_outputs(n);
        self.exits_but_for_outputs(n, exit);
    }

    /// The same, and others have its outputs still.
    pub fn exits_but_for_outputs(&self, n: usize, exit: Exit) {
        let key = self.of(n);
        self.does(|host| host.exited(key, exit, now()));
    }

    /// Nobody has its outputs any more.
    pub fn closes_outputs(&self, n: usize) {
        let key = self.of(n);
        self.does(|host| {
            host.output_ended(key, Out::Stdout);
            host.output_ended(key, Out::Stderr);
        });
    }

    /// Its container is told to stop.
    pub fn stops(&self) {
        self.does(|host| host.stop(false, now()));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.agent.does(|host| host.link_closed(self.key, now()));
    }
}

/// An end by a signal.
pub fn killed(name: &str) -> Exit {
    Exit::Signal { name: name.into(), core_dumped: false, message: String::new() }
}
