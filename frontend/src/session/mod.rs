//! One program of one SSH channel: from its request to its end.
//!
//! [`Session::run`] waits for the connection, starts the program, and reads the backend's frames, always, into memory that
//! credit bounds. Beside it run one task for each direction ([`output`], [`stdin`]) and one for signals and sizes
//! ([`control`]), so that nothing ever waits behind unread data.

mod control;
mod link;
mod open;
mod output;
mod running;
mod starting;
mod stdin;

use crate::{
    metrics::SessionEnd,
    ssh::{Conn, Input, LateAnswer, Slot, signal_of},
};
use control::Controls;
use output::Output;
use podbay::v1;
use podbay_frontend_core::{Ending, Report, Start, WindowSize, exit::LOST};
use podbay_runtime::codes;
use russh::{
    ChannelWriteHalf,
    server::{Handle, Msg},
};
use starting::{NotStarted, Starting};
use std::sync::Arc;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tracing::{debug, info};

/// Told when a session ends for the memory its input takes.
const EVICTED: &str = "ended: the program does not read its input, and too much of it waits on this connection";

/// A program and its channel.
pub struct Session {
    pub conn: Arc<Conn>,
    pub handle: Handle,
    pub write: Arc<ChannelWriteHalf<Msg>>,
    pub input: Arc<Input>,
    pub start: Start,
    pub signals: mpsc::Receiver<String>,
    pub size: watch::Receiver<Option<WindowSize>>,
    pub answer: LateAnswer,
    pub slot: Slot,
}

/// Counts the session, also when its task is aborted, and lets go of its input.
struct Counted {
    conn: Arc<Conn>,
    input: Arc<Input>,
    end: SessionEnd,
    _slot: Slot,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.input.close();
        self.conn.server.metrics.session_ended(self.end);
    }
}

impl Session {
    /// Runs the program and closes the channel. Aborting it gives the program up; the client is then gone already.
    pub async fn run(self) {
        let Self { conn, handle, write, input, start, signals, size, answer, slot } = self;
        conn.server.metrics.session_began();
        input.has_program();
        let mut counted =
            Counted { conn: Arc::clone(&conn), input: Arc::clone(&input), end: SessionEnd::Abandoned, _slot: slot };
        let mut tasks = JoinSet::new();
        let output = Output::new(&conn, &write, start.pty.is_some(), &mut tasks);
        let mut starting = Starting { conn: &conn, output: &output, answer, start: &start, since: Instant::now() };
        let program = async {
            let controls = Controls { signals, size, first: start.pty.as_ref().map(|pty| pty.size) };
            let ending = match starting.run().await {
                Ok(running) => running.run(&input, controls).await,
                Err(NotStarted::Ended(ending)) => (ending, None),
                Err(NotStarted::Refused(refusal)) => return Err(refusal),
            };
            Ok(ending)
        };
        let ended = tokio::select! {
            ended = program => ended,
            () = input.evicted() => Ok((Ending::Lost(EVICTED.to_owned()), None)),
            text = conn.ended_for_session() => Ok((Ending::Lost(text.to_string()), None)),
        };
        let refused = ended.is_err();
        if refused {
            // Nothing ran: whatever status stands for that, and though OpenSSH leaves over it.
            counted.end = SessionEnd::Failed;
        }
        let (ending, kept) = match ended {
            Ok(ended) => {
                starting.answer.success().await;
                ended
            }
            // Clients say this themselves; OpenSSH shows nothing else once it has read a failure.
            Err(refusal) => {
                info!(connection = %conn.id, "{refusal}");
                let lost = Ending::Lost(refusal);
                (if starting.answer.failure().await { Ending::Code(LOST) } else { lost }, None)
            }
        };
        input.close();
        let report_code = |report: &Report| match report {
            Report::Signal { .. } => codes::SSH_EXIT_SIGNAL,
            Report::Status(_) | Report::Failed { .. } => codes::SSH_EXIT,
        };
        let (connection, channel, shown) = (conn.id, write.id().number(), format!("{ending:?}"));
        let report = ending.report();
        debug!(code = report_code(&report), %connection, channel, ending = %shown, "session ended");
        match &report {
            // OpenSSH keeps the message of an exit-signal to itself.
            Report::Failed { message, .. } | Report::Signal { message, .. } if !message.is_empty() => {
                output.note(message);
            }
            Report::Failed { .. } | Report::Signal { .. } | Report::Status(_) => {}
        }
        // All output goes out first, however long the client takes to read it.
        output.finish();
        while tasks.join_next().await.is_some() {}
        let end = close(&handle, &write, report).await;
        if !refused {
            counted.end = end;
        }
        if let Some(kept) = kept {
            kept.known();
        }
    }
}

/// The exit, then eof, then close. The exit comes first: a client that has ended its input may close the channel once it has read
/// our eof (OpenSSH does), and an exit behind that close would go nowhere.
async fn close(handle: &Handle, write: &ChannelWriteHalf<Msg>, report: Report) -> SessionEnd {
    let end = match report {
        Report::Status(status) => {
            let _ = write.exit_status(status).await;
            SessionEnd::Status
        }
        Report::Failed { status, .. } => {
            let _ = write.exit_status(status).await;
            SessionEnd::Failed
        }
        Report::Signal { name, core_dumped, message } => {
            let signal = signal_of(&name);
            let _ = handle.exit_signal_request(write.id(), signal, core_dumped, message, String::new()).await;
            SessionEnd::Signal
        }
    };
    let _ = write.eof().await;
    let _ = write.close().await;
    end
}

/// An operator's word ends the whole connection.
fn end_with(conn: &Conn, refusal: &v1::Refusal) {
    if refusal.reason() == v1::Reason::Terminated {
        conn.end(&refusal.message);
    }
}

fn ending(conn: &Conn, exit: v1::Exit) -> Ending {
    match exit.end {
        Some(v1::exit::End::Code(code)) => Ending::Code(code),
        Some(v1::exit::End::Signal(signal)) => {
            Ending::Signal { name: signal.name, core_dumped: signal.core_dumped, message: signal.message }
        }
        Some(v1::exit::End::Lost(refusal)) => {
            end_with(conn, &refusal);
            Ending::Lost(refusal.message)
        }
        None => Ending::Lost("the backend did not say how the program ended".to_owned()),
    }
}
