//! `docs/log-codes.md` and the code say the same of what lines are called.

use podbay_runtime::codes::{ABSENT, CODES, absent, table};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every source but tests and the table itself.
fn sources() -> String {
    fn walk(dir: &Path, text: &mut String) {
        let mut entries: Vec<_> = std::fs::read_dir(dir).expect("a directory").flatten().map(|e| e.path()).collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                walk(&path, text);
            } else if path.extension().is_some_and(|end| end == "rs") && !name.contains("tests") && name != "codes.rs" {
                let source = std::fs::read_to_string(&path).expect("text");
                text.push_str(source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default());
            }
        }
    }
    let mut text = String::new();
    for dir in ["proto", "runtime/src", "frontend/src", "frontend/core/src", "backend/src", "backend/core/src"] {
        walk(&project().join(dir), &mut text);
    }
    text
}

#[test]
fn every_code_is_told_somewhere_and_none_besides() {
    let sources = sources();
    for code in CODES {
        let name = code.name;
        let by_name = sources.match_indices(&format!("codes::{name}")).any(|(at, found)| {
            // Not the beginning of a longer one.
            !sources[at + found.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        });
        assert!(by_name || sources.contains(&format!("\"{name}\"")), "{name} is told nowhere");
    }
    let known: BTreeSet<&str> = CODES.iter().map(|code| code.name).collect();
    assert_eq!(known.len(), CODES.len(), "a code stands twice");
    for (at, _) in sources.match_indices("code = \"") {
        let name = sources[at + 8..].split('"').next().unwrap_or_default();
        assert!(known.contains(name), "{name} is in no table");
    }
    for (name, _) in ABSENT {
        assert!(!known.contains(name), "{name} is in both tables");
    }
}

#[test]
fn the_page_is_what_the_code_says() {
    let path = project().join("docs/log-codes.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    let head = page.split("<!-- generated -->\n").next().unwrap_or_default();
    let wanted = format!(
        "{head}<!-- generated -->\n\n{}\n## Codes of ContainerSSH that are never told\n\n{}",
        table(),
        absent()
    );
    if std::env::var_os("PODBAY_UPDATE").is_some() {
        std::fs::write(&path, wanted).expect("written");
        return;
    }
    assert!(page == wanted, "docs/log-codes.md is stale: PODBAY_UPDATE=1 cargo test --workspace --test codes");
}
