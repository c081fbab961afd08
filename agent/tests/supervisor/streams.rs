//! Bytes: all of them, in order, once; and bounded memory.

use crate::pod::{Pod, Seen, noise, sh};
use podbay_agent_wire::{
    output::Policy,
    program::{Exit, Pty, Size, Start},
    proto::Reason,
};
use std::{
    fs,
    time::{Duration, Instant},
};

fn with_stdin(stdin: Vec<u8>) -> Seen {
    Seen { stdin, eof: true, ..Seen::default() }
}

#[test]
fn twenty_megabytes_both_ways() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let sent = noise(20_000_000, 1);
    let key = backend.start_attempt(1, 1, &Start::new(["cat"]), with_stdin(sent.clone()));
    assert_eq!(backend.exit(key, 1), Exit::Code(0));
    assert!(backend.seen(key).out == sent, "{} of {}", backend.seen(key).out.len(), sent.len());
    assert_eq!(backend.seen(key).acked, sent.len() as u64);
    assert_eq!(backend.links, 1);
}

#[test]
fn nothing_is_lost_or_doubled_when_attach_is_killed_at_random() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let sent = noise(20_000_000, 2);
    let key = backend.start_attempt(1, 1, &sh("cat; exit 9"), with_stdin(sent.clone()));
    let mut cut_at = 300_000;
    backend.until("it starts", |backend| backend.seen(key).started);
    while backend.seen(key).exit.is_none() {
        backend.step();
        let got = backend.seen(key).out.len();
        if got >= cut_at {
            backend.cut();
            cut_at += 700_000 + noise(2, got as u64)[0] as usize * 3000;
        }
    }
    assert!(backend.links > 8, "{} links", backend.links);
    assert!(backend.seen(key).out == sent, "{} of {}", backend.seen(key).out.len(), sent.len());
    assert_eq!(backend.exit(key, 1), Exit::Code(9));
}

#[test]
fn fifty_programs_on_one_link() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let keys: Vec<_> = (1..=50)
        .map(|id| {
            let sent = noise(200_000, id.into());
            (id, sent.clone(), backend.start_attempt(id, 1, &sh("cat; exit 3"), with_stdin(sent)))
        })
        .collect();
    for (id, sent, key) in keys {
        assert_eq!(backend.exit(key, id), Exit::Code(3));
        assert!(backend.seen(key).out == sent, "program {id}");
    }
    assert_eq!(backend.links, 1);
}

#[test]
fn many_programs_over_links_that_break() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let programs: Vec<_> = (1..=30)
        .map(|id| {
            let sent = noise(300_000, id.into());
            (id, sent.clone(), backend.start_attempt(id, 1, &sh("tee /dev/stderr; exit 3"), with_stdin(sent)))
        })
        .collect();
    let mut cut_at = 500_000;
    let all = |backend: &crate::pod::Backend| backend.seen.values().all(|seen| seen.exit.is_some());
    let deadline = Instant::now() + crate::pod::DEADLINE;
    while !all(&backend) {
        assert!(Instant::now() < deadline, "in time");
        backend.step();
        let got: usize = backend.seen.values().map(|seen| seen.out.len() + seen.err.len()).sum();
        if got > cut_at {
            backend.cut();
            cut_at = got + 500_000;
        }
    }
    assert!(backend.links > 10, "{} links", backend.links);
    for (id, sent, key) in programs {
        assert_eq!(backend.exit(key, id), Exit::Code(3));
        assert!(backend.seen(key).out == sent && backend.seen(key).err == sent, "program {id}");
    }
}

#[test]
fn a_raw_terminal_carries_all_bytes_over_links_that_break() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let mut start = sh("stty raw -echo; echo ready; head -c 1000000; exit 6");
    start.pty = Some(Pty { term: "xterm".into(), ..Pty::default() });
    let key = backend.start_attempt(1, 1, &start, Seen::default());
    backend.until("it is ready", |backend| backend.text(key).contains("ready\n"));
    let begin = backend.seen(key).out.len();
    let sent = noise(1_000_000, 4);
    backend.seen.get_mut(&key).expect("known").stdin = sent.clone();
    let mut cut_at = 100_000;
    while backend.seen(key).exit.is_none() {
        backend.step();
        if backend.seen(key).out.len() > cut_at {
            backend.cut();
            cut_at = backend.seen(key).out.len() + 150_000;
        }
    }
    assert!(backend.links > 4, "{} links", backend.links);
    assert!(backend.seen(key).out[begin..] == sent, "{}", backend.seen(key).out.len() - begin);
    assert_eq!(backend.exit(key, 1), Exit::Code(6));
}

#[test]
fn a_reader_that_reads_nothing_costs_its_window_and_stalls_nobody() {
    let pod = Pod::with(&["--memory", "4000000"], &[]);
    let mut backend = pod.backend();
    let deaf = || Seen { deaf: true, ..Seen::default() };
    let floods: Vec<_> = (1..=20).map(|id| backend.start_attempt(id, 1, &Start::new(["yes"]), deaf())).collect();
    backend.until("all run", |backend| floods.iter().all(|key| backend.seen(*key).started));
    let key = backend.start_attempt(100, 1, &Start::new(["cat"]), with_stdin(noise(2_000_000, 5)));
    assert_eq!(backend.exit(key, 100), Exit::Code(0));
    assert_eq!(backend.seen(key).out.len(), 2_000_000);
    assert!(floods.iter().all(|key| backend.seen(*key).out.is_empty()));
    // 4 MB of windows and what the program itself is; a flood unbounded would be gigabytes by now.
    assert!(pod.memory() < 12_000, "{} KiB", pod.memory());
    for key in &floods {
        backend.client.release(*key);
    }
    backend.until("all closed", |backend| floods.iter().all(|key| backend.seen(*key).closed == Some(Reason::Released)));
}

