//! A configuration of ContainerSSH's `kuberun` runs as it is, and does the same after `podbay migrate`: one story, told by the stock
//! client, before and after.

use podbay_tests::{Answered, Setup, World, bytes, connection, finish, image, program, sha256};
use serde_json::Value;
use std::{path::Path, process::Command};

/// Word for word as ContainerSSH's page on the deprecation gives it; operators search for it.
const TEXT: &str = "You are using the kuberun backend deprecated since ContainerSSH 0.4. This backend will be removed in the future. \
    Please switch to the new docker backend as soon as possible. See https://containerssh.io/deprecations/kuberun for details.";

/// The demo's configuration with `kuberun` in place of `kubernetes`, as ContainerSSH 0.4 has it. It knows no kubeconfig: what that
/// says stands in its own keys. `pod` is of `kuberun.pod`, a line each.
fn kuberun(config: &str, pod: &[&str]) -> String {
    let parsed: Value = serde_yaml::from_str(config).expect("YAML");
    let text = |pointer: &str| parsed.pointer(pointer).and_then(Value::as_str).expect(pointer).to_owned();
    let connection = connection(Path::new(&text("/kubernetes/connection/kubeconfig")));
    let mut out = vec![
        "backend: kuberun # as it has been since 2020".to_owned(),
        "# All of it was written for 0.3.".to_owned(),
        "kuberun:".to_owned(),
        "  # One for everything.".to_owned(),
        "  timeout: 50s".to_owned(),
        "  connection:".to_owned(),
    ];
    out.extend(connection.iter().map(|(key, value)| format!("    {key}: {value}")));
    out.push("    timeout: 14s # of HTTP".to_owned());
    out.extend(["  pod:".to_owned(), format!("    namespace: {}", text("/kubernetes/pod/metadata/namespace"))]);
    out.extend(pod.iter().map(|line| format!("    {line}")));
    if let Some(sftp) = parsed.pointer("/kubernetes/pod/subsystems/sftp").and_then(Value::as_str) {
        out.push(format!("    subsystems: {{sftp: {}}}", Value::from(sftp)));
    }
    out.extend(
        [
            "    podSpec:",
            "      # Theirs.",
            "      terminationGracePeriodSeconds: 2",
            "      containers:",
            "      - name: main",
        ]
        .map(str::to_owned),
    );
    out.extend([format!("        image: {}", image()), "        command: [/bin/sh]".to_owned()]);
    let start = config.find("backend: kubernetes\n").expect("a backend");
    let end = config.find("\ngrpc:\n").expect("a section grpc");
    format!("{}{}{}log: {{format: ljson}}\n", &config[..start], out.join("\n"), &config[end..])
}

/// The client's own words for a request that was answered with failure.
#[track_caller]
fn refused(answered: &Answered, request: &str) {
    assert_eq!(answered.status.code(), Some(255), "{answered:?}");
    assert!(answered.stderr.contains(&format!("{request} request failed on channel 0")), "{answered:?}");
}

/// What came of it, but for the lines that a slow start tells its user.
#[track_caller]
fn is(answered: &Answered, code: i32, stdout: &str, stderr: &str) {
    let start = ["creating", "waiting for", "starting", "scheduled", "pulling"].map(|what| format!("podbay: {what}"));
    let told = |line: &&str| !start.iter().any(|start| line.starts_with(start));
    let said: String = answered.stderr.split_inclusive('\n').filter(told).collect();
    let out = String::from_utf8_lossy(&answered.stdout);
    assert_eq!((answered.status.code(), &*out, said.as_str()), (Some(code), stdout, stderr));
}

/// What users of kuberun rely on. Gives how many connections it took.
fn story(world: &World, commands: bool) -> usize {
    let mut connections = 0;
    let mut count = |answered: Answered| {
        connections += 1;
        answered
    };
    // A shell: the command of the podSpec, or shellCommand; its exit code.
    let shell = b"echo out; echo err >&2; test -t 0 || echo no terminal; exit 5\n";
    is(&count(finish(&mut world.ssh(&["-T"]), shell)), 5, "out\nno terminal\n", "err\n");
    let terminal = count(finish(&mut world.ssh(&["-tt"]), b"test -t 0 && echo a ''terminal; exit 6\n"));
    assert_eq!(terminal.status.code(), Some(6), "{terminal:?}");
    assert!(String::from_utf8_lossy(&terminal.stdout).contains("a terminal\r\n"), "{terminal:?}");
    let exec = |command: &str, stdin: &[u8]| finish(world.ssh(&["-o", "SetEnv=GREETING=hello"]).arg(command), stdin);
    if !commands {
        refused(&count(exec("echo no", b"")), "exec");
        refused(&count(finish(world.ssh(&["-s"]).arg("sftp"), b"")), "subsystem");
        return connections;
    }
    is(&count(exec("echo $GREETING; echo err >&2; exit 7", b"")), 7, "hello\n", "err\n");
    is(&count(exec("/bin/echo words 'of one  argument'", b"")), 0, "words of one  argument\n", "");
    is(&count(exec("exit 0", b"")), 0, "", "");
    let data = bytes(1 << 20);
    let answered = count(exec("cat", &data));
    assert_eq!((answered.status.code(), sha256(&answered.stdout)), (Some(0), sha256(&data)));
    let terminal = count(finish(world.ssh(&["-tt"]).arg("test -t 0 && echo $TERM; exit 8"), b""));
    assert_eq!(terminal.status.code(), Some(8), "{terminal:?}");
    assert!(!terminal.stdout.trim_ascii().is_empty(), "no TERM: {terminal:?}");
    assert_eq!(count(finish(world.ssh(&["-s"]).arg("sftp"), b"")).status.code(), Some(0));
    refused(&count(finish(world.ssh(&["-s"]).arg("nosuch"), b"")), "subsystem");
    connections
}

