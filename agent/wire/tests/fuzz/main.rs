//! The fuzz targets of `fuzz/`, by the stable compiler and in a bounded time: its corpus, and seeded mutations of it. `PODBAY_FUZZ_RUNS`
//! says how many for each target, `PODBAY_WRITE_CORPUS=1` writes the corpus anew after a change of the protocol.

mod targets;

use bytes::{BufMut as _, BytesMut};
use podbay_agent_wire::{
    frame::{MAGIC, Stream, data_header, put_ack, put_control, put_credit, put_end},
    proto::{self, ToAgent, ToBackend, to_agent, to_backend},
};
use std::{fs, path::PathBuf};

type Target = fn(&[u8]);

/// Enough for each branch, and a few seconds on a slow machine.
const RUNS: usize = 4000;

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn data(program: u16, stream: Stream, offset: u64, len: usize, out: &mut BytesMut) {
    out.put_slice(&data_header(program, stream, offset, len));
    out.put_bytes(b'x', len);
}

/// What a backend says in a life of two programs.
fn from_backend() -> Vec<u8> {
    use to_agent::Message;
    let mut out = BytesMut::from(&MAGIC[..]);
    let mut say = |message| {
        let mut frame = BytesMut::new();
        put_control(&ToAgent { message: Some(message) }, &mut frame);
        out.unsplit(frame);
    };
    let session = |n: u8| bytes::Bytes::from(vec![n; 16]);
    say(Message::Hello(proto::BackendHello { version: 1, min_version: 1, features: 0, name: "b".into() }));
    for n in 0..3u8 {
        let output = Some(proto::OutputPolicy { mode: i32::from(n) + 1, max_bytes: 100, then: 3 });
        let from = Some(proto::OutputState { stdout: 0, stdout_credit: 200, stderr: 0, stderr_credit: 200 });
        let pty = (n == 2).then(proto::Pty::default);
        say(Message::Start(proto::Start {
            program: n.into(),
            session: session(n),
            attempt: 1 << 20,
            argv: vec!["x".into()],
            output,
            from,
            pty,
            ..proto::Start::default()
        }));
    }
    say(Message::Signal(proto::Signal { program: 0, id: 1, name: "TERM".into(), deadline_ms: 9 }));
    say(Message::Resize(proto::Resize { program: 2, id: 1, size: None }));
    say(Message::List(proto::List { id: 1, session: bytes::Bytes::new() }));
    say(Message::Ping(proto::Ping { id: 1 }));
    say(Message::Detach(proto::Detach { program: 1, keep_ms: 5000 }));
    say(Message::Attach(proto::Attach {
        program: 7,
        session: session(1),
        take_over: true,
        ..proto::Attach::default()
    }));
    say(Message::AckExit(proto::AckExit { session: session(2) }));
    let file = proto::WriteFile { id: 1, path: "/x".into(), mode: 384, offset: 0, data: "x".into(), last: true };
    say(Message::WriteFile(file));
    data(0, Stream::Stdin, 0, 300, &mut out);
    put_credit(0, Stream::Stdout, 400, &mut out);
    put_ack(0, Stream::Stdout, 50, &mut out);
    let end = to_agent::Message::Eof(proto::Eof { program: 0, id: 2, offset: 300 });
    put_control(&ToAgent { message: Some(end) }, &mut out);
    let release = to_agent::Message::Release(proto::Release { program: 0 });
    put_control(&ToAgent { message: Some(release) }, &mut out);
    out.to_vec()
}

