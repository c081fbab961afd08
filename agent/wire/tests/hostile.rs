//! Peers that send anything: messages and frames that are well formed and make no sense, in any order, and bytes that are nothing.
//! Nothing panics, nothing grows beyond its bounds, and a peer's nonsense ends no more than its own link.

use bytes::{BufMut as _, Bytes, BytesMut};
use podbay_agent_wire::{
    client::{Client, Config as ClientConfig, Event, ResumeFrom},
    frame::{MAGIC, Stream, data_header, put_ack, put_control, put_credit, put_end},
    host::{Action, Config, Host, Out, Refusal, Stdin},
    id::{Attempt, Instance, SessionId},
    program::{Exit, Size, Start},
    proto::{self, Reason, ToAgent, ToBackend, to_agent, to_backend},
};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..4, 2 => 0u64..100_000, 1 => Just(u64::MAX), 1 => Just(1 << 62), 1 => Just(1 << 63), 1 => any::<u64>()]
}

fn program() -> impl Strategy<Value = u32> {
    prop_oneof![9 => 0u32..3, 1 => Just(65_535), 1 => Just(70_000)]
}

fn id() -> impl Strategy<Value = Bytes> {
    prop_oneof![8 => (0u8..3).prop_map(|n| Bytes::from(vec![n; 16])), 1 => Just(Bytes::new()), 1 => Just(Bytes::from_static(b"short"))]
}

fn output_state() -> impl Strategy<Value = Option<proto::OutputState>> {
    let state = (number(), number(), number(), number());
    proptest::option::of(state.prop_map(|(stdout, stdout_credit, stderr, stderr_credit)| proto::OutputState {
        stdout,
        stdout_credit,
        stderr,
        stderr_credit,
    }))
}

fn start() -> impl Strategy<Value = proto::Start> {
    let parts = (program(), id(), number(), output_state(), any::<bool>(), 0i32..5, number(), number());
    parts.prop_map(|(program, session, attempt, from, pty, mode, a, b)| proto::Start {
        program,
        session,
        attempt,
        argv: vec!["x".into()],
        pty: pty.then(proto::Pty::default),
        output: Some(proto::OutputPolicy { mode, max_bytes: a, then: mode / 2 }),
        from,
        hangup: Some(proto::Hangup { term_after_ms: a, kill_after_ms: b }),
        orphan_timeout_ms: b,
        limit_ms: b,
        ..proto::Start::default()
    })
}

fn to_agent() -> impl Strategy<Value = to_agent::Message> {
    use to_agent::Message;
    prop_oneof![
        3 => start().prop_map(Message::Start),
        2 => (program(), id(), number(), any::<bool>(), id(), output_state()).prop_map(
            |(program, session, attempt, take_over, instance, from)| {
                let instance = if take_over { Bytes::new() } else { instance };
                Message::Attach(proto::Attach { program, session, attempt, take_over, instance, from })
            }
        ),
        1 => (program(), number(), number()).prop_map(|(program, id, offset)| Message::Eof(proto::Eof { program, id, offset })),
        1 => (program(), number()).prop_map(|(program, id)| {
            Message::Signal(proto::Signal { program, id, name: "TERM".into(), deadline_ms: id })
        }),
        1 => (program(), number()).prop_map(|(program, id)| Message::Resize(proto::Resize { program, id, size: None })),
        1 => (program(), number()).prop_map(|(program, keep_ms)| Message::Detach(proto::Detach { program, keep_ms })),
        1 => program().prop_map(|program| Message::Release(proto::Release { program })),
        1 => id().prop_map(|session| Message::AckExit(proto::AckExit { session })),
        1 => id().prop_map(|session| Message::List(proto::List { id: 1, session })),
        1 => (number(), id()).prop_map(|(offset, data)| {
            Message::WriteFile(proto::WriteFile { id: 1, path: "/x".into(), mode: 1, offset, data, last: offset > 2 })
        }),
        1 => number().prop_map(|id| Message::Ping(proto::Ping { id })),
    ]
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Stdin), Just(Stream::Stdout), Just(Stream::Stderr)]
}

