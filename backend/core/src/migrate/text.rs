//! The new configuration's text: the old one, line by line, with comments and order. Whether it came out right is for the caller to see:
//! what is not in block style, or otherwise strange, may go wrong here.

use super::{Plan, tree::TIMEOUTS};
use podbay_runtime::config::Shown;

/// A key of a map in block style, with what belongs to it.
#[derive(Debug, Clone)]
struct Entry {
    /// Comments and blank lines before it.
    lead: Vec<String>,
    /// From 1.
    number: usize,
    indent: usize,
    key: String,
    /// Behind the colon.
    rest: String,
    /// The lines below, as they are, with the first one's number following `number`.
    body: Vec<String>,
}

impl Entry {
    fn write(&self, out: &mut Vec<String>) {
        out.extend(self.lead.iter().cloned());
        out.push(format!("{}{}:{}", " ".repeat(self.indent), self.key, self.rest));
        out.extend(self.body.iter().cloned());
    }

    /// Its lines as comments.
    fn write_out(&self, out: &mut Vec<String>) {
        let (lead, mut own) = (self.lead.len(), Vec::new());
        self.write(&mut own);
        for (i, line) in own.into_iter().enumerate() {
            out.push(if i < lead || line.trim().is_empty() { line } else { format!("# {line}") });
        }
    }

    /// Whether its value is all below it.
    fn is_block(&self) -> bool {
        let rest = self.rest.trim();
        rest.is_empty() || rest.starts_with('#')
    }

