//! Programs' lives: starts, signals, ends; and the supervisor's own.

use crate::pod::{Backend, Pod, Seen, agent, sh, until};
use podbay_agent_wire::{
    program::{Exit, Hangup, Pty, Start},
    proto::Reason,
};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn killed(name: &str) -> Exit {
    Exit::Signal { name: name.into(), core_dumped: false, message: String::new() }
}

/// Whether a process is there and is no zombie.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn codes_and_signals_are_told_as_they_are() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    for (id, script, exit) in [
        (1, "exit 0", Exit::Code(0)),
        (2, "exit 255", Exit::Code(255)),
        (3, "ulimit -c 0; kill -SEGV $$", killed("SEGV")),
        (4, "kill -KILL $$", killed("KILL")),
    ] {
        let key = backend.start(id, &sh(script));
        assert_eq!(backend.exit(key, id), exit, "{script}");
    }
}

#[test]
fn what_can_not_start_says_why() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let mut elsewhere = sh("true");
    elsewhere.working_directory = Some("/no/such/folder".into());
    for (id, start, reason) in [
        (1, Start::new(["/no/such/program"]), Reason::NotFound),
        (2, Start::new(["/etc/passwd"]), Reason::NotPermitted),
        (3, elsewhere, Reason::NotFound),
        (4, Start::new([""]), Reason::Invalid),
    ] {
        let key = backend.start(id, &start);
        backend.until("a refusal", |backend| backend.seen(key).closed.is_some());
        assert_eq!(backend.seen(key).closed, Some(reason), "program {id}");
    }
    let key = backend.start(5, &sh("exit 6"));
    assert_eq!(backend.exit(key, 5), Exit::Code(6));
}

#[test]
fn environment_and_folder_are_the_programs_own() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let mut start = sh("pwd; echo $A-$HOME; env | grep -c ^HOME=");
    start.environment = vec![("A".into(), "1 2".into()), ("HOME".into(), "/tmp".into())];
    start.working_directory = Some("/usr".into());
    let key = backend.start(1, &start);
    backend.exit(key, 1);
    assert_eq!(backend.text(key), "/usr\n1 2-/tmp\n1\n");
    start.clear_environment = true;
    start.argv = vec!["/usr/bin/env".into()];
    let key = backend.start(2, &start);
    backend.exit(key, 2);
    assert_eq!(backend.text(key), "A=1 2\nHOME=/tmp\n");
}

#[test]
fn a_signal_reaches_a_program_that_reads_nothing() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let stdin = vec![b'x'; 2_000_000];
    let key = backend.start_attempt(1, 1, &Start::new(["sleep", "1000"]), Seen { stdin, ..Seen::default() });
    backend.until("stdin is full", |backend| backend.seen(key).acked >= 80_000);
    let asked = Instant::now();
    backend.client.signal(key, 1, "BOGUS", soon()).expect("asked");
    backend.client.signal(key, 2, "TERM", soon()).expect("asked");
    assert_eq!(backend.exit(key, 1), killed("TERM"));
    assert!(asked.elapsed() < Duration::from_secs(5));
    let answers = &backend.seen(key).answers;
    assert_eq!(answers[..], [(1, Err(Reason::UnknownSignal)), (2, Ok(()))]);
}

#[test]
fn a_signal_on_a_terminal_goes_to_the_foreground() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    // With job control the second shell has a process group of its own.
    let mut start = sh("set -m; trap 'echo outer' INT; sh -c 'trap \"echo inner; exit 3\" INT; echo ready; \
                        while :; do sleep 0.01; done'; echo got $?; exit 4");
    start.pty = Some(Pty { term: "xterm".into(), ..Pty::default() });
    let key = backend.start(1, &start);
    backend.until("it is ready", |backend| backend.text(key).contains("ready"));
    backend.client.signal(key, 1, "INT", soon()).expect("asked");
    assert_eq!(backend.exit(key, 1), Exit::Code(4));
    assert!(backend.text(key).contains("inner") && backend.text(key).contains("got 3"), "{}", backend.text(key));
}