/// Frames, encoded.
fn frames(messages: impl Strategy<Value = BytesMut>) -> impl Strategy<Value = BytesMut> {
    let data = (0u16..3, stream(), number(), 1usize..3000).prop_map(|(program, stream, offset, len)| {
        let mut out = BytesMut::from(&data_header(program, stream, offset, len)[..]);
        out.put_bytes(7, len);
        out
    });
    let small = (0u16..3, stream(), number(), 0..3).prop_map(|(program, stream, offset, which)| {
        let mut out = BytesMut::new();
        match which {
            0 => put_credit(program, stream, offset, &mut out),
            1 => put_ack(program, stream, offset, &mut out),
            _ => put_end(program, stream, offset, &mut out),
        }
        out
    });
    prop_oneof![4 => messages, 3 => data, 3 => small]
}

fn agent_frame() -> impl Strategy<Value = BytesMut> {
    frames(to_agent().prop_map(|message| {
        let mut out = BytesMut::new();
        put_control(&ToAgent { message: Some(message) }, &mut out);
        out
    }))
}

fn backend_frame() -> impl Strategy<Value = BytesMut> {
    use to_backend::Message;
    let status = prop_oneof![
        (0u32..300).prop_map(|code| Some(proto::exit_status::End::Code(code))),
        Just(Some(proto::exit_status::End::Signal("TERM".into()))),
        Just(None),
    ];
    let message = prop_oneof![
        4 => (program(), number(), number(), number(), any::<bool>()).prop_map(|(program, attempt, stdin_offset, stdin_credit, b)| {
            Message::Started(proto::Started {
                program, attempt, stdin_offset, stdin_credit, resumed: b, stdin_ended: b, pid: 1, terminal: !b, ran_ms: attempt, ended: b,
            })
        }),
        1 => (program(), number(), 0i32..99).prop_map(|(program, id, refusal)| {
            Message::Answer(proto::Answer { program, id, refusal, message: String::new() })
        }),
        1 => (program(), any::<bool>(), number(), number()).prop_map(|(program, stderr, from, to)| {
            Message::Gap(proto::Gap { program, stderr, from, to })
        }),
        1 => (program(), status, any::<bool>()).prop_map(|(program, end, stopping)| {
            let status = Some(proto::ExitStatus { end, ..Default::default() });
            Message::Exit(proto::Exit { program, status, stopping })
        }),
        1 => (program(), 0i32..99).prop_map(|(program, reason)| {
            Message::Closed(proto::Closed { program, reason, message: String::new() })
        }),
        1 => (id(), 0i32..99).prop_map(|(session, refusal)| Message::Forgotten(proto::Forgotten { session, refusal })),
        1 => number().prop_map(|id| Message::Sessions(proto::Sessions { id, sessions: vec![] })),
        1 => number().prop_map(|id| Message::FileWritten(proto::FileWritten { id, refusal: 0, message: String::new() })),
        1 => number().prop_map(|id| Message::Pong(proto::Pong { id })),
    ];
    frames(message.prop_map(|message| {
        let mut out = BytesMut::new();
        put_control(&ToBackend { message: Some(message) }, &mut out);
        out
    }))
}