    fn below(&self) -> Option<(Vec<Entry>, Vec<String>)> {
        if self.is_block() { entries(&self.body, self.number + 1) } else { None }
    }
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_empty(line: &str) -> bool {
    let text = line.trim();
    text.is_empty() || text.starts_with('#')
}

/// A plain word in quotes means the same without.
fn unquoted(key: &str) -> &str {
    let inner = ['"', '\''].iter().find_map(|quote| key.strip_prefix(*quote)?.strip_suffix(*quote));
    inner.filter(|inner| inner.bytes().all(|byte| byte.is_ascii_alphanumeric())).unwrap_or(key)
}

/// The same value without its anchor, which only one may have.
fn without_anchor(rest: &str) -> &str {
    let anchored = rest.trim_start().strip_prefix('&').and_then(|rest| rest.find(' ').and_then(|at| rest.get(at..)));
    anchored.unwrap_or(rest)
}

/// The entries of a map in block style, and the comments after the last. `None` where it is none.
fn entries(lines: &[String], first: usize) -> Option<(Vec<Entry>, Vec<String>)> {
    let indent = lines.iter().find(|line| !is_empty(line)).map(|line| indent_of(line))?;
    let (mut found, mut lead): (Vec<Entry>, Vec<String>) = (Vec::new(), Vec::new());
    for (i, line) in lines.iter().enumerate() {
        if is_empty(line) {
            lead.push(line.clone());
            continue;
        }
        let text = line.get(indent..)?;
        let at = indent_of(line);
        if at < indent {
            return None;
        }
        if at > indent || text.starts_with("- ") || text == "-" {
            let last = found.last_mut()?;
            last.body.append(&mut lead);
            last.body.push(line.clone());
            continue;
        }
        let (key, rest) = text.split_once(':')?;
        if !rest.is_empty() && !rest.starts_with(' ') {
            return None;
        }
        let key = unquoted(key.trim_end()).to_owned();
        found.push(Entry {
            lead: std::mem::take(&mut lead),
            number: first + i,
            indent,
            key,
            rest: rest.to_owned(),
            body: Vec::new(),
        });
    }
    Some((found, lead))
}

pub(super) fn migrated(text: &str, before: &Shown, plan: &Plan) -> Option<String> {
    let (mark, text) = text.strip_prefix('\u{feff}').map_or(("", text), |text| ("\u{feff}", text));
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if !comment_out(&mut lines, &plan.ignored_lines) {
        return None;
    }
    let (head, end) = edges(&lines);
    let (top, tail) = entries(lines.get(head..end)?, head + 1)?;
    let mut out: Vec<String> = lines.get(..head)?.to_vec();
    let has = |key: &str| before.get(key).is_some_and(|value| !value.is_null());
    for entry in &top {
        match entry.key.as_str() {
            "kuberun" if !plan.used => entry.write_out(&mut out),
            "kubernetes" if plan.replaces => entry.write_out(&mut out),
            "kuberun" => {
                if !has("backend") {
                    out.push("backend: kubernetes".into());
                }
                Entry { key: "kubernetes".into(), body: kubernetes(entry, plan)?, ..entry.clone() }.write(&mut out);
            }
            "backend" if plan.used && has("backend") => {
                Entry { rest: entry.rest.replacen("kuberun", "kubernetes", 1), ..entry.clone() }.write(&mut out);
            }
            "security" if plan.disable_command => {
                let (below, _) = entry.below()?;
                if below.iter().any(|entry| ["command", "subsystem"].contains(&entry.key.as_str())) {
                    return None;
                }
                entry.write(&mut out);
                let indent = below.first()?.indent;
                out.extend(closed(indent));
            }
            "listen" if plan.listen.is_some() => {
                if has("ssh") {
                    out.extend(entry.lead.iter().cloned());
                } else {
                    let body = vec![format!("  listen:{}", entry.rest)];
                    Entry { key: "ssh".into(), rest: String::new(), body, ..entry.clone() }.write(&mut out);
                }
            }
            "ssh" if plan.listen.is_some() => {
                let (below, _) = entry.below()?;
                entry.write(&mut out);
                if !below.iter().any(|entry| entry.key == "listen") {
                    let listen = top.iter().find(|entry| entry.key == "listen")?;
                    out.push(format!("{}listen:{}", " ".repeat(below.first()?.indent), listen.rest));
                }
            }
            _ => entry.write(&mut out),
        }
    }
    out.extend(tail);
    if plan.used && !top.iter().any(|entry| entry.key == "kuberun") {
        out.extend(["kubernetes:".to_owned(), "  pod:".to_owned()]);
        added(plan, 4, false, &mut out);
    }
    if plan.disable_command && !has("security") {
        out.push("security:".into());
        out.extend(closed(2));
    }
    out.extend(lines.get(end..)?.iter().cloned());
    // As the file has its ends of lines, where it has one kind.
    let windows = text.contains("\r\n") && text.matches('\n').count() == text.matches("\r\n").count();
    let newline = if windows { "\r\n" } else { "\n" };
    Some(format!("{mark}{}{newline}", out.join(newline)))
}

/// Where the document itself begins and ends: behind the line `---`, before the line `...`.
fn edges(lines: &[String]) -> (usize, usize) {
    let is_start = |line: &str| line == "---" || line.starts_with("--- #");
    let before = lines.iter().take_while(|line| is_empty(line) || line.starts_with('%')).count();
    let head = if lines.get(before).is_some_and(|line| is_start(line.trim_end())) { before + 1 } else { 0 };
    let behind = lines.iter().rev().take_while(|line| is_empty(line)).count();
    let last = lines.len().saturating_sub(behind + 1);
    let end = if lines.get(last).is_some_and(|line| line.trim_end() == "...") { last } else { lines.len() };
    (head, end.max(head))
}

fn closed(indent: usize) -> [String; 4] {
    let space = " ".repeat(indent);
    [
        format!("{space}command:"),
        format!("{space}  mode: disable"),
        format!("{space}subsystem:"),
        format!("{space}  mode: disable"),
    ]
}

fn kubernetes(kuberun: &Entry, plan: &Plan) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let empty = kuberun.is_block() && kuberun.body.iter().all(|line| is_empty(line));
    let (below, tail) = if empty { (Vec::new(), kuberun.body.clone()) } else { kuberun.below()? };
    let indent = below.first().map_or(2, |entry| entry.indent);
    let space = " ".repeat(indent);
    let mut http = None;
    for entry in below.iter().filter(|entry| entry.key == "connection" && entry.is_block()) {
        let (keys, _) = entry.below()?;
        http = keys.into_iter().find(|entry| entry.key == "timeout").filter(|_| plan.http.is_some());
    }
    let timeouts = |timeout: Option<&Entry>| {
        let timeout = timeout.filter(|_| plan.timeout.is_some());
        let five = timeout.into_iter().flat_map(|entry| {
            TIMEOUTS.iter().enumerate().map(|(i, key)| {
                let rest = if i == 0 { &entry.rest } else { without_anchor(&entry.rest) };
                format!("{space}  {key}:{rest}")
            })
        });
        let http =
            http.iter().flat_map(|entry| entry.lead.iter().cloned().chain([format!("{space}  http:{}", entry.rest)]));
        let keys: Vec<String> = five.chain(http).collect();
        let head = (!keys.is_empty()).then(|| format!("{space}timeouts:"));
        head.into_iter().chain(keys)
    };
    let has = |key: &str| below.iter().any(|entry| entry.key == key);
    for entry in &below {
        match entry.key.as_str() {
            "connection" => {
                let (keys, rest) = entry.below()?;
                let (all, mut body, mut left) = (keys.len(), Vec::new(), 0);
                for key in keys {
                    match key.key.as_str() {
                        // Its comments go along with it.
                        "timeout" if plan.http.is_some() => {}
                        "timeout" | "insecure" => body.extend(key.lead),
                        _ => {
                            left += 1;
                            key.write(&mut body);
                        }
                    }
                }
                body.extend(rest);
                if left == 0 && all > 0 {
                    out.extend(entry.lead.iter().cloned().chain(body));
                } else {
                    Entry { body, ..entry.clone() }.write(&mut out);
                }
                if !has("timeout") {
                    out.extend(timeouts(None));
                }
            }
            "timeout" => {
                out.extend(entry.lead.iter().cloned());
                out.extend(timeouts(Some(entry)));
            }
            "pod" => {
                out.extend(entry.lead.iter().cloned());
                out.push(format!("{space}pod:{}", entry.rest));
                pod(entry, plan, &mut out)?;
            }
            _ => entry.write(&mut out),
        }
    }
    if !has("pod") {
        out.push(format!("{space}pod:"));
        added(plan, indent + 2, false, &mut out);
    }
    out.extend(tail);
    Some(out)
}