#[test]
fn more_programs_than_memory_are_refused_by_name() {
    let pod = Pod::with(&["--memory", "1000000"], &[]);
    let mut backend = pod.backend();
    let keys: Vec<_> = (1..=30).map(|id| backend.start(id, &Start::new(["cat"]))).collect();
    backend.until("all are decided", |backend| {
        keys.iter().all(|key| backend.seen(*key).started || backend.seen(*key).closed.is_some())
    });
    let refused = keys.iter().filter(|key| backend.seen(**key).closed == Some(Reason::OutOfMemory)).count();
    assert_eq!(refused, 10, "three windows of 16 KiB each");
}

#[test]
fn stdin_goes_on_after_the_program_closed_its_outputs() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let file = pod.folder.path().join("upload");
    let sent = noise(3_000_000, 3);
    let script = format!("exec >&- 2>&-; cat >{}", file.display());
    let key = backend.start_attempt(1, 1, &sh(&script), with_stdin(sent.clone()));
    assert_eq!(backend.exit(key, 1), Exit::Code(0));
    assert!(fs::read(file).expect("written") == sent);
}

#[test]
fn stdin_that_the_program_does_not_want_is_thrown_away() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let go = pod.folder.path().join("go");
    let script = format!("exec <&-; echo closed; while ! [ -e {} ]; do sleep 0.01; done; exit 4", go.display());
    let key = backend.start_attempt(1, 1, &sh(&script), with_stdin(noise(3_000_000, 3)));
    backend.until("all is taken", |backend| backend.seen(key).acked == 3_000_000);
    fs::write(go, "").expect("a file");
    assert_eq!(backend.exit(key, 1), Exit::Code(4));
    assert_eq!(backend.text(key), "closed\n");
}

#[test]
fn a_terminal_has_its_size_modes_and_term_from_the_start_and_both_ways() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let mut start =
        sh("stty size; echo $TERM; tty >/dev/null && echo tty; trap 'stty size; exit 5' WINCH; echo ready; \
                        while :; do sleep 0.01; done");
    let size = Size { columns: 91, rows: 17, width: 0, height: 0 };
    // ONLCR off: lines end as they were written.
    start.pty = Some(Pty { term: "vt220".into(), size, modes: vec![(72, 0)] });
    let key = backend.start(1, &start);
    backend.until("it is ready", |backend| backend.text(key).contains("ready\n"));
    let size = Size { columns: 100, rows: 40, ..size };
    backend.client.resize(key, 1, size, Instant::now() + Duration::from_secs(20)).expect("a resize");
    assert_eq!(backend.exit(key, 1), Exit::Code(5));
    assert_eq!(backend.text(key), "17 91\nvt220\ntty\nready\n40 100\n");
    assert_eq!(backend.seen(key).answers, [(1, Ok(()))]);
}

#[test]
fn detached_output_is_kept_as_agreed() {
    let pod = Pod::new();
    let total = 5_000_000;
    let make = format!("head -c {total} /dev/zero | tr '\\0' x; echo done >&2; exit 2");
    let policies = [
        (1, Policy::Spill { max: 100_000_000, keep_last: false }),
        (2, Policy::KeepLast),
        (3, Policy::Spill { max: 1_000_000, keep_last: true }),
    ];
    let mut first = pod.backend();
    for (id, policy) in policies {
        let mut start = sh(&make);
        start.output = policy;
        let key = first.start_attempt(id, 1, &start, Seen { deaf: true, ..Seen::default() });
        first.until("it runs", |backend| backend.seen(key).started);
        first.client.detach(key, Some(Duration::from_mins(10)));
        first.until("it is detached", |backend| backend.seen(key).closed == Some(Reason::Detached));
    }
    // Nobody is there; all three end.
    drop(first);
    let mut second = pod.backend();
    let ended = |backend: &mut crate::pod::Backend, id: u8| {
        let key = backend.take_over(id, 0);
        backend.until("an exit", |backend| backend.seen(key).exit.is_some());
        assert_eq!(backend.exit(key, id), Exit::Code(2));
        key
    };
    let whole = ended(&mut second, 1);
    assert_eq!(second.seen(whole).out.len(), total);
    assert!(second.seen(whole).gaps.is_empty());
    for (id, least) in [(2, 16 * 1024), (3, 1_000_000)] {
        let key = ended(&mut second, id);
        let missing: u64 = second.seen(key).gaps.iter().map(|(from, to)| to - from).sum();
        assert_eq!(missing as usize + second.seen(key).out.len(), total, "a gap is told to the byte");
        assert!(second.seen(key).out.len() >= least, "{}", second.seen(key).out.len());
    }
}
