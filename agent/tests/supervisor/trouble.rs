//! Peers that mean harm or know no better, and files.

use crate::pod::{Pod, noise, sh, until};
use bytes::{Bytes, BytesMut};
use podbay_agent_wire::{
    frame::{FrameError, MAGIC, Stream, data_header, header, put_ack, put_control, put_credit},
    program::Exit,
    proto::{self, Reason, ToAgent, to_agent},
};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    time::Duration,
};

fn hello() -> BytesMut {
    let mut bytes = BytesMut::from(&MAGIC[..]);
    let hello = proto::BackendHello { version: 1, min_version: 1, features: 0, name: String::new() };
    put_control(&ToAgent { message: Some(to_agent::Message::Hello(hello)) }, &mut bytes);
    bytes
}

/// Sends bytes and reads until the supervisor closes.
fn closes(pod: &Pod, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(pod.socket()).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    // It may close before all is written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it closes"),
    }
    answer
}

#[test]
fn hostile_bytes_end_their_own_link_and_nothing_else() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let key = backend.start(1, &sh("cat; exit 5"));
    backend.until("it runs", |backend| backend.seen(key).started);
    let mut cases: Vec<Vec<u8>> = (1..40).map(|seed| noise(seed as usize * 97, seed)).collect();
    cases.push(b"GET / HTTP/1.1\r\n\r\n".to_vec());
    // A frame before the hello; lengths that lie; kinds and streams that do not exist; a control message of 2^64 bytes.
    cases.push([&MAGIC[..], &data_header(0, Stream::Stdin, 0, 5), b"hello"].concat());
    for bad in [header(0x01, 0, 0, u64::MAX), header(0x01, 0, 0, 1 << 20), header(0x10, 0, 0, 0), header(0x7f, 1, 2, 3)]
    {
        cases.push([&hello()[..], &bad].concat());
    }
    cases.push([&hello()[..], &data_header(0, Stream::Stdout, 0, 5), b"hello"].concat());
    let mut twice = hello();
    twice.extend_from_slice(&hello()[MAGIC.len()..]);
    cases.push(twice.to_vec());
    for case in &cases {
        let answer = closes(&pod, case);
        assert!(answer.starts_with(&MAGIC) || answer.is_empty());
    }
    let seen = backend.seen.get_mut(&key).expect("known");
    seen.stdin = b"still here".to_vec();
    seen.eof = true;
    assert_eq!(backend.exit(key, 1), Exit::Code(5));
    assert_eq!(backend.text(key), "still here");
    assert!(pod.memory() < 10_000, "{} KiB", pod.memory());
}

#[test]
fn frames_for_others_programs_do_nothing() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let key = backend.start(1, &sh("cat; exit 5"));
    backend.until("it runs", |backend| backend.seen(key).started);
    // A peer that has no program writes to the numbers of another's, and floods with requests whose answers it does not read.
    let mut bytes = hello();
    for number in 0..50 {
        bytes.extend_from_slice(&data_header(number, Stream::Stdin, 0, 4));
        bytes.extend_from_slice(b"evil");
        put_credit(number, Stream::Stdout, u64::MAX, &mut bytes);
        put_ack(number, Stream::Stdout, u64::MAX, &mut bytes);
        let program = number.into();
        for message in [
            to_agent::Message::Signal(proto::Signal { program, id: 1, name: "KILL".into(), deadline_ms: 1 }),
            to_agent::Message::Eof(proto::Eof { program, id: 1, offset: 0 }),
            to_agent::Message::Release(proto::Release { program }),
        ] {
            put_control(&ToAgent { message: Some(message) }, &mut bytes);
        }
    }
    let list = to_agent::Message::List(proto::List { id: 1, session: Bytes::new() });
    for _ in 0..20_000 {
        put_control(&ToAgent { message: Some(list.clone()) }, &mut bytes);
    }
    let mut stream = UnixStream::connect(pod.socket()).expect("connects");
    stream.set_nonblocking(true).expect("set");
    let mut sent = 0;
    // As much as it takes.
    let mut idle = 0;
    while idle < 50 && sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(len) => (sent, idle) = (sent + len, 0),
            Err(_) => idle += 1,
        }
        backend.step();
    }
    let seen = backend.seen.get_mut(&key).expect("known");
    seen.stdin = b"mine".to_vec();
    seen.eof = true;
    assert_eq!(backend.exit(key, 1), Exit::Code(5));
    assert_eq!(backend.text(key), "mine");
    assert!(pod.memory() < 10_000, "{} KiB", pod.memory());
}

#[test]
fn a_peer_that_is_no_agent_is_told_from_a_broken_one() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    backend.connects = false;
    backend.client.connected(std::time::Instant::now());
    let error = backend.client.receive(b"Usage: something else\n", std::time::Instant::now());
    assert_eq!(
        error.map_err(|error| error.to_string()),
        Err(FrameError::NotAnAgent("Usage: something else".into()).to_string())
    );
}

#[test]
fn links_that_do_nothing_keep_nobody_out() {
    let pod = Pod::new();
    let mut first = pod.backend();
    let kept = first.start(1, &sh("cat"));
    first.until("it runs", |backend| backend.seen(kept).started);
    let links: Vec<_> = (0..200).map(|_| UnixStream::connect(pod.socket()).expect("connects")).collect();
    let mut backend = pod.backend();
    let key = backend.start(2, &sh("exit 0"));
    assert_eq!(backend.exit(key, 2), Exit::Code(0));
    // Who has a program keeps its link.
    first.seen.get_mut(&kept).expect("known").eof = true;
    assert_eq!(first.exit(kept, 1), Exit::Code(0));
    assert_eq!(first.links, 1);
    drop(links);
}

#[test]
fn files_appear_whole_with_their_mode() {
    let pod = Pod::new();
    let mut backend = pod.backend();
    let path = pod.folder.path().join("new/folder/file");
    let data = Bytes::from(noise(1_000_000, 9));
    let name = || path.to_str().expect("text").to_owned();
    let first = backend.client.write_file(name(), 0o640, data.clone());
    let wrong = backend.client.write_file("/proc/nope/file", 0o600, Bytes::from_static(b"x"));
    let empty = backend.client.write_file(format!("{}.empty", name()), 0o600, Bytes::new());
    backend.until("all are answered", |backend| backend.files.len() == 3);
    backend.files.sort_by_key(|file| file.0);
    assert_eq!(backend.files, [(first, Ok(())), (wrong, Err(Reason::FileFailed)), (empty, Ok(()))]);
    assert!(fs::read(&path).expect("written") == data);
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o640);
    assert_eq!(fs::read(format!("{}.empty", name())).expect("written"), b"");
    let left = fs::read_dir(path.parent().expect("a folder")).expect("readable").count();
    until("nothing else is left", || left == 2);
}
