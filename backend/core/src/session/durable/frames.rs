//! The client's frames and the agent's events, one at a time: checked, and passed on.

use super::{Durable, Output, Stop, begin::not_started};
use crate::{
    failure::short,
    session::{rules, violation},
};
use podbay::v1::{
    self, Reason, Refusal, Stream, exit::End, run_session_request::Frame as In, run_session_response::Frame as Out,
};
use podbay_agent_wire::{
    client::Event,
    frame::Stream as WireStream,
    program::{self, Exit, Size},
    proto,
};
use std::time::Duration;
use tokio::time::Instant;

impl Durable {
    /// Where the link is gone, its last news tells.
    pub(super) async fn receive(&mut self, frame: v1::RunSessionRequest) -> Result<(), Stop> {
        match rules::frame(frame)? {
            In::Data(data) => self.stdin(data).await?,
            In::Credit(credit) => {
                let stream = credit.stream();
                let (wire, output) = self.output(stream)?;
                rules::credit(credit.limit, output.at)?;
                let _ = self.commands.credit(wire, credit.limit).await;
            }
            In::Ack(ack) => {
                let (wire, output) = self.output(ack.stream())?;
                if ack.offset > output.at {
                    return Err(violation("acknowledged more than was sent").into());
                }
                let _ = self.commands.ack(wire, ack.offset).await;
            }
            In::Eof(eof) => {
                self.ids.take(eof.id)?;
                rules::eof(&eof)?;
                if eof.offset != self.stdin.at {
                    return Err(violation("an end that is not where stdin stands").into());
                }
                // Said again by a client that has come back.
                if !std::mem::replace(&mut self.stdin.ended, true) {
                    self.eof = Some(eof.id);
                    let _ = self.commands.eof(eof.id, eof.offset).await;
                }
            }
            In::Signal(signal) => {
                self.ids.take(signal.id)?;
                if let denied @ Some(_) = rules::signal(&signal, &self.policy)? {
                    self.answer(signal.id, denied);
                    return Ok(());
                }
                let deadline = Instant::now() + bounded(signal.deadline, self.signal_bound);
                let _ = self.commands.signal(signal.id, signal.name, deadline).await;
            }
            In::Resize(resize) => {
                self.ids.take(resize.id)?;
                let wanted = resize.size.unwrap_or_default();
                rules::size(wanted)?;
                if !self.tty {
                    self.answer(resize.id, Some(rules::no_terminal()));
                    return Ok(());
                }
                self.resizes.push_back(resize.id);
                let deadline = Instant::now() + bounded(resize.deadline, self.window_bound);
                let _ = self.commands.resize(resize.id, wire_size(wanted), deadline).await;
            }
            In::Hangup(v1::Hangup {}) => return Err(Stop::GivenUp),
            // The rules do not let it through.
            In::Open(_) => {}
        }
        Ok(())
    }

    async fn stdin(&mut self, data: v1::Data) -> Result<(), Stop> {
        rules::data(&data)?;
        let end = data.offset.saturating_add(data.data.len() as u64);
        if data.offset != self.stdin.at || self.stdin.ended {
            let text = format!("data at {}, but stdin stands at {} or has ended", data.offset, self.stdin.at);
            return Err(violation(&text).into());
        }
        if end > self.stdin.limit {
            return Err(violation(&format!("data up to {end}, beyond the credit {}", self.stdin.limit)).into());
        }
        self.stdin.at = end;
        let _ = self.commands.stdin(data.offset, data.data).await;
        Ok(())
    }

    fn output(&mut self, stream: Stream) -> Result<(WireStream, &mut Output), Refusal> {
        rules::output(stream, (WireStream::Stdout, &mut self.stdout), (WireStream::Stderr, &mut self.stderr))
    }

    fn answer(&mut self, id: u64, refusal: Option<Refusal>) {
        self.control.push_back(Out::Answer(v1::Answer { id, refusal }));
    }

