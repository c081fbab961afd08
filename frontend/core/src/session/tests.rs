use super::*;
use podbay::MAX_CREDIT;
use podbay::v1::{Ack, Credit, Data, Eof, Exit, ResumeFrom, Signal, Started};
use proptest::prelude::*;

fn from(frame: In) -> v1::RunSessionResponse {
    v1::RunSessionResponse { frame: Some(frame) }
}

fn started(durable: bool, offset: u64, credit: u64) -> v1::RunSessionResponse {
    from(In::Started(Started { durable, stdin_offset: offset, stdin_credit: credit, ..Started::default() }))
}

fn running(durable: bool) -> ClientSession {
    let mut session = ClientSession::new(false);
    session.receive(started(durable, 0, MAX_CREDIT)).expect("valid");
    session
}

fn signal(id: u64) -> Out {
    Out::Signal(Signal { id, name: "TERM".into(), deadline: None })
}

fn frames(session: &mut ClientSession) -> Vec<Out> {
    std::iter::from_fn(|| session.next_frame()).filter_map(|frame| frame.frame).collect()
}

fn sent(frames: &[Out]) -> (Option<u64>, Vec<u8>) {
    let data = frames.iter().filter_map(|frame| if let Out::Data(data) = frame { Some(data) } else { None });
    (data.clone().map(|data| data.offset).next(), data.flat_map(|data| data.data.to_vec()).collect())
}

#[test]
fn a_new_stream_gets_what_the_pod_does_not_hold_and_nothing_else() {
    let mut session = running(true);
    session.push("hello ".into());
    session.push("world".into());
    assert_eq!(sent(&frames(&mut session)), (Some(0), b"hello world".to_vec()));
    session.receive(from(In::Ack(Ack { stream: Stream::Stdin.into(), offset: 3 }))).expect("valid");
    assert_eq!(session.ask(signal), 1);
    assert_eq!(session.ask(signal), 2);
    assert_eq!(frames(&mut session).len(), 2);
    session.receive(from(In::Answer(v1::Answer { id: 1, refusal: None }))).expect("valid");
    session.end_stdin();
    assert!(matches!(frames(&mut session)[..], [Out::Eof(Eof { id: 3, offset: 11, .. })]));
    session
        .receive(from(In::Data(Data { stream: Stream::Stdout.into(), offset: 0, data: vec![0; 100].into() })))
        .expect("valid");

    session.reopen();
    assert_eq!(session.room(), 0);
    assert!(frames(&mut session).is_empty(), "nothing before Started");
    let mut open = v1::Open::default();
    session.open(&mut open);
    assert_eq!((open.attempt, open.resume_from), (2, Some(ResumeFrom { stdout: 100, stderr: 0 })));
    assert_eq!(open.stdout_credit, MAX_CREDIT);
    session.receive(started(true, 6, MAX_CREDIT)).expect("valid");
    let again = frames(&mut session);
    assert_eq!(sent(&again), (Some(6), b"world".to_vec()));
    let ids: Vec<u64> = again
        .iter()
        .filter_map(|frame| match frame {
            Out::Signal(signal) => Some(signal.id),
            Out::Eof(eof) => Some(eof.id),
            _ => None,
        })
        .collect();
    assert_eq!(ids, [2, 3]);
    assert!(matches!(session.receive(from(In::Exit(Exit::default()))), Ok(Event::Exit(_))));
}

#[test]
fn what_can_not_be_is_a_violation() {
    let violation = |session: &mut ClientSession, frame| session.receive(from(frame)).expect_err("it can't be");
    let data = |offset| In::Data(Data { stream: Stream::Stdout.into(), offset, data: "x".into() });
    assert!(matches!(violation(&mut ClientSession::new(false), data(0)), Violation::Order(_)));
    assert!(matches!(violation(&mut running(false), data(1)), Violation::Flow(_)));
    assert!(matches!(violation(&mut running(true), In::Started(Started::default())), Violation::Order(_)));
    let gap = In::Gap(v1::Gap { stream: Stream::Stdout.into(), from: 1, to: 2 });
    assert!(matches!(violation(&mut running(true), gap), Violation::Gap { .. }));
    let mut session = running(true);
    session.push("abc".into());
    frames(&mut session);
    session.receive(from(In::Ack(Ack { stream: Stream::Stdin.into(), offset: 2 }))).expect("valid");
    for told in [1, 4] {
        let mut again = running(true);
        again.push("abc".into());
        frames(&mut again);
        again.receive(from(In::Ack(Ack { stream: Stream::Stdin.into(), offset: 2 }))).expect("valid");
        again.reopen();
        assert!(matches!(again.receive(started(true, told, 10)), Err(Violation::Stdin { .. })));
    }
}

