use super::*;
use crate::{
    client::{Client, Config as ClientConfig, Event, Key, LinkError, ResumeFrom},
    frame::{MAGIC, put_control},
    id::Attempt,
    proto::{ToAgent, to_agent},
};
use bytes::BytesMut;

const SESSION: SessionId = SessionId([1; 16]);

/// A host, a client, and the link between them; time is by hand.
struct Pair {
    host: Host,
    client: Client,
    link: Option<LinkKey>,
    now: Instant,
    events: Vec<Event>,
    signals: Vec<String>,
    spawned: Vec<ProgramKey>,
    forgotten: usize,
    /// Programs start at once.
    starts: bool,
}

impl Pair {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(Instance([7; 16]));
        change(&mut config);
        let mut pair = Self {
            host: Host::new(config),
            client: Client::new(ClientConfig::default()),
            link: None,
            now: Instant::now(),
            events: Vec::new(),
            signals: Vec::new(),
            spawned: Vec::new(),
            forgotten: 0,
            starts: true,
        };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        self.link = self.host.link_opened(self.now);
        self.client.connected(self.now);
    }

    fn lose(&mut self) {
        self.client.disconnected();
        if let Some(link) = self.link.take() {
            self.host.link_closed(link, self.now);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.host.tick(self.now);
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.host.next_action() {
            match action {
                Action::Spawn { program, .. } => {
                    self.spawned.push(program);
                    if self.starts {
                        self.host.spawned(program, Ok(5), self.now);
                    }
                }
                Action::Signal { program, name, request } => {
                    self.signals.push(name);
                    if let Some(request) = request {
                        self.host.answered(program, request, Ok(()));
                    }
                }
                Action::Forget { .. } => self.forgotten += 1,
                Action::Resize { program, request, .. } => self.host.answered(program, request, Ok(())),
                Action::WriteFile { .. } => {}
            }
        }
    }

    /// Moves everything; gives the client's first error.
    fn settle(&mut self) -> Result<(), LinkError> {
        loop {
            self.act();
            let Some(link) = self.link else { return Ok(()) };
            let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
            self.client.transmit(&mut up, 10_000, self.now);
            if !up.is_empty() {
                self.host.receive(link, &up, self.now);
            }
            self.act();
            self.host.transmit(link, &mut down, 10_000, self.now);
            let result = if down.is_empty() { Ok(()) } else { self.client.receive(&down, self.now) };
            while let Some(event) = self.client.next_event() {
                self.events.push(event);
            }
            result?;
            if up.is_empty() && down.is_empty() {
                return Ok(());
            }
        }
    }

    fn start(&mut self) -> Key {
        let key = self.client.start(SESSION, Attempt::new(1), &Start::new(["x"]), ResumeFrom::default());
        self.settle().expect("a sound host");
        key
    }

    fn exit(&mut self, code: u8) {
        let program = *self.spawned.last().expect("a program");
        self.host.exited(program, Exit::Code(code), self.now);
        self.host.output_ended(program, Out::Stdout);
        self.host.output_ended(program, Out::Stderr);
        self.settle().expect("a sound host");
    }

    fn closed(&self, of: Key) -> Option<Reason> {
        self.events.iter().find_map(|event| match event {
            Event::Closed { key, reason, .. } if *key == of => Some(*reason),
            _ => None,
        })
    }

    fn saw(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| wanted(event)).count()
    }
}

const HOUR: Duration = Duration::from_hours(1);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_exit_that_nobody_collects_is_forgotten_in_time_and_never_run_again() {
    let mut pair = Pair::new();
    pair.start();
    pair.lose();
    pair.exit(3);
    pair.pass(HOUR.checked_sub(SECOND).expect("time"));
    assert_eq!((pair.host.programs(), pair.forgotten), (1, 0));
    assert_eq!(pair.host.next_deadline(pair.now), Some(pair.now + SECOND));
    pair.pass(SECOND);
    assert_eq!((pair.host.programs(), pair.forgotten), (0, 1));
    assert_eq!(pair.host.budget().used(), 0);
    pair.connect();
    pair.settle().expect("a sound host");
    let again = pair.client.start(SESSION, Attempt::new(9), &Start::new(["x"]), ResumeFrom::default());
    pair.settle().expect("a sound host");
    assert_eq!(pair.closed(again), Some(Reason::SessionOver));
    assert_eq!(pair.spawned.len(), 1);
}

