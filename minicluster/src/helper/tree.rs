//! The processes below a process, from `/proc`.

use std::{collections::HashMap, fs};

/// A process as `/proc/PID/stat` shows it.
struct Seen {
    parent: u32,
    zombie: bool,
}

/// All living (not zombie) processes below `root`, without `root`. A snapshot: what forks meanwhile may be missing.
pub(crate) fn below(root: u32) -> Vec<u32> {
    let all = processes();
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (&pid, seen) in &all {
        children.entry(seen.parent).or_default().push(pid);
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        for &child in children.get(&pid).into_iter().flatten() {
            open.push(child);
            if all.get(&child).is_some_and(|seen| !seen.zombie) {
                found.push(child);
            }
        }
    }
    found
}

fn processes() -> HashMap<u32, Seen> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, parse(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
        })
        .collect()
}

/// `PID (name, which may hold anything) STATE PPID …`: the last parenthesis ends the name (proc_pid_stat(5)).
fn parse(stat: &str) -> Option<Seen> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    Some(Seen { parent: fields.next()?.parse().ok()?, zombie })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, id};

    #[test]
    fn a_name_with_parentheses_and_spaces_is_no_trouble() {
        let seen = parse("12 (a) S 1 (b) R 7 8 9").expect("parses");
        assert_eq!((seen.parent, seen.zombie), (7, false));
        assert!(parse("12 (x) Z 3 0").expect("parses").zombie);
        assert!(parse("garbage").is_none());
    }

    #[test]
    fn a_child_is_below_us_and_a_zombie_is_not() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat starts");
        assert!(below(id()).contains(&child.id()));
        drop(child.stdin.take());
        let status = child.wait().expect("cat ends");
        assert!(status.success());
        assert!(!below(id()).contains(&child.id()));
    }
}
