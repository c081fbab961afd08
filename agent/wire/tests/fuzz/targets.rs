//! What a fuzzer calls: bytes in, and nothing but a panic can come of it. `fuzz/` has the targets for cargo-fuzz, and
//! `main.rs` beside this runs the same functions over its corpus and seeded mutations.

use bytes::BytesMut;
use podbay_agent_wire::{
    client::{self, Client, Event, ResumeFrom},
    frame::{MAX_TO_AGENT, MAX_TO_BACKEND, decode_all},
    host::{self, Action, Host, Out, Stdin},
    id::{Attempt, Instance, SessionId},
    program::{Exit, Start},
    proto::{ToAgent, ToBackend},
};
use std::time::{Duration, Instant};

/// The most that one side writes at a time here.
const TARGET: usize = 4096;

/// The decoder of the agent's bytes.
pub fn decode_to_backend(bytes: &[u8]) {
    let _ = decode_all::<ToBackend>(bytes, MAX_TO_BACKEND);
}

/// The decoder of the backend's bytes.
pub fn decode_to_agent(bytes: &[u8]) {
    let _ = decode_all::<ToAgent>(bytes, MAX_TO_AGENT);
}

/// The backend's end under an agent's bytes: the first byte says in what pieces they come.
///
/// # Panics
/// Where output comes beyond what was granted.
pub fn backend_end(bytes: &[u8]) {
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    let mut now = Instant::now();
    let mut client = Client::new(client::Config::default());
    for n in 0..2 {
        let from = ResumeFrom { stdout: 0, stdout_credit: 5000, stderr: 0, stderr_credit: 5000 };
        client.start(SessionId([n; 16]), Attempt::new(1), &Start::new(["x"]), from);
    }
    client.list(None);
    client.connected(now);
    let mut out = BytesMut::new();
    for chunk in bytes.chunks(usize::from(piece) * 8 + 1) {
        now += Duration::from_millis(10);
        let over = client.receive(chunk, now).is_err() || client.ended().is_some();
        while let Some(event) = client.next_event() {
            match event {
                Event::Started { key, stdin_offset, stdin_credit, .. } if stdin_credit > stdin_offset => {
                    let _ = client.stdin(key, stdin_offset, b"x");
                    let _ = client.signal(key, 1, "TERM", now + Duration::from_secs(1));
                }
                Event::Data { key, stream, offset, data } => {
                    assert!(offset + data.len() as u64 <= 5000, "beyond the credit");
                    client.ack(key, stream, offset + data.len() as u64);
                }
                _ => {}
            }
        }
        out.clear();
        client.transmit(&mut out, TARGET, now);
        if over {
            client.disconnected();
            return;
        }
    }
}

/// The pod's end under a backend's bytes, with programs that take and give a little.
///
/// # Panics
/// Where its memory or its programs are more than its bounds.
pub fn agent_end(bytes: &[u8]) {
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    let mut now = Instant::now();
    let mut config = host::Config::new(Instance([1; 16]));
    config.budget = 1 << 20;
    config.max_programs = 3;
    let mut host = Host::new(config);
    let Some(link) = host.link_opened(now) else { return };
    let (mut running, mut out) = (Vec::new(), BytesMut::new());
    for chunk in bytes.chunks(usize::from(piece) * 8 + 1) {
        now += Duration::from_secs(1);
        host.receive(link, chunk, now);
        host.tick(now);
        while let Some(action) = host.next_action() {
            match action {
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
                let len = host.stdin(program).0.len().min(100);
                host.stdin_written(program, len);
            }
            let room = host.output_room(program, Out::Stdout).min(100);
            host.output(program, Out::Stdout, &[1; 100][..room]);
        }
        if running.len() > 1
            && let Some(program) = running.pop()
        {
            host.exited(program, Exit::Code(1), now);
            host.output_ended(program, Out::Stdout);
            host.output_ended(program, Out::Stderr);
        }
        out.clear();
        host.transmit(link, &mut out, TARGET, now);
        assert!(host.budget().used() <= 1 << 20 && host.programs() <= 3, "beyond the bounds");
        if host.is_closing(link) {
            host.link_closed(link, now);
            return;
        }
    }
}
