use super::{super::rules::MAX_DATA, *};
use podbay::{
    FRAME, MAX_CREDIT,
    v1::{Credit, Data, Eof, Exit, Resize, Signal, WindowSize, exit::End},
};
use proptest::prelude::*;

fn machine(stdout: u64, stderr: u64) -> Machine {
    let mut machine = Machine::new(false, Credits { stdout, stderr });
    machine.without_signals();
    machine.started(v1::Started::default());
    assert!(matches!(machine.next(), Some(Frame::Started(started)) if started.stdin_credit == MAX_CREDIT));
    machine
}

fn from(frame: FromClient) -> v1::RunSessionRequest {
    v1::RunSessionRequest { frame: Some(frame) }
}

fn data(offset: u64, len: usize) -> FromClient {
    FromClient::Data(Data { stream: Stream::Stdin.into(), offset, data: vec![b'x'; len].into() })
}

fn credit(stream: Stream, limit: u64) -> FromClient {
    FromClient::Credit(Credit { stream: stream.into(), limit })
}

fn exit(code: u32) -> Exit {
    Exit { end: Some(End::Code(code)) }
}

#[test]
fn what_breaks_the_protocol_is_told() {
    let wrong: Vec<(Vec<FromClient>, &str)> = vec![
        (vec![FromClient::Open(v1::Open::default())], "Open"),
        (vec![data(1, 1)], "offset 1"),
        (vec![data(0, 0)], "1 to 65536"),
        (vec![data(0, MAX_DATA + 1)], "1 to 65536"),
        ((0..5).map(|i| data(i * MAX_DATA as u64, MAX_DATA)).collect(), "beyond the credit"),
        (vec![credit(Stream::Stdout, MAX_CREDIT + 1)], "256 KiB"),
        (vec![credit(Stream::Stdin, 1)], "output only"),
        (vec![FromClient::Ack(v1::Ack { stream: Stream::Stdout.into(), offset: 1 })], "acknowledged"),
        (vec![FromClient::Signal(Signal { id: 0, ..Signal::default() })], "grow"),
        (vec![FromClient::Signal(Signal { id: 1, name: "x".repeat(33), deadline: None })], "32 bytes"),
        (vec![FromClient::Eof(Eof { stream: Stream::Stdout.into(), offset: 0, id: 1 })], "stdin only"),
        (vec![FromClient::Eof(Eof { stream: Stream::Stdin.into(), offset: 7, id: 1 })], "another offset"),
        (
            vec![FromClient::Eof(Eof { stream: Stream::Stdin.into(), offset: 0, id: 1 }), data(0, 1)],
            "the stream had ended",
        ),
        (vec![FromClient::Data(Data { stream: Stream::Stdout.into(), offset: 0, data: "x".into() })], "stdin only"),
    ];
    for (frames, words) in wrong {
        let mut machine = machine(0, 0);
        let refusal = frames.into_iter().map(|frame| machine.receive(from(frame))).find_map(Result::err);
        let refusal = refusal.unwrap_or_else(|| panic!("{words} was accepted"));
        assert_eq!(refusal.reason(), Reason::ProtocolViolation);
        assert!(refusal.message.contains(words), "{} / {words}", refusal.message);
    }
    let empty = machine(0, 0).receive(v1::RunSessionRequest { frame: None });
    assert_eq!(empty.expect_err("an empty frame").reason(), Reason::ProtocolViolation);
    let early = Machine::new(false, Credits { stdout: 0, stderr: 0 }).receive(from(data(0, 1)));
    assert_eq!(early.expect_err("data before Started").reason(), Reason::ProtocolViolation);
}

#[test]
fn signals_and_resizes_are_answered_though_nothing_flows() {
    let mut machine = Machine::new(true, Credits { stdout: 0, stderr: 0 });
    machine.without_signals();
    machine.started(v1::Started::default());
    machine.next();
    machine.stdout(vec![b'x'; HOLD].into());
    assert!(!machine.takes_output() && !machine.has_frame());
    assert!(machine.wants_credit());
    let resize = |id, columns| {
        from(FromClient::Resize(Resize {
            id,
            size: Some(WindowSize { columns, rows: 24, ..WindowSize::default() }),
            deadline: None,
        }))
    };
    let signal = from(FromClient::Signal(Signal { id: 1, name: "TERM".into(), deadline: None }));
    machine.receive(signal).expect("valid");
    machine.receive(resize(2, 80)).expect("valid");
    machine.receive(resize(3, 132)).expect("valid");
    let Some(Frame::Answer(answer)) = machine.next() else { panic!("no answer") };
    assert_eq!((answer.id, answer.refusal.expect("a refusal").reason()), (1, Reason::SignalNotDelivered));
    for id in [2, 3] {
        assert_eq!(machine.next(), Some(Frame::Answer(v1::Answer { id, refusal: None })));
    }
    assert_eq!((machine.take_resize(), machine.take_resize()), (Some((132, 24)), None));
    assert!(machine.receive(resize(4, 65536)).is_err());
}

