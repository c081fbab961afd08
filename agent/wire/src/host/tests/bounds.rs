//! What is refused, closed or made to wait, so that no peer, disk or number of them costs more than it may.

use super::*;

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
