//! Podbay's own client over gRPC: programs that run on alone, and are come back to.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podbay_tests::{Answered, Setup, Terminal, World, cluster::is_real, finish, only_embedded, sha256, wait_until};
use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
};

const MIB: u64 = 1 << 20;

/// Bytes that no two places share, and their number at the end of stderr, from a program in the pod.
fn writes(bytes: u64) -> String {
    format!("seq 1 1000000000 | head -c {bytes}; echo done >&2; exit 7")
}

/// The same bytes here.
fn written(bytes: u64) -> Vec<u8> {
    let mut all = Vec::new();
    let mut n = 0u64;
    while (all.len() as u64) < bytes {
        n += 1;
        all.extend_from_slice(format!("{n}\n").as_bytes());
    }
    all.truncate(usize::try_from(bytes).expect("fits"));
    all
}

/// Starts a program that runs on alone; gives its session's id.
fn detached(world: &World, options: &[&str], script: &str) -> String {
    let mut arguments = vec!["--detach"];
    arguments.extend(options);
    arguments.extend(["--", "/bin/sh", "-c", script]);
    let answered = finish(&mut world.podbay("run", &arguments), b"");
    assert_eq!((answered.status.code(), &*answered.told()), (Some(0), ""), "{answered:?}");
    let id = String::from_utf8(answered.stdout).expect("text").trim().to_owned();
    assert_eq!(id.len(), 32, "{id:?}");
    id
}

fn state(world: &World, id: &str) -> String {
    let answered = finish(&mut world.podbay("sessions", &[]), b"");
    let text = String::from_utf8(answered.stdout).expect("text");
    text.lines().find(|line| line.starts_with(id)).unwrap_or_default().to_owned()
}

fn attach(world: &World, id: &str) -> Answered {
    finish(&mut world.podbay("attach", &[id]), b"")
}

#[test]
fn a_program_over_grpc_has_its_outputs_its_input_and_its_status() {
    for mode in ["connection+podbay", "session+podbay", "connection"] {
        let world = World::with(Setup::Apart, mode, |config| config);
        let run = |arguments: &[&str], stdin: &[u8]| finish(&mut world.podbay("run", arguments), stdin);
        run(&["--", "/bin/sh", "-c", "cat; echo err >&2; exit 7"], b"in").is(7, "in", "err\n");
        run(&["--env", "A=b c", "--", "/bin/sh", "-c", "echo $A $1", "x", "two words"], b"").is(
            0,
            "b c two words\n",
            "",
        );
        let data = podbay_tests::bytes(3 * MIB as usize);
        let back = run(&["--", "cat"], &data);
        assert_eq!((back.status.code(), sha256(&back.stdout)), (Some(0), sha256(&data)));
        let missing = run(&["--", "/no/such/program"], b"");
        assert!(missing.status.code().is_some_and(|code| code >= 126) && !missing.stderr.is_empty(), "{missing:?}");
        let killed = run(&["--", "/bin/sh", "-c", "kill -9 $$"], b"");
        assert_eq!(killed.status.code(), Some(137), "{killed:?}");
        world.ends_clean();
    }
}

#[test]
fn a_shell_over_grpc_has_a_terminal_that_follows() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let mut user = Terminal::start(&world.podbay("shell", &[]), 91, 33);
    user.types("stty size; echo a''b\n");
    user.shows("33 91");
    user.shows("ab");
    user.resizes(100, 30);
    user.types("until [ \"$(stty size)\" = '30 100' ]; do sleep 0.05; done; echo SI''ZED\n");
    user.shows("SIZED");
    user.types("exit 5\n");
    assert_eq!(user.ends().code(), Some(5));
    world.ends_clean();
}

#[test]
fn a_detached_job_ends_alone_and_is_collected_later_from_another_replica() {
    // On a real cluster all of it goes through the kubelet; 1024 was run by hand.
    let usual = if is_real() { 64 } else { 256 };
    let size: u64 = std::env::var("PODBAY_TEST_SPILL_MIB").map_or(usual, |mib| mib.parse().expect("a number")) * MIB;
    for mode in ["connection+podbay", "session+podbay"] {
        let mut world = World::with(Setup::Apart, mode, |config| {
            config.replace("kubernetes:\n", "ownership: {leaseDuration: 2s}\nkubernetes:\n")
        });
        let id = detached(&world, &[], &writes(size));
        wait_until("it has ended", || state(&world, &id).ends_with("ended with status 7"));
        // Who began it is gone, its lease with him, and one replica, too: nobody's end was its end.
        world.take("backend").kill();
        let long = std::time::Instant::now() + std::time::Duration::from_secs(5);
        wait_until("its owner's time is over", || std::time::Instant::now() > long);
        assert_eq!(world.pods().len(), 1);
        let mode = std::fs::metadata(world.file("client").join(format!("{id}.session"))).expect("a record");
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        let answered = attach(&world, &id);
        assert_eq!((answered.status.code(), answered.stderr.as_str()), (Some(7), "done\n"));
        assert_eq!((answered.stdout.len() as u64, sha256(&answered.stdout)), (size, sha256(&written(size))));
        // It was acknowledged: nothing is left, not even to ask for.
        let again = attach(&world, &id);
        assert_eq!(again.status.code(), Some(255), "{again:?}");
        assert!(again.stderr.contains("has no session"), "{again:?}");
        world.ends_clean();
    }
}