#[test]
fn signals_act_once_over_links_that_break() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    // The signal reaches the whole group: each `sleep` dies of it.
    let script = "trap 'n=$((n+1)); echo $n' USR1; n=0; echo ready; while [ $n -lt 30 ]; do sleep 0.01; done; exit 0";
    let key = backend.start(1, &sh(script));
    backend.until("it is ready", |backend| backend.text(key).contains("ready"));
    for id in 1..=30 {
        backend.client.signal(key, id, "USR1", soon()).expect("asked");
        // Sent, but the answer is lost with the link.
        backend.step();
        if id % 3 == 0 {
            backend.cut();
        }
        let line = format!("\n{id}\n");
        backend.until("it is acted on", |backend| backend.text(key).contains(&line));
        backend.until("it is answered", |backend| backend.seen(key).answers.iter().any(|answer| answer.0 == id));
    }
    assert_eq!(backend.exit(key, 1), Exit::Code(0));
    let lines = backend.text(key);
    assert_eq!(lines.lines().count(), 31, "{lines}");
    assert_eq!(backend.seen(key).answers.len(), 30);
    assert!(backend.links > 10);
}

#[test]
fn who_holds_the_pipes_in_the_background_delays_the_exit_only_for_a_while() {
    let pod = Pod::with(&["--drain-pipes", "1"], &[]);
    let mut backend = pod.backend();
    let pid = pod.folder.path().join("pid");
    let key = backend.start(1, &sh(&format!("sleep 1000 & echo $! >{}; echo out; exit 7", pid.display())));
    assert_eq!(backend.exit(key, 1), Exit::Code(7));
    assert_eq!(backend.text(key), "out\n");
    let pid: u32 = fs::read_to_string(pid).expect("written").trim().parse().expect("a number");
    assert!(lives(pid), "it is the user's to end");
    // Orphaned to the supervisor, which reaps it.
    assert!(Command::new("kill").arg(pid.to_string()).status().expect("kill").success());
    until("it is reaped", || !Path::new(&format!("/proc/{pid}")).exists());
    // On a terminal the kernel hangs up, so nobody holds it.
    let mut start = sh("trap '' HUP; sleep 1000 & echo $!; exit 8");
    start.pty = Some(Pty::default());
    let key = backend.start(2, &start);
    assert_eq!(backend.exit(key, 2), Exit::Code(8));
    let pid = backend.text(key).trim().to_owned();
    assert!(Command::new("kill").arg(pid).status().expect("kill").success());
}

#[test]
fn what_is_given_up_is_ended_step_by_step() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let mut start =
        sh("trap 'echo hup >>log' HUP; trap 'echo term >>log' TERM; echo ready; while :; do sleep 0.01; done");
    start.working_directory = Some(pod.folder.path().as_os_str().to_str().expect("text").to_owned().into());
    start.hangup = Hangup { term_after: Duration::from_millis(300), kill_after: Duration::from_millis(300) };
    let key = backend.start(1, &start);
    backend.until("it is ready", |backend| backend.text(key).contains("ready"));
    let pid = backend.seen(key).pid;
    backend.client.release(key);
    backend.until("it is taken", |backend| backend.seen(key).closed == Some(Reason::Released));
    until("it is killed", || !lives(pid));
    assert_eq!(fs::read_to_string(pod.folder.path().join("log")).expect("a log"), "hup\nterm\n");
    // It is over, and not started again.
    let key = backend.start_attempt(1, 9, &start, Seen::default());
    backend.until("a refusal", |backend| backend.seen(key).closed.is_some());
    assert_eq!(backend.seen(key).closed, Some(Reason::SessionOver));
}

