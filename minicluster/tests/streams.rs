//! Exec and attach, byte by byte.

mod world;

use kube::api::{AttachParams, LogParams};
use podbay_minicluster::{
    Action, Fault,
    faults::{Break, Real},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use tokio::time::Instant;
use world::{Stream, World, idle, phase, pod_of, script, send, state, until, within};

fn exec() -> AttachParams {
    AttachParams::default().stdin(false).stdout(true).stderr(true)
}

fn with_stdin() -> AttachParams {
    exec().stdin(true)
}

fn tty() -> AttachParams {
    AttachParams::default().stdin(true).stdout(true).stderr(false).tty(true)
}

/// Not all alike, and not the same at any two places 64 KiB apart.
fn bytes(n: usize) -> Vec<u8> {
    (0..n as u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).take(n).collect()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn output_apart_and_the_exit_code() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    for code in ["1", "42", "255"] {
        let outcome = world.run_in("p", &["sh", "-c", &format!("echo out; echo err >&2; exit {code}")]).await;
        assert_eq!((outcome.stdout().as_str(), outcome.stderr().as_str()), ("out\n", "err\n"));
        assert_eq!(outcome.exit_code(), code);
        assert!(outcome.closed);
    }
    assert!(world.run_in("p", &["true"]).await.is_success());
    assert_eq!(world.run_in("p", &["sh", "-c", "kill -TERM $$"]).await.exit_code(), "143");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_run_is_an_internal_error_in_the_runtimes_words() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let nosuch = world.run_in("p", &["nosuch"]).await;
    assert_eq!(nosuch.status.get("reason"), Some(&json!("InternalError")));
    let message = nosuch.status.get("message").and_then(|message| message.as_str()).unwrap_or_default();
    assert!(
        message.ends_with("OCI runtime exec failed: exec failed: unable to start container process: exec: \"nosuch\": executable file not found in $PATH: unknown"),
        "{message}"
    );
    let file = world.run_in("p", &["/etc/passwd"]).await;
    assert!(file.status.to_string().contains("permission denied"), "{}", file.status);

    let no_pod = world.try_exec("other", &["true"], &exec()).await;
    assert!(no_pod.is_err());
    let wrong_container = world.try_exec("p", &["true"], &exec().container("other")).await;
    assert!(wrong_container.is_err());
    world.create(&script("over", "exit 0")).await;
    world.wait("over", "over", |pod| phase(pod) == "Succeeded").await;
    let over = world.run_in("over", &["true"]).await;
    assert!(over.status.to_string().contains("container not found"), "{}", over.status);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_mebibytes_go_through_cat_and_back() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let sent = bytes(10 << 20);
    let outcome = world.exec("p", &["cat"], &with_stdin()).await.feed(sent.clone()).await;
    assert!(outcome.is_success(), "{}", outcome.status);
    assert_eq!((outcome.stdout.len(), hash(&outcome.stdout)), (sent.len(), hash(&sent)));
    // Into a file, with a shell that holds its outputs, and out of it.
    let upload = ["sh", "-c", "cat >$HOME/f; :"];
    assert!(world.exec("p", &upload, &with_stdin()).await.feed(sent.clone()).await.is_success());
    let sum = world.run_in("p", &["sh", "-c", "sha256sum <$HOME/f"]).await.stdout();
    assert_eq!(sum.split_whitespace().next(), Some(hash(&sent).as_str()));
    let back = world.run_in("p", &["sh", "-c", "cat $HOME/f"]).await;
    assert_eq!(hash(&back.stdout), hash(&sent));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_closes_its_output_loses_its_stdin_unless_that_defect_is_off() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let sent = bytes(4 << 20);
    let upload = ["sh", "-c", "exec cat >$HOME/f"];
    let size = ["sh", "-c", "wc -c <$HOME/f"];
    let outcome = world.exec("p", &upload, &with_stdin()).await.feed(sent.clone()).await;
    assert!(outcome.is_success(), "it ends well: that is the trap");
    let arrived: usize = world.run_in("p", &size).await.stdout().trim().parse().expect("a size");
    assert!(arrived < sent.len(), "{arrived}");

    world.faults().add(Fault::Real { what: Real::CriStdinCut, on: false });
    assert!(world.exec("p", &upload, &with_stdin()).await.feed(sent.clone()).await.is_success());
    let arrived: usize = world.run_in("p", &size).await.stdout().trim().parse().expect("a size");
    assert_eq!(arrived, sent.len());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_the_size_that_it_is_given_and_is_hung_up_at_the_end() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let mut shell = world.exec("p", &["sh", "-i"], &tty()).await;
    shell.resize(101, 37).await;
    // The size may come after the program's start, as on a real cluster: ask until it is there.
    shell.send(0, b"until stty size | grep -q '^37 101$'; do sleep 0.02; done; stty size; tty; echo $TERM\r").await;
    shell.until_stdout("37 101\r\n").await;
    shell.until_stdout("/dev/pts/").await;
    shell.until_stdout("xterm").await;
    // Written such that the echo of what is typed is not taken for the answer.
    shell.send(0, b"trap 'echo changed' WINCH; echo re''ady\r").await;
    shell.until_stdout("ready\r\n").await;
    shell.resize(80, 24).await;
    shell.send(0, b"sleep 0.1\r").await;
    shell.until_stdout("changed\r\n").await;
    // ^C goes to the foreground process only.
    shell.send(0, b"sleep 1000\r").await;
    shell.until_stdout("sleep 1000").await;
    shell.send(0, b"\x03").await;
    shell.send(0, b"echo still $((1 + 1)) here; exit 3\r").await;
    shell.until_stdout("still 2 here").await;
    assert_eq!(shell.outcome().await.exit_code(), "3");

    let mut left = world.exec("p", &["sh", "-c", "echo $$; sleep 1000; :"], &tty()).await;
    left.until_stdout("\n").await;
    let pid: u32 = left.got.stdout().trim().parse().expect("a pid");
    drop(left);
    until("the hang-up has ended it", || async { (!world::is_alive(pid)).then_some(()) }).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_reads_nothing_still_gets_its_size_and_its_output_is_not_held_up() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let script =
        "stty raw -echo; echo ready; until stty size | grep -q '^30 90$'; do sleep 0.02; done; echo got it; sleep 1000";
    let mut deaf = world.exec("p", &["sh", "-c", script], &tty()).await;
    deaf.until_stdout("ready").await;
    // More than the terminal takes, less than what is read ahead.
    for _ in 0..6 {
        deaf.send(0, &vec![b'x'; 32 * 1024]).await;
    }
    deaf.resize(90, 30).await;
    deaf.until_stdout("got it").await;
    drop(deaf);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_is_read_ahead_so_far_and_no_further() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let stream = world.exec("p", &["sleep", "1000"], &with_stdin()).await;
    let Stream { mut sink, .. } = stream;
    let mut taken = 0;
    let stuck = tokio::time::timeout(Duration::from_secs(3), async {
        loop {
            send(&mut sink, 0, &vec![0; 32 * 1024]).await;
            taken += 32 * 1024;
        }
    });
    assert!(stuck.await.is_err());
    // The queue, the pipe, and what the sockets' buffers take (megabytes on loopback).
    assert!((256 * 1024..32 << 20).contains(&taken), "{taken}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_client_sees_what_comes_and_its_end_is_stdins_end_once() {
    let world = World::start().await;
    let container = json!({
        "name": "main", "image": "podbay/demo:1", "stdin": true, "stdinOnce": true,
        "command": ["sh", "-c", "echo early; read line; echo \"got $line\"; echo problem >&2; cat; echo end; exit 4"],
    });
    world.run(&pod_of("p", json!({ "restartPolicy": "Never", "containers": [container] }))).await;
    until("the first line is in the log", || async {
        (world.pods().logs("p", &LogParams::default()).await.expect("a log") == "early\n").then_some(())
    })
    .await;
    let mut attached = world.attach("p", &with_stdin()).await;
    attached.send(0, b"hello\nmore\n").await;
    attached.until_stdout("more\n").await;
    attached.close_stdin().await;
    let outcome = attached.outcome().await;
    // Attach does not know the program's exit code; what came before it is in the log only.
    assert!(outcome.is_success());
    assert_eq!((outcome.stdout().as_str(), outcome.stderr().as_str()), ("got hello\nmore\nend\n", "problem\n"));
    let ended = state(&world.wait("p", "failed", |pod| phase(pod) == "Failed").await, "main");
    assert_eq!(ended.pointer("/terminated/exitCode"), Some(&json!(4)));
    let log = world.pods().logs("p", &LogParams { tail_lines: Some(1), ..LogParams::default() }).await.expect("a log");
    assert_eq!(log, "end\n");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_carries_ten_mebibytes_and_a_slow_client_holds_the_program_up() {
    let world = World::start().await;
    let container = json!({
        "name": "main", "image": "podbay/demo:1", "stdin": true, "stdinOnce": true,
        "command": ["sh", "-c", "read line; echo begin; head -c 10485760 /dev/zero; echo; echo done >$HOME/done"],
    });
    world.run(&pod_of("p", json!({ "restartPolicy": "Never", "containers": [container] }))).await;
    let mut attached = world.attach("p", &with_stdin()).await;
    attached.send(0, b"go\n").await;
    attached.until_stdout("begin\n").await;
    assert!(!world.run_in("p", &["sh", "-c", "test -e $HOME/done"]).await.is_success());
    let outcome = attached.outcome().await;
    assert_eq!(outcome.stdout.len(), "begin\n\n".len() + (10 << 20));
    assert!(outcome.stdout.iter().skip("begin\n".len()).take(10 << 20).all(|&byte| byte == 0));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_ends_with_its_program() {
    use futures::AsyncReadExt as _;
    let world = World::start().await;
    world.run(&script("p", "echo one; while ! [ -e $HOME/go ]; do sleep 0.02; done; echo two")).await;
    let follow = LogParams { follow: true, ..LogParams::default() };
    let mut log = world.pods().log_stream("p", &follow).await.expect("a log");
    assert!(world.run_in("p", &["sh", "-c", "touch $HOME/go"]).await.is_success());
    let mut text = String::new();
    within("the log's end", log.read_to_string(&mut text)).await.expect("text");
    assert_eq!(text, "one\ntwo\n");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_break_in_three_ways_and_the_program_runs_on() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    for (how, closed, success) in
        [(Break::Cut, false, false), (Break::NoStatus, true, false), (Break::FalseSuccess, true, true)]
    {
        let mut stream = world.exec("p", &["sh", "-c", "echo $$; exec sleep 1000"], &exec()).await;
        stream.until_stdout("\n").await;
        let pid: u32 = stream.got.stdout().trim().parse().expect("a pid");
        assert!(world.faults().act(Action::BreakStreams { how }).await);
        let outcome = stream.outcome().await;
        assert_eq!((outcome.closed, outcome.is_success()), (closed, success), "{how:?}");
        assert!(success || outcome.status.is_null());
        assert!(world::is_alive(pid));
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_ends_with_its_pod_and_says_so() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let mut stream = world.exec("p", &["sh", "-c", "echo ready; sleep 1000"], &exec()).await;
    stream.until_stdout("ready").await;
    world.delete("p", 1).await;
    assert_eq!(stream.outcome().await.exit_code(), "137");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once_while_one_client_reads_nothing() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let _unread = world.exec("p", &["cat", "/dev/zero"], &exec()).await;
    let began = Instant::now();
    let all = (0..20).map(|n| {
        let world = &world;
        async move {
            let script = format!("echo {n}; exit {n}");
            let outcome = world.run_in("p", &["sh", "-c", &script]).await;
            assert_eq!(outcome.stdout(), format!("{n}\n"));
            assert_eq!(outcome.exit_code(), if n == 0 { "none".to_owned() } else { n.to_string() });
        }
    });
    futures::future::join_all(all).await;
    assert!(began.elapsed() < world::DEADLINE);
    world.end().await;
}
