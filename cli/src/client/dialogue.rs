//! What is said with a session's backend, and what that means for this process: which requests it makes of interrupts and sizes,
//! what an answer, an exit or a lost agent is to it, and when it ends.
//!
//! It writes lines for the user; everything else that is I/O is [`Pump`](super::pump::Pump)'s.

use super::{connection::long, say};
use podbay::v1::{self, run_session_request::Frame as To};
use podbay_frontend_core::{ClientSession, Event};

/// So many INT without an answer end this process.
const INTERRUPTS: usize = 3;

/// How a session ended for this process.
#[derive(Debug)]
pub enum Ended {
    /// The program ended.
    Exit(v1::Exit),
    /// This process was told to leave, by the signal of this number: 13 where nobody reads its output any more.
    Left(u8),
    /// A start was all that was wanted, and it runs.
    Started,
}

/// What is done with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Start it, and stay with it to its end: whoever leaves gives it up.
    Carry,
    /// Start it, and end once it runs and has the end of its stdin.
    Start,
    /// Go on with it, whoever has it: whoever leaves leaves it running.
    Attach,
}

/// Why a stream of frames ended.
#[derive(Debug)]
pub enum Stop {
    Ended(Ended),
    /// The stream is gone; another may go on.
    Lost(String),
    Failed(anyhow::Error),
}

/// What is left to do about a frame.
#[derive(Debug)]
pub enum Heard {
    /// The program runs, or is found again: the backend is there.
    Started,
    /// To be written.
    Output(v1::Data),
    /// No more.
    Nothing,
}

/// The dialogue of one session, over as many streams of frames as it takes.
pub struct Dialogue {
    what: What,
    /// What the frames say, and what is said again.
    pub session: ClientSession,
    /// A program was there once.
    started: bool,
    /// INT that are not answered.
    interrupts: Vec<u64>,
    /// The last size that was asked for.
    resize: Option<u64>,
    /// The request behind the end of stdin, of which only the answer matters: what went before it has arrived.
    probe: Option<u64>,
}

impl Dialogue {
    /// Of a session that is to be started and carried to its end.
    pub fn carrying(terminal: bool) -> Self {
        Self::of(What::Carry, ClientSession::new(terminal))
    }

    /// Of one that is only to be started, with nothing on its stdin.
    pub fn starting() -> Self {
        let mut session = ClientSession::without_output();
        session.end_stdin();
        Self::of(What::Start, session)
    }

    /// Of one that is to be gone on with, its output from here; `last_id` is above the ids of all requests before.
    pub fn attaching(terminal: bool, from: v1::ResumeFrom, last_id: u64) -> Self {
        Self::of(What::Attach, ClientSession::attaching(terminal, from, last_id))
    }

    const fn of(what: What, session: ClientSession) -> Self {
        Self { what, session, started: false, interrupts: Vec::new(), resize: None, probe: None }
    }

    /// What is done with the session.
    pub const fn what(&self) -> What {
        self.what
    }

    /// What the backend is to be told next, if there is something now.
    pub fn next_frame(&mut self) -> Option<v1::RunSessionRequest> {
        let frame = self.session.next_frame()?;
        if self.what == What::Start && self.probe.is_none() && matches!(frame.frame, Some(To::Eof(_))) {
            // Every agent refuses it, and nothing comes of it but the answer.
            let signal = |id| To::Signal(v1::Signal { id, name: "CONT".into(), deadline: None });
            self.probe = Some(self.session.ask(signal));
        }
        Some(frame)
    }

    /// The user has pressed ^C: that is for the program, where there is one that can be told.
    pub fn interrupt(&mut self) -> Result<(), Stop> {
        if !self.started || self.what == What::Start || self.interrupts.len() + 1 >= INTERRUPTS {
            return Err(Stop::Ended(Ended::Left(2)));
        }
        let signal = |id| To::Signal(v1::Signal { id, name: "INT".into(), deadline: None });
        let id = self.session.ask(signal);
        self.interrupts.push(id);
        Ok(())
    }

    /// Asks that the terminal has this size. Only the last size matters.
    pub fn ask_size(&mut self, size: v1::WindowSize) {
        if let Some(id) = self.resize.take() {
            self.session.forget(id);
        }
        let size = Some(size);
        self.resize = Some(self.session.ask(|id| To::Resize(v1::Resize { id, size, deadline: None })));
    }