fn pod(section: &Entry, plan: &Plan, out: &mut Vec<String>) -> Option<()> {
    if section.is_block() && section.body.iter().all(|line| is_empty(line)) {
        added(plan, section.indent + 2, false, out);
        out.extend(section.body.iter().cloned());
        return Some(());
    }
    let (below, tail) = section.below()?;
    let mut said = false;
    for entry in &below {
        let space = " ".repeat(entry.indent);
        match entry.key.to_ascii_lowercase().as_str() {
            "namespace" => {
                let body = vec![format!("{space}  namespace:{}", entry.rest)];
                Entry { key: "metadata".into(), rest: String::new(), body, ..entry.clone() }.write(out);
            }
            "podspec" => Entry { key: "spec".into(), ..entry.clone() }.write(out),
            "disablecommand" => out.extend(entry.lead.iter().cloned()),
            "disableagent" => {
                said = true;
                let comment = entry.rest.find(" #").and_then(|at| entry.rest.get(at..)).unwrap_or_default();
                let rest = format!(" {}{comment}", !plan.agent);
                Entry { key: "disableAgent".into(), rest, ..entry.clone() }.write(out);
            }
            _ => entry.write(out),
        }
    }
    added(plan, below.first()?.indent, said, out);
    out.extend(tail);
    Some(())
}

/// What kuberun did without being told.
fn added(plan: &Plan, indent: usize, said: bool, out: &mut Vec<String>) {
    let space = " ".repeat(indent);
    out.push(format!("{space}mode: session"));
    if !said {
        out.push(format!("{space}disableAgent: {}", !plan.agent));
    }
    if let Some(shell) = &plan.shell {
        // JSON is YAML.
        out.push(format!("{space}shellCommand: {}", Shown::from(shell.clone())));
    }
}

/// Turns keys with all below them into comments. Whether that was possible: a key must begin its line.
fn comment_out(lines: &mut [String], places: &[(u64, u64)]) -> bool {
    for (line, column) in places {
        let (Ok(start), Ok(column)) = (usize::try_from(*line), usize::try_from(*column)) else { return false };
        let Some(first) = start.checked_sub(1).and_then(|i| lines.get(i)) else { return false };
        let indent = indent_of(first);
        if first.trim_start().starts_with('#') {
            // Within another that is a comment by now.
            continue;
        }
        if is_value(first, column) {
            return false;
        }
        let mut at = start - 1;
        while let Some(text) = lines.get_mut(at) {
            let deeper = indent_of(text) > indent || text.get(indent..).is_some_and(|rest| rest.starts_with("- "));
            if at >= start && !text.trim().is_empty() && !deeper {
                break;
            }
            if !text.trim().is_empty() {
                let (space, rest) = text.split_at(indent_of(text));
                *text = format!("{space}# {rest}");
            }
            at += 1;
        }
    }
    true
}

/// Whether the place is one in a line that begins with something else.
fn is_value(line: &str, column: usize) -> bool {
    line.get(..column.saturating_sub(1)).is_none_or(|before| !before.trim().is_empty())
}
