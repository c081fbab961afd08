//! From `kuberun` to `kubernetes`: a configuration file rewritten so that it means the same. Pure.
//!
//! What the new file must mean is made from the values ([`tree`]). The text is edited apart from that ([`text`]), so that comments and order
//! stay; only if it then means exactly the same it is taken, else the values are written anew.

mod text;
mod tree;

use crate::config::{UNREADABLE, kuberun_settings};
use podbay_runtime::config::{Document, Mistake, Mistakes, Shown, to_yaml};
use std::fmt;

/// What a line of the report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// It is written otherwise now and means the same.
    Changed,
    /// It was relied on for safety, and deserves a look.
    LessSafe,
    /// It has no place in the new form.
    Unmapped,
}

/// A line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What kind.
    pub about: About,
    /// What and why.
    pub text: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = match self.about {
            About::Changed => "changed",
            About::LessSafe => "less safe",
            About::Unmapped => "can't be mapped",
        };
        write!(f, "{about}: {}", self.text)
    }
}

/// What came of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// The new file; `None` = there is nothing to migrate.
    pub text: Option<String>,
    /// What changed and why.
    pub changes: Vec<Change>,
}

/// What is to be done, found from the values.
#[derive(Debug, Default)]
struct Plan {
    /// `kuberun` is what counts; else it is only taken out.
    used: bool,
    /// An unused `kubernetes` is in the way.
    replaces: bool,
    timeout: Option<Shown>,
    http: Option<Shown>,
    agent: bool,
    /// To be added; `None` = it is there.
    shell: Option<Vec<String>>,
    disable_command: bool,
    /// Dotted, as the warnings have them: keys that kuberun ignored.
    ignored: Vec<String>,
    /// The same keys' lines, from 1.
    ignored_lines: Vec<(u64, u64)>,
    /// A top-level `listen`.
    listen: Option<Shown>,
}

/// Migrates a file's text; `name` stands in messages.
///
/// # Errors
/// Mistakes in the file: what is wrong before would be wrong after.
pub fn migrate(name: &str, text: &str) -> Result<Migration, Mistakes> {
    let document = Document::parse(name, text)?;
    let before = document.value();
    if !before.is_object() {
        // Says that it is none.
        document.root().leave();
        document.finish()?;
        return Ok(Migration { text: None, changes: Vec::new() });
    }
    let nothing = Shown::Object(serde_json::Map::new());
    let chosen = before.get("backend").and_then(Shown::as_str) == Some("kuberun");
    let kuberun = match before.get("kuberun").filter(|section| !section.is_null()) {
        Some(section) => section,
        // All defaults.
        None if chosen => &nothing,
        None => return Ok(Migration { text: None, changes: Vec::new() }),
    };
    let mut root = document.root();
    let read = kuberun_settings(root.section("kuberun"));
    root.leave();
    let warnings = document.warnings();
    match (document.finish(), read) {
        (Err(Mistakes(mistakes)), read) => {
            let wrong: Vec<Mistake> = mistakes.into_iter().filter(|mistake| !is_elsewhere(mistake)).collect();
            if !wrong.is_empty() || read.is_none() {
                return Err(Mistakes(wrong));
            }
        }
        (Ok(()), Some(_)) => {}
        (Ok(()), None) => return Err(whole(name, "no configuration came of it: please report this")),
    }
    let mut changes = Vec::new();
    let plan = plan(&before, kuberun, &warnings, &mut changes);
    let after = tree::migrated(&before, &plan);
    let same = |text: &String| Document::parse(name, text).is_ok_and(|document| document.value() == after);
    if let Some(text) = text::migrated(text, &before, &plan).filter(same) {
        return Ok(Migration { text: Some(text), changes });
    }
    // A file that others read as JSON stays that.
    let json = format!("{after:#}\n");
    let (anew, what) = if is_json(text) {
        ([json, to_yaml(&after)], "the whole file was written anew, as JSON: its order is lost")
    } else {
        let what =
            "the whole file was written anew: comments and order are lost, for it is not in block style throughout";
        ([to_yaml(&after), json], what)
    };
    changes.push(Change { about: About::Changed, text: what.into() });
    let written = anew.into_iter().find(same);
    let text =
        written.ok_or_else(|| whole(name, "can't be written anew so that it means the same: please report this"))?;
    Ok(Migration { text: Some(text), changes })
}

fn whole(name: &str, message: &str) -> Mistakes {
    let (file, message) = (name.to_owned(), message.to_owned());
    Mistakes(vec![Mistake { file, line: 0, column: 0, path: String::new(), message }])
}

/// A file is migrated on any machine; the token is in the pod that it is for.
fn is_elsewhere(mistake: &Mistake) -> bool {
    mistake.path == "kuberun.connection.bearerTokenFile" && mistake.message.contains(UNREADABLE)
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text.trim_start_matches('\u{feff}')).is_ok()
}

/// A key in any case, as kuberun's `pod` has them.
fn find<'a>(map: &'a Shown, key: &str) -> Option<&'a Shown> {
    let (_, value) = map.as_object()?.iter().find(|(name, _)| name.eq_ignore_ascii_case(key))?;
    (!value.is_null()).then_some(value)
}

fn is_true(value: Option<&Shown>) -> bool {
    value.and_then(Shown::as_bool) == Some(true)
}

/// A duration that is set: zero means unset.
fn set(value: Option<&Shown>) -> Option<Shown> {
    let value = value?;
    let zero = match value {
        Shown::String(text) => podbay_runtime::config::parse_duration(text).is_ok_and(|duration| duration.is_zero()),
        other => other.as_u64() == Some(0),
    };
    (!zero).then(|| value.clone())
}

