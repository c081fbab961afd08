//! Back-pressure: what is not read waits in bounded memory, and stops nobody else.

mod support;

use std::time::{Duration, Instant};
use support::{PATIENCE, World, until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Child,
    time::timeout,
};

/// Writes `total` bytes of a pattern to the child's stdin, in a task, and closes it.
fn offer(child: &mut Child, total: usize) -> tokio::task::JoinHandle<usize> {
    let mut stdin = child.stdin.take().expect("stdin");
    tokio::spawn(async move {
        let mut sent = 0;
        while sent < total {
            let piece = pattern(sent, (total - sent).min(65_536));
            if stdin.write_all(&piece).await.is_err() {
                break;
            }
            sent += piece.len();
        }
        sent
    })
}

/// Bytes that show where in the stream they are.
fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

/// Reads to the end and checks every byte. Returns how many there were.
async fn check(mut from: impl tokio::io::AsyncRead + Unpin) -> usize {
    let (mut buffer, mut total) = (vec![0; 65_536], 0);
    loop {
        let n = timeout(PATIENCE, from.read(&mut buffer)).await.expect("goes on").expect("reads");
        if n == 0 {
            return total;
        }
        assert!(buffer[..n] == pattern(total, n), "differs within {n} bytes after {total}");
        total += n;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_is_read_late_loses_nothing_and_does_not_hang() {
    let world = World::new().await;
    let total = 24_000_000;
    let mut child = world.ssh(&["host", "cat"]).with_stdin().spawn();
    let sent = offer(&mut child, total);
    let stdout = child.stdout.take().expect("stdout");
    // The reader sleeps until the input is held back. How much of the window is left by then depends on when it was last
    // opened; that no byte is missing, and that nothing hangs, shows below.
    until("the input is held back", || world.metric("queued_input_bytes", "") > 500_000).await;
    assert!(!sent.is_finished(), "all of the input went somewhere");
    assert!(world.metric("queued_input_bytes", "") < 5_000_000);
    assert_eq!(check(stdout).await, total);
    assert_eq!(sent.await.expect("no panic"), total);
    assert!(child.wait().await.expect("ends").success());
    assert_eq!(world.metric("queued_input_bytes", ""), 0);
    assert_eq!(world.metric("stuck_channels", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_both_ways_is_whole() {
    let world = World::new().await;
    let total = 16 << 20;
    let answered = timeout(PATIENCE, world.ssh(&["host", "head -c 16777216 /dev/zero"]).spawn().wait_with_output());
    let output = answered.await.expect("in time").expect("ends");
    assert_eq!((output.stdout.len(), output.stdout.iter().filter(|b| **b != 0).count()), (total, 0));
    let mut child = world.ssh(&["host", "wc -c; cat >&2"]).with_stdin().spawn();
    let sent = offer(&mut child, total);
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("in time").expect("ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), total.to_string());
    assert_eq!(sent.await.expect("no panic"), total);
}

/// A master connection, and clients that use it.
struct Master<'a> {
    world: &'a World,
    socket: String,
    child: Child,
}

impl<'a> Master<'a> {
    async fn open(world: &'a World) -> Self {
        let socket = world.path("master").display().to_string();
        let child = world.ssh(&["-M", "-N", "-S", &socket, "host"]).spawn();
        until("the master listens", || std::path::Path::new(&socket).exists()).await;
        Self { world, socket, child }
    }

    fn run(&self, command: &str) -> Child {
        self.world.ssh(&["-S", &self.socket, "host", command]).with_stdin().spawn()
    }

    /// Runs it to its end and checks what it prints.
    async fn prints(&self, command: &str, expected: &str) {
        let mut child = self.run(command);
        drop(child.stdin.take());
        let output = timeout(PATIENCE, child.wait_with_output()).await.expect("in time").expect("ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_channels_while_one_reads_nothing_and_one_s_program_reads_nothing() {
    let world = World::new().await;
    let master = Master::open(&world).await;
    // A program that reads nothing, with more input than fits.
    let mut stuck = master.run("exec sleep 1000");
    let offered = offer(&mut stuck, 100 << 20);
    // A client that reads nothing, of a program that prints without end.
    let unread = master.run("exec yes");
    until("a channel is stuck", || world.metric("stuck_channels", "") > 0).await;
    let before = Instant::now();
    let runs = (0..18).map(|i| {
        let master = &master;
        async move { master.prints(&format!("echo {i}; cat"), &format!("{i}\n")).await }
    });
    futures::future::join_all(runs).await;
    let took = before.elapsed();
    assert!(took < Duration::from_secs(20), "18 programs took {took:?}");
    // Bulk on a healthy channel: the stuck one gains next to nothing.
    let mut held = 0;
    // It may fill still.
    until("the stuck channel takes no more", || {
        let before = std::mem::replace(&mut held, world.metric("queued_input_bytes", ""));
        held > 0 && held == before
    })
    .await;
    let total = 8 << 20;
    let mut bulk = master.run("wc -c");
    let sent = offer(&mut bulk, total);
    let output = timeout(PATIENCE, bulk.wait_with_output()).await.expect("in time").expect("ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), total.to_string());
    assert_eq!(sent.await.expect("no panic"), total);
    let gained = world.metric("queued_input_bytes", "") - held;
    assert!(gained < 100_000, "the stuck channel gained {gained} bytes beside {total} of another");
    assert!(held < 5_000_000, "a stuck channel holds {held}");
    assert_eq!(world.metric("stray_grants_total", ""), 0);
    assert!(!offered.is_finished());
    drop((stuck, unread, master.child));
    until("all is given up", || world.script.lock().running == 0).await;
    until("nothing is queued", || world.metric("queued_input_bytes", "") == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_program_that_begins_to_read_gets_everything() {
    let world = World::new().await;
    let go = world.path("go");
    let total = 12_000_000;
    let command = format!("while [ ! -e {} ]; do sleep 0.05; done; exec cat", go.display());
    let mut child = world.ssh(&["host", &command]).with_stdin().spawn();
    let sent = offer(&mut child, total);
    let stdout = child.stdout.take().expect("stdout");
    until("the channel is stuck", || world.metric("stuck_channels", "") > 0).await;
    std::fs::write(&go, "").expect("writes");
    assert_eq!(check(stdout).await, total);
    assert_eq!(sent.await.expect("no panic"), total);
    assert!(child.wait().await.expect("ends").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_without_reading_ends_its_session() {
    let world = World::new().await;
    let mut child = world.ssh(&["host", "exit 5"]).with_stdin().spawn();
    let _sent = offer(&mut child, 8 << 20);
    let status = timeout(PATIENCE, child.wait()).await.expect("in time").expect("ends");
    assert_eq!(status.code(), Some(5));
}
