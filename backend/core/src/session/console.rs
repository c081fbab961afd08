//! The level `containerssh-agent`: its command line, the PID that it tells, its signals.
//!
//! The bytes are ContainerSSH's own, so images that carry its agent work unchanged. Where the image has a shell, the wrapper
//! runs around it: the agent's program takes the agent's place, and with it the stream's ends, which on containerd cuts an
//! upload whose program gives its stdout away.

use crate::{
    cluster::{Cluster, ClusterError, Output, PodRef, StreamEnd, StreamRequest},
    failure::short,
};
use bytes::{Buf as _, Bytes, BytesMut};
use podbay::v1::{Reason, Refusal};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// What `signal --signal NAME` takes.
const SIGNALS: [&str; 13] =
    ["ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"];

/// The most of an agent's complaint that is kept.
const MAX_WORDS: usize = 4096;

/// `console`, which tells its PID and then becomes the program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Console<'a> {
    /// The agent's path in the image.
    pub path: &'a str,
    /// Set in the program's environment; only where no wrapper does.
    pub environment: &'a [(String, String)],
    /// Wait for one byte of stdin first.
    pub wait: bool,
}

impl Console<'_> {
    pub fn command(self, argv: &[String]) -> Vec<String> {
        let mut command = vec![self.path.to_owned(), "console".to_owned()];
        for (name, value) in self.environment {
            command.extend(["--env".to_owned(), format!("{name}={value}")]);
        }
        command.extend(self.wait.then(|| "--wait".to_owned()));
        command.extend(["--pid".to_owned(), "--".to_owned()]);
        command.extend(argv.iter().cloned());
        command
    }

    /// What starts a program that waits. A terminal in canonical mode hands over whole lines.
    pub const fn start_byte(tty: bool) -> &'static [u8] {
        if tty { b"\n" } else { b"\0" }
    }
}

/// Reads the four bytes of a PID from the beginning of an output.
///
/// On a terminal they pass its output processing, which writes a line feed as carriage return and line feed; and the echo of
/// the start byte comes first. A PID is below 2^22 (the kernel's limit), so its last byte is never one of these.
#[derive(Debug)]
pub(super) struct PidReader {
    tty: bool,
    /// The echo of a start byte is still to come.
    echo: bool,
    buffer: BytesMut,
}

impl PidReader {
    pub fn new(tty: bool, waited: bool) -> Self {
        Self { tty, echo: tty && waited, buffer: BytesMut::new() }
    }

    /// Takes the next bytes; gives the PID and what follows it, once it is whole.
    pub fn take(&mut self, bytes: &[u8]) -> Option<(u32, Bytes)> {
        self.buffer.extend_from_slice(bytes);
        let mut rest = self.buffer.as_ref();
        if self.echo {
            rest = match rest {
                [b'\n', rest @ ..] | [b'\r', b'\n', rest @ ..] => rest,
                _ => return None,
            };
        }
        let mut pid = [0; 4];
        for byte in &mut pid {
            (*byte, rest) = match rest {
                [b'\r', b'\n', rest @ ..] if self.tty => (b'\n', rest),
                // Which of the two it is, the next byte tells.
                [b'\r'] if self.tty => return None,
                [byte, rest @ ..] => (*byte, rest),
                [] => return None,
            };
        }
        let used = self.buffer.len() - rest.len();
        let mut all = std::mem::take(&mut self.buffer);
        all.advance(used);
        Some((u32::from_le_bytes(pid), all.freeze()))
    }
}

/// Delivers signals to one program, each by an exec of its own.
#[derive(Debug, Clone)]
pub(super) struct Signaller {
    pub cluster: Arc<dyn Cluster>,
    pub pod: PodRef,
    pub container: String,
    pub path: String,
    pub pid: u32,
}

