use super::*;
use crate::frame::{Decoder, Frame, MAGIC, MAX_TO_BACKEND};
use proptest::prelude::*;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// Files in memory, on a disk that may be full.
#[derive(Debug, Default, Clone)]
struct Disk {
    full: Rc<Cell<bool>>,
    /// The longest that any file was.
    longest: Rc<Cell<usize>>,
    files: Rc<Cell<usize>>,
}

#[derive(Debug)]
struct DiskFile(Disk, RefCell<Vec<u8>>);

impl Spills for Disk {
    fn open(&mut self) -> io::Result<Box<dyn Spill>> {
        self.files.set(self.files.get() + 1);
        Ok(Box::new(DiskFile(self.clone(), RefCell::default())))
    }
}

impl Spill for DiskFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.0.full.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = self.1.get_mut();
        let end = offset as usize + bytes.len();
        file.resize(file.len().max(end), 0);
        file[offset as usize..end].copy_from_slice(bytes);
        self.0.longest.set(self.0.longest.get().max(file.len()));
        Ok(())
    }

    fn read_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.1.borrow();
        bytes.copy_from_slice(file.get(offset as usize..offset as usize + bytes.len()).ok_or(io::ErrorKind::NotFound)?);
        Ok(())
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        self.0.files.set(self.0.files.get() - 1);
    }
}

fn byte(offset: u64) -> u8 {
    (offset as u8).wrapping_mul(37) ^ (offset >> 8) as u8
}

/// What a link got: checked against the stream; returns where it stands and how much was told as gaps.
fn read(out: &BytesMut, mut at: u64, ended: &mut bool) -> (u64, u64) {
    let mut decoder = Decoder::<ToBackend>::new(MAX_TO_BACKEND);
    decoder.push(&MAGIC);
    decoder.push(out);
    let mut gaps = 0;
    while let Some(frame) = decoder.next().expect("frames") {
        match frame {
            Frame::Data { offset, data, .. } => {
                assert_eq!(offset, at);
                for &got in &data {
                    assert_eq!(got, byte(at), "at {at}");
                    at += 1;
                }
            }
            Frame::Control(ToBackend { message: Some(to_backend::Message::Gap(gap)) }) => {
                assert_eq!(gap.from, at);
                gaps += gap.to - gap.from;
                at = gap.to;
            }
            Frame::End { offset, .. } => {
                assert_eq!(offset, at);
                *ended = true;
            }
            other => panic!("{other:?}"),
        }
    }
    (at, gaps)
}

const WINDOW: usize = 4096;

fn any_policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        Just(Policy::Block),
        Just(Policy::KeepLast),
        (1u64..30_000, any::<bool>()).prop_map(|(max, keep_last)| Policy::Spill { max, keep_last }),
    ]
}