#[test]
fn what_is_given_up_on_a_terminal_takes_its_foreground_along() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    // A job with a group of its own and a shell, neither of which heeds anything. (One that heeds no HUP and whose shell is gone
    // lives on: that is what nohup is for.)
    let mut start = sh(
        "set -m; trap : HUP TERM; sh -c 'trap : TERM; trap \"\" HUP; echo $$ ready; while :; do sleep 0.01; done'; sleep 1000",
    );
    start.pty = Some(Pty::default());
    start.hangup = Hangup { term_after: Duration::from_millis(200), kill_after: Duration::from_millis(400) };
    let key = backend.start(1, &start);
    backend.until("it is ready", |backend| backend.text(key).contains("ready"));
    let job = backend.text(key).split(' ').next().and_then(|word| word.trim().parse().ok()).expect("a number");
    let shell = backend.seen(key).pid;
    backend.client.release(key);
    backend.until("it is taken", |backend| backend.seen(key).closed == Some(Reason::Released));
    until("both are gone", || !lives(shell) && !lives(job));
}

#[test]
fn an_orphan_is_ended_after_its_time_and_a_kept_one_is_not() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let mut start = Start::new(["sleep", "1000"]);
    start.orphan_timeout = Some(Duration::from_millis(200));
    let orphan = backend.start(1, &start);
    let kept = backend.start(2, &start);
    backend.until("both run", |backend| [orphan, kept].iter().all(|key| backend.seen(*key).started));
    backend.client.detach(kept, Some(Duration::from_mins(10)));
    backend.until("one is detached", |backend| backend.seen(kept).closed == Some(Reason::Detached));
    let pids = [orphan, kept].map(|key| backend.seen(key).pid);
    drop(backend);
    until("the orphan is ended", || !lives(pids[0]));
    assert!(lives(pids[1]));
    // Its end is kept.
    let mut backend = pod.backend();
    let key = backend.take_over(1, 0);
    assert_eq!(backend.exit(key, 1), killed("HUP"));
}

#[test]
fn a_higher_attempt_takes_the_program_and_the_late_one_has_nothing() {
    let pod = Pod::new();
    let (mut first, mut second) = (pod.backend(), pod.backend());
    let key = first.start(1, &Start::new(["cat"]));
    first.until("it runs", |backend| backend.seen(key).started);
    let taken = second.take_over(1, 0);
    second.until("it is taken", |backend| backend.seen(taken).started);
    assert!(second.seen(taken).resumed);
    // The first one does not know yet, and writes.
    first.client.stdin(key, 0, b"late").expect("within the credit");
    first.until("it is told", |backend| backend.seen(key).closed == Some(Reason::Superseded));
    let seen = second.seen.get_mut(&taken).expect("known");
    seen.stdin = b"mine".to_vec();
    seen.eof = true;
    assert_eq!(second.exit(taken, 1), Exit::Code(0));
    assert_eq!(second.text(taken), "mine");
    // An attempt that is too low is refused.
    let other = second.start_attempt(2, 7, &Start::new(["cat"]), Seen::default());
    second.until("it runs", |backend| backend.seen(other).started);
    let low = first.start_attempt(2, 6, &Start::new(["cat"]), Seen::default());
    first.until("it is refused", |backend| backend.seen(low).closed.is_some());
    assert_eq!(first.seen(low).closed, Some(Reason::AttemptTooLow));
}

#[test]
fn a_session_ends_its_container_as_it_ended() {
    for (script, code, message) in [
        ("exit 3", 3, "{\"podbay\":1,\"code\":3}\n"),
        ("kill -TERM $$", 143, "{\"podbay\":1,\"signal\":\"TERM\",\"core\":false}\n"),
    ] {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let path = log.path().to_str().expect("text");
        let mut pod = Pod::with(&["--session", "--termination-log", path], &[]);
        let mut backend = pod.backend();
        let key = backend.start(1, &sh(script));
        backend.until("an exit", |backend| backend.seen(key).exit.is_some());
        // It waits for the acknowledgement.
        assert_eq!(pod.supervisor.try_wait().expect("a child"), None);
        assert_eq!(fs::read_to_string(path).expect("a message"), message);
        backend.exit(key, 1);
        drop(backend);
        assert_eq!(pod.code(), Some(code));
    }
}