#[test]
fn answers_are_bounded() {
    let mut machine = machine(0, 0);
    let mut id = 0;
    while machine.takes_frames() {
        id += 1;
        machine.receive(from(FromClient::Signal(Signal { id, name: "INT".into(), deadline: None }))).expect("valid");
    }
    assert_eq!(id, MAX_CONTROL as u64);
    machine.next();
    assert!(machine.takes_frames());
}

#[test]
fn one_output_without_credit_does_not_stop_the_other_until_it_is_full() {
    let mut machine = machine(MAX_CREDIT, 0);
    let mut stderr = 0;
    while machine.takes_output() {
        machine.stderr(vec![b'e'; 1000].into());
        machine.stdout("o".into());
        stderr += 1000;
        assert!(matches!(machine.next(), Some(Frame::Data(data)) if data.stream() == Stream::Stdout));
        assert_eq!(machine.next(), None);
    }
    assert!((HOLD..HOLD + 1000).contains(&stderr));
    machine.receive(from(credit(Stream::Stderr, 1500))).expect("valid");
    assert!(matches!(machine.next(), Some(Frame::Data(data)) if data.data.len() == 1000 && data.offset == 0));
    assert!(matches!(machine.next(), Some(Frame::Data(data)) if data.data.len() == 500 && data.offset == 1000));
    assert!(machine.takes_output());
}

#[test]
fn the_end_comes_after_all_output() {
    let mut machine = machine(3, 10);
    machine.stdout("abcdef".into());
    machine.stderr("e".into());
    machine.finish(exit(7));
    let mut frames = Vec::new();
    while let Some(frame) = machine.next() {
        frames.push(frame);
    }
    assert_eq!(frames.len(), 2, "{frames:?}");
    assert!(!machine.has_frame() && machine.wants_credit());
    machine.receive(from(credit(Stream::Stdout, 6))).expect("valid");
    let frames: Vec<_> = std::iter::from_fn(|| machine.next()).collect();
    let eof = |stream: Stream, offset| Frame::Eof(Eof { stream: stream.into(), offset, id: 0 });
    assert!(matches!(&frames[0], Frame::Data(data) if data.data == "def" && data.offset == 3));
    assert_eq!(frames[1..], [eof(Stream::Stdout, 6), eof(Stream::Stderr, 1), Frame::Exit(exit(7))]);
    assert!(machine.is_done() && !machine.has_frame());
}

#[test]
fn stdin_of_a_program_that_ended_is_dropped_and_its_credit_goes_on() {
    let mut machine = machine(0, 0);
    machine.finish(exit(0));
    for i in 0..100 {
        machine.receive(from(data(i * 60_000, 60_000))).expect("there is always credit");
        while machine.control.pop_front().is_some() {}
    }
    assert!(machine.stdin.is_empty());
}

#[test]
fn a_resize_without_terminal_is_refused_and_a_stderr_on_a_terminal_is_output() {
    let mut pipes = machine(0, 0);
    pipes.receive(from(FromClient::Resize(Resize { id: 1, ..Resize::default() }))).expect("valid");
    assert!(matches!(pipes.next(), Some(Frame::Answer(answer)) if answer.refusal.is_some()));
    let mut terminal = Machine::new(true, Credits { stdout: 10, stderr: 0 });
    terminal.stderr("sh: not found".into());
    assert!(!terminal.has_frame(), "no data before Started");
    terminal.started(v1::Started::default());
    terminal.next();
    assert!(matches!(terminal.next(), Some(Frame::Data(data)) if data.stream() == Stream::Stdout));
}

#[test]
fn a_terminals_input_ends_by_what_its_user_would_type() {
    for (typed, end) in
        [("", "\u{4}"), ("x\n", "\u{4}"), ("x\r", "\u{4}"), ("x", "\u{4}\u{4}"), ("x\u{16}", "\u{4}\u{4}\u{4}")]
    {
        let mut machine = Machine::new(true, Credits { stdout: 0, stderr: 0 });
        machine.started(v1::Started::default());
        let len = typed.len() as u64;
        if len > 0 {
            let data = Data { stream: Stream::Stdin.into(), offset: 0, data: typed.into() };
            machine.receive(from(FromClient::Data(data))).expect("valid");
        }
        machine
            .receive(from(FromClient::Eof(Eof { stream: Stream::Stdin.into(), offset: len, id: 1 })))
            .expect("valid");
        let given: Vec<_> = std::iter::from_fn(|| machine.take_input()).collect();
        assert_eq!(given.last(), Some(&Input::Stdin(end.into())), "{typed:?}");
        assert!(!given.contains(&Input::CloseStdin));
        assert_eq!(machine.bytes()[0], len, "the end is not the user's bytes");
    }
}

