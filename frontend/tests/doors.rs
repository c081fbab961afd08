//! Who gets in, and who is kept out: keys, passwords, garbage, and too many.

mod support;

use podbay_frontend::config::PenaltyConfig;
use podbay_frontend_core::{Startups, penalties::Costs};
use russh::client::AuthResult;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use support::{PATIENCE, World, until, world::AnyServer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_an_unknown_user_are_kept_out() {
    let world = World::new().await;
    let answered = world.ssh_with_wrong_key(&[], &["host", "true"]).run().await;
    answered.is(255, "", "alice@127.0.0.1: Permission denied (publickey,password).\r\n");
    let answered = world.ssh_with(&["User=mallory"], &["host", "true"]).run().await;
    answered.is(255, "", "mallory@127.0.0.1: Permission denied (publickey,password).\r\n");
    assert!(world.script.lock().opened.is_empty(), "the backend was asked");
    assert!(world.metric("auth_attempts_total", "Failure") >= 1);
}

async fn login(world: &World, user: &str, password: &str) -> (AuthResult, Duration) {
    let config = Arc::new(russh::client::Config::default());
    let mut client = russh::client::connect(config, world.address, AnyServer).await.expect("connects");
    let before = Instant::now();
    let result = client.authenticate_password(user, password).await.expect("an answer");
    (result, before.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords() {
    let world = World::new().await;
    assert!(login(&world, "alice", "password").await.0.success());
    let (known, known_took) = login(&world, "alice", "wrong").await;
    let (unknown, unknown_took) = login(&world, "nobody", "wrong").await;
    assert!(!known.success() && !unknown.success());
    let difference = known_took.abs_diff(unknown_took);
    assert!(difference < Duration::from_millis(250), "{known_took:?} and {unknown_took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_ends_after_six_failures() {
    let world = World::new().await;
    let config = Arc::new(russh::client::Config::default());
    let mut client = russh::client::connect(config, world.address, AnyServer).await.expect("connects");
    let mut failures = 0;
    while let Ok(result) = timeout(PATIENCE, client.authenticate_password("alice", "guess")).await.expect("in time") {
        assert!(!result.success());
        failures += 1;
        assert!(failures <= 7, "still answered");
    }
    assert!(failures >= 6, "only {failures} attempts");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_guesses_is_turned_away_for_a_while() {
    let world = World::with(1, |config| {
        let costs = Costs { auth_fail: Duration::from_mins(1), no_auth: Duration::ZERO, ..Costs::default() };
        config.ssh.penalties = PenaltyConfig { costs: Some(costs), exempt: Vec::new() };
    })
    .await;
    world.ssh(&["host", "true"]).run().await.is(0, "", "");
    assert!(!login(&world, "alice", "guess").await.0.success());
    until("the next one is cut at once", || {
        drop(std::net::TcpStream::connect(world.address));
        world.metric("refused_total", "Penalty") >= 1
    })
    .await;
    let refused = world.ssh(&["host", "true"]).run().await;
    assert_eq!(refused.status, Some(255), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_banner_is_shown() {
    let world = World::with(1, |config| config.ssh.banner = "Be kind".to_owned()).await;
    let answered = world.ssh_with(&["LogLevel=INFO"], &["host", "true"]).run().await;
    assert!(answered.stderr.contains("Be kind\r\n"), "{answered:?}");
}

/// Reads until the peer hangs up.
async fn hangs_up(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("hung up in time");
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_cut_and_counted_and_nobody_notices() {
    let world = World::new().await;
    let mut child = world.ssh(&["host", "cat"]).with_stdin().spawn();
    until("a session runs", || world.script.lock().running == 1).await;
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 4096], b"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff\xff\xff"]
    {
        let mut stream = TcpStream::connect(world.address).await.expect("connects");
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        assert!(hangs_up(&mut stream).await.starts_with(b"SSH-2.0-Podbay_0.1\r\n"));
    }
    until("all are counted", || world.metric("refused_total", "Garbage") >= 3).await;
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"still here").await.expect("writes");
    drop(stdin);
    assert_eq!(child.wait_with_output().await.expect("ends").stdout, b"still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_log_in_is_cut() {
    let world = World::with(1, |config| {
        config.frontend.handshake_timeout = Duration::from_millis(300);
        config.frontend.login_grace_time = Duration::from_millis(600);
    })
    .await;
    let mut silent = TcpStream::connect(world.address).await.expect("connects");
    hangs_up(&mut silent).await;
    let mut half = TcpStream::connect(world.address).await.expect("connects");
    half.write_all(b"SSH-2.0-half\r\n").await.expect("writes");
    hangs_up(&mut half).await;
    // Keys are exchanged, and then nothing.
    let config = Arc::new(russh::client::Config::default());
    let client = russh::client::connect(config, world.address, AnyServer).await.expect("connects");
    until("the client is cut", || client.is_closed()).await;
    until("all are counted", || world.metric("refused_total", "LoginGrace") >= 1).await;
    until("no connection is left", || world.metric("connections", "") == 0).await;
    // A login in time is not.
    let client = world.client().await;
    until("the grace time is over", || world.metric("connections", "LoggedIn") == 1).await;
    let channel = client.channel_open_session().await.expect("opens");
    drop(channel);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_are_turned_away_and_later_let_in() {
    let world = World::with(1, |config| config.frontend.startups = Startups { begin: 2, rate: 100, full: 2 }).await;
    let first = TcpStream::connect(world.address).await.expect("connects");
    let second = TcpStream::connect(world.address).await.expect("connects");
    until("two are inside", || world.metric("connections", "Unauthenticated") == 2).await;
    let mut third = TcpStream::connect(world.address).await.expect("connects");
    assert_eq!(hangs_up(&mut third).await, b"");
    assert_eq!(world.metric("refused_total", "TooManyStartups"), 1);
    drop((first, second));
    until("they are gone", || world.metric("connections", "Unauthenticated") == 0).await;
    world.ssh(&["host", "echo in"]).run().await.is(0, "in\n", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_answers_no_keepalive_is_cut() {
    let world = World::with(1, |config| {
        config.ssh.client_alive_interval = Some(Duration::from_millis(200));
        config.ssh.client_alive_count_max = 2;
    })
    .await;
    let child = world.ssh(&["host", "sleep 1000"]).spawn();
    until("the program runs", || world.script.lock().running == 1).await;
    // Stopped, it answers nothing, and its kernel still acknowledges.
    let pid = child.id().expect("a pid").to_string();
    let signal = |name: &str| std::process::Command::new("kill").args(["-s", name, &pid]).status().expect("kills");
    signal("STOP");
    until("its program is given up", || world.script.lock().given_up == 1).await;
    until("it is counted", || world.metric("keepalive_losses_total", "") == 1).await;
    signal("KILL");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_modern_algorithms() {
    let world = World::new().await;
    let answered = world.ssh_with(&["LogLevel=DEBUG1"], &["host", "true"]).run().await;
    // chacha20-poly1305 is OpenSSH's first choice, and slow here.
    assert!(answered.stderr.contains("kex: server->client cipher: aes"), "{}", answered.stderr);
    for weak in ["Ciphers=aes128-cbc", "MACs=hmac-sha1", "KexAlgorithms=diffie-hellman-group14-sha1"] {
        let more = if weak.starts_with("MACs") { "Ciphers=aes128-ctr" } else { "Compression=no" };
        let answered = world.ssh_with(&[weak, more, "LogLevel=INFO"], &["host", "true"]).run().await;
        assert!(answered.stderr.contains("no matching"), "{weak}: {answered:?}");
    }
}
