//! Whether the wrapper said that the program ended: on every stream, so that all output before it is known to be here.
//!
//! A Status `Success` alone is no proof: when a kubelet dies, the API server makes one of the empty error stream.

use crate::wrapper::{Nonce, Token};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::Instant;

/// A token is one small write, so its rest follows at once; what looks like its first two bytes and goes no further is some
/// program's, perhaps a message that its peer waits for.
const SOON: Duration = Duration::from_millis(100);
/// Three bytes and more are the token, but for one chance in millions: a network may hold up its rest.
const LATER: Duration = Duration::from_secs(5);

/// What is known of a program's end when its stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proven {
    /// No wrapper runs it: the stream's word is all there is.
    Bare,
    /// The wrapper did not get there, or not all of its output is here.
    Missing,
    /// The program ended with this status, and all its output is here.
    Ended(u8),
}

/// Watches a program's outputs.
#[derive(Debug)]
pub(super) enum Proof {
    Bare,
    /// All output is one stream.
    Terminal(Watched),
    Pipes {
        stdout: Watched,
        stderr: Watched,
    },
}

/// One stream.
#[derive(Debug)]
pub(super) struct Watched {
    token: Token,
    since: Option<Instant>,
}

impl Watched {
    fn take(&mut self, bytes: Bytes, now: Instant) -> Vec<Bytes> {
        let before = self.token.held();
        let out = self.token.take(bytes);
        // What grows is still the same beginning.
        if self.token.held() == 0 {
            self.since = None;
        } else if before == 0 || !out.is_empty() {
            self.since = Some(now);
        }
        out
    }

    fn due(&self) -> Option<Instant> {
        let patience = if self.token.held() < 3 { SOON } else { LATER };
        Some(self.since? + patience)
    }

    fn release(&mut self, now: Option<Instant>) -> Bytes {
        match (self.due(), now) {
            (Some(due), Some(now)) if now < due => Bytes::new(),
            (None, Some(_)) => Bytes::new(),
            (_, None) | (Some(_), Some(_)) => {
                self.since = None;
                self.token.release()
            }
        }
    }
}

impl Proof {
    /// `nonce` of the wrapper, where one runs the program.
    pub fn new(nonce: Option<&Nonce>, tty: bool) -> Self {
        let watched = |nonce: &Nonce| Watched { token: nonce.ended(), since: None };
        match nonce {
            None => Self::Bare,
            Some(nonce) if tty => Self::Terminal(watched(nonce)),
            Some(nonce) => Self::Pipes { stdout: watched(nonce), stderr: watched(nonce) },
        }
    }

    /// The program's part of these bytes.
    pub fn stdout(&mut self, bytes: Bytes, now: Instant) -> Vec<Bytes> {
        match self {
            Self::Bare => vec![bytes],
            Self::Terminal(stdout) | Self::Pipes { stdout, .. } => stdout.take(bytes, now),
        }
    }

    /// The program's part of these bytes.
    pub fn stderr(&mut self, bytes: Bytes, now: Instant) -> Vec<Bytes> {
        match self {
            Self::Bare | Self::Terminal(_) => vec![bytes],
            Self::Pipes { stderr, .. } => stderr.take(bytes, now),
        }
    }

    /// When something that is kept back must go on.
    pub fn due(&self) -> Option<Instant> {
        match self {
            Self::Bare => None,
            Self::Terminal(stdout) => stdout.due(),
            Self::Pipes { stdout, stderr } => stdout.due().into_iter().chain(stderr.due()).min(),
        }
    }

    /// What was kept back for too long by `now`, of stdout and of stderr; `None` = the streams have ended: all of it.
    pub fn release(&mut self, now: Option<Instant>) -> [Bytes; 2] {
        match self {
            Self::Bare => [Bytes::new(), Bytes::new()],
            Self::Terminal(stdout) => [stdout.release(now), Bytes::new()],
            Self::Pipes { stdout, stderr } => [stdout.release(now), stderr.release(now)],
        }
    }

