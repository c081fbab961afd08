//! A pod, some replicas, and the byte streams between them, driven by a seed.

mod users;

use bytes::BytesMut;
use podbay_agent_wire::{
    client::{Client, Config as ClientConfig},
    host::{Action, Config, Host, LinkKey, Out, ProgramKey, Refusal, Stdin},
    id::Instance,
    program::Exit,
    proto::Reason,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};
use users::{SIGNALS, User};

pub struct Options {
    pub seed: u64,
    pub replicas: usize,
    pub sessions: usize,
    pub budget: usize,
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What is under way of one link.
#[derive(Default)]
struct Pipe {
    host: Option<LinkKey>,
    /// `None` = that replica has given it up.
    replica: Option<usize>,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
}

/// A program: stdout is stdin changed, stderr every seventh byte of it; ends after stdin with the code of its session.
#[derive(Default)]
struct Fake {
    session: u8,
    taken: u64,
    out: VecDeque<u8>,
    err: VecDeque<u8>,
    ending: bool,
    ended: bool,
    signals: Vec<String>,
}

fn byte(session: u8, offset: u64) -> u8 {
    (offset as u8).wrapping_mul(31) ^ (offset >> 8) as u8 ^ session
}

pub struct World {
    random: Random,
    host: Host,
    budget: usize,
    clients: Vec<Client>,
    pipes: Vec<Pipe>,
    fakes: BTreeMap<ProgramKey, Fake>,
    users: Vec<User>,
    now: Instant,
}

impl World {
    pub fn new(options: &Options) -> Self {
        let mut random = Random(options.seed);
        let mut config = Config::new(Instance([9; 16]));
        config.budget = options.budget;
        config.max_links = 1000;
        config.silence = Duration::from_secs(1000);
        config.orphan_timeout = Duration::from_secs(100_000);
        Self {
            host: Host::new(config),
            budget: options.budget,
            clients: (0..options.replicas)
                .map(|_| Client::new(ClientConfig { silence: Duration::from_secs(1000), ..ClientConfig::default() }))
                .collect(),
            pipes: Vec::new(),
            fakes: BTreeMap::new(),
            users: (1..=options.sessions).map(|n| User::new(n as u8, random.below(4))).collect(),
            now: Instant::now(),
            random,
        }
    }

    /// Trouble for a while, then good links: everything has to come to its end.
    pub fn run(mut self, steps: usize) {
        for _ in 0..steps {
            self.step(true);
        }
        let mut calm = 0;
        while !self.users.iter().all(|user| user.forgotten) {
            self.step(false);
            calm += 1;
            assert!(calm < 200_000, "nothing moves: {:?}", self.state());
        }
        for user in &self.users {
            let fake = self.fakes.values().find(|fake| fake.session == user.number).expect("it ran");
            assert_eq!(fake.signals.len() as u64, SIGNALS, "signals of session {}", user.number);
        }
        assert_eq!(self.fakes.len(), self.users.len(), "each ran once");
        assert_eq!(self.host.programs(), 0);
        assert_eq!(self.host.budget().used(), 0);
    }

    fn state(&self) -> Vec<String> {
        let describe = |user: &User| {
            let User { total, sent, credit, got, exit, asked, started, at, .. } = user;
            format!("{total} {sent} {credit} {got:?} exit {exit} {asked:?} started {started} {at:?}")
        };
        self.users.iter().map(describe).collect()
    }

    fn step(&mut self, trouble: bool) {
        self.now += Duration::from_millis(1);
        match self.random.below(if trouble { 14 } else { 10 }) {
            0 | 1 => self.connect(),
            2 | 3 => self.programs_work(),
            4 | 5 => self.users_work(trouble),
            6..10 => self.bytes_move(),
            10 if self.random.one_in(4) => self.lose(),
            11 if self.random.one_in(6) => self.move_a_session(),
            12 => self.late_stdin(),
            _ => {}
        }
        self.check();
    }

    fn check(&mut self) {
        assert!(self.host.budget().used() <= self.budget);
        while let Some(action) = self.host.next_action() {
            self.act(action);
        }
        for client in 0..self.clients.len() {
            while let Some(event) = self.clients[client].next_event() {
                self.event(client, event);
            }
        }
    }

    fn connect(&mut self) {
        for replica in 0..self.clients.len() {
            if self.pipes.iter().any(|pipe| pipe.replica == Some(replica)) {
                continue;
            }
            let host = self.host.link_opened(self.now);
            self.clients[replica].connected(self.now);
            self.pipes.push(Pipe { host, replica: Some(replica), ..Pipe::default() });
        }
        self.pipes.retain(|pipe| pipe.host.is_some() || pipe.replica.is_some());
    }