#[test]
fn a_sessions_program_gets_term_when_its_container_is_stopped() {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let mut pod = Pod::with(&["--session", "--termination-log", log.path().to_str().expect("text")], &[]);
    let mut backend = pod.backend();
    let script = "trap 'echo hup' HUP; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    let key = backend.start(1, &sh(script));
    backend.until("it is ready", |backend| backend.text(key).contains("ready"));
    pod.signal("TERM");
    assert_eq!(backend.exit(key, 1), Exit::Code(5));
    assert_eq!(backend.text(key), "ready\nterm\n");
    drop(backend);
    assert_eq!(pod.code(), Some(5));
    assert_eq!(fs::read_to_string(log.path()).expect("a message"), "{\"podbay\":1,\"code\":5}\n");
}

#[test]
fn the_idle_command_gets_the_signals_and_gives_the_exit_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let ready = folder.path().join("ready");
    let script = format!("trap 'exit 12' TERM; touch {}; while :; do sleep 0.01; done", ready.display());
    let mut pod = Pod::with(&[], &["/bin/sh", "-c", &script]);
    until("the idle command is ready", || ready.exists());
    let mut backend = pod.backend();
    let key = backend.start(1, &sh("trap 'echo bye; exit 13' HUP; echo ready; while :; do sleep 0.01; done"));
    backend.until("it is ready", |backend| backend.text(key).contains("ready"));
    pod.signal("TERM");
    // The program's end can be fetched still.
    backend.until("an exit", |backend| backend.seen(key).exit.is_some());
    assert_eq!(backend.seen(key).exit, Some(Exit::Code(13)));
    assert_eq!(backend.text(key), "ready\nbye\n");
    drop(backend);
    assert_eq!(pod.code(), Some(12));
    assert!(!pod.socket().exists());
}

#[test]
fn without_idle_command_it_idles_until_term() {
    let mut pod = Pod::new();
    pod.signal("USR1");
    pod.signal("HUP");
    let mut backend = pod.backend();
    let key = backend.start(1, &sh("exit 0"));
    backend.exit(key, 1);
    drop(backend);
    pod.signal("TERM");
    assert_eq!(pod.code(), Some(0));
}

#[test]
fn attach_starts_one_supervisor_for_all_where_there_is_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("deep").join("agent.sock");
    let output = agent().args(["attach", "--socket"]).arg(&socket).stdin(Stdio::null()).output().expect("runs");
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert!(output.stdout.is_empty());

    let mut backends: Vec<_> = (0..4)
        .map(|_| {
            let mut backend = Backend::new(&socket);
            backend.spawn = true;
            backend
        })
        .collect();
    // All of them before any has one.
    let mut supervisors = Vec::new();
    let keys: Vec<_> = (1..).zip(&mut backends).map(|(id, backend)| backend.start(id, &sh("echo $PPID"))).collect();
    for backend in &mut backends {
        backend.step();
    }
    for (id, (backend, key)) in (1..).zip(backends.iter_mut().zip(keys)) {
        assert_eq!(backend.exit(key, id), Exit::Code(0));
        supervisors.push(backend.text(key));
    }
    supervisors.dedup();
    assert_eq!(supervisors.len(), 1, "{supervisors:?}");
    drop(backends);
    let pid = supervisors[0].trim();
    assert!(lives(pid.parse().expect("a number")), "it outlives its attach");
    assert!(Command::new("kill").arg(pid).status().expect("kill").success());
    until("it ends", || !lives(pid.parse().expect("a number")));
}

#[test]
fn usage_is_told_and_has_its_own_code() {
    for args in [&["attach", "--bogus"][..], &["attach", "--socket"], &["supervise", "sleep"]] {
        let output = agent().args(args).stdin(Stdio::null()).output().expect("runs");
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn one_socket_has_one_supervisor() {
    let pod = Pod::new();
    let output = agent().args(["supervise", "--socket"]).arg(pod.socket()).output().expect("runs");
    assert_eq!(output.status.code(), Some(73), "{output:?}");
    let mut backend = pod.backend();
    let key = backend.start(1, &sh("exit 0"));
    backend.exit(key, 1);
}