    /// What the backend says. Lines for the user are written.
    pub fn receive(&mut self, frame: v1::RunSessionResponse) -> Result<Heard, Stop> {
        let event = self.session.receive(frame).map_err(|error| {
            Stop::Failed(anyhow::anyhow!("the backend breaks the protocol: {error}; does its version fit this one's?"))
        })?;
        match event {
            Event::Started(started) => {
                // A program that goes on has said so before.
                if !std::mem::replace(&mut self.started, true) && !started.warning.is_empty() {
                    say(&started.warning);
                }
                if self.what == What::Start && !started.durable {
                    let text = "a program can run detached only where podbay-agent runs in the pod: put it into the image, or set \
                                kubernetes.pod.agentInjection";
                    return Err(Stop::Failed(anyhow::anyhow!(text)));
                }
                return Ok(Heard::Started);
            }
            Event::Data(data) => return Ok(Heard::Output(data)),
            Event::Progress(progress) => {
                if long(progress.elapsed) {
                    say(&progress.message);
                }
            }
            Event::Gap(bytes) => say(format_args!("{bytes} bytes of output are not here: dropped, or taken before")),
            Event::Notice(text) => say(text),
            Event::Answered(id, refusal) => self.answered(id, refusal)?,
            // Of one that was to run alone, the exit is for who comes back.
            Event::Exit(_) if self.what == What::Start && self.started => return Err(Stop::Ended(Ended::Started)),
            Event::Exit(exit) => return Err(Stop::Ended(Ended::Exit(exit))),
            Event::Moving if self.session.is_durable() => return Err(Stop::Lost("the backend ends".into())),
            Event::Moving | Event::Room | Event::Nothing => {}
        }
        Ok(Heard::Nothing)
    }

    fn answered(&mut self, id: u64, refusal: Option<v1::Refusal>) -> Result<(), Stop> {
        if self.probe == Some(id) {
            return Err(Stop::Ended(Ended::Started));
        }
        self.resize = self.resize.filter(|asked| *asked != id);
        let interrupt = self.interrupts.iter().position(|asked| *asked == id);
        if let Some(at) = interrupt {
            self.interrupts.remove(at);
        }
        if let Some(refusal) = refusal {
            say(&refusal.message);
            // Without an agent nothing hands it on, and ^C has to end something.
            if interrupt.is_some() && self.what == What::Carry && !self.session.is_durable() {
                return Err(Stop::Ended(Ended::Left(2)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podbay::v1::run_session_response::Frame as From;

    fn hear(dialogue: &mut Dialogue, frame: From) -> Result<Heard, Stop> {
        dialogue.receive(v1::RunSessionResponse { frame: Some(frame) })
    }

    fn running(mut dialogue: Dialogue, durable: bool) -> Dialogue {
        let started = v1::Started { durable, ..v1::Started::default() };
        assert!(matches!(hear(&mut dialogue, From::Started(started)), Ok(Heard::Started)));
        dialogue
    }

    fn answer(id: u64, refused: bool) -> From {
        let refusal = refused.then(|| v1::Refusal { message: "no".into(), ..v1::Refusal::default() });
        From::Answer(v1::Answer { id, refusal })
    }

    fn left(result: &Result<(), Stop>) -> bool {
        matches!(result, Err(Stop::Ended(Ended::Left(2))))
    }

    #[test]
    fn an_interrupt_ends_who_has_no_program_and_who_gets_no_answer() {
        assert!(left(&Dialogue::carrying(false).interrupt()), "nothing runs");
        let mut dialogue = running(Dialogue::carrying(false), true);
        let mut ids = Vec::new();
        for _ in 0..2 {
            dialogue.interrupt().expect("passed on");
            let Some(To::Signal(signal)) = dialogue.next_frame().and_then(|frame| frame.frame) else {
                panic!("a signal")
            };
            assert_eq!(signal.name, "INT");
            ids.push(signal.id);
        }
        assert!(left(&dialogue.interrupt()), "two wait");
        assert!(matches!(hear(&mut dialogue, answer(ids[0], false)), Ok(Heard::Nothing)));
        assert!(dialogue.interrupt().is_ok(), "one of them was answered");
    }

    #[test]
    fn an_interrupt_that_is_refused_ends_only_who_has_no_agent() {
        for durable in [true, false] {
            let mut dialogue = running(Dialogue::carrying(false), durable);
            dialogue.interrupt().expect("passed on");
            let id = dialogue.interrupts[0];
            let heard = hear(&mut dialogue, answer(id, true)).map(|_| ());
            assert_eq!(left(&heard), !durable);
        }
    }

    #[test]
    fn a_start_ends_once_what_is_behind_the_end_of_stdin_is_answered() {
        let mut dialogue = running(Dialogue::starting(), true);
        let frames: Vec<To> = std::iter::from_fn(|| dialogue.next_frame()).filter_map(|frame| frame.frame).collect();
        let [To::Eof(_), To::Signal(probe)] = &frames[..] else { panic!("{frames:?}") };
        let ended = hear(&mut dialogue, answer(probe.id, true));
        assert!(matches!(ended, Err(Stop::Ended(Ended::Started))));
        let started = v1::Started::default();
        let refused = hear(&mut Dialogue::starting(), From::Started(started));
        assert!(matches!(refused, Err(Stop::Failed(_))), "it would not outlive this process");
    }
}