#[test]
fn a_client_without_memory_goes_on_where_the_pod_stands() {
    let mut session = ClientSession::attaching(true, ResumeFrom { stdout: 50, stderr: 0 }, 1 << 40);
    session.receive(started(true, 700, 800)).expect("valid");
    assert_eq!(session.room(), 100);
    session.push("x".into());
    assert_eq!(sent(&frames(&mut session)), (Some(700), b"x".to_vec()));
    assert_eq!(session.ask(signal), (1 << 40) + 1);
}

#[test]
fn of_a_program_that_is_only_started_no_output_is_asked_for() {
    let mut session = ClientSession::without_output();
    session.end_stdin();
    for attempt in 1..4 {
        let mut open = v1::Open::default();
        session.open(&mut open);
        assert_eq!((open.attempt, open.stdout_credit, open.stderr_credit), (attempt, 0, 0));
        session.receive(started(true, 0, MAX_CREDIT)).expect("valid");
        // Its end of stdin is said to each stream, and nothing else.
        assert!(matches!(frames(&mut session)[..], [Out::Eof(Eof { id: 1, offset: 0, .. })]));
        session.reopen();
    }
}

#[test]
fn a_later_client_goes_on_where_this_one_has_handed_on() {
    let mut session = running(true);
    let data = |offset, len| from(In::Data(Data { stream: Stream::Stdout.into(), offset, data: vec![0; len].into() }));
    session.receive(data(0, 100)).expect("valid");
    session.receive(from(In::Gap(v1::Gap { stream: Stream::Stdout.into(), from: 100, to: 300 }))).expect("valid");
    session.receive(data(300, 10)).expect("valid");
    let acked = |session: &mut ClientSession| {
        let frames = frames(session);
        frames.iter().filter_map(|frame| if let Out::Ack(ack) = frame { Some(ack.offset) } else { None }).max()
    };
    session.taken(Stream::Stdout, 60);
    assert_eq!(session.taken_up_to(), ResumeFrom { stdout: 60, stderr: 0 });
    assert!(acked(&mut session) <= Some(60), "what waits is in no acknowledgement");
    session.taken(Stream::Stdout, 45);
    assert_eq!(session.taken_up_to(), ResumeFrom { stdout: 305, stderr: 0 });
}

#[test]
fn an_output_that_has_ended_may_say_so_on_every_stream() {
    let eof = || from(In::Eof(Eof { stream: Stream::Stdout.into(), offset: 0, id: 0 }));
    let mut session = running(true);
    for _ in 0..2 {
        session.receive(eof()).expect("valid");
        session.reopen();
        session.receive(started(true, 0, MAX_CREDIT)).expect("valid");
    }
    let more = from(In::Data(Data { stream: Stream::Stdout.into(), offset: 0, data: "x".into() }));
    assert!(matches!(session.receive(more), Err(Violation::Flow(FlowError::AfterEnd))));
}

#[test]
fn stdin_is_safe_once_the_pod_has_it() {
    let mut session = running(true);
    session.push("abc".into());
    assert!(!session.is_stdin_safe());
    frames(&mut session);
    session.receive(from(In::Ack(Ack { stream: Stream::Stdin.into(), offset: 2 }))).expect("valid");
    assert!(!session.is_stdin_safe());
    session.receive(from(In::Ack(Ack { stream: Stream::Stdin.into(), offset: 3 }))).expect("valid");
    assert!(session.is_stdin_safe());
}

