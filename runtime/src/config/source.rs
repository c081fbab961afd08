//! Where a document's text comes from, and what is wrong with it before anything in it can be believed.

use super::mistake::{Mistake, Mistakes};
use std::{fs::File, io::Read as _, path::Path};

/// A larger file is refused.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// A file's text: UTF-8, at most 4 MiB.
pub(super) fn read(path: &Path) -> Result<String, Mistakes> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    // Not by its size alone: a pipe has none.
    match File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > MAX_FILE => Err(whole(&name, format!("larger than {MAX_FILE} bytes"))),
        Ok(_) => String::from_utf8(bytes).map_err(|error| {
            let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let before = String::from_utf8_lossy(before);
            let line = 1 + before.matches('\n').count() as u64;
            let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count() as u64;
            let message = "is not UTF-8 from here on: save the file as UTF-8".to_owned();
            Mistakes(vec![Mistake { file: name.clone(), line, column, path: String::new(), message }])
        }),
        Err(error) => Err(whole(&name, format!("can't be read: {error}"))),
    }
}

/// Without the mark that some editors put before UTF-8.
pub(super) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// A mistake of the file as a whole.
pub(super) fn whole(name: &str, message: String) -> Mistakes {
    Mistakes(vec![Mistake { file: name.to_owned(), line: 0, column: 0, path: String::new(), message }])
}

/// What is no YAML, with its place.
pub(super) fn syntax(name: &str, error: &serde_yaml::Error) -> Mistakes {
    let error = error.without_snippet();
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let message = words(error);
    Mistakes(vec![Mistake { file: name.to_owned(), line, column, path: String::new(), message }])
}

/// The parser's words, without its hints at its own options.
fn words(error: &serde_yaml::Error) -> String {
    use serde_yaml::Error;
    match error {
        Error::MultipleDocuments { .. } => {
            "a second document begins here, and a configuration is one: make a file of each".into()
        }
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("{key} is given twice"),
        Error::NonFiniteFloat { value, .. } => format!("{value} is no number that can be used"),
        Error::Budget { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "grows too large: too many values, or anchors that stand for too many of them".into()
        }
        Error::AliasError { error, .. } => words(error),
        other => {
            let text = other.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            if text.contains("recursion limit") {
                return "is nested too deeply".into();
            }
            match advice(text) {
                Some(advice) => format!("{text}: {advice}"),
                None => text.to_owned(),
            }
        }
    }
}

/// What to do about the faults that people make: the parser only says what it did not find.
fn advice(text: &str) -> Option<&'static str> {
    [
        ("tabs disallowed", "indent by spaces"),
        (
            "did not find expected key",
            "this line or one before it is indented wrongly (keys of one map begin in the same column), or a quote or bracket is not closed",
        ),
        (
            "mapping values are not allowed",
            "put text with a colon and a blank in quotes, or indent this line as the one before it",
        ),
        ("\\u{0}", "save the file as UTF-8; this looks like UTF-16 or no text"),
        ("unexpected character", "put text that begins with it in quotes"),
        ("unknown anchor", "put text that begins with * in quotes"),
        ("<document start>", "expected lines such as `key: value`; is this YAML?"),
        ("after double-quoted scalar", "a quote before it is not closed, or one within the text has no \\ before it"),
        ("illegal placement of ':'", "a bracket or quote before it is not closed"),
        ("mismatched bracket", "close brackets in the order that they were opened in"),
    ]
    .into_iter()
    .find_map(|(fault, advice)| text.contains(fault).then_some(advice))
}