#[test]
fn what_is_kept_of_output_is_what_was_asked_for() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let all = written(4 * MIB);

    let last = detached(&world, &["--output", "keep-last"], &writes(4 * MIB));
    wait_until("it has ended", || state(&world, &last).ends_with("ended with status 7"));
    let answered = attach(&world, &last);
    assert_eq!(answered.status.code(), Some(7), "{answered:?}");
    assert!(!answered.stdout.is_empty() && all.ends_with(&answered.stdout), "the end of it");
    let missing = all.len() - answered.stdout.len();
    assert!(answered.stderr.contains(&format!("podbay: {missing} bytes of output are not here")), "{answered:?}");

    // These two wait for room, lose nothing, and end once somebody reads.
    for policy in ["block", "spill=1048576"] {
        let id = detached(&world, &["--output", policy], &writes(4 * MIB));
        assert!(state(&world, &id).ends_with("running"));
        let answered = attach(&world, &id);
        assert_eq!((answered.status.code(), answered.stderr.as_str()), (Some(7), "done\n"));
        assert!(answered.stdout == all, "{policy}");
    }
    world.ends_clean();
}

#[test]
fn a_session_is_left_again_and_found_without_its_file() {
    if only_embedded("a file tells the program to go on") {
        return;
    }
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let id = detached(&world, &[], "echo one; read line; echo two $line; exit 9");
    // Its stdin is empty, so that `read` fails at once; it ends alone.
    wait_until("it has ended", || state(&world, &id).ends_with("ended with status 9"));

    // Pods of the embedded cluster see this machine's files.
    let go = world.file("go");
    let script = format!("echo one; while [ ! -e {} ]; do sleep 0.05; done; echo two; exit 4", go.display());
    let long = detached(&world, &[], &script);
    let mut first =
        world.podbay("attach", &[&long]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(first.stdout.take().expect("piped"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("reads");
    assert_eq!(line, "one\n");
    kill(Pid::from_raw(first.id().try_into().expect("a pid")), Signal::SIGTERM).expect("it runs");
    let mut words = String::new();
    first.stderr.take().expect("piped").read_to_string(&mut words).expect("reads");
    assert!(words.contains("it runs on"), "{words}");
    assert_eq!(first.wait().expect("ends").code(), Some(0));
    assert!(state(&world, &long).ends_with("running"));

    // Somebody else with the user's rights, who has no file of it.
    let elsewhere = world.file("elsewhere");
    let other = elsewhere.to_str().expect("text");
    let second = world.podbay("attach", &[&long]);
    let second: Vec<_> =
        second.get_args().map(|arg| if arg == world.file("client") { other.into() } else { arg.to_owned() }).collect();
    let second = std::process::Command::new(podbay_tests::program("podbay"))
        .args(second)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    std::fs::write(&go, "").expect("writes");
    let output = second.wait_with_output().expect("ends");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // What the first client had said that it has is not told again; it may have left before that was heard.
    let gap = stderr.contains("podbay: 4 bytes of output are not here");
    assert_eq!((output.status.code(), &*stdout), (Some(4), if gap { "two\n" } else { "one\ntwo\n" }), "{stderr}");

    // The first one is there still; an operator ends what nobody wants.
    assert_eq!(attach(&world, &id).status.code(), Some(9));
    world.terminates_all("");
    world.ends_clean();
}

#[test]
fn a_session_of_an_ssh_user_that_is_detached_outlives_the_users_connection() {
    if only_embedded("a file tells the program to go on") {
        return;
    }
    for mode in ["connection+podbay", "session+podbay"] {
        let world = World::with(Setup::Apart, mode, |config| {
            let quick = "ownership: {leaseDuration: 2s}\nkubernetes:\n  timeouts: {podStart: 5s, podStop: 5s}\n";
            config.replace("kubernetes:\n", quick)
        });
        let go = world.file(&format!("go-{}", mode.len()));
        let script = format!("echo one; while [ ! -e {} ]; do sleep 0.05; done; echo two; exit 4", go.display());
        let mut user = world.ssh(&[]);
        let user = user.arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut user = user.spawn().expect("starts");
        let mut one = [0; 4];
        user.stdout.as_mut().expect("piped").read_exact(&mut one).expect("runs");
        let listed = finish(&mut world.podbay("sessions", &[]), b"");
        let listed = String::from_utf8(listed.stdout).expect("text");
        let id = listed.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("one").to_owned();
        // From elsewhere, by somebody with the user's rights: taken over, and left on purpose.
        let mut other =
            world.podbay("attach", &[&id]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        assert_eq!(id.len(), 32, "{listed}");
        wait_until("the user's ssh has ended", || user.try_wait().expect("waits").is_some());
        let mut words = String::new();
        user.stderr.take().expect("piped").read_to_string(&mut words).expect("reads");
        assert!(words.contains("another client has taken this session over"), "{words}");
        assert_eq!(user.wait().expect("ends").code(), Some(255));
        kill(Pid::from_raw(other.id().try_into().expect("a pid")), Signal::SIGTERM).expect("it runs");
        words.clear();
        other.stderr.take().expect("piped").read_to_string(&mut words).expect("reads");
        assert!(words.contains("it runs on"), "{words}");
        other.wait().expect("ends");
        // The user's connection is closed by now, and its pod would be gone.
        let long = std::time::Instant::now() + std::time::Duration::from_secs(5);
        wait_until("its time is over", || std::time::Instant::now() > long);
        assert_eq!(world.pods().len(), 1, "{mode}");
        std::fs::write(&go, "").expect("writes");
        let answered = attach(&world, &id);
        assert_eq!(answered.status.code(), Some(4), "{answered:?}");
        assert!(answered.stdout.ends_with(b"two\n"), "{answered:?}");
        // Nothing is kept any more, whatever the pod's mark says.
        world.ends_clean();
    }
}