/// What an agent says to a backend that has begun two.
fn from_agent() -> Vec<u8> {
    use to_backend::Message;
    let mut out = BytesMut::from(&MAGIC[..]);
    let say = |message, out: &mut BytesMut| put_control(&ToBackend { message: Some(message) }, out);
    let instance = vec![1; 16].into();
    let hello = proto::AgentHello { version: 1, min_version: 1, instance, ..proto::AgentHello::default() };
    say(Message::Hello(hello), &mut out);
    // Numbers are the client's: 0 or 1 first, by its choice.
    for program in 0..3 {
        let started =
            proto::Started { program, attempt: 1 << 20, stdin_credit: 300, pid: 1, ..proto::Started::default() };
        say(Message::Started(started), &mut out);
        data(program as u16, Stream::Stdout, 0, 300, &mut out);
        say(Message::Gap(proto::Gap { program, stderr: true, from: 0, to: 9 }), &mut out);
        data(program as u16, Stream::Stderr, 9, 30, &mut out);
        put_credit(program as u16, Stream::Stdin, 600, &mut out);
        put_ack(program as u16, Stream::Stdin, 1, &mut out);
        let answer = proto::Answer { program, id: 1, refusal: 16, message: "m".into() };
        say(Message::Answer(answer), &mut out);
        put_end(program as u16, Stream::Stdout, 300, &mut out);
        put_end(program as u16, Stream::Stderr, 39, &mut out);
        let end = Some(proto::exit_status::End::Signal("TERM".into()));
        let status = Some(proto::ExitStatus { end, ..proto::ExitStatus::default() });
        say(Message::Exit(proto::Exit { program, status, stopping: false }), &mut out);
    }
    let one = proto::Session { session: vec![1; 16].into(), ..proto::Session::default() };
    say(Message::Sessions(proto::Sessions { id: 1, sessions: vec![one] }), &mut out);
    say(Message::Pong(proto::Pong { id: 1 }), &mut out);
    say(Message::Closed(proto::Closed { program: 1, reason: 3, message: "m".into() }), &mut out);
    out.to_vec()
}

fn seeds(target: &str, whole: &[u8], pieces: &[u8]) -> Vec<Vec<u8>> {
    let own: Vec<Vec<u8>> = match pieces {
        [] => vec![whole.to_vec()],
        pieces => pieces.iter().map(|piece| [&[*piece], whole].concat()).collect(),
    };
    let folder = corpus(target);
    if std::env::var_os("PODBAY_WRITE_CORPUS").is_some() {
        fs::create_dir_all(&folder).expect("a folder");
        for (n, seed) in own.iter().enumerate() {
            fs::write(folder.join(format!("life-{n}")), seed).expect("writes");
        }
    }
    let mut all = own;
    let mut files: Vec<_> =
        fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    all.extend(files.iter().map(|file| fs::read(file).expect("reads")));
    all
}

/// Not random: a failure comes again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap_or(0)
    }
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(7) {
            0 => bytes.truncate(at + 1),
            1 => bytes.insert(at, [0, 1, 0x7f, 0x80, 0xff][dice.below(5)]),
            2 => {
                let end = (at + 1 + dice.below(40)).min(bytes.len());
                drop(bytes.drain(at..end));
            }
            3 => {
                let from = dice.below(other.len());
                let piece = other[from..(from + 1 + dice.below(80)).min(other.len())].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            4 => {
                let end = (at + 1 + dice.below(80)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.extend(piece);
            }
            _ if bytes.is_empty() => {}
            5 => bytes[at] ^= 1 << dice.below(8),
            _ => bytes[at] = [0, 1, 2, 0x10, 0x20, 0x7f, 0x80, 0xff][dice.below(8)],
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
}

fn holds(target: &str, run: Target, whole: &[u8], pieces: &[u8]) {
    let seeds = seeds(target, whole, pieces);
    let runs = std::env::var("PODBAY_FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().expect("a number"));
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for seed in &seeds {
        run(seed);
    }
    for n in 0..runs {
        let mut bytes = seeds[n % seeds.len()].clone();
        let other = &seeds[dice.below(seeds.len())];
        if n % 8 == 7 {
            bytes = (0..dice.below(600)).map(|_| dice.below(256) as u8).collect();
        } else {
            mutate(&mut bytes, other, &mut dice);
        }
        let copy = bytes.clone();
        let held = std::panic::catch_unwind(move || run(&copy)).is_ok();
        assert!(held, "run {n} of {target}: put these bytes into fuzz/corpus/{target}: {bytes:02x?}");
    }
}

const PIECES: [u8; 3] = [0, 3, 255];

#[test]
fn the_decoder_of_an_agents_bytes() {
    holds("decode_to_backend", targets::decode_to_backend, &from_agent(), &[]);
}

#[test]
fn the_decoder_of_a_backends_bytes() {
    holds("decode_to_agent", targets::decode_to_agent, &from_backend(), &[]);
}

#[test]
fn the_backends_end() {
    holds("backend_end", targets::backend_end, &from_agent(), &PIECES);
}

#[test]
fn the_agents_end() {
    holds("agent_end", targets::agent_end, &from_backend(), &PIECES);
}