    /// Whether the program has ended and its wrapper said on every stream that nothing is to follow: the stream's own end needn't
    /// be waited for.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Bare => false,
            Self::Terminal(stdout) => stdout.token.is_over(),
            Self::Pipes { stdout, stderr } => stdout.token.is_over() && stderr.token.is_over(),
        }
    }

    /// What is known now.
    pub fn proven(&self) -> Proven {
        let status = match self {
            Self::Bare => return Proven::Bare,
            Self::Terminal(stdout) => stdout.token.status(),
            Self::Pipes { stdout, stderr } => stdout.token.status().filter(|_| stderr.token.status().is_some()),
        };
        status.map_or(Proven::Missing, Proven::Ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(nonce: &str) -> String {
        format!("\u{1e}podbay-{nonce}=3;")
    }

    #[test]
    fn pipes_are_proven_by_both_and_a_terminal_by_its_one() {
        let (nonce, text, now) = (Nonce::new([1; 16]), word(&"01".repeat(16)), Instant::now());
        let mut pipes = Proof::new(Some(&nonce), false);
        assert!(pipes.stderr(text.clone().into(), now).is_empty());
        assert_eq!(pipes.proven(), Proven::Missing);
        assert_eq!(pipes.stdout(format!("a{text}b").into(), now), ["a", "b"]);
        assert_eq!(pipes.proven(), Proven::Ended(3));
        let mut terminal = Proof::new(Some(&nonce), true);
        assert_eq!(terminal.proven(), Proven::Missing);
        terminal.stdout(text.clone().into(), now);
        assert_eq!(terminal.proven(), Proven::Ended(3));
        let mut bare = Proof::new(None, false);
        assert_eq!((bare.stdout(text.clone().into(), now), bare.proven()), (vec![text.into()], Proven::Bare));
        assert!(!pipes.is_over() && !terminal.is_over() && !bare.is_over());
    }

    #[test]
    fn all_streams_must_say_that_nothing_follows() {
        let (nonce, now) = (Nonce::new([1; 16]), Instant::now());
        let (ended, over) = (word(&"01".repeat(16)), word(&"01".repeat(16)).replace(';', "!"));
        let mut pipes = Proof::new(Some(&nonce), false);
        pipes.stderr(over.clone().into(), now);
        assert!(!pipes.is_over());
        pipes.stdout(over.clone().into(), now);
        assert!(pipes.is_over() && pipes.proven() == Proven::Ended(3));
        let mut one = Proof::new(Some(&nonce), false);
        one.stderr(over.clone().into(), now);
        one.stdout(ended.into(), now);
        assert!(!one.is_over() && one.proven() == Proven::Ended(3));
        let mut terminal = Proof::new(Some(&nonce), true);
        terminal.stdout(over.into(), now);
        assert!(terminal.is_over());
    }

    #[test]
    fn what_is_kept_back_goes_on_in_time() {
        let (nonce, now) = (Nonce::new([1; 16]), Instant::now());
        let mut proof = Proof::new(Some(&nonce), false);
        assert_eq!(proof.due(), None);
        assert_eq!(proof.stdout("x\u{1e}p".into(), now), ["x"]);
        assert_eq!(proof.due(), Some(now + SOON));
        assert_eq!(proof.release(Some(now)), [Bytes::new(), Bytes::new()]);
        assert!(proof.stdout("od".into(), now).is_empty());
        assert_eq!(proof.due(), Some(now + LATER));
        assert!(proof.stderr("\u{1e}".into(), now).is_empty());
        assert_eq!(proof.release(Some(now + SOON)), [Bytes::new(), "\u{1e}".into()]);
        assert_eq!(proof.release(None), ["\u{1e}pod".into(), Bytes::new()]);
        assert_eq!(proof.due(), None);
    }
}
