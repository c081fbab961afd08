//! The program's companion where no agent runs: a constant POSIX sh script, its argument vector and its preamble.
//!
//! The exec API knows no environment and no terminal size before the start, and a program that redirects its output
//! loses its stdin (`docs/design/0004-level-none-wrapper.md` has the story and the alternatives). The script mends
//! that: it sets the size, exports the environment, prints a mark as its very first output, runs the program as a
//! child while it holds the exec's own outputs open, ends those outputs with a token that has the program's status ([`Token`]),
//! and exits with it. It is constant; values reach
//! it as positional arguments or, where they are long, as escaped lines on stdin (the preamble).
//!
//! This module owns the text and its encoding; who runs it and reads the marks is [`crate::session`].

mod token;

pub use token::Token;

use crate::cluster::StreamEnd;
use bytes::{Bytes, BytesMut};
use std::fmt::Write as _;

/// The script. Without `$(` and `$$`, so that Kubernetes' expansion of a container's command leaves it alone.
pub const SCRIPT: &str = include_str!("wrapper.sh");

/// The shell that runs it: the one path that images with a shell have in common.
pub const SHELL: &str = "/bin/sh";

/// Values longer than this in all go as a preamble: arguments become a URL, which ends at 8 KiB at some proxies and
/// stands in the API server's audit log.
const MAX_ARGUMENTS: usize = 4096;

/// The longest line of a preamble. A terminal in canonical mode takes 4095 bytes; less keeps clear of that.
const LINE: usize = 1000;

/// What an exec'd script ends with where its program ended with 0; and it ends with 0 where the program ended with this.
///
/// A Status of Success may be false: where the kubelet dies, the API server takes an error stream without a word for one.
/// A failure can't be made up in that way, so the one that matters is told as a failure ([`true_end`]).
pub const ZERO: u8 = 213;

/// What became of a program whose script (started by [`for_exec`]) ended like this.
pub fn true_end(end: StreamEnd) -> StreamEnd {
    match end {
        StreamEnd::ExitCode(ZERO) => StreamEnd::Success,
        StreamEnd::Success => StreamEnd::Lost(format!(
            "the API server reported a success that did not come from the program (or it ended with status {ZERO})"
        )),
        StreamEnd::ExitCode(_) | StreamEnd::Failed { .. } | StreamEnd::Lost(_) => end,
    }
}

/// The most output that is thrown away before the mark: the terminal's echo of a preamble (64 KiB of environment and
/// 128 KiB of command, at most five characters for a byte, twice for `^X` echoes).
pub const MAX_NOISE: usize = 2 * 5 * 256 * 1024;

/// A variable that bash ends a script for when it is set to something else than a number.
const NEVER_EXPORTED: &str = "OPTIND";

/// Why a program can't be put into an argument vector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// No program.
    #[error("there is no program to run")]
    Empty,
    /// A shell's `exec` would read it as an option.
    #[error("a program's name can't begin with '-'")]
    Dash,
    /// C strings end there.
    #[error("a NUL byte can't be part of an argument or of the environment")]
    Nul,
    /// Not `[A-Za-z_][A-Za-z0-9_]*`.
    #[error("{0:?} is not the name of an environment variable")]
    Name(String),
}

/// A random word that nothing but our script prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    /// From 128 random bits.
    pub fn new(bits: [u8; 16]) -> Self {
        Self(format!("podbay-{}", hex::encode(bits)))
    }

    /// The word in two parts, which don't find it when they stand apart ([`crate::session`] looks for it in the pod).
    pub fn halves(&self) -> (&str, &str) {
        self.0.trim_start_matches("podbay-").split_at_checked(16).unwrap_or_default()
    }

    /// What the script prints when it wants the preamble.
    pub fn wants(&self) -> Mark {
        Mark::new(format!("{}+", self.0))
    }

    /// What it prints on each of its outputs when the program has ended.
    pub fn ended(&self) -> Token {
        Token::new(&self.0)
    }

    /// What it prints right before the program starts.
    pub fn runs(&self) -> Mark {
        Mark::new(format!("{}.", self.0))
    }
}

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// The argument vector.
    pub argv: &'a [String],
    /// Names and values; a later one of the same name wins.
    pub environment: &'a [(String, String)],
    /// The terminal's (columns, rows), where they are known and not zero.
    pub size: Option<(u16, u16)>,
}

