//! docs/contract.md says what the code does.

use podbay::{code_of, v1::Reason};
use std::collections::BTreeMap;

/// gRPC's own word, from tonic's name of the code.
fn word(code: tonic::Code) -> String {
    let mut word = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(c.to_ascii_uppercase());
    }
    word
}

#[test]
fn the_reason_table_is_whole_and_true() {
    let text = include_str!("../../docs/contract.md");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (reason, code) = (cells.next()?, cells.next()?);
        let is_name = reason.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        is_name.then(|| (reason.to_owned(), code.to_owned()))
    });
    let table: BTreeMap<String, String> = rows.collect();
    let known = (0..1000).filter_map(|number| Reason::try_from(number).ok());
    let wanted: BTreeMap<String, String> = known
        .map(|reason| (reason.as_str_name().trim_start_matches("REASON_").to_owned(), word(code_of(reason))))
        .collect();
    assert!(wanted.len() > 30);
    assert_eq!(table, wanted);
}