#[test]
fn an_exit_is_told_again_until_it_is_acknowledged() {
    let mut pair = Pair::new();
    pair.start();
    pair.client.ack_exit(SESSION);
    pair.settle().expect("a sound host");
    assert_eq!(pair.saw(|event| matches!(event, Event::Forgotten { running: true, .. })), 1);
    pair.exit(3);
    let exited = |event: &Event| matches!(event, Event::Exit { exit: Exit::Code(3), stopping: false, .. });
    assert_eq!(pair.saw(exited), 1);
    // Another client without memory gets it as well.
    pair.client = Client::new(ClientConfig::default());
    pair.lose();
    pair.connect();
    let key = pair.client.attach(SESSION, Attempt::default(), true, ResumeFrom::default());
    pair.settle().expect("a sound host");
    assert_eq!(pair.saw(|event| matches!(event, Event::Exit { exit: Exit::Code(3), .. })), 2);
    pair.client.ack_exit(SESSION);
    pair.settle().expect("a sound host");
    assert_eq!(pair.saw(|event| matches!(event, Event::Forgotten { running: false, .. })), 1);
    assert_eq!(pair.closed(key), Some(Reason::Forgotten));
    assert_eq!(pair.client.programs(), 0);
}

#[test]
fn an_orphan_is_ended_step_by_step_unless_somebody_comes_back() {
    let mut pair = Pair::new();
    pair.start();
    pair.lose();
    pair.pass(Duration::from_mins(10).checked_sub(SECOND).expect("time"));
    assert!(pair.signals.is_empty());
    pair.pass(SECOND);
    assert_eq!(pair.signals, ["HUP"]);
    pair.connect();
    pair.settle().expect("a sound host");
    pair.pass(SECOND * 30);
    assert_eq!(pair.signals, ["HUP"], "it has a client again");
    pair.lose();
    pair.pass(Duration::from_mins(10));
    pair.pass(SECOND * 4);
    assert_eq!(pair.signals, ["HUP", "HUP"]);
    pair.pass(SECOND);
    pair.pass(SECOND * 5);
    pair.pass(SECOND * 5);
    assert_eq!(pair.signals, ["HUP", "HUP", "TERM", "KILL"]);
}

#[test]
fn detach_keeps_for_as_long_as_it_says_within_bounds() {
    let keep = |keep: Option<Duration>| {
        let mut pair = Pair::new();
        let key = pair.start();
        pair.client.detach(key, keep);
        pair.settle().expect("a sound host");
        assert_eq!(pair.closed(key), Some(Reason::Detached));
        pair.host.link_closed(pair.link.take().expect("a link"), pair.now);
        pair.host.next_deadline(pair.now).expect("an end") - pair.now
    };
    assert_eq!(keep(Some(HOUR)), HOUR);
    assert_eq!(keep(Some(HOUR * 10_000)), HOUR * 24 * 7);
    assert_eq!(keep(None), Duration::from_mins(10), "as if the link were lost");
}

#[test]
fn what_is_given_up_is_not_kept_by_a_session_that_leaves() {
    let mut pair = Pair::new();
    let key = pair.start();
    // Both before anything was written to the link: the session ends with the word that it gives up.
    pair.client.release(key);
    pair.client.detach(key, None);
    pair.settle().expect("a sound host");
    assert_eq!(pair.closed(key), Some(Reason::Released));
    assert_eq!(pair.signals, ["HUP"]);
}

