//! What a new stream says before its program's own output: the wrapper's marks, the PID that an agent tells.

use crate::{
    cluster::{Input, Output, StreamEnd, Streams},
    failure::{agent_missing, short},
    session::{console::PidReader, ending::is_missing},
    wrapper::{Mark, Nonce, Wrapped},
};
use bytes::Bytes;
use podbay::v1::{Reason, Refusal};
use tokio::sync::mpsc;

/// The most stderr that is kept until the mark comes on stdout.
const MAX_EARLY: usize = 1024 * 1024;

/// What came of a try with the wrapper.
pub(super) enum Tried {
    Runs(Box<Marked>),
    NoShell,
}

/// A stream whose program starts.
pub(super) struct Marked {
    pub streams: Streams,
    /// Output that came already.
    pub stdout: Bytes,
    pub stderr: Vec<Bytes>,
}

impl Marked {
    /// From its very beginning.
    pub fn unread(streams: Streams) -> Self {
        Self { streams, stdout: Bytes::new(), stderr: Vec::new() }
    }

    /// Reads the PID that an agent at `path` tells before its program's output.
    pub async fn pid(&mut self, mut reader: PidReader, path: &str) -> Result<u32, Refusal> {
        let mut next = std::mem::take(&mut self.stdout);
        let mut early: usize = self.stderr.iter().map(Bytes::len).sum();
        loop {
            if let Some((pid, rest)) = reader.take(&next) {
                self.stdout = rest;
                return Ok(pid);
            }
            next = Bytes::new();
            let missing = |words: &str| Err(agent_missing(path, words));
            match self.streams.output.recv().await {
                Some(Output::Stdout(bytes)) => next = bytes,
                Some(Output::Stderr(bytes)) => {
                    early += bytes.len();
                    if early > MAX_EARLY {
                        return Err(Refusal::new(Reason::ContainerFailed, format!("{path} floods its stderr")));
                    }
                    self.stderr.push(bytes);
                }
                Some(Output::End(StreamEnd::ExitCode(_))) => return missing(&self.words()),
                Some(Output::End(StreamEnd::Failed { message, .. })) if is_missing(&message) => {
                    return missing(&message);
                }
                Some(Output::End(StreamEnd::Failed { reason, message })) => {
                    let text = format!("the program can't be started: {reason} {}", short(&message));
                    return Err(Refusal::new(Reason::CommandNotStarted, text));
                }
                Some(Output::End(StreamEnd::Success | StreamEnd::Lost(_))) | None => {
                    let text = "the connection to the pod broke before the program started";
                    return Err(Refusal::new(Reason::StreamLost, text));
                }
            }
        }
    }

    /// What was said on stderr.
    fn words(&self) -> String {
        let all: Vec<u8> = self.stderr.iter().flat_map(|bytes| bytes.iter().copied()).take(4096).collect();
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// Until the wrapper says that it starts the program. No byte of the client's goes in before.
pub(super) async fn marked(
    mut streams: Streams,
    wrapped: &Wrapped,
    nonce: &Nonce,
    quiet: bool,
) -> Result<Tried, Refusal> {
    let mut reader = Reader { stdout: Bytes::new(), stderr: Vec::new(), early: 0 };
    if let Some(preamble) = &wrapped.preamble {
        if !quiet && !reader.find(&mut streams.output, nonce.wants()).await? {
            return Ok(Tried::NoShell);
        }
        let input = streams.input.clone();
        // A terminal echoes what it is sent: read while writing.
        let send = async {
            let sent = input.send(Input::Stdin(preamble.clone())).await;
            drop(input);
            // The reader tells what became of a stream that takes nothing.
            if sent.is_err() {
                tracing::debug!("the stream ended before the preamble");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            found = reader.find(&mut streams.output, nonce.runs()) => if !found? { return Ok(Tried::NoShell) },
            () = send => {}
        }
    } else if !reader.find(&mut streams.output, nonce.runs()).await? {
        return Ok(Tried::NoShell);
    }
    Ok(Tried::Runs(Box::new(Marked { streams, stdout: reader.stdout, stderr: reader.stderr })))
}

struct Reader {
    /// What followed the last mark.
    stdout: Bytes,
    stderr: Vec<Bytes>,
    early: usize,
}

impl Reader {
    /// Reads to the mark; `false`: the script doesn't run there.
    async fn find(&mut self, output: &mut mpsc::Receiver<Output>, mut mark: Mark) -> Result<bool, Refusal> {
        let mut next = std::mem::take(&mut self.stdout);
        loop {
            match mark.take(&next) {
                Ok(Some(rest)) => {
                    self.stdout = rest;
                    return Ok(true);
                }
                Ok(None) => {}
                Err(_) => return Ok(false),
            }
            next = Bytes::new();
            match output.recv().await {
                Some(Output::Stdout(bytes)) => next = bytes,
                Some(Output::Stderr(bytes)) => {
                    self.early += bytes.len();
                    if self.early > MAX_EARLY {
                        return Ok(false);
                    }
                    self.stderr.push(bytes);
                }
                // It ran something, but not our script: /bin/sh is no shell. (And the program did not run.)
                Some(Output::End(StreamEnd::ExitCode(_))) => return Ok(false),
                // Our script never ends well before the mark: the API server says `Success` of a kubelet that died, too.
                Some(Output::End(StreamEnd::Success)) => {
                    let text = "the connection to the pod ended before the program started";
                    return Err(Refusal::new(Reason::StreamLost, text));
                }
                Some(Output::End(StreamEnd::Failed { message, .. })) if is_missing(&message) => return Ok(false),
                Some(Output::End(StreamEnd::Failed { reason, message })) => {
                    let text = format!("the program can't be started: {reason} {}", short(&message));
                    return Err(Refusal::new(Reason::CommandNotStarted, text));
                }
                Some(Output::End(StreamEnd::Lost(why))) => {
                    let text = format!("the connection to the pod broke before the program started: {}", short(&why));
                    return Err(Refusal::new(Reason::StreamLost, text));
                }
                None => {
                    return Err(Refusal::new(Reason::StreamLost, "the connection to the pod ended without a word"));
                }
            }
        }
    }
}
