//! What the documents show works: their configurations, their commands and their links.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All documents of the tree that are kept, by their path in it, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let (root, mut found) = (root(), Vec::new());
    let mut folders: Vec<PathBuf> = ["docs", "deploy", "tests/cluster"].map(PathBuf::from).into_iter().collect();
    for name in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"] {
        found.push(PathBuf::from(name));
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = folder.join(entry.file_name());
            if entry.file_type().expect("a type").is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(root.join(&path)).expect("text"))).collect()
}

/// Fenced blocks: line number of the first line, language, text. A block in a list is indented: so much is taken away.
fn blocks(text: &str) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, usize, String, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        if let Some(language) = trimmed.strip_prefix("```") {
            match open.take() {
                Some((at, _, language, text)) => found.push((at, language, text)),
                None => {
                    open = Some((number + 2, line.len() - trimmed.len(), language.trim().to_owned(), String::new()));
                }
            }
        } else if let Some((_, indent, _, block)) = &mut open {
            block.push_str(line.get(*indent..).unwrap_or_default());
            block.push('\n');
        }
    }
    assert!(open.is_none(), "a block does not end");
    found
}

fn podbay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podbay")).args(arguments).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A block of the language `yaml` is a configuration of ours; what is of somebody else is named (`yaml kubernetes`).
#[test]
fn every_configuration_that_is_shown_has_no_mistake() {
    let (dir, mut wrong, mut count) = (tempfile::tempdir().expect("a directory"), Vec::new(), 0);
    for (path, document) in documents() {
        for (line, _, block) in blocks(&document).into_iter().filter(|(_, language, _)| language == "yaml") {
            count += 1;
            let file = dir.path().join(format!("{count}.yaml"));
            fs::write(&file, block).expect("writes");
            let run = podbay(&["check", &file.display().to_string()]);
            let mistakes: Vec<String> = text(&run.stderr)
                .lines()
                // A whole file is a page; and the certificates that one names are on other machines.
                .filter(|told| !told.contains("is not there: podbay-"))
                .filter(|told| !told.ends_with("No such file or directory (os error 2)"))
                .map(str::to_owned)
                .collect();
            assert!(matches!(run.status.code(), Some(0 | 2)), "{run:?}");
            if !mistakes.is_empty() {
                wrong.push(format!("{}:{line}:\n  {}", path.display(), mistakes.join("\n  ")));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(count >= 6, "only {count} configurations were found");
}

/// Commands and flags of `podbay` that a line of a block or a piece of code names, with where.
fn commands() -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    for (path, document) in documents() {
        if path.starts_with("docs/design") {
            continue;
        }
        let code = blocks(&document).into_iter().map(|(_, _, text)| text).flat_map(|text| {
            text.lines().map(|line| line.split('#').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        });
        let spans = document.split('`').skip(1).step_by(2).map(str::to_owned);
        for line in code.chain(spans) {
            let Some((_, line)) = line.split_once("podbay ").filter(|(before, _)| {
                before.is_empty() || before.ends_with(['(', ' ', '/']) || before.ends_with("-- ")
            }) else {
                continue;
            };
            let mut words = line.split_whitespace();
            let Some(command) = words.next().filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
            else {
                continue;
            };
            // Behind `--` it is the user's program.
            let flags = words.take_while(|word| *word != "--").filter(|word| word.starts_with("--"));
            let place = path.display().to_string();
            found.insert((command.to_owned(), String::new(), place.clone()));
            for flag in flags {
                let name: String = flag.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
                found.insert((command.to_owned(), name, place.clone()));
            }
        }
    }
    found
}

#[test]
fn every_command_and_flag_that_is_shown_exists() {
    let commands = commands();
    let all: BTreeSet<&str> = commands.iter().map(|(command, _, _)| command.as_str()).collect();
    for known in ["attach", "check", "demo", "migrate", "run", "sessions", "shell"] {
        assert!(all.contains(known), "{known} is nowhere shown: {all:?}");
    }
    for (command, flag, place) in &commands {
        let help = podbay(&[command, "--help"]);
        assert!(help.status.success(), "{place}: there is no podbay {command}");
        let help = text(&help.stdout);
        let is_there = help.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).any(|word| word == flag);
        assert!(flag.is_empty() || is_there, "{place}: podbay {command} has no {flag}");
    }
}

/// As GitHub names headings.
fn anchors(document: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found: BTreeSet<String> = BTreeSet::new();
    for line in document.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let Some(heading) = line.strip_prefix('#').filter(|_| !fenced) else { continue };
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let slug: String = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let same = (1..).map(|n| format!("{slug}-{n}"));
        let free = std::iter::once(slug.clone()).chain(same).find(|name| !found.contains(name));
        found.extend(free);
    }
    found
}

#[test]
fn every_link_leads_somewhere() {
    let (root, mut wrong, mut count) = (root(), Vec::new(), 0);
    for (path, document) in documents() {
        for target in document.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            if target.contains("://") || target.starts_with("mailto:") || target.contains(char::is_whitespace) {
                continue;
            }
            count += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap_or(Path::new("")).join(file) };
            let to = root.join(to);
            if !to.exists() {
                wrong.push(format!("{}: {target}: there is no such file", path.display()));
            } else if !anchor.is_empty()
                && to.extension().is_some_and(|extension| extension == "md")
                && !anchors(&fs::read_to_string(&to).expect("text")).contains(anchor)
            {
                wrong.push(format!("{}: {target}: there is no such heading", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(count > 50, "only {count} links were found");
}

#[test]
fn the_role_names_each_right_once() {
    let role = fs::read_to_string(root().join("deploy/rbac.yaml")).expect("text");
    let (mut verbs, mut resources) = (Vec::new(), Vec::new());
    for line in role.lines().map(str::trim) {
        if line.starts_with("- apiGroups") {
            verbs.clear();
        } else if let Some(resource) = line.strip_prefix("resources: ") {
            assert!(!resources.contains(&resource), "{resource} stands in two rules");
            resources.push(resource);
        } else if let Some(verb) = line.strip_prefix("- ").and_then(|rest| rest.split([' ', '#']).next()) {
            assert!(!verbs.contains(&verb), "the verb {verb} stands twice in a rule");
            verbs.push(verb);
        }
    }
    assert_eq!(resources.len(), 5);
}