/// The deprecation's events of the backends since `from`: those of starts, and those of connections with their ids.
fn warnings(world: &World, from: [usize; 2]) -> (usize, Vec<String>) {
    let (mut starts, mut connections) = (0, Vec::new());
    for (name, from) in BACKENDS.into_iter().zip(from) {
        let said = world.part(name).said();
        for line in said[from..].lines().filter(|line| line.contains("\"code\":\"KUBERUN_DEPRECATED\"")) {
            let event: Value = serde_json::from_str(line).expect("a structured event");
            let fields = &event["details"];
            let field = |key: &str| fields.get(key).or_else(|| event.get(key)).and_then(Value::as_str);
            assert_eq!(event["level"].as_str(), Some("warning"), "{line}");
            assert_eq!((field("code"), field("message")), (Some("KUBERUN_DEPRECATED"), Some(TEXT)), "{line}");
            assert_eq!((field("backend"), field("help")), (Some("kubernetes"), Some("podbay migrate FILE")), "{line}");
            match field("connectionId") {
                None => starts += 1,
                Some(id) => connections.push(id.to_owned()),
            }
        }
    }
    (starts, connections)
}

const BACKENDS: [&str; 2] = ["backend", "backend-2"];

/// The same story twice: with the file as it is, and after `podbay migrate`.
fn before_and_after(mode: &str, pod: &[&str], commands: bool) {
    let mut world = World::with(Setup::Apart, mode, |config| kuberun(&config, pod));
    let count = story(&world, commands);
    let (starts, mut connections) = warnings(&world, [0, 0]);
    connections.sort();
    connections.dedup();
    assert_eq!((starts, connections.len()), (2, count), "one for each start, one for each connection");
    assert!(connections.iter().all(|id| id.len() == 32), "{connections:?}");

    for name in ["frontend", "backend", "backend-2"] {
        world.take(name).stop();
    }
    for file in ["podbay.yaml", "second.yaml"] {
        let file = world.state().join(file);
        let migrate = |options: &[&str]| {
            let mut command = Command::new(program("podbay"));
            finish(command.arg("migrate").args(options).arg(&file), b"")
        };
        assert_eq!(migrate(&["--check"]).status.code(), Some(1));
        let done = migrate(&["--in-place"]);
        assert!(done.status.success() && !done.stderr.contains("still to do"), "{done:?}");
        assert_eq!(migrate(&["--check"]).status.code(), Some(0));
        let text = std::fs::read_to_string(&file).expect("reads");
        for kept in ["backend: kubernetes # as it has been since 2020", "# All of it was written for 0.3.", "# Theirs."]
        {
            assert!(text.contains(kept), "{kept} is not in\n{text}");
        }
        assert!(!text.contains("kuberun"), "{text}");
    }
    for name in ["backend", "backend-2", "frontend"] {
        world.restart(name);
    }
    assert_eq!(story(&world, commands), count);
    assert_eq!(warnings(&world, [0, 0]), (0, Vec::new()));
    for name in BACKENDS {
        assert!(!world.part(name).said().contains("kuberun"), "{}", world.part(name).said());
    }
    world.ends_clean();
}

#[test]
fn a_file_does_the_same_before_and_after_migration() {
    before_and_after("session", &["# Where they live: above."], true);
}

#[test]
fn with_the_agent_too() {
    // What kuberun calls disableAgent turns it on.
    before_and_after(
        "session+podbay",
        &["disableAgent: true", "shellCommand: [/bin/sh]", "agentPath: /usr/bin/containerssh-agent"],
        true,
    );
}

#[test]
fn commands_that_are_disabled_stay_disabled() {
    before_and_after("session", &["disableCommand: true"], false);
}