fn hello(out: &mut BytesMut) {
    out.put_slice(&MAGIC);
    let hello = proto::BackendHello { version: 1, min_version: 1, features: 0, name: String::new() };
    put_control(&ToAgent { message: Some(to_agent::Message::Hello(hello)) }, out);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_host_survives_its_peers(frames in prop::collection::vec((agent_frame(), 0u8..8), 1..80)) {
        let mut config = Config::new(Instance([1; 16]));
        config.budget = 1 << 20;
        config.max_programs = 3;
        config.tombstones = 2;
        let mut host = Host::new(config);
        let mut now = Instant::now();
        let mut link = None;
        let mut running = Vec::new();
        let mut out = BytesMut::new();
        for (frame, what) in frames {
            now += Duration::from_secs(u64::from(what) * 7);
            let usable = link.is_some_and(|link| !host.is_closing(link));
            if !usable {
                if let Some(link) = link { host.link_closed(link, now); }
                link = host.link_opened(now);
                let mut bytes = BytesMut::new();
                hello(&mut bytes);
                host.receive(link.expect("room"), &bytes, now);
            }
            let key = link.expect("a link");
            host.receive(key, &frame, now);
            host.tick(now);
            while let Some(action) = host.next_action() {
                match action {
                    Action::Spawn { program, .. } if what == 0 => {
                        host.spawned(program, Err(Refusal { reason: Reason::NotFound, message: "no".into() }), now);
                    }
                    Action::Spawn { program, .. } => {
                        host.spawned(program, Ok(1), now);
                        running.push(program);
                    }
                    Action::Signal { program, request: Some(request), .. } | Action::Resize { program, request, .. } => {
                        host.answered(program, request, Ok(()));
                    }
                    Action::Forget { program, .. } => running.retain(|running| *running != program),
                    Action::Signal { request: None, .. } | Action::WriteFile { .. } => {}
                }
            }
            for &program in &running {
                if host.stdin_state(program) == Stdin::Data {
                    let len = host.stdin(program).0.len();
                    host.stdin_written(program, len.min(100));
                }
                for which in [Out::Stdout, Out::Stderr] {
                    let room = host.output_room(program, which).min(500);
                    if room > 0 { host.output(program, which, &vec![1; room]); }
                }
            }
            if what == 1 && let Some(program) = running.pop() {
                host.exited(program, Exit::Code(1), now);
                host.output_ended(program, Out::Stdout);
                host.output_ended(program, Out::Stderr);
            }
            out.clear();
            host.transmit(key, &mut out, 5000, now);
            prop_assert!(out.len() < 5000 + 40_000);
            prop_assert!(host.budget().used() <= 1 << 20);
            prop_assert!(host.programs() <= 3);
        }
    }

    #[test]
    fn a_client_survives_its_agent(frames in prop::collection::vec(backend_frame(), 1..40)) {
        let now = Instant::now();
        let mut client = Client::new(ClientConfig::default());
        let mut keys = Vec::new();
        for n in 0..3 {
            let from = ResumeFrom { stdout: 0, stdout_credit: 5000, stderr: 0, stderr_credit: 5000 };
            keys.push(client.start(SessionId([n; 16]), Attempt::new(1), &Start::new(["x"]), from));
        }
        for chunk in frames.chunks(8) {
            client.connected(now);
            let mut bytes = BytesMut::from(&MAGIC[..]);
            let hello = proto::AgentHello { version: 1, min_version: 1, instance: vec![1; 16].into(), ..Default::default() };
            put_control(&ToBackend { message: Some(to_backend::Message::Hello(hello)) }, &mut bytes);
            prop_assert_eq!(client.receive(&bytes, now), Ok(()));
            for frame in chunk {
                let mut out = BytesMut::new();
                client.transmit(&mut out, 5000, now);
                let over = client.receive(frame, now).is_err();
                let mut credits = Vec::new();
                while let Some(event) = client.next_event() {
                    match event {
                        Event::Started { key, stdin_offset, stdin_credit, .. } => credits.push((key, stdin_offset, stdin_credit)),
                        Event::Data { key, stream, offset, data } => {
                            let end = offset + data.len() as u64;
                            prop_assert!(end <= 5000, "within the credit, but for gaps");
                            client.ack(key, stream, end);
                        }
                        _ => {}
                    }
                }
                for (key, offset, credit) in credits {
                    prop_assert!(credit - offset <= 256 * 1024);
                    let len = (credit - offset).min(3000) as usize;
                    if len > 0 { prop_assert!(client.stdin(key, offset, &vec![2; len]).is_ok()); }
                    let _ = client.signal(key, 1, "TERM", now + Duration::from_secs(9));
                    let _ = client.resize(key, 2, Size::default(), now + Duration::from_secs(9));
                    let _ = client.eof(key, 3, offset + len as u64);
                }
                if over { break }
            }
        }
    }
}
