use super::*;
use crate::config::{Connection, Settings};
use proptest::prelude::*;

/// Reads the new file as a backend would. What this version has not built of `security` is another room's.
fn read_after(text: &str) -> Settings {
    let document = Document::parse("after.yaml", text).expect("YAML");
    let mut root = document.root();
    let settings = Settings::read(&mut root);
    root.leave();
    let mistakes = document.finish().err().map(|mistakes| mistakes.0).unwrap_or_default();
    let ours: Vec<_> = mistakes.iter().filter(|mistake| !mistake.path.starts_with("security.")).collect();
    assert!(ours.is_empty(), "{ours:?} in\n{text}");
    settings.expect("settings")
}

/// The same pods and the same decisions, before and after.
fn means_the_same(before: &str) -> Migration {
    let migration = migrate("f.yaml", before).expect("migrates");
    let after = migration.text.clone().expect("something to migrate");
    let document = Document::parse("f.yaml", before).expect("YAML");
    let mut root = document.root();
    let (kuberun, mut connection, pod, timeouts) = kuberun_settings(root.section("kuberun")).expect("settings");
    root.leave();
    if let Connection::Explicit(explicit) = &mut connection {
        explicit.insecure = false;
    }
    let new = read_after(&after);
    assert_eq!(new.timeouts, timeouts, "{after}");
    assert!(new.connection == connection, "{:?} and {connection:?} in\n{after}", new.connection);
    assert_eq!(new.pod.shell_command, pod.shell_command, "{after}");
    assert!(new.pod == pod, "{:?} and {:?} in\n{after}", new.pod.spec, pod.spec);
    let value = Document::parse("f", &after).expect("YAML").value();
    let mode = |key: &str| value.pointer(&format!("/security/{key}/mode")).and_then(Shown::as_str) == Some("disable");
    if kuberun.disable_command {
        assert!(mode("command") && mode("subsystem"), "{after}");
    }
    assert_eq!(migrate("f.yaml", &after).expect("good").text, None, "twice is once:\n{after}");
    migration
}

const EXAMPLE: &str = "\
# Our ContainerSSH.
listen: 0.0.0.0:2222
ssh:
  # Made in 2021.
  hostkeys:
  - /etc/key
backend: kuberun # the old one
kuberun:
  connection:
    host: https://api:6443
    # The CA of the cluster.
    cacertFile: /dev/null
    insecure: true
    timeout: 7s
  timeout: 90s # is enough
  pod:
    # Where they live.
    namespace: users
    podSpec:
      nodeSelector: {disk: ssd}
      volumes:
      - name: home
        hostPath: {path: /home}
      containers:
      - name: shell
        image: registry.example/shell:1 # pinned
        command: [/bin/rbash]
      restrtPolicy: Never
    disableCommand: true
    subsystems:
      sftp: /usr/lib/sftp-server
    futureKey:
      a: 1
log:
  level: info
";

