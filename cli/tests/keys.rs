//! No key is silently ignored: what the programs ask for, what ContainerSSH has, and what neither knows.

use podbay_runtime::config::{Document, Kind, Note, Shown};
use serde_json::json;
use std::collections::BTreeMap;

/// What both programs tell of a document, mistakes and warnings, a line each.
fn told(document: Document) -> Vec<String> {
    drop(podbay_backend::Config::from_section(&mut document.root()));
    drop(podbay_frontend::Config::from_section(document.root()));
    let warnings = document.warnings();
    let mistakes = document.finish().err().map(|mistakes| mistakes.0).unwrap_or_default();
    warnings.iter().chain(&mistakes).map(ToString::to_string).collect()
}

fn told_of_text(text: &str) -> Vec<String> {
    told(Document::parse("f.yaml", text).expect("YAML"))
}

/// Every key that the readers ask for, once.
fn described() -> BTreeMap<String, Note> {
    let document = Document::describing();
    drop(podbay_backend::Config::from_section(&mut document.root()));
    drop(podbay_frontend::Config::from_section(document.root()));
    document.notes().into_iter().map(|note| (note.path.clone(), note)).collect()
}

/// `a.b[].c` with a value there.
fn with(path: &str, value: Shown) -> Shown {
    path.rsplit('.').fold(value, |below, step| match step.strip_suffix("[]") {
        Some(key) => json!({ key: [below] }),
        None => json!({ step: below }),
    })
}

fn merged(one: &mut Shown, other: Shown) {
    match (one, other) {
        (Shown::Object(one), Shown::Object(other)) => {
            for (key, value) in other {
                merged(one.entry(key).or_insert(Shown::Null), value);
            }
        }
        (one, other) => *one = other,
    }
}

/// A document in which a key counts: beside it stands what it needs to.
fn document(path: &str, value: Shown) -> Document {
    let mut whole = json!({});
    if path.starts_with("kuberun") {
        merged(&mut whole, json!({ "backend": "kuberun" }));
    }
    for method in ["auth.password", "auth.publicKey", "auth.authz"] {
        if path.starts_with(&format!("{method}.webhook")) {
            merged(&mut whole, with(&format!("{method}.method"), "webhook".into()));
        }
    }
    merged(&mut whole, with(path, value));
    Document::from_value("f.yaml", &whole)
}

/// Whether a line is about this path, or one below or (where the value's form is the map's, not the key's) just above.
fn is_about(line: &str, path: &str) -> bool {
    let path = path.replace("[]", "[0]");
    line.strip_prefix("f.yaml: ").is_some_and(|line| line.starts_with(&path))
}

#[test]
fn every_key_that_is_asked_for_is_read_or_refused() {
    let notes = described();
    assert!(notes.len() > 200, "{}", notes.len());
    for (path, note) in notes {
        // A list of a list of a list: right for no key.
        let lines = told(document(&path, json!([[[]]])));
        let wanted = if matches!(note.kind, Kind::Refused(_)) { "is not supported: " } else { "" };
        assert!(
            lines.iter().any(|line| is_about(line, &path) && line.contains(wanted)),
            "nothing is said of a nonsense at {path}: {lines:#?}"
        );
    }
}

#[test]
fn every_key_of_containerssh_is_read_or_refused() {
    let notes = described();
    let keys: Vec<&str> = include_str!("reference/keys.txt")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert!(keys.len() > 180, "{}", keys.len());
    for path in keys {
        assert!(notes.contains_key(path), "{path} is not asked for");
        let lines = told(document(path, json!([[[]]])));
        assert!(lines.iter().any(|line| is_about(line, path)), "nothing is said of a nonsense at {path}: {lines:#?}");
        assert!(!lines.iter().any(|line| is_about(line, path) && line.contains("unknown key")), "{lines:#?}");
    }
}