proptest! {
    /// Whatever the pieces, the credits and the order: both outputs arrive whole and in order, what is kept is bounded, and
    /// stdin is given whole, then its end.
    #[test]
    fn every_byte_arrives_in_order(
        pieces in prop::collection::vec((any::<bool>(), 1usize..5000), 0..60),
        stdin in prop::collection::vec(1usize..60_000, 0..30),
        grants in prop::collection::vec(1u64..100_000, 1..20),
    ) {
        let mut machine = machine(0, 0);
        let mut sent = [Vec::new(), Vec::new()];
        let mut received = [Vec::new(), Vec::new()];
        let (mut stdin_sent, mut stdin_given, mut credit_in, mut closed) = (0u64, 0u64, MAX_CREDIT, false);
        let (mut pieces, mut stdin) = (pieces.into_iter(), stdin.into_iter().peekable());
        let mut finished = false;
        let mut grants = grants.iter().cycle();
        for round in 0..100_000 {
            if machine.is_done() { break }
            prop_assert!(round < 99_999, "nothing moves");
            if machine.takes_output() && !finished {
                if let Some((err, len)) = pieces.next() {
                    let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + sent[usize::from(err)].len()) as u8).collect();
                    sent[usize::from(err)].extend_from_slice(&bytes);
                    if err { machine.stderr(bytes.into()) } else { machine.stdout(bytes.into()) }
                } else if stdin.peek().is_none() && closed {
                    machine.finish(exit(0));
                    finished = true;
                }
            }
            prop_assert!(machine.stdout.held < HOLD + 5000 && machine.stderr.held < HOLD + 5000);
            if let Some(&len) = stdin.peek() && stdin_sent + len as u64 <= credit_in {
                machine.receive(from(data(stdin_sent, len))).expect("within the credit");
                stdin_sent += len as u64;
                stdin.next();
                if stdin.peek().is_none() {
                    machine.receive(from(FromClient::Eof(Eof { stream: Stream::Stdin.into(), offset: stdin_sent, id: 1 }))).expect("valid");
                }
            } else if stdin_sent == 0 && stdin.peek().is_none() && machine.ids.is_new() {
                machine.receive(from(FromClient::Eof(Eof { stream: Stream::Stdin.into(), offset: 0, id: 1 }))).expect("valid");
            }
            match machine.take_input() {
                Some(Input::Stdin(bytes)) => stdin_given += bytes.len() as u64,
                Some(Input::CloseStdin) => closed = true,
                None => {}
            }
            match machine.next() {
                Some(Frame::Data(data)) => {
                    let out = &mut received[usize::from(data.stream() == Stream::Stderr)];
                    prop_assert_eq!(data.offset, out.len() as u64);
                    prop_assert!(data.data.len() <= FRAME);
                    out.extend_from_slice(&data.data);
                }
                Some(Frame::Credit(credit)) => credit_in = credit.limit,
                Some(_) => {}
                None => for (stream, out) in [(Stream::Stdout, &received[0]), (Stream::Stderr, &received[1])] {
                    let limit = out.len() as u64 + grants.next().copied().unwrap_or(1);
                    machine.receive(from(credit(stream, limit))).expect("valid");
                }
            }
        }
        prop_assert_eq!(received, sent);
        prop_assert_eq!((stdin_given, closed), (stdin_sent, true));
        prop_assert_eq!(machine.bytes()[0], stdin_sent);
    }
}

#[test]
fn a_signal_that_the_policy_forbids_is_answered_so() {
    use crate::policy::{Rule, Security};
    let signal = Rule { deny: vec!["KILL".into()], ..Rule::default() };
    let policy = Security { signal, ..Security::default() };
    let mut machine = Machine::new(false, Credits { stdout: 0, stderr: 0 }).under(&policy);
    let ask = |id, name: &str| from(FromClient::Signal(Signal { id, name: name.into(), deadline: None }));
    machine.receive(ask(1, "KILL")).expect("no violation");
    let Some(Frame::Answer(answer)) = machine.next() else { panic!("no answer") };
    assert_eq!((answer.id, answer.refusal.map(|refusal| refusal.reason())), (1, Some(Reason::Policy)));
    machine.receive(ask(2, "TERM")).expect("no violation");
    machine.started(v1::Started::default());
    assert_eq!(machine.take_signal().map(|signal| signal.name), Some("TERM".to_owned()));
    assert_eq!(machine.take_signal(), None);
}