#[test]
fn comments_and_order_stay() {
    let migration = means_the_same(EXAMPLE);
    let after = migration.text.expect("text");
    let wanted = "\
# Our ContainerSSH.
ssh:
  # Made in 2021.
  hostkeys:
  - /etc/key
  listen: 0.0.0.0:2222
backend: kubernetes # the old one
kubernetes:
  connection:
    host: https://api:6443
    # The CA of the cluster.
    cacertFile: /dev/null
  timeouts:
    podStart: 90s # is enough
    podStop: 90s # is enough
    commandStart: 90s # is enough
    signal: 90s # is enough
    window: 90s # is enough
    http: 7s
  pod:
    # Where they live.
    metadata:
      namespace: users
    spec:
      nodeSelector: {disk: ssd}
      volumes:
      - name: home
        hostPath: {path: /home}
      containers:
      - name: shell
        image: registry.example/shell:1 # pinned
        command: [/bin/rbash]
      # restrtPolicy: Never
    subsystems:
      sftp: /usr/lib/sftp-server
    mode: session
    disableAgent: true
    shellCommand: [\"/bin/rbash\"]
    # futureKey:
      # a: 1
log:
  level: info
security:
  command:
    mode: disable
  subsystem:
    mode: disable
";
    assert_eq!(after, wanted);
    let told: Vec<String> = migration.changes.iter().map(ToString::to_string).collect();
    for wanted in [
        "changed: backend: kuberun is backend: kubernetes now",
        "can't be mapped: connection.insecure: the API server's certificate is checked now",
        "changed: connection.timeout is timeouts.http",
        "less safe: the console container's command is no protection",
        "can't be mapped: pod.podSpec.restrtPolicy (line 28)",
        "can't be mapped: pod.futureKey (line 32)",
        "changed: pod.disableCommand is security.command.mode: disable",
    ] {
        assert!(told.iter().any(|line| line.starts_with(wanted)), "{wanted} is not in {told:#?}");
    }
}

#[test]
fn other_styles_are_written_anew() {
    for text in [
        "{\"backend\": \"kuberun\", \"kuberun\": {\"timeout\": 5000000000, \"pod\": {\"namespace\": \"n\", \"disableAgent\": true, \"shellCommand\": [\"/bin/sh\"]}}}",
        "backend: kuberun\nkuberun: {pod: {podSpec: {containers: [{image: i, prt: 1}]}, disableCommand: true}}\nsecurity: {command: {allow: [a]}}\n",
        "backend: kuberun\n? kuberun\n: pod:\n    namespace: n\n",
        "backend: !!str kuberun\nkuberun: !!map\n  timeout: !!str 5s\n",
        "backend: kuberun\nkuberun:\n  pod:\n    <<: {namespace: n}\n    disableCommand: true\n",
        "backend: kuberun\nkuberun: &all\n  pod: &pod\n    namespace: n\n",
        "backend:\n  kuberun\nkuberun:\n  timeout: 5s\n",
        "backend: kuberun\nkuberun:\n  pod:\n    podSpec:\n      containers:\n      - prt: 1\n        image: i\n",
    ] {
        let migration = means_the_same(text);
        assert!(migration.changes.iter().any(|change| change.text.contains("written anew")), "{text}");
    }
}

#[test]
fn odd_files_in_block_style_keep_what_they_have() {
    let same = |before: &str, after: &str| {
        let migration = means_the_same(before);
        assert_eq!(migration.text.as_deref(), Some(after), "{before:?}");
    };
    let pod = "  pod:\n    mode: session\n    disableAgent: true\n    shellCommand: []\n";
    let section = |name: &str| format!("# c\nbackend: {name}\n");
    let (old, new) = (section("kuberun") + "kuberun:\n", section("kubernetes") + "kubernetes:\n" + pod);
    same(&old, &new);
    // A mark, ends of lines, a document's edges.
    same(&format!("\u{feff}{old}"), &format!("\u{feff}{new}"));
    same(&old.replace('\n', "\r\n"), &new.replace('\n', "\r\n"));
    same(&format!("%YAML 1.2\n# d\n---\n{old}...\n# e\n"), &format!("%YAML 1.2\n# d\n---\n{new}...\n# e\n"));
    same(&format!("--- # d\n{old}"), &format!("--- # d\n{new}"));
    same(&old.replace("kuberun:", "\"kuberun\":"), &new);
    same(
        &old.trim_end().replace("kuberun\n", "'kuberun' # kuberun\n"),
        &new.replace("backend: kubernetes", "backend: 'kubernetes' # kuberun"),
    );
    // Mixed ends of lines become one kind.
    same(&old.replacen('\n', "\r\n", 1), &new);
    // One anchor, once; what it stands for elsewhere stays.
    same(
        "backend: kuberun\nkuberun:\n  timeout: &t 5s # long\n  connection:\n    host: h\n    timeout: *t\n",
        &format!(
            "backend: kubernetes\nkubernetes:\n  timeouts:\n    podStart: &t 5s # long\n    podStop: 5s # long\n    \
             commandStart: 5s # long\n    signal: 5s # long\n    window: 5s # long\n    http: *t\n  connection:\n    host: h\n{pod}"
        ),
    );
    // What looks like a key or a comment in a text is none.
    let text = "        - |\n          # no comment\n          timeout: 5s\n\n          kuberun: x\n";
    let spec = format!("      containers:\n      - image: i\n        args:\n{text}");
    let after =
        means_the_same(&format!("backend: kuberun\nkuberun:\n  pod:\n    podSpec:\n{spec}")).text.expect("text");
    assert!(after.contains(&spec), "{after}");
}

#[test]
fn json_stays_json() {
    for text in [
        "{\n\t\"backend\": \"kuberun\",\n\t\"kuberun\": {\"timeout\": 5000000000, \"pod\": {\"namespace\": \"n\", \"podSpec\": {}}}\n}\n",
        "\u{feff}{\"backend\": \"kuberun\"}",
    ] {
        let migration = means_the_same(text);
        let value: Shown = serde_json::from_str(&migration.text.expect("text")).expect("JSON");
        assert_eq!((&value["backend"], value.get("kuberun")), (&Shown::from("kubernetes"), None));
        assert!(migration.changes.iter().any(|change| change.text.contains("written anew, as JSON")));
    }
}

#[test]
fn texts_stay_texts_when_they_are_written_anew() {
    #[rustfmt::skip]
    let texts = [
        "1.30", "yes", "no", "on", "null", "~", "", " lead", "trail ", "a: b # c", "- x", "? y", "0123", "0x1f",
        "1e5", ".inf", "12:30:45", "2001-01-01", "<<", "=", "!tag", "&a", "*a", "%d", "@", "`", "a\nb\n", "a\n\n  b",
        "\ttab", "\u{7}", "\u{85}", "\u{2028}", "\u{1f600}", "---", "...", "{", "[", "|", ">", "'", "\"", "\\",
    ];
    let variables: Vec<Shown> = texts.iter().map(|text| serde_json::json!({"name": "A", "value": text})).collect();
    let pod = serde_json::json!({"podSpec": {"containers": [{"image": "i", "env": variables}]}});
    // Flow style, but no JSON: for the comment.
    means_the_same(&format!("backend: kuberun\nkuberun: {{pod: {pod}}} # c\n"));
}

#[test]
fn a_token_that_is_in_the_pod_only_is_no_mistake() {
    let connection = "{host: h, bearerTokenFile: /nonexistent/token}";
    let done = migrate("f", &format!("backend: kuberun\nkuberun:\n  connection: {connection}\n")).expect("migrated");
    assert!(done.text.expect("text").contains("bearerTokenFile: /nonexistent/token"));
    let connection = "{host: h, bearerTokenFile: /nonexistent/token, qps: -1}";
    let told = migrate("f", &format!("backend: kuberun\nkuberun:\n  connection: {connection}\n")).expect_err("qps");
    assert!(told.0.len() == 1 && told.to_string().contains("qps: must not be negative"), "{told}");
}

#[test]
fn what_is_no_configuration_is_told() {
    for (text, wanted) in [
        ("- a\n", "f:1:1: expected a map, found a list"),
        ("hello\n", "f:1:1: expected a map, found text"),
        ("kuberun: 5\nbackend: kuberun\n", "f:1:10: kuberun: expected a map, found a number"),
        ("backend: kuberun\n---\nkuberun: {}\n", "f:3:1: a second document begins here"),
        ("backend: kuberun\nkuberun:\n\tpod: {}\n", "f:3:2: tabs disallowed"),
        ("backend: kuberun\nbackend: kuberun\n", "f:2:1: backend is given twice"),
        (
            "{\"backend\": \"kuberun\", \"kuberun\": {\"timeot\": 1}}",
            "f:1:36: kuberun.timeot: unknown key; did you mean timeout?",
        ),
    ] {
        let told = migrate("f", text).expect_err(text).to_string();
        assert!(told.starts_with(wanted), "{text}: {told}");
    }
}

#[test]
fn little_is_enough_and_nothing_is_nothing() {
    for text in [
        "backend: kuberun\n",
        "backend: kuberun\nkuberun: {}\n",
        "kuberun:\n  timeout: 0s\n",
        "backend: kuberun\nkuberun:\n  pod:\n",
        "backend: kuberun\nkubernetes: {pod: {}}\nkuberun:\n  pod:\n    NAMESPACE: n\n",
    ] {
        means_the_same(text);
    }
    assert!(
        means_the_same("# x\nbackend: kuberun # y\n").text.expect("text").starts_with("# x\nbackend: kubernetes # y\n")
    );
    for text in ["", "backend: kubernetes\nkubernetes: {}\n", "ssh: {listen: '0.0.0.0:22'}\n"] {
        assert_eq!(migrate("f", text).expect("good"), Migration { text: None, changes: Vec::new() });
    }
    let unused = migrate("f", "backend: kubernetes\nkubernetes: {}\nkuberun:\n  pod: {}\n").expect("good");
    assert_eq!(unused.text.as_deref(), Some("backend: kubernetes\nkubernetes: {}\n# kuberun:\n#   pod: {}\n"));
    let told = migrate("f", "backend: kuberun\nkuberun: {timeout: soon}\n").expect_err("a mistake").to_string();
    assert!(told.starts_with("f:2:20: kuberun.timeout: not a duration"), "{told}");
}

/// A key with its value where it is there, with comments around; `depth` spaces before it.
fn key(depth: usize, name: &'static str, values: &'static [&'static str]) -> impl Strategy<Value = String> {
    let space = " ".repeat(depth);
    (prop::option::of(prop::sample::select(values)), prop::bool::ANY, prop::bool::ANY).prop_map(
        move |(value, above, behind)| {
            let value = value.map(|value| {
                format!("{space}{name}: {value}{}\n", if behind { format!(" # behind {name}") } else { String::new() })
            });
            let above = above.then(|| format!("{space}# above {name}\n"));
            value.map(|value| above.unwrap_or_default() + &value).unwrap_or_default()
        },
    )
}

/// A map, where any of it is there.
fn map(depth: usize, name: &'static str, keys: Vec<BoxedStrategy<String>>) -> BoxedStrategy<String> {
    let space = " ".repeat(depth);
    keys.prop_shuffle_all()
        .prop_map(move |keys| if keys.is_empty() { String::new() } else { format!("{space}{name}:\n{keys}") })
        .boxed()
}

trait ShuffleAll {
    fn prop_shuffle_all(self) -> BoxedStrategy<String>;
}

impl ShuffleAll for Vec<BoxedStrategy<String>> {
    fn prop_shuffle_all(self) -> BoxedStrategy<String> {
        self.prop_shuffle().prop_map(|keys| keys.concat()).boxed()
    }
}

fn kuberun() -> BoxedStrategy<String> {
    const FLAGS: &[&str] = &["true", "false"];
    const TIMES: &[&str] = &["5s", "1m30s", "0s", "5000000000", "\"90s\""];
    let connection = map(
        2,
        "connection",
        vec![
            key(4, "host", &["https://api:6443", "''", "10.0.0.1"]).boxed(),
            key(4, "bearerToken", &["t"]).boxed(),
            key(4, "qps", &["0", "2.5"]).boxed(),
            key(4, "insecure", FLAGS).boxed(),
            key(4, "timeout", TIMES).boxed(),
        ],
    );
    let containers = prop::sample::select(vec![
        "",
        "      containers:\n      - image: i\n",
        "      containers:\n        - name: a\n          image: i\n          command: [/bin/a, -b]\n        # second\n        - {name: b, image: j, COMMAND: [c]}\n",
        "      containers: [{name: a, image: i, args: [x]}, {name: b, image: i, env: [{name: A, value: b}]}]\n",
    ]);
    let spec = (
        containers,
        key(6, "nodeSelector", &["{a: b}"]),
        key(6, "restartpolicy", &["Never", "''"]),
        key(6, "unknownField", &["1", "{a: b}"]),
    );
    let spec = spec.prop_map(|(containers, node, policy, unknown)| {
        let keys = format!("{node}{containers}{policy}{unknown}");
        if keys.is_empty() { String::new() } else { format!("    podSpec:\n{keys}") }
    });
    let agent = prop::sample::select(vec![
        "",
        "    disableAgent: false\n",
        "    disableAgent: true\n    shellCommand: [/bin/sh, -l]\n",
        "    shellCommand: []\n",
    ]);
    let pod = map(
        2,
        "pod",
        vec![
            key(4, "namespace", &["users", "''"]).boxed(),
            key(4, "disableCommand", FLAGS).boxed(),
            key(4, "agentPath", &["/agent"]).boxed(),
            key(4, "subsystems", &["{sftp: /x}", "{y: /z}"]).boxed(),
            key(4, "mode", &["connection"]).boxed(),
            key(4, "unknown", &["x", "[a, b]"]).boxed(),
            spec.boxed(),
            agent.prop_map(str::to_owned).boxed(),
        ],
    );
    let section = map(0, "kuberun", vec![connection, pod, key(2, "timeout", TIMES).boxed()]);
    let section = section.prop_map(|text| if text.is_empty() { "kuberun: {}\n".to_owned() } else { text });
    let others = (
        key(0, "listen", &["0.0.0.0:22"]),
        prop::sample::select(vec!["", "ssh:\n  banner: hi\n", "security:\n  maxSessions: 3\n"]),
    );
    (section, others, prop::bool::ANY)
        .prop_map(|(section, (listen, other), first)| {
            let backend = "# above backend\nbackend: kuberun\n";
            if first {
                format!("{backend}{listen}{section}{other}")
            } else {
                format!("{other}{section}{listen}{backend}")
            }
        })
        .boxed()
}

proptest! {
    #[test]
    fn every_file_means_the_same_after(text in kuberun()) {
        // Some of them are wrong: empty images, no agent's path. Those are refused as they are.
        let Ok(migration) = migrate("f.yaml", &text) else { return Ok(()) };
        means_the_same(&text);
        let after = migration.text.expect("something to migrate");
        // What is in block style keeps its comments, but for those behind what is gone.
        if !migration.changes.iter().any(|change| change.text.contains("written anew")) {
            for comment in text.lines().map(str::trim).filter(|line| line.starts_with("# above")) {
                prop_assert!(after.contains(comment), "{comment} is gone:\n{text}\n{after}");
            }
        }
    }

    #[test]
    fn block_style_is_kept(text in kuberun()) {
        if let Ok(migration) = migrate("f.yaml", &text) {
            let anew = migration.changes.iter().any(|change| change.text.contains("written anew"));
            prop_assert!(!anew, "{text}");
        }
    }
}