/// What a slip of the finger makes of a key.
fn slips(key: &str) -> Vec<String> {
    let letters: Vec<char> = key.chars().collect();
    let text = |letters: Vec<char>| letters.into_iter().collect::<String>();
    let mut slips = Vec::new();
    for i in 0..letters.len() {
        let (mut less, mut more) = (letters.clone(), letters.clone());
        less.remove(i);
        more.insert(i, letters[i]);
        slips.extend([less, more].map(text));
        if i > 0 && letters[i - 1] != letters[i] {
            let mut swapped = letters.clone();
            swapped.swap(i - 1, i);
            slips.push(text(swapped));
        }
    }
    slips.retain(|slip| !slip.is_empty() && slip != key);
    slips
}

#[test]
fn a_slip_in_any_key_is_told_with_what_was_meant() {
    let notes = described();
    let (mut tried, mut untold) = (0, Vec::new());
    for path in notes.keys() {
        let (above, key) = path.rsplit_once('.').map_or(("", path.as_str()), |(above, key)| (above, key));
        let key = key.trim_end_matches("[]");
        let near = |slip: &str| if above.is_empty() { slip.to_owned() } else { format!("{above}.{slip}") };
        let known = |slip: &str| {
            let prefix = near(slip).to_lowercase();
            notes.keys().map(|path| path.to_lowercase()).any(|path| {
                path.strip_prefix(&prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            })
        };
        for slip in slips(key).into_iter().filter(|slip| !known(slip)) {
            let lines = told(document(&near(&slip), json!({})));
            let path = near(&slip).replace("[]", "[0]");
            let wanted = format!("f.yaml: {path}: unknown key; did you mean ");
            if !lines.iter().any(|line| line.starts_with(&wanted)) {
                untold.push(path);
            }
            tried += 1;
        }
    }
    assert!(tried > 4000 && untold.is_empty(), "of {tried} nothing is told of {untold:#?}");
}

/// Keys that are known and refused, each with what its message says to do. A new one needs a line here.
const REFUSED: &[(&str, &str)] = &[
    ("auth.oauth2", "let a webhook check passwords, or sign user certificates"),
    ("authz", "it is auth.authz"),
    ("kubernetes.connection.insecure", "give cacertFile"),
    ("kubernetes.connection.timeout", "kubernetes.timeouts.http bounds requests"),
    ("kubernetes.metadata", "it belongs into kubernetes.pod.metadata"),
    ("kubernetes.namespace", "it belongs into kubernetes.pod.metadata.namespace"),
    (
        "kubernetes.pod.disableCommand",
        "here it is security.command.mode: disable, and security.subsystem.mode: disable",
    ),
    ("kubernetes.pod.enableAgent", "the agent is on unless disableAgent is true"),
    ("kubernetes.pod.namespace", "here it is metadata.namespace"),
    ("kubernetes.pod.podSpec", "here it is spec"),
    ("kubernetes.podSpec", "here it is kubernetes.pod.spec"),
    ("kubernetes.spec", "it belongs into kubernetes.pod.spec"),
    ("kubernetes.timeout", "here kubernetes.timeouts has one for each purpose"),
    ("kuberun.namespace", "belongs into pod.namespace"),
    ("kuberun.podSpec", "belongs into pod.podSpec"),
    ("kuberun.spec", "belongs into pod.podSpec"),
    ("kuberun.timeouts", "kuberun has one timeout for all, and connection.timeout"),
    ("security.command.deny", "use mode: filter and allow"),
    ("ssh.perSourcePenalties.crash", "authfail, noauth and grace-exceeded are"),
    ("ssh.perSourcePenalties.invaliduser", "authfail, noauth and grace-exceeded are"),
    ("ssh.perSourcePenalties.overflow6", "authfail, noauth and grace-exceeded are"),
    ("ssh.perSourcePenalties.refuseconnection", "authfail, noauth and grace-exceeded are"),
];

/// A key in block style, and where it stands: line and column.
fn block(path: &str, value: &str) -> (String, usize, usize) {
    let mut text = if path.starts_with("kuberun") { "backend: kuberun\n" } else { "# a line\n" }.to_owned();
    let steps: Vec<&str> = path.split('.').collect();
    if let ["auth", method, "webhook", _] = steps.as_slice() {
        text = format!("auth:\n  {method}:\n    method: webhook\n    webhook:\n      {}: {value}\n", steps[3]);
        return (text, 5, 7);
    }
    for (depth, step) in steps.iter().enumerate() {
        let end = if depth + 1 == steps.len() { format!(" {value}") } else { String::new() };
        text.extend([&*" ".repeat(2 * depth), step, ":", &end, "\n"]);
    }
    (text, 1 + steps.len(), 1 + 2 * (steps.len() - 1))
}

#[test]
fn every_refused_key_is_told_with_its_place_and_what_to_do() {
    for (path, what_to_do) in REFUSED {
        for value in ["x", "{}", "[]", "0", "false"] {
            let (text, line, column) = block(path, value);
            let start = format!("f.yaml:{line}:{column}: {path}: is not supported: ");
            let lines = told_of_text(&text);
            assert!(
                lines.iter().any(|told| told.starts_with(&start) && told.contains(what_to_do)),
                "{start}…{what_to_do} is not in {lines:#?} of\n{text}"
            );
        }
    }
    let refused = described().into_iter().filter(|(_, note)| matches!(note.kind, Kind::Refused(_)));
    let missing: Vec<_> = refused.filter(|(path, _)| !REFUSED.iter().any(|(known, _)| known == path)).collect();
    assert!(missing.is_empty(), "without a line above: {missing:#?}");
}

/// Values that are known and refused. (Those of `log`, `metrics` and `health`: frontend/src/config/.)
const REFUSED_VALUES: &[(&str, &str, &str)] = &[
    (
        "audit.enable",
        "true",
        "there is no audit log yet, and a session that nobody records must not look like one: set it to false",
    ),
    ("geoip.provider", "maxmind", "maxmind is not built: use dummy"),
    (
        "backend",
        "docker",
        "only kubernetes is built, and kuberun for old configurations: use ContainerSSH for docker and sshproxy",
    ),
    ("backend", "dockerrun", "only kubernetes is built"),
    ("backend", "sshproxy", "only kubernetes is built"),
    (
        "auth.keyboardInteractive.method",
        "oauth2",
        "oauth2 is not supported: let a webhook check passwords, or sign user certificates",
    ),
    (
        "auth.gssapi.method",
        "kerberos",
        "kerberos is not supported: use public keys, certificates (auth.trustedUserCAKeys) or a webhook",
    ),
    (
        "auth.password.method",
        "kerberos",
        "kerberos is not supported: use webhook, and let the server behind it ask kerberos",
    ),
    (
        "auth.allowRedirects",
        "true",
        "redirects are never followed, they would take secrets elsewhere: name the final url",
    ),
    ("configserver.allowRedirects", "true", "redirects are never followed"),
    ("security.forwarding.reverseForwardingMode", "enable", "forwarding is not built: use disable"),
    ("security.forwarding.forwardingMode", "enable", "forwarding is not built: use disable"),
    ("security.forwarding.socketForwardingMode", "enable", "forwarding is not built: use disable"),
    ("security.forwarding.socketListenMode", "enable", "forwarding is not built: use disable"),
    ("security.forwarding.x11ForwardingMode", "enable", "forwarding is not built: use disable"),
];

#[test]
fn every_refused_value_is_told_with_its_place_and_what_to_do() {
    for (path, value, what_to_do) in REFUSED_VALUES {
        let (text, line, key) = block(path, value);
        let column = key + path.rsplit('.').next().unwrap_or_default().len() + 2;
        let wanted = format!("f.yaml:{line}:{column}: {path}: {what_to_do}");
        let lines = told_of_text(&text);
        assert!(lines.iter().any(|told| told.starts_with(&wanted)), "{wanted} is not in {lines:#?} of\n{text}");
    }
}
