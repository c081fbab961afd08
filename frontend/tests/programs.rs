//! Programs over the stock client: how they start, what they print, how they end.

mod support;

use std::time::{Duration, Instant};
use support::{World, backend::Opening, tls::Files, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test(flavor = "multi_thread")]
async fn output_and_errors_stay_apart_and_the_status_is_the_program_s() {
    let world = World::new().await;
    world.ssh(&["host", "echo out; echo err >&2; exit 7"]).run().await.is(7, "out\n", "err\n");
    for status in [0, 1, 255] {
        world.ssh(&["host", &format!("exit {status}")]).run().await.is(status, "", "");
    }
    assert_eq!(world.script.lock().opened.len(), 4, "one connection each");
    until("all connections are closed", || world.script.lock().closed.len() == 4).await;
    assert_eq!(world.script.lock().running, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mutual_tls_to_the_backend() {
    let world = World::with_tls().await;
    world.ssh(&["host", "echo over TLS"]).run().await.is(0, "over TLS\n", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_gets_its_terminal_size_and_environment() {
    let world = World::new().await;
    let mut ssh = world.ssh(&["-tt", "-o", "SendEnv=LANG LC_TEST", "host"]).env("LC_TEST", "ä b").env("TERM", "vt220");
    ssh = ssh.with_stdin();
    let mut child = ssh.spawn();
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"printf '%s\\n' \"$LC_TEST\"; exit 3\n").await.expect("writes");
    let output = child.wait_with_output().await.expect("ends");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(3), "ä b\n"));
    let script = world.script.lock();
    let pty = script.sessions[0].1.pty.clone().expect("a terminal");
    assert_eq!(pty.term, "vt220");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_ends_and_output_goes_on() {
    let world = World::new().await;
    let mut child = world.ssh(&["host", "cat; echo done"]).with_stdin().spawn();
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"line\n").await.expect("writes");
    let mut stdout = child.stdout.take().expect("stdout");
    let mut line = [0; 5];
    stdout.read_exact(&mut line).await.expect("reads");
    assert_eq!(&line, b"line\n");
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.expect("reads");
    assert_eq!(rest, "done\n");
    assert!(child.wait().await.expect("ends").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_never_a_success() {
    let world = World::new().await;
    let answered = world.ssh(&["host", "@lost"]).run().await;
    answered.is(255, "", "podbay: the stream to the program broke\n");
    let answered = world.ssh(&["host", "@signal TERM"]).run().await;
    assert_eq!(answered.status, Some(255), "{answered:?}");
    let answered = world.ssh(&["host", "@refuse"]).run().await;
    assert_eq!(answered.status, Some(255), "{answered:?}");
    assert!(answered.stderr.contains("podbay: no such program in the image"), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn subsystems_are_those_of_the_policy() {
    let world = World::new().await;
    let mut child = world.ssh(&["-s", "host", "echo"]).with_stdin().spawn();
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(&[0, 1, 255, b'\n']).await.expect("writes");
    drop(stdin);
    assert_eq!(child.wait_with_output().await.expect("ends").stdout, [0, 1, 255, b'\n']);
    let answered = world.ssh(&["-s", "host", "nosuch"]).run().await;
    assert_eq!(answered.status, Some(255), "{answered:?}");
    assert!(answered.stderr.contains("subsystem request failed"), "{answered:?}");
    until("it is counted", || world.metric("session_ends_total", "end=\"Failed\"") == 1).await;
    assert!(world.metric("backend_calls_total", "code=\"OK\"") > 0, "codes by gRPC's own names");
    assert_eq!(world.script.lock().sessions.len(), 1, "the backend was not asked for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_start_says_what_it_waits_for() {
    let world = World::with(1, |config| config.frontend.progress_after = Duration::from_millis(100)).await;
    world.script.lock().opening = Opening::After(Duration::from_millis(600));
    let answered = world.ssh(&["host", "@progress 400 echo up"]).run().await;
    let stderr = "podbay: waiting for a node: 0/3 nodes are available\npodbay: starting the program\n";
    answered.is(0, "up\n", stderr);
    let answered = world.ssh(&["-tt", "host", "echo up"]).run().await;
    assert_eq!(answered.stderr, "podbay: waiting for a node: 0/3 nodes are available\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_says_why_and_where_to_look() {
    let world = World::new().await;
    let refusal = "image nosuch:1 can't be pulled";
    world.script.lock().opening = Opening::Refuse(podbay::v1::Reason::ImageUnavailable, refusal.to_owned());
    let answered = world.ssh(&["host", "true"]).run().await;
    let id = world.script.lock().opened[0].connection_id.clone();
    assert_eq!(answered.status, Some(255));
    assert!(answered.stderr.starts_with(&format!("podbay: {refusal} [connection {id}]\n")), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_gives_its_program_up() {
    let world = World::new().await;
    let mut child = world.ssh(&["host", "sleep 1000"]).spawn();
    until("the program runs", || world.script.lock().running == 1).await;
    child.kill().await.expect("kills");
    let before = Instant::now();
    until("the program is given up", || world.script.lock().given_up == 1).await;
    until("the connection is closed", || world.script.lock().closed.len() == 1).await;
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_start_in_time_is_given_up() {
    let world = World::new().await;
    world.script.lock().timeouts = Duration::from_millis(200);
    let answered = world.ssh(&["host", "@never"]).run().await;
    assert_eq!(answered.status, Some(255));
    assert!(answered.stderr.starts_with("podbay: the program was not started in time"), "{answered:?}");
    until("the start is undone", || world.script.lock().given_up == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_for_the_backend_are_taken_up_without_a_restart() {
    let world = World::with_tls().await;
    world.ssh(&["host", "echo before"]).run().await.is(0, "before\n", "");
    let cert = world.path("cert.pem");
    let good = std::fs::read(&cert).expect("reads");
    std::fs::write(&cert, "nonsense").expect("writes");
    until("the bad file is told", || world.metric("tls_reloads_total", "Failure") == 1).await;
    world.ssh(&["host", "echo with the old one"]).run().await.is(0, "with the old one\n", "");
    std::fs::write(&cert, good).expect("writes");
    until("the good one is taken", || world.metric("tls_reloads_total", "Success") == 1).await;
    // New ones on both sides: new connections to the backend are made with them.
    Files::make(world.dir.path());
    until("all new", || world.metric("tls_reloads_total", "Success") >= 2).await;
    world.ssh(&["host", "echo after"]).run().await.is(0, "after\n", "");
}