    pub(super) fn event(&mut self, event: Event) -> Result<(), Stop> {
        match event {
            Event::Data { stream, offset, data, .. } => {
                let (stream, output) = self.of_wire(stream);
                output.at = offset + data.len() as u64;
                self.data.push_back(Out::Data(v1::Data { stream: stream.into(), offset, data }));
            }
            Event::Gap { stream, from, to, .. } => {
                let (stream, output) = self.of_wire(stream);
                output.at = to;
                self.data.push_back(Out::Gap(v1::Gap { stream: stream.into(), from, to }));
            }
            Event::End { stream, offset, .. } => {
                let (stream, output) = self.of_wire(stream);
                if !std::mem::replace(&mut output.ended, true) {
                    self.data.push_back(Out::Eof(v1::Eof { stream: stream.into(), offset, id: 0 }));
                }
            }
            Event::Credit { limit, .. } => {
                self.stdin.limit = self.stdin.limit.max(limit);
                let stream = Stream::Stdin.into();
                self.control.push_back(Out::Credit(v1::Credit { stream, limit }));
            }
            Event::Ack { offset, .. } => {
                let stream = Stream::Stdin.into();
                self.control.push_back(Out::Ack(v1::Ack { stream, offset }));
            }
            Event::Answer { id, .. } if self.eof == Some(id) => {}
            Event::Answer { id, result, .. } => {
                let resize = self.resizes.iter().position(|asked| *asked == id);
                if let Some(at) = resize {
                    self.resizes.remove(at);
                }
                let refusal = result.err().map(|(reason, message)| not_done(reason, &message, resize.is_some()));
                self.answer(id, refusal);
            }
            Event::Closed { reason: proto::Reason::Detached, .. } => return Err(Stop::Gone),
            Event::Closed { reason, message, .. } => return Err(not_started(reason, &message).into()),
            // Nothing that its client sees, and what is told to others.
            Event::Relinked { .. }
            | Event::Started { .. }
            | Event::Exit { .. }
            | Event::Linked { .. }
            | Event::Forgotten { .. }
            | Event::Listed { .. }
            | Event::FileWritten { .. } => {}
        }
        Ok(())
    }

    fn of_wire(&mut self, stream: WireStream) -> (Stream, &mut Output) {
        match stream {
            WireStream::Stderr => (Stream::Stderr, &mut self.stderr),
            WireStream::Stdout | WireStream::Stdin => (Stream::Stdout, &mut self.stdout),
        }
    }
}

fn bounded(asked: Option<prost_types::Duration>, bound: Duration) -> Duration {
    asked.and_then(|asked| Duration::try_from(asked).ok()).map_or(bound, |asked| asked.min(bound))
}

/// A size, checked before.
pub(super) fn wire_size(size: v1::WindowSize) -> Size {
    let number = |n: u32| u16::try_from(n).unwrap_or(0);
    Size {
        columns: number(size.columns),
        rows: number(size.rows),
        width: number(size.width_pixels),
        height: number(size.height_pixels),
    }
}

fn not_done(reason: proto::Reason, message: &str, resize: bool) -> Refusal {
    use proto::Reason as Wire;
    let late = if resize { Reason::WindowTimeout } else { Reason::SignalTimeout };
    let (reason, text) = match reason {
        Wire::Deadline => (late, "it was not done in time; whether it was done is not known".to_owned()),
        Wire::Ended => (Reason::SignalNotDelivered, "the program has ended".to_owned()),
        Wire::UnknownSignal => {
            (Reason::SignalNotDelivered, format!("not a signal that can be sent {}", short(message)))
        }
        Wire::Limit => (Reason::Limit, "too many requests wait already".to_owned()),
        Wire::NoTerminal => (Reason::InvalidRequest, "this program has no terminal".to_owned()),
        other => (Reason::SignalNotDelivered, format!("the pod's agent refuses: {other:?} {}", short(message))),
    };
    Refusal::new(reason, text)
}

pub(in crate::session) fn end(exit: Exit) -> End {
    match exit {
        program::Exit::Code(code) => End::Code(code.into()),
        program::Exit::Signal { name, core_dumped, message } => {
            End::Signal(v1::ExitSignal { name, core_dumped, message })
        }
    }
}
