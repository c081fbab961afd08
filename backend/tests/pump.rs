//! Exec and attach over a real WebSocket: nothing waits for anything else, every byte arrives, and only a Status ends well.

mod support;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use podbay_backend::kubernetes::KubeCluster;
use podbay_backend_core::cluster::{Cluster as _, Input, Output, StreamEnd, StreamRequest, Streams};
use ring::digest::{Context, SHA256};
use std::time::Duration;
use support::{PATIENCE, Socket, StandIn, exec, pod};
use tokio::{sync::mpsc, time::timeout};
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame, protocol::frame::coding::CloseCode};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

fn on(channel: u8, data: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(data.len() + 1);
    message.put_u8(channel);
    message.put_slice(data);
    Message::Binary(message.freeze())
}

async fn say(socket: &mut Socket, channel: u8, data: &[u8]) {
    socket.send(on(channel, data)).await.expect("the client reads");
}

/// Data of stdin; `None` at its end.
async fn stdin(socket: &mut Socket) -> Option<Bytes> {
    loop {
        match socket.next().await.expect("open").expect("no error") {
            Message::Binary(data) if data[..] == [255, 0] => return None,
            Message::Binary(data) if data[0] == 0 => return Some(data.slice(1..)),
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn open(cluster: &KubeCluster, request: &StreamRequest) -> Streams {
    timeout(PATIENCE, cluster.stream(&pod(), request)).await.expect("in time").expect("opens")
}

async fn next(streams: &mut Streams) -> Output {
    timeout(PATIENCE, streams.output.recv()).await.expect("in time").expect("an end comes before the channel's")
}

async fn end(streams: &mut Streams) -> StreamEnd {
    loop {
        if let Output::End(end) = next(streams).await {
            assert!(
                timeout(PATIENCE, streams.output.recv()).await.expect("in time").is_none(),
                "nothing after the end"
            );
            return end;
        }
    }
}

async fn no_tasks(cluster: &KubeCluster) {
    let all_ended = async {
        while cluster.tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all_ended).await.expect("both tasks end");
}

/// Pseudo-random bytes, so that a block lost, doubled or moved changes the sum.
fn block(n: u64, len: usize) -> Bytes {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes = (0..len).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    bytes.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_writes_more_than_it_reads_does_not_stop() {
    const TOTAL: usize = 12 * 1024 * 1024;
    let server = StandIn::start(V5, |mut socket, _| {
        async move {
            while let Some(data) = stdin(&mut socket).await {
                for _ in 0..4 {
                    say(&mut socket, 1, &data).await;
                }
            }
            say(&mut socket, 3, SUCCESS.as_bytes()).await;
        }
        .boxed()
    })
    .await;
    let cluster = server.cluster().await;
    let Streams { mut output, input, size: _size, .. } = open(&cluster, &exec(&["x"], false)).await;
    let writer = tokio::spawn(async move {
        for n in 0..TOTAL / 65536 {
            input.send(Input::Stdin(block(n as u64, 65536))).await.expect("taken");
        }
        input.send(Input::CloseStdin).await.expect("taken");
    });
    let mut received = 0;
    let end = loop {
        match timeout(PATIENCE, output.recv()).await.expect("no deadlock").expect("an end") {
            Output::Stdout(data) => received += data.len(),
            Output::Stderr(_) => panic!("no stderr"),
            Output::End(end) => break end,
        }
    };
    writer.await.expect("all was written");
    assert_eq!((received, end), (4 * TOTAL, StreamEnd::Success));
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_mib_each_way_arrive_whole() {
    const BLOCKS: u64 = 32 * 32;
    const BLOCK: usize = 32 * 1024;
    let sum = |seed: u64| {
        let mut context = Context::new(&SHA256);
        (0..BLOCKS).for_each(|n| context.update(&block(seed + n, BLOCK)));
        context.finish().as_ref().to_vec()
    };
    let (sums, mut received_sums) = mpsc::channel(1);
    let server = StandIn::start(V5, move |socket, _| {
        let sums = sums.clone();
        async move {
            let (mut sink, mut stream) = socket.split();
            let write = async {
                // Large messages: the adapter cuts them.
                for n in 0..BLOCKS / 8 {
                    let data: Vec<u8> = (0..8).flat_map(|i| block(7_000_000 + 8 * n + i, BLOCK)).collect();
                    sink.send(on(1, &data)).await.expect("the client reads");
                }
            };
            let read = async {
                let (mut context, mut count) = (Context::new(&SHA256), 0);
                loop {
                    match stream.next().await.expect("open").expect("no error") {
                        Message::Binary(data) if data[..] == [255, 0] => break,
                        Message::Binary(data) => {
                            assert!(data.len() <= BLOCK + 1, "a piece of {} bytes", data.len());
                            count += data.len() - 1;
                            context.update(&data[1..]);
                        }
                        _ => {}
                    }
                }
                sums.send((count, context.finish().as_ref().to_vec())).await.expect("told");
            };
            futures::join!(write, read);
            sink.send(on(3, SUCCESS.as_bytes())).await.expect("the client reads");
        }
        .boxed()
    })
    .await;
    let cluster = server.cluster().await;
    let Streams { mut output, input, size: _size, .. } = open(&cluster, &exec(&["x"], false)).await;
    let writer = tokio::spawn(async move {
        for n in 0..BLOCKS / 2 {
            let data = [block(2 * n, BLOCK), block(2 * n + 1, BLOCK)].concat();
            input.send(Input::Stdin(data.into())).await.expect("taken");
        }
        input.send(Input::CloseStdin).await.expect("taken");
    });
    let (mut context, mut count) = (Context::new(&SHA256), 0);
    let end = loop {
        match timeout(PATIENCE, output.recv()).await.expect("in time").expect("an end") {
            Output::Stdout(data) => {
                assert!(data.len() <= BLOCK, "a piece of {} bytes", data.len());
                count += data.len();
                context.update(&data);
            }
            Output::Stderr(_) => panic!("no stderr"),
            Output::End(end) => break end,
        }
    };
    writer.await.expect("all was written");
    assert_eq!(end, StreamEnd::Success);
    assert_eq!((count, context.finish().as_ref().to_vec()), (BLOCKS as usize * BLOCK, sum(7_000_000)));
    let (there, sum_there) = received_sums.recv().await.expect("a sum");
    assert_eq!((there, sum_there), (BLOCKS as usize * BLOCK, sum(0)));
}

#[tokio::test]
async fn the_request_names_what_was_asked_and_outputs_stay_apart() {
    let server = StandIn::start(V5, |mut socket, path| {
        async move {
            for channel in [1, 2, 3] {
                say(&mut socket, channel, b"").await;
            }
            say(&mut socket, 1, path.as_bytes()).await;
            say(&mut socket, 2, b"err").await;
            let (first, second) = r#"{"status":"Failure","reason":"NonZeroExitCode",|"details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#
                .split_once('|')
                .expect("two pieces");
            say(&mut socket, 3, first.as_bytes()).await;
            say(&mut socket, 3, second.as_bytes()).await;
            socket.close(None).await.expect("closes");
        }
        .boxed()
    })
    .await;
    let cluster = server.cluster().await;
    let mut streams = open(&cluster, &exec(&["/bin/sh", "a b&c"], false)).await;
    assert!(streams.half_close);
    let Output::Stdout(path) = next(&mut streams).await else { panic!("no stdout first") };
    let path = String::from_utf8(path.to_vec()).expect("text");
    let (path, query) = path.split_once('?').expect("a query");
    assert_eq!(path, "/api/v1/namespaces/ns/pods/pod/exec");
    for wanted in ["stdin=true", "stdout=true", "stderr=true", "container=shell", "command=%2Fbin%2Fsh&command=a+b%26c"]
    {
        assert!(query.contains(wanted), "{query}");
    }
    assert!(!query.contains("tty"), "{query}");
    assert!(matches!(next(&mut streams).await, Output::Stderr(err) if err == "err"));
    assert!(matches!(next(&mut streams).await, Output::End(StreamEnd::ExitCode(7))));
    no_tasks(&cluster).await;
}

#[tokio::test]
async fn without_a_status_nothing_ended_well() {
    let close = |code, reason: &'static str| Some(CloseFrame { code, reason: reason.into() });
    for (frame, wanted) in [
        (close(CloseCode::Normal, "bye"), "1000 bye"),
        (close(CloseCode::Error, "kubelet gone"), "kubelet gone"),
        (None, "without a status"),
    ] {
        let server = StandIn::start(V5, move |mut socket, _| {
            let frame = frame.clone();
            async move {
                say(&mut socket, 1, b"out").await;
                say(&mut socket, 3, b"{\"status\":").await;
                socket.close(frame).await.expect("closes");
            }
            .boxed()
        })
        .await;
        let cluster = server.cluster().await;
        let mut streams = open(&cluster, &exec(&["x"], false)).await;
        let StreamEnd::Lost(why) = end(&mut streams).await else { panic!("not lost") };
        assert!(why.contains(wanted), "{why}");
    }
    // Cut in the middle, as by kill -9.
    let server = StandIn::start(V5, |mut socket, _| async move { say(&mut socket, 1, b"out").await }.boxed()).await;
    let cluster = server.cluster().await;
    let mut streams = open(&cluster, &exec(&["x"], false)).await;
    assert!(matches!(end(&mut streams).await, StreamEnd::Lost(_)));
    no_tasks(&cluster).await;
}

#[tokio::test]
async fn a_status_counts_even_where_the_connection_breaks_behind_it() {
    let server = StandIn::start(V5, |mut socket, _| {
        async move {
            say(&mut socket, 3, SUCCESS.as_bytes()).await;
            say(&mut socket, 1, b"late").await;
        }
        .boxed()
    })
    .await;
    let cluster = server.cluster().await;
    let mut streams = open(&cluster, &exec(&["x"], false)).await;
    assert!(matches!(next(&mut streams).await, Output::Stdout(late) if late == "late"));
    assert_eq!(end(&mut streams).await, StreamEnd::Success);
}

#[tokio::test]
async fn with_v4_the_end_of_stdin_is_kept_and_the_output_lives() {
    let server = StandIn::start(V4, |mut socket, _| {
        async move {
            assert_eq!(stdin(&mut socket).await.expect("data"), "in");
            say(&mut socket, 1, b"out").await;
            say(&mut socket, 3, SUCCESS.as_bytes()).await;
        }
        .boxed()
    })
    .await;
    let cluster = server.cluster().await;
    let mut streams = open(&cluster, &exec(&["x"], false)).await;
    assert!(!streams.half_close);
    streams.input.send(Input::Stdin("in".into())).await.expect("taken");
    streams.input.send(Input::CloseStdin).await.expect("taken");
    assert!(matches!(next(&mut streams).await, Output::Stdout(out) if out == "out"));
    assert_eq!(end(&mut streams).await, StreamEnd::Success);
}

#[tokio::test]
async fn the_newest_size_goes_before_waiting_stdin() {
    let server = StandIn::start(V5, |mut socket, path| {
        async move {
            assert!(path.contains("tty=true") && !path.contains("stderr"), "{path}");
            let mut seen = Vec::new();
            while seen.len() < 2 {
                if let Message::Binary(data) = socket.next().await.expect("open").expect("no error") {
                    seen.push(data);
                }
            }
            let resize: &[u8] = b"\x04{\"Width\":132,\"Height\":50}";
            assert_eq!(seen, [resize, b"\0typed"]);
            say(&mut socket, 3, SUCCESS.as_bytes()).await;
        }
        .boxed()
    })
    .await;
    let cluster = server.cluster().await;
    let mut streams = open(&cluster, &exec(&["x"], true)).await;
    // Both before the writer runs: one thread, no await between.
    streams.input.try_send(Input::Stdin("typed".into())).expect("room");
    streams.size.send_replace(Some((80, 24)));
    streams.size.send_replace(Some((132, 50)));
    assert_eq!(end(&mut streams).await, StreamEnd::Success);
}

#[tokio::test]
async fn dropping_the_streams_closes_the_connection() {
    let (closed, mut close) = mpsc::channel(1);
    let server = StandIn::start(V5, move |mut socket, _| {
        let closed = closed.clone();
        async move {
            while let Some(Ok(message)) = socket.next().await {
                if message.is_close() {
                    break;
                }
            }
            closed.send(()).await.expect("told");
        }
        .boxed()
    })
    .await;
    let cluster = server.cluster().await;
    let streams = open(&cluster, &exec(&["x"], false)).await;
    assert_eq!(cluster.tasks(), 2);
    drop(streams);
    timeout(PATIENCE, close.recv()).await.expect("in time").expect("the server sees it");
    no_tasks(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_output_and_unread_stdin_do_not_stop_the_other_direction() {
    let server = StandIn::start(V5, |socket, _| {
        async move {
            // Never reads, always writes.
            let (mut sink, _stream) = socket.split();
            while sink.send(on(1, &vec![b'x'; 32768])).await.is_ok() {}
        }
        .boxed()
    })
    .await;
    let cluster = server.cluster().await;
    let Streams { mut output, input, size, .. } = open(&cluster, &exec(&["x"], true)).await;
    // Fill the way in until nothing moves.
    let full = async { while input.send(Input::Stdin(block(1, 32768))).await.is_ok() {} };
    assert!(timeout(Duration::from_millis(500), full).await.is_err(), "stdin is bounded");
    size.send_replace(Some((1, 1)));
    // Output still flows, far more than any buffer holds.
    let mut received = 0;
    while received < 64 * 1024 * 1024 {
        match timeout(PATIENCE, output.recv()).await.expect("output flows").expect("open") {
            Output::Stdout(data) => received += data.len(),
            other => panic!("{other:?}"),
        }
    }
    drop((output, input, size));
    no_tasks(&cluster).await;
}
