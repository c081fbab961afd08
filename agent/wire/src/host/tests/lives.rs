//! How long a program, and what is known of it, lives: exits, orphans, who leaves and who comes back, silence and time.

use super::*;

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