    /// A link is lost: for the replica, for the pod, or for both; what is under way may arrive still where it is not.
    fn lose(&mut self) {
        if self.pipes.is_empty() {
            return;
        }
        let at = self.random.below(self.pipes.len());
        let which = self.random.below(3);
        let pipe = &mut self.pipes[at];
        if which != 1
            && let Some(replica) = pipe.replica.take()
        {
            self.clients[replica].disconnected();
            pipe.down.clear();
        }
        if which != 0
            && let Some(host) = pipe.host.take()
        {
            self.host.link_closed(host, self.now);
            pipe.up.clear();
            // The other side reads the rest and then its end.
        }
    }

    fn bytes_move(&mut self) {
        for at in 0..self.pipes.len() {
            let amount = [1, 20, 5_000, 100_000][self.random.below(4)];
            let mut out = BytesMut::new();
            let pipe = &mut self.pipes[at];
            if let Some(replica) = pipe.replica {
                if pipe.up.len() < 100_000 {
                    self.clients[replica].transmit(&mut out, amount, self.now);
                    if pipe.host.is_some() {
                        pipe.up.extend(&out);
                    }
                }
                let piece: Vec<u8> = pipe.down.drain(..amount.min(pipe.down.len())).collect();
                self.clients[replica].receive(&piece, self.now).expect("a sound agent");
                if pipe.host.is_none() && pipe.down.is_empty() {
                    pipe.replica = None;
                    self.clients[replica].disconnected();
                }
            }
            out.clear();
            if let Some(host) = pipe.host {
                assert!(!self.host.is_closing(host), "a sound backend");
                if pipe.down.len() < 100_000 {
                    self.host.transmit(host, &mut out, amount, self.now);
                    if pipe.replica.is_some() {
                        pipe.down.extend(&out);
                    }
                }
                let piece: Vec<u8> = pipe.up.drain(..amount.min(pipe.up.len()).min(65_536)).collect();
                self.host.receive(host, &piece, self.now);
                if pipe.replica.is_none() && pipe.up.is_empty() {
                    pipe.host = None;
                    self.host.link_closed(host, self.now);
                }
            }
            self.check();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn { program, start } => {
                let session = start.argv[0][0];
                self.fakes.insert(program, Fake { session, ..Fake::default() });
                self.host.spawned(program, Ok(100), self.now);
            }
            Action::Signal { program, name, request } => {
                self.fakes.get_mut(&program).expect("a program").signals.push(name);
                let request = request.expect("nobody is ended here");
                let refusal = Refusal { reason: Reason::UnknownSignal, message: String::new() };
                self.host.answered(program, request, if request % 2 == 0 { Err(refusal) } else { Ok(()) });
            }
            Action::Forget { exit, .. } => assert!(exit.is_some()),
            Action::Resize { .. } | Action::WriteFile { .. } => panic!("nobody asked for {action:?}"),
        }
    }

    fn programs_work(&mut self) {
        for (&key, fake) in &mut self.fakes {
            let amount = [1, 100, 30_000][self.random.below(3)];
            match self.host.stdin_state(key) {
                Stdin::Data if fake.out.len() < 10_000 => {
                    let (head, tail) = self.host.stdin(key);
                    let taken: Vec<u8> = head.iter().chain(tail).copied().take(amount).collect();
                    for &got in &taken {
                        assert_eq!(got, byte(fake.session, fake.taken), "stdin at {}", fake.taken);
                        fake.out.push_back(got ^ 0x55);
                        if fake.taken.is_multiple_of(7) {
                            fake.err.push_back(got);
                        }
                        fake.taken += 1;
                    }
                    self.host.stdin_written(key, taken.len());
                }
                Stdin::End if !fake.ending => {
                    fake.ending = true;
                    self.host.stdin_closed(key);
                    self.host.exited(key, Exit::Code(fake.session), self.now);
                }
                Stdin::Data | Stdin::End | Stdin::Idle => {}
            }
            for (out, bytes) in [(Out::Stdout, &mut fake.out), (Out::Stderr, &mut fake.err)] {
                let room = self.host.output_room(key, out).min(bytes.len()).min(amount);
                if room > 0 {
                    let piece: Vec<u8> = bytes.drain(..room).collect();
                    self.host.output(key, out, &piece);
                }
            }
            if fake.ending && !fake.ended && fake.out.is_empty() && fake.err.is_empty() {
                fake.ended = true;
                self.host.output_ended(key, Out::Stdout);
                self.host.output_ended(key, Out::Stderr);
            }
        }
    }
}