impl Signaller {
    /// Delivers a signal within `bound`.
    ///
    /// Cancel safe, in that whether it arrived is then not known.
    pub async fn deliver(self, name: String, bound: Duration) -> Result<(), Refusal> {
        if !SIGNALS.contains(&name.as_str()) {
            let text = format!("the agent in this pod can't send {:?}; it knows {}", short(&name), SIGNALS.join(", "));
            return Err(Refusal::new(Reason::SignalNotDelivered, text));
        }
        let late = |_| Refusal::new(Reason::SignalTimeout, "the signal was not delivered in time (timeouts.signal)");
        timeout(bound, self.send(&name)).await.map_err(late)?
    }

    /// Ends a program that nobody waits for.
    pub async fn kill(self, bound: Duration) {
        if let Err(refusal) = self.deliver("KILL".to_owned(), bound).await {
            tracing::debug!(why = refusal.message, "a program that its client left is not killed");
        }
    }

    async fn send(&self, name: &str) -> Result<(), Refusal> {
        let pid = self.pid.to_string();
        let signal = [&self.path, "signal", "--pid", &pid, "--signal", name].map(ToOwned::to_owned);
        let console = Console { path: &self.path, environment: &[], wait: false };
        let request = StreamRequest {
            container: self.container.clone(),
            command: Some(console.command(&signal)),
            tty: false,
            stdin: false,
        };
        let undelivered = |why: String| Refusal::new(Reason::SignalNotDelivered, why);
        let refused =
            |error: ClusterError| undelivered(format!("the signal can't be sent: {}", short(&error.to_string())));
        let mut streams = self.cluster.stream(&self.pod, &request).await.map_err(refused)?;
        let mut words = Vec::new();
        loop {
            match streams.output.recv().await {
                Some(Output::Stderr(bytes)) if words.len() < MAX_WORDS => words.extend_from_slice(&bytes),
                Some(Output::Stdout(_) | Output::Stderr(_)) => {}
                Some(Output::End(StreamEnd::Success)) => return Ok(()),
                Some(Output::End(StreamEnd::ExitCode(code))) => {
                    let words = String::from_utf8_lossy(&words);
                    return Err(undelivered(format!(
                        "the agent could not send the signal ({code}): {}",
                        short(&words)
                    )));
                }
                Some(Output::End(StreamEnd::Failed { message, .. } | StreamEnd::Lost(message))) => {
                    return Err(undelivered(format!("whether the signal was sent is not known: {}", short(&message))));
                }
                None => return Err(undelivered("whether the signal was sent is not known".to_owned())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_command_line_is_containersshs() {
        let argv = ["/bin/bash".to_owned()];
        let environment = [("A".to_owned(), "1 2".to_owned())];
        let console = Console { path: "/usr/bin/containerssh-agent", environment: &environment, wait: true };
        assert_eq!(
            console.command(&argv),
            ["/usr/bin/containerssh-agent", "console", "--env", "A=1 2", "--wait", "--pid", "--", "/bin/bash"]
        );
    }

    proptest! {
        /// Whatever the PID, the pieces and the terminal: PID and output come apart exactly.
        #[test]
        fn a_pid_is_read_from_any_pieces(
            pid in 1u32..(1 << 22),
            rest in prop::collection::vec(any::<u8>(), 0..40),
            cut in 1usize..7,
            (tty, waited, processed) in any::<(bool, bool, bool)>(),
        ) {
            // Without output processing, a carriage return before a line feed can't be told from one that it wrote.
            let plain = pid.to_le_bytes();
            prop_assume!(processed || !tty || !plain.windows(2).any(|pair| pair == b"\r\n"));
            let mut stream = if tty && waited { if processed { b"\r\n".to_vec() } else { b"\n".to_vec() } } else { Vec::new() };
            for byte in plain {
                if byte == b'\n' && tty && processed { stream.push(b'\r'); }
                stream.push(byte);
            }
            stream.extend_from_slice(&rest);
            let (mut reader, mut found) = (PidReader::new(tty, waited), None);
            let mut after = Vec::new();
            for piece in stream.chunks(cut) {
                match &found {
                    None => if let Some((pid, rest)) = reader.take(piece) {
                        found = Some(pid);
                        after.extend_from_slice(&rest);
                    },
                    Some(_) => after.extend_from_slice(piece),
                }
            }
            prop_assert_eq!((found, after), (Some(pid), rest));
        }
    }
}