#[test]
fn what_is_given_up_before_it_runs_is_ended_when_it_does() {
    let mut pair = Pair::new();
    pair.starts = false;
    pair.start();
    pair.host.release(pair.spawned[0], pair.now);
    pair.act();
    pair.host.spawned(pair.spawned[0], Ok(5), pair.now);
    pair.act();
    assert_eq!(pair.signals, ["HUP", "HUP"]);
    pair.host.exited(pair.spawned[0], Exit::Code(1), pair.now);
    pair.act();
    assert_eq!((pair.host.programs(), pair.forgotten), (0, 1));
}

#[test]
fn a_silent_link_is_closed_on_either_side() {
    let mut pair = Pair::new();
    pair.settle().expect("a sound host");
    pair.pass(Duration::from_secs(45));
    let link = pair.link.expect("a link");
    assert!(pair.host.is_closing(link) && !pair.host.wants_input(link));
    let error = pair.settle().expect_err("goodbye");
    assert!(matches!(error, LinkError::Goodbye { reason: Reason::Silent, .. }), "{error}");

    let mut pair = Pair::new();
    pair.settle().expect("a sound host");
    assert_eq!(pair.client.next_deadline(), Some(pair.now + SECOND * 5));
    assert_eq!(pair.client.tick(pair.now + SECOND * 5), Ok(()));
    assert!(pair.client.wants_output(), "a ping");
    assert_eq!(pair.client.tick(pair.now + SECOND * 15), Err(LinkError::Silent));
    assert!(!pair.client.is_linked());
}

#[test]
fn another_instance_has_nothing_of_the_first_ones() {
    let mut pair = Pair::new();
    let key = pair.start();
    pair.lose();
    // This one was never asked for: it may start anywhere.
    let new = pair.client.start(SessionId([2; 16]), Attempt::new(1), &Start::new(["y"]), ResumeFrom::default());
    pair.host = Host::new(Config::new(Instance([8; 16])));
    pair.connect();
    pair.settle().expect("a sound host");
    assert_eq!(pair.closed(key), Some(Reason::InstanceDiffers));
    assert_eq!(pair.saw(|event| matches!(event, Event::Started { key, .. } if *key == new)), 1);
}

#[test]
fn how_long_a_program_has_run_is_the_hosts_own_word() {
    let mut pair = Pair::new();
    let key = pair.start();
    pair.pass(SECOND * 7);
    let again = pair.client.attach(SESSION, Attempt::new(1), true, ResumeFrom::default());
    pair.settle().expect("a sound host");
    let ran = |of| {
        pair.events.iter().find_map(|event| match event {
            Event::Started { key, ran, .. } if *key == of => Some(*ran),
            _ => None,
        })
    };
    assert_eq!(ran(key), Some(Some(Duration::from_millis(1))), "zero would say that nobody knows");
    assert_eq!(ran(again), Some(Some(SECOND * 7)));
}

#[test]
fn a_programs_time_is_over_whoever_has_it_and_however_often_it_is_taken() {
    for attached in [true, false] {
        let mut pair = Pair::new();
        let mut start = Start::new(["x"]);
        start.limit = Some(SECOND * 9);
        let key = pair.client.start(SESSION, Attempt::new(1), &start, ResumeFrom::default());
        pair.settle().expect("a sound host");
        if !attached {
            pair.client.detach(key, Some(SECOND * 1000));
            pair.settle().expect("a sound host");
        }
        pair.pass(SECOND * 8);
        assert!(pair.signals.is_empty(), "{:?}", pair.signals);
        pair.pass(SECOND);
        assert_eq!(pair.signals, ["HUP"], "attached: {attached}");
        // Whoever takes it now does not get it more time.
        for _ in 0..10 {
            pair.client.attach(SESSION, Attempt::new(1), true, ResumeFrom::default());
            pair.settle().expect("a sound host");
            pair.pass(SECOND);
        }
        assert_eq!(pair.signals, ["HUP", "TERM", "KILL"]);
        pair.exit(0);
        pair.pass(SECOND * 4);
        let late = pair.client.attach(SESSION, Attempt::new(1), true, ResumeFrom::default());
        pair.settle().expect("a sound host");
        let told = pair.events.iter().find_map(|event| match event {
            Event::Started { key, ran, ended, .. } if *key == late => Some((*ran, *ended)),
            _ => None,
        });
        assert_eq!(told, Some((Some(SECOND * 19), true)), "until its end");
    }
}