/// A program in its wrapper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The argument vector for exec, or for the container.
    pub command: Vec<String>,
    /// What goes to its stdin first, once it says [`Nonce::wants`] (exec) or once attached (the container's own program).
    pub preamble: Option<Bytes>,
}

/// When the script reads its preamble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// There is none.
    No,
    /// It says so first.
    Tell,
    /// Quietly, as the first thing: what it printed before the attach would be lost.
    Quiet,
}

impl Wait {
    const fn argument(self) -> &'static str {
        match self {
            Self::No => "",
            Self::Tell => "r",
            Self::Quiet => "q",
        }
    }
}

/// Wraps a program for exec.
pub fn for_exec(program: Program<'_>, nonce: &Nonce) -> Result<Wrapped, WrapError> {
    check(program)?;
    if size_of(program) <= MAX_ARGUMENTS {
        return Ok(Wrapped { command: command(program, nonce, Wait::No, true), preamble: None });
    }
    Ok(Wrapped {
        command: command(program, nonce, Wait::Tell, false),
        preamble: Some(preamble(program.environment, program.argv)),
    })
}

/// Wraps a program as a container's own, which waits for the attach: the preamble is its start signal. The environment goes
/// by the preamble, so that it doesn't stand in the pod. The command is not yet escaped for a pod's spec
/// ([`crate::template::session_pod`] does that).
pub fn for_container(program: Program<'_>, nonce: &Nonce) -> Result<Wrapped, WrapError> {
    check(program)?;
    let short = program.argv.iter().map(String::len).sum::<usize>() <= MAX_ARGUMENTS;
    let (arguments, by_preamble) = if short { (program.argv, [].as_slice()) } else { ([].as_slice(), program.argv) };
    let spoken = Program { argv: arguments, environment: &[], size: program.size };
    let command = command(spoken, nonce, Wait::Quiet, true);
    Ok(Wrapped { command, preamble: Some(preamble(program.environment, by_preamble)) })
}

/// Checks what no encoding can carry.
fn check(program: Program<'_>) -> Result<(), WrapError> {
    match program.argv.first().map(String::as_bytes) {
        None | Some([]) => return Err(WrapError::Empty),
        Some([b'-', ..]) => return Err(WrapError::Dash),
        Some(_) => (),
    }
    let values = program.environment.iter().map(|(_, value)| value);
    if program.argv.iter().chain(values).any(|text| text.contains('\0')) {
        return Err(WrapError::Nul);
    }
    match program.environment.iter().find(|(name, _)| !is_name(name)) {
        Some((name, _)) => Err(WrapError::Name(name.clone())),
        None => Ok(()),
    }
}

/// Whether `name` is `[A-Za-z_][A-Za-z0-9_]*`.
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn size_of(program: Program<'_>) -> usize {
    let environment: usize = program.environment.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    environment + program.argv.iter().map(|argument| argument.len() + 1).sum::<usize>()
}

fn command(program: Program<'_>, nonce: &Nonce, wait: Wait, spoken: bool) -> Vec<String> {
    let (columns, rows) = program.size.filter(|&(columns, rows)| columns > 0 && rows > 0).unwrap_or((0, 0));
    let head = [SHELL, "-c", SCRIPT, "podbay", &nonce.0, wait.argument(), &columns.to_string(), &rows.to_string()];
    let mut command: Vec<String> = head.iter().map(ToString::to_string).collect();
    if spoken {
        command.extend(exported(program.environment).map(|(name, value)| format!("{name}={value}")));
    }
    command.push("--".to_owned());
    if spoken {
        command.extend(program.argv.iter().cloned());
    }
    command
}

fn exported(environment: &[(String, String)]) -> impl Iterator<Item = &(String, String)> {
    environment.iter().filter(|(name, _)| name != NEVER_EXPORTED)
}

fn preamble(environment: &[(String, String)], argv: &[String]) -> Bytes {
    let mut lines = String::new();
    for (name, value) in exported(environment) {
        write_value(&mut lines, &format!("{name}={value}"), "e\n");
    }
    for argument in argv {
        write_value(&mut lines, argument, "a\n");
    }
    lines.push_str(".\n");
    lines.into()
}

/// Lines of at most [`LINE`] bytes of printable ASCII, so that a terminal's line discipline changes none of them.
fn write_value(lines: &mut String, value: &str, end: &str) {
    let mut used = 0;
    for byte in value.bytes() {
        if used == 0 {
            lines.push('+');
        }
        let before = lines.len();
        match byte {
            b' '..=b'~' if byte != b'\\' => lines.push(char::from(byte)),
            _ => {
                // Writing to a String can't fail.
                let _ = write!(lines, "\\0{byte:03o}");
            }
        }
        used += lines.len() - before;
        if used >= LINE - 8 {
            lines.push('\n');
            used = 0;
        }
    }
    if used > 0 {
        lines.push('\n');
    }
    lines.push_str(end);
}

