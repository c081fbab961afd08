//! `podbay run`, `shell` and `attach` in a shell's hands: signals, closed pipes, statuses, and a backend that dies.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podbay_tests::{Setup, Terminal, World, finish, only_embedded, sha256, wait_until};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, Command, ExitStatus, Stdio},
};

const MIB: usize = 1 << 20;

/// One that has said its first line.
fn begun(command: &mut Command, line: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut said = String::new();
    stdout.read_line(&mut said).expect("reads");
    assert_eq!(said, format!("{line}\n"));
    (child, stdout)
}

fn told(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it runs");
}

/// What is left of it: status, stdout, stderr.
fn ends(mut child: Child, mut stdout: BufReader<std::process::ChildStdout>) -> (ExitStatus, String, String) {
    let (mut rest, mut said) = (String::new(), String::new());
    stdout.read_to_string(&mut rest).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    (child.wait().expect("ends"), rest, said)
}

fn shell(world: &World, script: &str) -> Command {
    world.podbay("run", &["--", "/bin/sh", "-c", script])
}

#[test]
fn a_replicas_death_costs_run_no_byte() {
    if only_embedded("a file tells the program to go on") {
        return;
    }
    for mode in ["connection+podbay", "session+podbay"] {
        let mut world = World::with(Setup::Apart, mode, |config| config);
        let go = world.file("go");
        // One output has ended when the stream goes on elsewhere; the other and stdin have not.
        let script = format!(
            "echo up; head -c {half} | sha256sum >&2; while [ ! -e {go} ]; do sleep 0.05; done; cat | sha256sum >&2; seq 1 400000; exit 3",
            half = 2 * MIB,
            go = go.display()
        );
        let data = podbay_tests::bytes(5 * MIB);
        let (mut child, mut stdout) = begun(&mut shell(&world, &script), "up");
        let mut stdin = child.stdin.take().expect("piped");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let sent = data.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&sent).expect("writes"));
        let mut half = String::new();
        stderr.read_line(&mut half).expect("reads");
        assert!(half.starts_with(&sha256(&data[..2 * MIB])), "{half}");
        // Whichever replica has it, both die once; stdin is in the middle of its way.
        for name in ["backend", "backend-2"] {
            world.take(name).kill();
            world.restart(name);
        }
        std::fs::write(&go, "").expect("writes");
        writer.join().expect("all of it is taken");
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            stdout.read_to_end(&mut all).expect("reads");
            all
        });
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).expect("text");
        assert!(rest.starts_with(&sha256(&data[2 * MIB..])), "{rest}");
        assert_eq!(child.wait().expect("ends").code(), Some(3), "{rest}");
        let numbers = (1..=400_000).fold(String::new(), |all, n| all + &n.to_string() + "\n");
        assert!(reader.join().expect("no panic") == numbers.as_bytes(), "the output is another one");
        world.ends_clean();
    }
}

#[test]
fn an_output_that_ended_before_a_replica_died_does_no_harm() {
    if only_embedded("a file tells the program to go on") {
        return;
    }
    let mut world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let (go, closed) = (world.file("go"), world.file("closed"));
    let script = format!(
        "echo up; exec >&-; : >{}; while [ ! -e {} ]; do sleep 0.05; done; echo late >&2; exit 4",
        closed.display(),
        go.display()
    );
    let (run, out) = begun(&mut shell(&world, &script), "up");
    let ssh_go = world.file("ssh-go");
    let same = format!("echo up; exec >&-; while [ ! -e {} ]; do sleep 0.05; done; exit 5", ssh_go.display());
    let (ssh, ssh_out) = begun(world.ssh(&[]).arg(same), "up");
    wait_until("it is closed", || closed.exists());
    for name in ["backend", "backend-2"] {
        world.take(name).kill();
        world.restart(name);
    }
    std::fs::write(&go, "").expect("writes");
    std::fs::write(&ssh_go, "").expect("writes");
    let (status, _, said) = ends(run, out);
    assert_eq!((status.code(), said.as_str()), (Some(4), "late\n"));
    let (status, _, said) = ends(ssh, ssh_out);
    assert_eq!((status.code(), said.as_str()), (Some(5), ""));
    world.ends_clean();
}