#[test]
fn limits_and_false_offsets_are_refused_by_name() {
    let mut pair = Pair::with(|config| {
        config.max_programs = 1;
        config.max_links = 1;
    });
    pair.start();
    assert_eq!(pair.host.link_opened(pair.now), None, "the one that there is has a program");
    let start = Start::new(["x"]);
    let two = SessionId([2; 16]);
    let ahead = ResumeFrom { stdout: 1, ..ResumeFrom::default() };
    let cases = [
        (pair.client.start(two, Attempt::new(1), &start, ResumeFrom::default()), Reason::Limit),
        (pair.client.start(two, Attempt::new(1), &start, ahead), Reason::UnknownSession),
        (pair.client.attach(two, Attempt::new(1), true, ResumeFrom::default()), Reason::UnknownSession),
        (pair.client.attach(SESSION, Attempt::new(1), false, ResumeFrom::default()), Reason::AttemptTooLow),
        (pair.client.attach(SESSION, Attempt::new(2), false, ahead), Reason::BadOffset),
        (pair.client.start(two, Attempt::new(1), &Start::new(["a\0b"]), ResumeFrom::default()), Reason::Invalid),
    ];
    pair.settle().expect("a sound host");
    for (key, reason) in cases {
        assert_eq!(pair.closed(key), Some(reason));
    }
    pair.host.stop(false, pair.now);
    let late = pair.client.start(two, Attempt::new(1), &start, ResumeFrom::default());
    pair.settle().expect("a sound host");
    assert_eq!(pair.closed(late), Some(Reason::Shutdown));
    assert_eq!(pair.signals, ["HUP"]);
    pair.exit(1);
    assert_eq!(pair.saw(|event| matches!(event, Event::Exit { stopping: true, .. })), 1, "what may be why is told");
}

#[test]
fn a_link_without_programs_goes_when_there_are_too_many() {
    let mut pair = Pair::with(|config| config.max_links = 2);
    pair.start();
    pair.now += SECOND;
    let idle = pair.host.link_opened(pair.now).expect("room");
    pair.now += SECOND;
    let new = pair.host.link_opened(pair.now).expect("room is made");
    assert!(pair.host.is_closing(idle) && !pair.host.is_closing(new));
    assert!(!pair.host.is_closing(pair.link.expect("a link")), "it has a program");
    assert!(pair.host.link_opened(pair.now).is_some());
    assert_eq!(pair.host.link_opened(pair.now), None, "four are there, two of them on their way out");
}

/// A disk that is full until it is not.
#[derive(Debug, Clone, Default)]
struct Disk(std::rc::Rc<std::cell::Cell<bool>>);

impl Spills for Disk {
    fn open(&mut self) -> std::io::Result<Box<dyn crate::output::Spill>> {
        if self.0.get() { Ok(Box::new(self.clone())) } else { Err(std::io::ErrorKind::StorageFull.into()) }
    }
}

