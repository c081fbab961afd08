//! Programs outlive every connection but their user's own, where podbay-agent owns them: told by the stock OpenSSH client, who
//! sees nothing of all that breaks meanwhile.

use nix::sys::signal::Signal;
use podbay_tests::{Answered, Loop, Setup, Terminal, World, bytes, finish, only_embedded, sha256, wait_until};
use std::{
    io::{Read as _, Write as _},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

const MIB: usize = 1 << 20;

/// Streams alone, at the API server, where that can be said to it; else everything on the way to it.
fn break_streams(world: &World) {
    if world.real().is_none() {
        world.fault(r#"{"do": {"action": "breakStreams", "how": "cut"}}"#);
    } else {
        world.cuts_streams();
    }
}

#[test]
fn outputs_codes_signals_and_sizes_are_the_programs_own() {
    for mode in ["connection+podbay", "session+podbay"] {
        for setup in [Setup::Together, Setup::Apart] {
            let world = World::with(setup, mode, |config| config);
            world.run("echo out; echo err >&2; exit 7").is(7, "out\n", "err\n");
            world.run_with("cat; exit 3", b"in\n").is(3, "in\n", "");
            // OpenSSH tells an end by a signal as 255.
            world.run("kill -9 $$").is(255, "", "");
            for _ in 0..10 {
                world.run("echo first").is(0, "first\n", "");
            }
            let told = finish(world.ssh(&["-v"]).arg("kill -TERM $$"), b"");
            assert!(told.stderr.contains("exit-signal"), "{told:?}");
            let mut user = Terminal::start(world.ssh(&["-t"]).arg("stty size; exec cat"), 91, 33);
            user.shows("33 91");
            user.types("\x03");
            let _ = user.ends();
            world.ends_clean();
        }
    }
}

#[test]
fn an_end_of_input_is_the_programs_on_a_terminal_and_off_it() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    for (stdin, shown) in [("x\n", "x\r\nx\r\n"), ("x", "xx")] {
        let answered = finish(world.ssh(&["-tt"]).arg("cat; exit 3"), stdin.as_bytes());
        assert_eq!(
            (answered.status.code(), &*String::from_utf8_lossy(&answered.stdout)),
            (Some(3), shown),
            "{answered:?}"
        );
    }
    // Nothing of an upload is cut, whatever becomes of the program's own outputs.
    let data = bytes(5 * MIB);
    let stored = world.run_with("exec >&- 2>&-; cat > stored; sync; exec sha256sum stored", &data);
    assert_ne!(stored.status.code(), Some(0), "its outputs are closed");
    world.run_with("cat > stored; sha256sum < stored", &data).is(0, &format!("{}  -\n", sha256(&data)), "");
    world.ends_clean();
}

#[test]
fn a_cut_stream_costs_nothing() {
    for mode in ["connection+podbay", "session+podbay"] {
        let world = World::cuttable(mode, |config| config);
        let mut run = Loop::start(&world, 14 * MIB);
        for _ in 0..3 {
            run.goes_on(2 * MIB);
            break_streams(&world);
            run.goes_on(2 * MIB);
            world.cuts_streams();
        }
        run.ends_whole();
        world.ends_clean();
    }
}

#[test]
fn an_api_outage_costs_time_only() {
    if only_embedded("its faults are injected into the embedded one") {
        return;
    }
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let mut run = Loop::start(&world, 3 * MIB);
    run.goes_on(MIB);
    world.fault(r#"{"do": {"action": "apiDown", "millis": 3000}}"#);
    run.goes_on(MIB);
    run.ends_whole();
    world.ends_clean();
}

#[test]
fn the_death_of_each_replica_costs_nothing() {
    let mut world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let mut run = Loop::start(&world, 9 * MIB);
    for part in ["backend", "backend-2", "backend", "backend-2"] {
        run.goes_on(2 * MIB);
        world.take(part).kill();
        world.restart(part);
    }
    run.ends_whole();
    world.ends_clean();
}

#[test]
fn a_replica_that_drains_hands_its_sessions_over() {
    let mut world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let mut run = Loop::start(&world, 5 * MIB);
    for part in ["backend", "backend-2"] {
        run.goes_on(2 * MIB);
        let old = world.take(part);
        old.signal(Signal::SIGTERM);
        // It ends by itself, well before its drain timeout would cut anybody.
        old.ends();
        world.restart(part);
    }
    run.ends_whole();
    world.ends_clean();
}

#[test]
fn a_terminal_goes_on_where_it_was() {
    let mut world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let mut user = Terminal::start(&world.ssh(&[]), 80, 24);
    user.types("PS1='pod> '; N=1\n");
    user.shows("pod> ");
    for part in ["backend", "backend-2"] {
        world.take(part).kill();
        user.types("N=$((N+1)); echo N-$N-\n");
        user.resizes(100, 30);
        user.types("until [ \"$(stty size)\" = '30 100' ]; do sleep 0.05; done; echo SI''ZED\n");
        user.shows("SIZED");
        user.resizes(80, 24);
        world.restart(part);
    }
    user.types("echo sum $((N*100))\n");
    user.shows("sum 300");
    user.types("exit 5\n");
    assert_eq!(user.ends().code(), Some(5));
    world.ends_clean();
}

#[test]
fn a_user_that_leaves_takes_the_program_with_him() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let connection = podbay_tests::Master::start(&world);
    let mut client = connection.ssh(&[]);
    let mut client = client.arg("echo $$; trap '' TERM; sleep 1000").stdout(Stdio::piped()).spawn().expect("starts");
    let mut pid = String::new();
    let mut stdout = client.stdout.take().expect("piped");
    while !pid.ends_with('\n') {
        let mut one = [0];
        stdout.read_exact(&mut one).expect("runs");
        pid.push(char::from(one[0]));
    }
    client.kill().expect("it runs");
    client.wait().expect("ends");
    // The connection stays; of the program nothing does.
    let alive =
        |pid: &str| connection.run(&format!("kill -0 {pid} 2>/dev/null && echo alive"), b"").stdout == b"alive\n";
    wait_until("the program has ended", || !alive(pid.trim()));
    connection.ends();
    world.ends_clean();
}

#[test]
fn many_sessions_survive_what_breaks() {
    let mut world = World::cuttable("connection+podbay", |config| config);
    let embedded = world.real().is_none();
    let sessions: usize = if embedded { 40 } else { 20 };
    let data = bytes(MIB);
    let clients: Vec<_> = (0..sessions)
        .map(|_| {
            // Slow enough that all of them live through all of it.
            let mut ssh = world.ssh(&[]);
            let ssh = ssh.arg("cat | (sleep 8; cat); exit 9").stdin(Stdio::piped());
            let mut client = ssh.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
            let (mut stdin, data) = (client.stdin.take().expect("piped"), data.clone());
            let writer = thread::spawn(move || stdin.write_all(&data).expect("takes all"));
            let reader = thread::spawn(move || client.wait_with_output().expect("ends"));
            (writer, reader)
        })
        .collect();
    wait_until("all have a pod", || world.pods().len() >= sessions);
    for part in ["backend", "backend-2", "backend"] {
        world.cuts_streams();
        world.take(part).kill();
        world.restart(part);
    }
    for (n, (writer, reader)) in clients.into_iter().enumerate() {
        writer.join().expect("takes all");
        let output = reader.join().expect("no panic");
        let answered = Answered {
            status: output.status,
            stdout: Vec::new(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        assert_eq!(
            (output.stdout.len(), sha256(&output.stdout)),
            (data.len(), sha256(&data)),
            "session {n}: {answered:?}"
        );
        // A start that was slow may have said so.
        assert_eq!(answered.status.code(), Some(9), "session {n}: {answered:?}");
    }
    world.ends_clean();
}

#[test]
fn a_pod_that_goes_is_told_to_its_users_at_every_level() {
    if only_embedded("its faults are injected into the embedded one") {
        return;
    }
    for mode in [
        "connection+podbay",
        "session+podbay",
        "connection+containerssh",
        "session+containerssh",
        "connection",
        "session",
    ] {
        let world = World::with(Setup::Apart, mode, |config| config);
        for (evicted, words) in [
            (false, "podbay: the pod was deleted"),
            (true, "podbay: the pod was evicted: The node was low on resource"),
        ] {
            // One that ends by the first signal, and one that none but KILL ends.
            let clients: Vec<_> = ["echo up; exec sleep 1000", "trap '' HUP TERM; echo up; while :; do sleep 1; done"]
                .iter()
                .map(|script| {
                    let mut ssh = world.ssh(&[]);
                    let ssh = ssh.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                    let mut client = ssh.spawn().expect("starts");
                    client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
                    client
                })
                .collect();
            for pod in world.pods() {
                if evicted {
                    let message = "The node was low on resource: memory.";
                    world.fault(&format!(
                        r#"{{"do": {{"action": "evict", "namespace": "default", "pod": "{pod}", "message": "{message}"}}}}"#
                    ));
                } else {
                    world.deletes(&pod);
                }
            }
            let began = Instant::now();
            for client in clients {
                let output = client.wait_with_output().expect("ends");
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(told.contains(words), "{mode}: {told:?}");
                assert_eq!(output.status.code(), Some(255), "{mode}: {told}");
            }
            // Grace periods of 1 s and 5 s, on a machine that is busy.
            assert!(began.elapsed() < Duration::from_secs(20), "{mode}: after {:?}", began.elapsed());
        }
        world.ends_clean();
    }
}

#[test]
fn memory_that_ends_the_container_is_told_to_every_session() {
    if only_embedded("its faults are injected into the embedded one") {
        return;
    }
    for mode in ["connection+podbay"] {
        let world = World::with(Setup::Apart, mode, |config| config);
        let connection = podbay_tests::Master::start(&world);
        let clients: Vec<_> = (0..2)
            .map(|_| {
                let mut ssh = connection.ssh(&[]);
                let ssh = ssh.arg("echo up; sleep 1000").stdin(Stdio::piped());
                let mut client = ssh.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
                let mut up = [0; 3];
                client.stdout.as_mut().expect("piped").read_exact(&mut up).expect("runs");
                client
            })
            .collect();
        let pods = world.pods();
        let [pod] = pods.as_slice() else { panic!("{pods:?}") };
        world.fault(&format!(
            r#"{{"do": {{"action": "oomKill", "namespace": "default", "pod": "{pod}", "container": "shell"}}}}"#
        ));
        for client in clients {
            let output = client.wait_with_output().expect("ends");
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(told.contains("out of memory"), "{mode}: {told}");
            assert_eq!(output.status.code(), Some(255), "{mode}: {told}");
        }
        connection.ends();
        world.ends_clean();
    }
}