#[test]
fn interrupts_go_to_the_program_and_end_what_can_not_hear_them() {
    for mode in ["connection+podbay", "connection"] {
        let world = World::with(Setup::Apart, mode, |config| config);
        let durable = mode.ends_with("podbay");
        let (child, stdout) =
            begun(&mut shell(&world, "trap 'echo got it; exit 9' INT; echo up; while :; do sleep 0.1; done"), "up");
        told(&child, Signal::SIGINT);
        let (status, rest, said) = ends(child, stdout);
        if durable {
            assert_eq!((status.code(), rest.as_str(), said.as_str()), (Some(9), "got it\n", ""));
        } else {
            // Nothing hands it on: it is told, and ends it as it would end `kubectl exec`.
            assert!(matches!(status.code(), Some(9 | 130)), "{status} {rest} {said}");
        }
        let (child, stdout) = begun(&mut shell(&world, "echo up; exec sleep 1000"), "up");
        told(&child, Signal::SIGINT);
        let (status, _, said) = ends(child, stdout);
        assert_eq!(status.code(), Some(130), "{said}");
        for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
            let (child, stdout) = begun(&mut shell(&world, "echo up; exec sleep 1000"), "up");
            told(&child, signal);
            let (status, _, said) = ends(child, stdout);
            assert_eq!((status.code(), said.as_str()), (Some(code), ""), "{signal}");
        }
        world.ends_clean();
    }
}

#[test]
fn an_interrupt_while_the_pod_starts_leaves_nothing() {
    if only_embedded("a fault makes the start slow") {
        return;
    }
    let world = World::with(Setup::Apart, "connection+podbay", |config| {
        config.replace("image: \"podbay/demo:1\"", "image: \"podbay/nosuch:1\"")
    });
    let mut child = shell(&world, "true").stderr(Stdio::piped()).spawn().expect("starts");
    wait_until("a pod is there", || !world.pods().is_empty());
    told(&child, Signal::SIGINT);
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    world.ends_clean();
}

#[test]
fn attach_interrupts_leaves_and_goes_on_from_its_file() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let script = "trap 'echo two; exit 9' INT; echo one; while :; do sleep 0.1; done";
    let started = finish(&mut world.podbay("run", &["--detach", "--", "/bin/sh", "-c", script]), b"");
    let id = String::from_utf8(started.stdout).expect("text").trim().to_owned();
    let (child, stdout) = begun(&mut world.podbay("attach", &[&id]), "one");
    told(&child, Signal::SIGHUP);
    let (status, rest, said) = ends(child, stdout);
    assert_eq!((status.code(), rest.as_str()), (Some(0), ""), "{said}");
    assert!(said.contains("it runs on, and is kept for") && said.contains(&id), "{said}");
    // What was written is in its file, so that nothing comes twice; the first INT reaches the program, whoever numbered requests
    // before.
    let mut child =
        world.podbay("attach", &[&id]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let sessions = || {
        let listed = finish(&mut world.podbay("sessions", &[]), b"");
        String::from_utf8_lossy(&listed.stdout).into_owned()
    };
    assert!(sessions().contains("running"));
    wait_until("the program hears it", || {
        // It may not have attached yet.
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT);
        std::thread::sleep(std::time::Duration::from_millis(50));
        child.try_wait().expect("waits").is_some()
    });
    let (status, rest, said) = ends(child, stdout);
    assert_eq!((status.code(), rest.as_str()), (Some(9), "two\n"), "{said}");
    world.ends_clean();
}