fn plan(before: &Shown, kuberun: &Shown, warnings: &[Mistake], changes: &mut Vec<Change>) -> Plan {
    let mut tell = |about, text: String| changes.push(Change { about, text });
    let backend = before.get("backend").and_then(Shown::as_str).filter(|name| !name.is_empty());
    let mut plan = Plan { used: backend.is_none_or(|name| name == "kuberun"), ..Plan::default() };
    if !plan.used {
        tell(About::Changed, "kuberun is taken out: backend does not choose it".into());
        return plan;
    }
    let about = if backend.is_some() {
        "backend: kuberun is backend: kubernetes now"
    } else {
        "backend: kubernetes was added: nothing chose kuberun, and nothing else was meant"
    };
    tell(About::Changed, about.into());
    plan.replaces = before.get("kubernetes").is_some();
    if plan.replaces {
        tell(
            About::Unmapped,
            "the old section kubernetes was not used and is taken out; what it held is not looked at".into(),
        );
    }
    plan.timeout = set(kuberun.get("timeout"));
    if plan.timeout.is_some() {
        tell(
            About::Changed,
            "timeout is timeouts.podStart, podStop, commandStart, signal and window, each of the same length".into(),
        );
    }
    let connection = kuberun.get("connection");
    plan.http = set(connection.and_then(|connection| connection.get("timeout")));
    if plan.http.is_some() {
        tell(About::Changed, "connection.timeout is timeouts.http".into());
    }
    if is_true(connection.and_then(|connection| connection.get("insecure"))) {
        let text = "connection.insecure: the API server's certificate is checked now, and there is no way to switch that off: give its CA by connection.cacertFile, and connection.serverName if it has another name";
        tell(About::Unmapped, text.into());
    }
    let nothing = Shown::Null;
    let pod = kuberun.get("pod").unwrap_or(&nothing);
    if find(pod, "namespace").is_some() {
        tell(About::Changed, "pod.namespace is pod.metadata.namespace".into());
    }
    if find(pod, "podSpec").is_some() {
        tell(About::Changed, "pod.podSpec is pod.spec".into());
    }
    tell(
        About::Changed,
        "pod.mode: session was added: a pod for each program, as kuberun has it. Mode connection is the newer one"
            .into(),
    );
    plan.agent = is_true(find(pod, "disableAgent"));
    let text = if plan.agent {
        "pod.disableAgent is false now: kuberun's true turned the agent on"
    } else {
        "pod.disableAgent is true now: kuberun runs without agent unless told otherwise. With an agent in the image, set it to false: signals and exact ends of programs need it"
    };
    tell(About::Changed, text.into());
    plan.disable_command = is_true(find(pod, "disableCommand"));
    if plan.disable_command {
        tell(
            About::Changed,
            "pod.disableCommand is security.command.mode: disable and security.subsystem.mode: disable".into(),
        );
    }
    shell(&mut plan, pod, &mut tell);
    for warning in warnings {
        if let Some(path) = warning.path.strip_prefix("kuberun.")
            && (warning.message.contains("unknown key") || warning.message.starts_with("is ignored"))
        {
            plan.ignored.push(path.to_owned());
            plan.ignored_lines.push((warning.line, warning.column));
            tell(
                About::Unmapped,
                format!(
                    "{path} (line {}): kuberun ignored it, kubernetes would refuse it; it is taken out",
                    warning.line
                ),
            );
        }
    }
    plan.listen = before.get("listen").filter(|listen| !listen.is_null()).cloned();
    if plan.listen.is_some() {
        tell(About::Changed, "listen is ssh.listen (an ssh.listen that is there counts)".into());
    }
    plan
}

/// What a shell runs: kuberun's default is the container's own command, kubernetes' is /bin/bash.
fn shell(plan: &mut Plan, pod: &Shown, tell: &mut impl FnMut(About, String)) {
    let number = find(pod, "consoleContainerNumber").and_then(Shown::as_u64).unwrap_or_default();
    let container = find(pod, "podSpec")
        .and_then(|spec| find(spec, "containers"))
        .and_then(|containers| containers.get(usize::try_from(number).ok()?));
    let command: Option<Vec<String>> = container
        .and_then(|container| find(container, "command"))
        .and_then(|command| command.as_array())
        .map(|words| words.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect());
    if find(pod, "shellCommand").is_none() {
        plan.shell = Some(command.clone().filter(|_| !plan.agent).unwrap_or_default());
        let text = match &plan.shell {
            Some(words) if words.is_empty() => {
                "pod.shellCommand: [] was added: a shell is the image's own command, as in kuberun; kubernetes' default is /bin/bash"
            }
            _ => "pod.shellCommand was added: the command of the podSpec, which kuberun ran for shells",
        };
        tell(About::Changed, text.into());
    }
    if command.is_some() || container.is_some_and(|container| find(container, "args").is_some()) {
        let text = "the console container's command is no protection: it counts for shells alone, and an exec replaces it (it did before). Use security.forceCommand, or disable commands; in mode connection it is not run at all, there shellCommand and idleCommand are";
        tell(About::LessSafe, text.into());
    } else if plan.shell.as_ref().is_some_and(Vec::is_empty) {
        let text = "if the image's CMD keeps users from something: it runs for shells alone, and in mode connection not at all. Use shellCommand, idleCommand and security.forceCommand";
        tell(About::LessSafe, text.into());
    }
}

#[cfg(test)]
mod tests;