impl crate::output::Spill for Disk {
    fn write_at(&mut self, _: &[u8], _: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn read_at(&mut self, _: &mut [u8], _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_tried_again_every_second() {
    let disk = Disk::default();
    let mut pair = Pair::new();
    pair.host = Host::with_spills(Config::new(Instance([7; 16])), Box::new(disk.clone()));
    pair.connect();
    let mut start = Start::new(["x"]);
    start.output = crate::output::Policy::Spill { max: 1 << 20, keep_last: false };
    pair.client.start(SESSION, Attempt::new(1), &start, ResumeFrom::default());
    pair.settle().expect("a sound host");
    pair.lose();
    let program = pair.spawned[0];
    for _ in 0..100 {
        let room = pair.host.output_room(program, Out::Stdout);
        if room > 0 {
            pair.host.output(program, Out::Stdout, &vec![1; room]);
        }
    }
    assert_eq!(pair.host.output_room(program, Out::Stdout), 0, "it waits");
    assert_eq!(pair.host.next_deadline(pair.now), Some(pair.now), "at once");
    pair.pass(Duration::ZERO);
    assert_eq!(pair.host.next_deadline(pair.now), Some(pair.now + SECOND));
    assert_eq!(pair.host.next_deadline(pair.now + SECOND * 2), Some(pair.now + SECOND), "it is not put off");
    disk.0.set(true);
    pair.pass(SECOND);
    assert!(pair.host.output_room(program, Out::Stdout) > 0);
}

#[test]
fn versions_that_do_not_meet_are_told() {
    let mut pair = Pair::new();
    let link = pair.host.link_opened(pair.now).expect("a link");
    let mut bytes = BytesMut::from(&MAGIC[..]);
    let hello = proto::BackendHello { version: 9, min_version: 9, features: 0, name: String::new() };
    put_control(&ToAgent { message: Some(to_agent::Message::Hello(hello)) }, &mut bytes);
    pair.host.receive(link, &bytes, pair.now);
    assert!(pair.host.is_closing(link));
    let mut out = BytesMut::new();
    pair.host.transmit(link, &mut out, 10_000, pair.now);
    let error = pair.client.receive(&out, pair.now).expect_err("goodbye");
    assert!(matches!(error, LinkError::Goodbye { reason: Reason::Version, .. }), "{error}");
}

#[test]
fn a_peer_that_asks_and_does_not_listen_is_not_read_any_further() {
    let mut pair = Pair::new();
    pair.settle().expect("a sound host");
    let link = pair.link.expect("a link");
    let mut asks = BytesMut::new();
    for id in 0..4000 {
        put_control(&ToAgent { message: Some(to_agent::Message::Ping(proto::Ping { id })) }, &mut asks);
    }
    let mut read = 0;
    while pair.host.wants_input(link) && read < 100 {
        pair.host.receive(link, &asks, pair.now);
        read += 1;
    }
    assert!(read < 3, "{read} times 4000 requests");
    assert!(pair.host.links[&link].control.len() < CONTROL_QUEUE + 100);
    // Once it listens, all of it is answered.
    let mut out = BytesMut::new();
    while pair.host.wants_output(link) {
        let target = out.len() + 10_000;
        pair.host.transmit(link, &mut out, target, pair.now);
    }
    assert!(pair.host.wants_input(link));
    assert!(out.len() > CONTROL_QUEUE);
}

#[test]
fn requests_that_wait_have_their_bounds_and_deadlines() {
    let mut pair = Pair::new();
    let key = pair.start();
    pair.lose();
    let later = pair.now + SECOND;
    for id in 1..=32 {
        pair.client.signal(key, id, "USR1", later).expect("room");
    }
    assert!(pair.client.signal(key, 33, "USR1", later).is_err());
    assert!(pair.client.signal(key, 5, "USR1", later).is_err());
    assert_eq!(pair.client.next_deadline(), Some(later));
    pair.client.tick(later).expect("no link, no error");
    pair.connect();
    pair.now = later;
    pair.settle().expect("a sound host");
    assert!(pair.signals.is_empty(), "what was given up is not done");
    let late = |event: &Event| matches!(event, Event::Answer { result: Err((Reason::Deadline, _)), .. });
    assert_eq!(pair.saw(late), 32);
    let size = Size::default();
    pair.lose();
    pair.client.resize(key, 40, size, later + SECOND).expect("room");
    pair.client.resize(key, 41, size, later + SECOND).expect("room");
    pair.connect();
    pair.settle().expect("a sound host");
    let answers = |id: u64| pair.saw(|event| matches!(event, Event::Answer { id: of, .. } if *of == id));
    assert_eq!((answers(40), answers(41)), (1, 1));
}