#[test]
fn closed_ends_are_no_surprise() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let by_shell = |script: &str, command: &Command| {
        let mut sh = Command::new("sh");
        sh.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
        finish(&mut sh, b"unread")
    };
    let cat = shell(&world, "cat; echo end; exit 6");
    by_shell("\"$@\" <&-", &cat).is(6, "end\n", "");
    by_shell("\"$@\" </dev/null", &cat).is(6, "end\n", "");
    // A reader that has seen enough: the program is ended, and nothing is left of it.
    let yes = shell(&world, "yes");
    by_shell("(\"$@\"; echo $? >&2) | head -n 1", &yes).is(0, "y\n", "141\n");
    // Nobody reads stderr.
    let talks = shell(&world, "echo no >&2; kill -9 $$");
    let closed = by_shell("(\"$@\"; echo $?) 2>&1 >/dev/null | :; \"$@\" 2>&-; echo $?", &talks);
    assert_eq!(String::from_utf8_lossy(&closed.stdout), "137\n", "{closed:?}");
    // What can't be written is told, and no success.
    let full = by_shell("\"$@\" >/dev/full", &shell(&world, "echo x; sleep 1000"));
    assert_eq!(full.status.code(), Some(255), "{full:?}");
    assert!(full.stderr.contains("podbay: stdout can't be written: No space left"), "{full:?}");
    // What can't be read does not look like its end.
    let unread = by_shell("\"$@\" </", &shell(&world, "cat; sleep 1000"));
    assert_eq!(unread.status.code(), Some(255), "{unread:?}");
    assert!(unread.stderr.contains("podbay: stdin can't be read: Is a directory"), "{unread:?}");
    let id = by_shell("\"$@\" | :; exit 0", &world.podbay("run", &["--detach", "--", "true"]));
    assert_eq!((id.status.code(), id.stderr.as_str()), (Some(0), ""));
    world.terminates_all("");
    world.ends_clean();
}

#[test]
fn a_terminal_is_raw_follows_and_is_given_back() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let podbay = world.podbay("run", &["-t", "--", "/bin/sh", "-c", "trap 'echo I''NT' INT; echo u''p; while :; do sleep 0.1; [ -e /tmp/x ] && :; read x && [ $x = q ] && exit 7; done"]);
    let words: Vec<_> = podbay.get_args().map(|arg| arg.to_str().expect("text")).collect();
    let script = "\"$@\"; echo status=$?; stty -a | grep -o ' -*icanon'; echo en''d";
    let mut sh = Command::new("/bin/sh");
    sh.args(["-c", script, "sh"]).arg(podbay.get_program()).args(words);
    let mut user = Terminal::start(&sh, 80, 24);
    user.shows("up");
    user.types("\u{3}");
    user.shows("INT");
    user.types("q\n");
    user.shows("status=7");
    user.shows(" icanon");
    user.shows("end");
    user.ends();
    world.ends_clean();
}

#[test]
fn mistakes_say_what_to_do() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let podbay = |arguments: &[&str]| {
        let mut podbay = Command::new(podbay_tests::program("podbay"));
        podbay.args(arguments).env_remove("USER").env_remove("PODBAY_SERVER");
        let answered = finish(&mut podbay, b"");
        assert_eq!(answered.status.code(), Some(255), "{answered:?}");
        answered.stderr
    };
    let state = world.file("client");
    let state = state.to_str().expect("text");
    let env = world.state().join("grpc.env");
    let env = env.to_str().expect("text");
    let no_user = podbay(&["run", "--state-dir", state, "--", "true"]);
    assert!(no_user.contains("give --user"), "{no_user}");
    let no_server = podbay(&["run", "--state-dir", state, "--user", "demo", "--", "true"]);
    assert!(no_server.contains("no --address: give it, or --server FILE, or set PODBAY_ADDRESS"), "{no_server}");
    let nobody = podbay(&[
        "run",
        "--state-dir",
        state,
        "--user",
        "demo",
        "--server",
        env,
        "--address",
        "127.0.0.1:1",
        "--",
        "true",
    ]);
    assert!(nobody.contains("no backend answers, the last one tried was 127.0.0.1:1"), "{nobody}");
    let missing = podbay(&["attach", "--state-dir", state, "--user", "demo", "--server", env, "abc"]);
    assert!(missing.contains("demo has no session abc: podbay sessions lists them"), "{missing}");
    world.ends_clean();
}
