//! Requests that `ssh` makes rarely or never, by a scripted client: signals, sizes, answers, and what is not supported.

mod support;

use russh::{Channel, ChannelMsg, ChannelOpenFailure, Pty, Sig, client::Msg};
use std::time::{Duration, Instant};
use support::{PATIENCE, World, backend::Opening, until};
use tokio::time::timeout;

/// The next message that is not a window adjustment.
async fn next(channel: &mut Channel<Msg>) -> ChannelMsg {
    loop {
        match timeout(PATIENCE, channel.wait()).await.expect("a message in time").expect("the channel is open") {
            ChannelMsg::WindowAdjusted { .. } => {}
            message => return message,
        }
    }
}

/// Everything up to the close: stdout, stderr, the exit status.
async fn to_the_end(channel: &mut Channel<Msg>) -> (String, String, Option<u32>) {
    let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), None);
    loop {
        match timeout(PATIENCE, channel.wait()).await.expect("a message in time") {
            Some(ChannelMsg::Data { data }) => out.extend_from_slice(&data),
            Some(ChannelMsg::ExtendedData { data, .. }) => err.extend_from_slice(&data),
            Some(ChannelMsg::ExitStatus { exit_status }) => status = Some(exit_status),
            Some(ChannelMsg::Close) | None => {
                return (String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text"), status);
            }
            Some(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_comes_before_exit_before_eof_before_close() {
    let world = World::new().await;
    let client = world.client().await;
    let mut channel = client.channel_open_session().await.expect("opens");
    channel.exec(true, "echo hi; exit 4").await.expect("sends");
    let mut seen = Vec::new();
    while let Some(message) = timeout(PATIENCE, channel.wait()).await.expect("in time") {
        seen.push(match message {
            ChannelMsg::Success => "success",
            ChannelMsg::Data { .. } => "data",
            ChannelMsg::Eof => "eof",
            ChannelMsg::ExitStatus { exit_status: 4 } => "exit",
            ChannelMsg::Close => "close",
            ChannelMsg::WindowAdjusted { .. } => continue,
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, ["success", "data", "exit", "eof", "close"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_and_sizes_pass_a_program_that_reads_nothing() {
    let world = World::new().await;
    let client = world.client().await;
    // The program reads nothing and is offered more than fits.
    let channel = client.channel_open_session().await.expect("opens");
    let modes = [(Pty::VERASE, 127), (Pty::ECHO, 1)];
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &modes).await.expect("sends");
    channel.exec(true, "trap 'exit 9' TERM; while :; do sleep 0.1; done").await.expect("sends");
    until("the program runs", || world.script.lock().running == 1).await;
    assert_eq!(world.script.lock().sessions[0].1.pty.clone().expect("a terminal").modes.len(), 2);
    let (mut read, write) = channel.split();
    let write = std::sync::Arc::new(write);
    let offering = tokio::spawn({
        let write = write.clone();
        async move { while write.data_bytes(vec![7; 32 * 1024]).await.is_ok() {} }
    });
    until("the channel is stuck", || world.metric("stuck_channels", "") > 0).await;
    let before = Instant::now();
    write.window_change(100, 30, 0, 0).await.expect("sends");
    write.window_change(120, 40, 0, 0).await.expect("sends");
    until("the last size arrives", || world.script.lock().sizes.last() == Some(&(120, 40))).await;
    write.signal(Sig::TERM).await.expect("sends");
    until("the signal arrives", || world.script.lock().signals == ["TERM"]).await;
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    offering.abort();
    // The program has ended with its handler's status.
    let mut status = None;
    while let Some(message) = timeout(PATIENCE, read.wait()).await.expect("in time") {
        if let ChannelMsg::ExitStatus { exit_status } = message {
            status = Some(exit_status);
        }
    }
    assert_eq!(status, Some(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_is_not_delivered_is_told() {
    let world = World::new().await;
    world.script.lock().timeouts = Duration::from_millis(100);
    let client = world.client().await;
    let mut channel = client.channel_open_session().await.expect("opens");
    channel.exec(true, "read line; echo $line").await.expect("sends");
    until("the program runs", || world.script.lock().running == 1).await;
    channel.signal(Sig::USR1).await.expect("sends");
    channel.signal(Sig::Custom("USR2".to_owned())).await.expect("sends");
    let mut told = String::new();
    while told.matches('\n').count() < 2 {
        if let ChannelMsg::ExtendedData { data, ext: 1 } = next(&mut channel).await {
            told += std::str::from_utf8(&data).expect("text");
        }
    }
    assert_eq!(
        told,
        "podbay: signal USR1 was not delivered: no agent in the pod\n\
         podbay: signal USR2 was not delivered: no answer in time\n"
    );
    channel.data_bytes("on\n").await.expect("sends");
    assert_eq!(to_the_end(&mut channel).await, ("on\n".to_owned(), String::new(), Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_is_not_lost_to_a_resize() {
    let world = World::new().await;
    let client = world.client().await;
    for _ in 0..10 {
        let mut channel = client.channel_open_session().await.expect("opens");
        channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.expect("sends");
        assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
        channel.exec(true, "@late 60 echo up").await.expect("sends");
        channel.window_change(90, 30, 0, 0).await.expect("sends");
        assert!(matches!(next(&mut channel).await, ChannelMsg::Success), "the answer is lost");
        assert_eq!(to_the_end(&mut channel).await, ("up\n".to_owned(), String::new(), Some(0)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_takes_too_long_is_answered_in_time_and_told_later() {
    let world = World::new().await;
    let client = world.client().await;
    let _other = client.channel_open_session().await.expect("opens");
    let mut channel = client.channel_open_session().await.expect("opens");
    let before = Instant::now();
    channel.exec(true, "@late 1500 @refuse").await.expect("sends");
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    assert!(before.elapsed() < Duration::from_millis(1400), "{:?}", before.elapsed());
    let (out, err, status) = to_the_end(&mut channel).await;
    assert_eq!((out.as_str(), status), ("", Some(255)));
    assert!(err.starts_with("podbay: no such program in the image"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_answered_in_order() {
    let world = World::new().await;
    let client = world.client().await;
    let mut channel = client.channel_open_session().await.expect("opens");
    channel.request_x11(true, true, "MIT-MAGIC-COOKIE-1", "00", 0).await.expect("sends");
    channel.agent_forward(true).await.expect("sends");
    channel.set_env(true, "GOOD", "1").await.expect("sends");
    channel.set_env(true, "BAD-NAME", "1").await.expect("sends");
    channel.request_pty(true, "vt100", 80, 24, 0, 0, &[]).await.expect("sends");
    channel.request_pty(true, "vt100", 80, 24, 0, 0, &[]).await.expect("sends");
    channel.request_subsystem(true, "nosuch").await.expect("sends");
    let mut answers = String::new();
    for _ in 0..7 {
        answers.push(match next(&mut channel).await {
            ChannelMsg::Success => 's',
            ChannelMsg::Failure => 'f',
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(answers, "ffsfsff");
    let mut channel = client.channel_open_session().await.expect("opens");
    channel.exec(true, vec![0xff, 0xfe]).await.expect("sends");
    assert!(matches!(next(&mut channel).await, ChannelMsg::Failure));
    channel.exec(true, "read line").await.expect("sends");
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    channel.exec(true, "true").await.expect("sends");
    assert!(matches!(next(&mut channel).await, ChannelMsg::Failure), "one program a channel");
    channel.eof().await.expect("sends");
    assert_eq!(to_the_end(&mut channel).await.2, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_channels_are_refused_with_a_reason() {
    let world = World::with(1, |config| config.frontend.max_sessions_per_connection = 2).await;
    let client = world.client().await;
    let refused = client.channel_open_direct_tcpip("localhost", 80, "localhost", 1).await.expect_err("refused");
    let russh::Error::ChannelOpenFailure(reason) = refused else { panic!("{refused}") };
    assert_eq!(reason.code(), 1);
    let one = client.channel_open_session().await.expect("opens");
    let two = client.channel_open_session().await.expect("opens");
    let refused = client.channel_open_session().await.expect_err("refused");
    assert!(matches!(&refused, russh::Error::ChannelOpenFailure(ChannelOpenFailure::ResourceShortage)), "{refused:?}");
    one.close().await.expect("sends");
    let opened = timeout(PATIENCE, async {
        loop {
            if let Ok(channel) = client.channel_open_session().await {
                return channel;
            }
        }
    });
    opened.await.expect("a closed channel makes room");
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policys_limit_of_sessions_holds_for_the_connection() {
    let world = World::new().await;
    world.script.lock().max_sessions = 2;
    let client = world.client().await;
    let mut first = client.channel_open_session().await.expect("opens");
    first.exec(true, "read line").await.expect("sends");
    until("a program runs", || world.script.lock().running == 1).await;
    let second = client.channel_open_session().await.expect("opens");
    let refused = client.channel_open_session().await.expect_err("refused");
    assert!(matches!(&refused, russh::Error::ChannelOpenFailure(ChannelOpenFailure::ResourceShortage)), "{refused:?}");
    assert_eq!(world.metric("refused_total", "TooManySessions"), 1);
    first.eof().await.expect("sends");
    to_the_end(&mut first).await;
    client.channel_open_session().await.expect("the first one's place");
    // Another connection has its own.
    let other = world.client().await;
    other.channel_open_session().await.expect("opens");
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_come_before_the_policy_are_held_to_it() {
    let world = World::new().await;
    {
        let mut script = world.script.lock();
        script.max_sessions = 1;
        script.opening = Opening::Late(Duration::from_millis(300));
    }
    let client = world.client().await;
    let mut channels = Vec::new();
    for _ in 0..2 {
        channels.push(client.channel_open_session().await.expect("nobody has said that there is a limit"));
    }
    for channel in &channels {
        channel.exec(false, "read line; echo $line").await.expect("sends");
        channel.eof().await.expect("sends");
    }
    let mut ends = Vec::new();
    for channel in &mut channels {
        let (_, told, status) = to_the_end(channel).await;
        ends.push((status, told.contains("too many sessions at once on this connection")));
    }
    ends.sort();
    assert_eq!(ends, [(Some(0), false), (Some(255), true)]);
    assert_eq!(world.script.lock().sessions.len(), 1, "the second was not even asked for");
}