proptest! {
    /// Whatever links come and go, whatever they take: bytes are right and in order, gaps are told and only by agreement, memory and file
    /// stay within their bounds, and everything comes to its end.
    #[test]
    fn output_is_whole_or_says_what_is_missing(
        policy in any_policy(),
        steps in prop::collection::vec((0..7, 0usize..40_000), 1..200),
    ) {
        let mut disk = Disk::default();
        let mut budget = Budget::new(1 << 20);
        prop_assert!(budget.take(WINDOW));
        let mut output = Output::new(policy, WINDOW);
        let (mut attached, mut got, mut acked, mut credit) = (false, 0u64, 0u64, 0u64);
        let (mut gaps, mut ended) = (0, false);
        let total = 100_000;
        for (what, n) in steps {
            match what {
                0 | 1 => {
                    let left = total - output.end();
                    let room = output.room(attached, WINDOW * 4, &mut budget) as u64;
                    let len = room.min(n as u64).min(left);
                    let bytes: Vec<u8> = (0..len).map(|i| byte(output.end() + i)).collect();
                    if !output.is_stuck() && len > 0 { output.push(&bytes, attached, &mut disk) }
                }
                2 => {
                    attached = true;
                    // Between what was acknowledged and what was got: a client that lost its memory.
                    got = acked + n as u64 % (got - acked + 1);
                    credit = got;
                    prop_assert!(output.resume(got, credit).is_ok());
                }
                3 if attached => {
                    credit += n as u64;
                    output.credit(credit);
                    let mut out = BytesMut::new();
                    while out.len() < n && output.transmit(1, Stream::Stdout, &mut out) {}
                    let (at, missing) = read(&out, got, &mut ended);
                    got = at;
                    gaps += missing;
                }
                4 if attached => {
                    acked = got.min(acked + n as u64);
                    prop_assert!(output.ack(acked).is_ok());
                }
                5 => attached = false,
                6 => {
                    disk.full.set(n % 3 == 0);
                    output.retry(attached, &mut disk);
                }
                _ => {}
            }
            prop_assert!(output.window() <= WINDOW * 4);
            prop_assert!(output.held() <= acked.max(output.held()));
            if let Policy::Spill { max, .. } = policy { prop_assert!(disk.longest.get() as u64 <= max); }
        }
        // Then a link that takes everything.
        disk.full.set(false);
        attached = true;
        while !ended {
            output.resume(got, total).expect("a place in the stream");
            output.retry(attached, &mut disk);
            let mut out = BytesMut::new();
            while output.transmit(1, Stream::Stdout, &mut out) {}
            let (at, missing) = read(&out, got, &mut ended);
            got = at;
            gaps += missing;
            output.ack(got).expect("an ack of what was sent");
            let room = (output.room(true, WINDOW * 4, &mut budget) as u64).min(total - output.end());
            let bytes: Vec<u8> = (0..room).map(|i| byte(output.end() + i)).collect();
            if room > 0 { output.push(&bytes, attached, &mut disk) }
            if output.end() == total { output.finish() }
        }
        prop_assert_eq!(got, total);
        prop_assert_eq!(disk.files.get(), 0, "a drained file is gone");
        match policy {
            Policy::Block | Policy::Spill { keep_last: false, .. } => prop_assert_eq!(gaps, 0),
            Policy::KeepLast | Policy::Spill { keep_last: true, .. } => {}
        }
    }
}

#[test]
fn keep_last_keeps_the_last_and_blocks_who_is_attached() {
    let mut budget = Budget::new(WINDOW);
    let mut output = Output::new(Policy::KeepLast, WINDOW);
    for round in 0..10 {
        assert_eq!(output.room(false, WINDOW, &mut budget), WINDOW);
        output.push(&[round; WINDOW], false, &mut NoSpills);
    }
    assert_eq!((output.held(), output.end()), (9 * WINDOW as u64, 10 * WINDOW as u64));
    assert_eq!(output.room(true, WINDOW, &mut budget), 0);
    output.resume(0, u64::MAX).expect("told as a gap");
    let mut out = BytesMut::new();
    assert!(output.transmit(1, Stream::Stdout, &mut out));
    assert!(output.transmit(1, Stream::Stdout, &mut out));
    assert!(!output.transmit(1, Stream::Stdout, &mut out));
    assert_eq!(&out[out.len() - WINDOW..], &[9; WINDOW]);
    assert_eq!(output.ack(u64::MAX), Err(FlowError::AckBeyondSent { ack: u64::MAX, sent: output.end() }));
    assert_eq!(output.resume(output.end() + 1, 0), Err(BadOffset));
}

#[test]
fn without_a_place_to_spill_the_program_waits() {
    let mut budget = Budget::new(WINDOW);
    let mut output = Output::new(Policy::Spill { max: 1 << 30, keep_last: true }, WINDOW);
    output.push(&[1; WINDOW], false, &mut NoSpills);
    assert!(output.room(false, WINDOW, &mut budget) > 0);
    output.push(&[2; 100], false, &mut NoSpills);
    assert!(output.is_stuck());
    assert_eq!(output.room(false, WINDOW, &mut budget), 0);
    output.resume(0, u64::MAX).expect("from the start");
    let mut out = BytesMut::new();
    while output.transmit(1, Stream::Stdout, &mut out) {}
    output.ack(WINDOW as u64).expect("an ack");
    assert!(output.retry(true, &mut NoSpills), "there is room in memory now");
    assert!(output.transmit(1, Stream::Stdout, &mut out));
    assert_eq!(&out[out.len() - 100..], &[2; 100]);
}