#[test]
fn a_hangup_goes_first_and_even_before_the_start() {
    let mut session = ClientSession::new(false);
    session.hang_up();
    assert!(matches!(frames(&mut session)[..], [Out::Hangup(_)]) && session.has_hung_up());
    let mut session = running(true);
    session.push("x".into());
    session.hang_up();
    assert!(matches!(frames(&mut session)[..], [Out::Hangup(_), Out::Data(_)]));
    session.reopen();
    assert!(matches!(frames(&mut session)[..], [Out::Hangup(_)]));
}

/// A pod that holds stdin and acknowledges it, and gives output, as a program of its own would.
#[derive(Default)]
struct Pod {
    stdin: Vec<u8>,
    held: u64,
    out: u64,
    credit: u64,
    signals: u64,
}

proptest! {
    /// Wherever streams break, stdin arrives whole and in order, each signal once, and output goes on where it stood.
    #[test]
    fn nothing_is_lost_or_doubled_over_streams(
        steps in prop::collection::vec((0u8..6, 1usize..5000), 1..200),
        losses in prop::collection::vec(0usize..4, 200),
    ) {
        let (mut session, mut pod) = (running(true), Pod { credit: MAX_CREDIT, ..Pod::default() });
        let mut pushed = Vec::new();
        let mut got = 0u64;
        let mut asked = 0;
        for (&(step, n), lost) in steps.iter().zip(losses) {
            match step {
                0 | 1 => {
                    let len = n.min(session.room());
                    let piece: Vec<u8> = (0..len).map(|i| ((pushed.len() + i) % 251) as u8).collect();
                    pushed.extend_from_slice(&piece);
                    if len > 0 { session.push(piece.into()); }
                }
                2 => { session.ask(signal); asked += 1; }
                3 => {
                    // Output within the credit.
                    let len = (n as u64).min(pod.credit.saturating_sub(pod.out));
                    if len > 0 {
                        let data = Data { stream: Stream::Stdout.into(), offset: pod.out, data: vec![0; len as usize].into() };
                        session.receive(from(In::Data(data))).expect("valid");
                        pod.out += len;
                        got += len;
                        session.taken(Stream::Stdout, len as usize);
                    }
                }
                4 => {
                    let ack = Ack { stream: Stream::Stdin.into(), offset: pod.held };
                    session.receive(from(In::Ack(ack))).expect("valid");
                    let credit = Credit { stream: Stream::Stdin.into(), limit: pod.held + MAX_CREDIT };
                    session.receive(from(In::Credit(credit))).expect("valid");
                }
                _ => {
                    // The stream breaks: what goes out now is lost from some frame on.
                    for frame in frames(&mut session).into_iter().take(lost) { arrive(&mut pod, frame); }
                    session.reopen();
                    let mut open = v1::Open::default();
                    session.open(&mut open);
                    let at = open.resume_from.unwrap_or_default().stdout;
                    prop_assert!(at == got && at <= pod.out);
                    pod.out = at;
                    pod.credit = pod.credit.max(open.stdout_credit);
                    session.receive(started(true, pod.held, pod.held + MAX_CREDIT)).expect("valid");
                }
            }
            if step < 5 && lost < 3 {
                for frame in frames(&mut session) { arrive(&mut pod, frame); }
            }
        }
        for frame in frames(&mut session) { arrive(&mut pod, frame); }
        prop_assert_eq!(&pod.stdin, &pushed);
        prop_assert_eq!(pod.signals, asked);
    }
}

fn arrive(pod: &mut Pod, frame: Out) {
    match frame {
        Out::Data(data) => {
            assert_eq!(data.offset, pod.held, "in order");
            pod.stdin.extend_from_slice(&data.data);
            pod.held += data.data.len() as u64;
        }
        Out::Signal(signal) => pod.signals = pod.signals.max(signal.id),
        Out::Credit(credit) => pod.credit = pod.credit.max(credit.limit),
        Out::Open(_) | Out::Ack(_) | Out::Eof(_) | Out::Resize(_) | Out::Hangup(_) => {}
    }
}