/// Looks for a word in a stream and throws away what comes before it.
#[derive(Debug, Clone)]
pub struct Mark {
    word: String,
    tail: BytesMut,
    thrown: usize,
}

/// Too much output came before the mark: this is not our script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the wrapper's mark did not come")]
pub struct NoMark;

impl Mark {
    fn new(word: String) -> Self {
        Self { word, tail: BytesMut::new(), thrown: 0 }
    }

    /// Takes the next bytes; gives what follows the mark, once it came.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<Bytes>, NoMark> {
        self.tail.extend_from_slice(bytes);
        let word = self.word.as_bytes();
        if let Some(at) = self.tail.windows(word.len()).position(|window| window == word) {
            let rest = self.tail.split_off(at + word.len());
            return Ok(Some(rest.freeze()));
        }
        let noise = (self.tail.len() + 1).saturating_sub(word.len());
        let _ = self.tail.split_to(noise);
        self.thrown += noise;
        if self.thrown > MAX_NOISE { Err(NoMark) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kubernetes_expansion_leaves_the_script_alone() {
        assert!(!SCRIPT.contains("$(") && !SCRIPT.contains("$$"));
    }

    #[test]
    fn refuses_what_no_argument_vector_can_carry() {
        let nonce = Nonce::new([7; 16]);
        let wrap = |argv: &[&str], environment: &[(&str, &str)]| {
            let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
            let environment: Vec<_> = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            for_exec(Program { argv: &argv, environment: &environment, size: None }, &nonce).map(|w| w.command.len())
        };
        assert_eq!(wrap(&[], &[]), Err(WrapError::Empty));
        assert_eq!(wrap(&[""], &[]), Err(WrapError::Empty));
        assert_eq!(wrap(&["-x"], &[]), Err(WrapError::Dash));
        assert_eq!(wrap(&["x", "a\0b"], &[]), Err(WrapError::Nul));
        assert_eq!(wrap(&["x"], &[("A", "\0")]), Err(WrapError::Nul));
        for name in ["", "1A", "A=B", "A B", "ä", "--"] {
            assert_eq!(wrap(&["x"], &[(name, "")]), Err(WrapError::Name(name.to_owned())), "{name}");
        }
        assert_eq!(wrap(&["x"], &[("_a1", "")]), Ok(8 + 1 + 1 + 1));
    }

    proptest! {
        /// However the stream is cut, the mark is found and what follows it is whole.
        #[test]
        fn a_mark_is_found_in_any_pieces(
            noise in "[podbay+.\\-]{0,80}",
            rest in prop::collection::vec(any::<u8>(), 0..80),
            cuts in prop::collection::vec(1usize..40, 1..20),
        ) {
            let mut mark = Nonce::new([9; 16]).runs();
            let stream = [noise.as_bytes(), mark.word.clone().as_bytes(), &rest].concat();
            let mut found: Option<Vec<u8>> = None;
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                if at == stream.len() { break }
                let end = (at + cut).min(stream.len());
                match &mut found {
                    Some(found) => found.extend_from_slice(&stream[at..end]),
                    None => found = mark.take(&stream[at..end]).expect("little noise").map(|rest| rest.to_vec()),
                }
                at = end;
            }
            prop_assert_eq!(found, Some(rest));
        }

        /// Every line of a preamble is short and printable.
        #[test]
        fn a_preamble_passes_any_terminal(value in any::<String>(), long in 0usize..5000) {
            let value = value.replace('\0', "") + &"é".repeat(long);
            let text = preamble(&[("A".to_owned(), value)], &["x".to_owned()]);
            for line in text.split(|&b| b == b'\n') {
                prop_assert!(line.len() <= LINE && line.iter().all(|b| (b' '..=b'~').contains(b)));
            }
        }
    }

    #[test]
    fn endless_noise_is_an_error() {
        let mut mark = Nonce::new([1; 16]).runs();
        let noise = vec![b'x'; 64 * 1024];
        let calls = (0..10_000).take_while(|_| mark.take(&noise) == Ok(None)).count();
        assert!(calls * noise.len() <= MAX_NOISE + noise.len() && mark.tail.len() < 64);
    }
}
