use super::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

fn mistakes(text: &str, read: impl FnOnce(&mut Section)) -> Vec<String> {
    let document = match Document::parse("f.yaml", text) {
        Ok(document) => document,
        Err(mistakes) => return mistakes.0.iter().map(ToString::to_string).collect(),
    };
    read(&mut document.root());
    document.finish().err().map(|all| all.0.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

#[test]
fn every_mistake_is_listed_in_order_with_its_place() {
    let text =
        "ssh:\n  listen: nowhere\n  clientAliveIntervall: 5s\n  max: -1\nusers:\n- name: [5]\n- nme: a\nother: 1\n";
    let found = mistakes(text, |root| {
        let mut ssh = root.section("ssh");
        ssh.get::<std::net::SocketAddr>("listen");
        ssh.get::<Duration>("clientAliveInterval");
        ssh.get::<u16>("max");
        for mut user in root.list("users") {
            user.required::<String>("name");
        }
    });
    assert_eq!(
        found,
        [
            "f.yaml:2:11: ssh.listen: \"nowhere\" is not an address with port, such as 0.0.0.0:2222 or [::]:2222",
            "f.yaml:3:3: ssh.clientAliveIntervall: unknown key; did you mean clientAliveInterval?",
            "f.yaml:4:8: ssh.max: -1 is out of range: expected 0 to 65535",
            "f.yaml:6:9: users[0].name: expected text, found a list",
            "f.yaml:7:3: users[1].name: is missing",
            "f.yaml:7:3: users[1].nme: unknown key; did you mean name?",
            "f.yaml:8:1: other: unknown key",
        ]
    );
}

#[test]
fn what_is_right_is_read() {
    let text = "a: {b: [1m30s, 5], c: {x: y}, d: true}\ne:\n";
    let found = mistakes(text, |root| {
        let mut a = root.section("a");
        assert_eq!(a.get("b"), Some(vec![Duration::from_secs(90), Duration::from_nanos(5)]));
        let c: std::collections::BTreeMap<String, String> = a.get("c").expect("a map");
        assert_eq!(c["x"], "y");
        assert_eq!(a.get("d"), Some(true));
        assert_eq!(root.or("e", 7u32), 7);
        assert!(!root.has("e") && !root.section("gone").has("x"));
    });
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn bad_yaml_says_where() {
    for (text, line) in [("a: [1", 1), ("a: 1\na: 2\n", 2), ("a:\n\t- b\n", 2), ("a: *nothing\n", 1)] {
        let found = mistakes(text, |_| {});
        assert_eq!(found.len(), 1, "{text:?}: {found:?}");
        assert!(found[0].starts_with(&format!("f.yaml:{line}:")), "{text:?}: {found:?}");
    }
    assert!(mistakes("# only a comment\n", |_| {}).is_empty());
    assert!(mistakes("", |_| {}).is_empty());
    assert_eq!(mistakes("- a\n", |_| {}), ["f.yaml:1:1: expected a map, found a list"]);
}

#[test]
fn what_is_no_document_is_told_in_words_that_help() {
    let deep = format!("a: {}", "[".repeat(5000));
    let lines = ('a'..'j').zip('b'..'k').map(|(one, next)| {
        let nine = vec![format!("*{one}"); 9].join(",");
        format!("{next}: &{next} [{nine}]")
    });
    let bomb = lines.collect::<Vec<_>>().join("\n");
    for (text, wanted) in [
        ("a: 1\n---\nb: 2\n", "f.yaml:3:1: a second document begins here, and a configuration is one"),
        ("{\n\t\"a\": 1,\n\t\"a\": 2\n}", "f.yaml:3:2: a is given twice"),
        ("a: .inf\n", "f.yaml:1:4: .inf is no number that can be used"),
        (deep.as_str(), "is nested too deeply"),
        (format!("a: &a [x]\n{bomb}").as_str(), "grows too large: too many values, or anchors"),
        ("a:\n\tb: 1\n", "f.yaml:2:2: tabs disallowed within this context (block indentation): indent by spaces"),
        ("a:\n  b: 1\n   c: 2\nd: 3\n", "f.yaml:3:5: mapping values are not allowed in this context: put text"),
        ("a:\n  b: 1\n c: 2\n", "indented wrongly (keys of one map begin in the same column)"),
        (
            "a: b: c\n",
            "f.yaml:1:5: mapping values are not allowed in this context: put text with a colon and a blank in quotes",
        ),
        ("a: @b\n", "put text that begins with it in quotes"),
        ("a: *b\n", "put text that begins with * in quotes"),
        ("a\0:\0", "save the file as UTF-8"),
        ("[a]\nb = \"c\"\n", "is this YAML?"),
        ("a: [\"b]\nc: \"d\"\n", "a quote before it is not closed"),
        ("a: [1\nb: 2\n", "not closed"),
        ("{a: [1}", "close brackets in the order"),
    ] {
        let found = mistakes(text, |_| {});
        assert!(found.len() == 1 && found[0].contains(wanted), "{wanted}: {found:?}");
        for inside in ["from_str", "Policy", "Options", "at line"] {
            assert!(!found[0].contains(inside), "the parser's own: {found:?}");
        }
    }
}

#[test]
fn a_file_is_text_of_a_bounded_size() {
    let dir = tempfile::tempdir().expect("a directory");
    let told = |bytes: &[u8]| {
        let path = dir.path().join("f.yaml");
        std::fs::write(&path, bytes).expect("written");
        let told = Document::read(&path).err().map(|mistakes| mistakes.to_string()).unwrap_or_default();
        told.replace(&path.display().to_string(), "f.yaml")
    };
    assert_eq!(told(b"a: \xc3\xa4\nb: \xff\n"), "f.yaml:2:4: is not UTF-8 from here on: save the file as UTF-8");
    assert_eq!(told(&vec![b'#'; 4 << 20]), "");
    assert_eq!(told(&vec![b'#'; (4 << 20) + 1]), "f.yaml: larger than 4194304 bytes");
    let told = Document::read(dir.path()).expect_err("a directory").to_string();
    assert!(told.ends_with(": can't be read: Is a directory (os error 21)"), "{told}");
    // The mark that some editors write is no character of the first line.
    let found = mistakes("\u{feff}# c\nbad: 1\n", |_| {});
    assert_eq!(found, ["f.yaml:2:1: bad: unknown key"]);
    assert_eq!(mistakes("\u{feff}bad: 1\n", |_| {}), ["f.yaml:1:1: bad: unknown key"]);
}

#[test]
fn json_is_told_of_by_line_and_column_too() {
    let text = "{\n\t\"a\": {\"b\": \"1 min\", \"c\\/\": 1},\r\n\t\"list\": [{\"name\": {}}],\n\t\"smile\": \"\\ud83d\\ude00\"\n}\n";
    let found = mistakes(text, |root| {
        root.section("a").get::<Duration>("b");
        for mut item in root.list("list") {
            item.required::<String>("name");
        }
        assert_eq!(root.get::<String>("smile").as_deref(), Some("\u{1f600}"));
    });
    assert_eq!(
        found,
        [
            "f.yaml:2:13: a.b: not a duration: write for example 60s, 1m30s, 500ms or 2h (units: ns, us, ms, s, m, h)",
            "f.yaml:2:22: a.c/: unknown key",
            "f.yaml:3:20: list[0].name: expected text, found a map",
        ]
    );
    // As ContainerSSH's own dump: whole nanoseconds.
    let found = mistakes("{\"a\": 60000000000}", |root| assert_eq!(root.get("a"), Some(Duration::from_mins(1))));
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(mistakes("{\"a\": 1,}x", |_| {}).len(), 1);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let found = mistakes("audit: {}\n", |root| root.refuse("audit", "there is no audit log yet"));
    assert_eq!(found, ["f.yaml:1:1: audit: is not supported: there is no audit log yet"]);
}

#[test]
fn a_mistake_further_down_has_its_place() {
    let found = mistakes("a:\n  b: {c: 1}\n", |root| {
        root.section("a").section("b").get::<u32>("c");
        root.mistake_at(&["a", "b", "c"], "is one");
        root.mistake_at(&["a", "b", "d"], "is not there");
        root.mistake_at(&["x", "y"], "is nowhere");
    });
    assert_eq!(found, ["f.yaml:1:1: x.y: is nowhere", "f.yaml:2:6: a.b.d: is not there", "f.yaml:2:10: a.b.c: is one"]);
}

#[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    #[serde(skip_serializing_if = "Option::is_none")]
    host_name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Container>,
}

#[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
struct Container {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[test]
fn foreign_types_are_read_strictly() {
    let text = "spec:\n  hostNme: a\n  containers:\n  - image: i\n    prt: 5\n";
    let found = mistakes(text, |root| assert!(root.serde::<Spec>("spec").is_some()));
    assert_eq!(found[0], "f.yaml:2:3: spec.hostNme: unknown key; did you mean hostName?");
    assert_eq!(found[1], "f.yaml:5:5: spec.containers[0].prt: unknown key; did you mean port?");
    let text = "spec:\n  containers:\n  - image: i\n    port: many\n";
    let found = mistakes(text, |root| assert!(root.serde::<Spec>("spec").is_none()));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("f.yaml:4:11: spec.containers[0].port: invalid type: string"), "{found:?}");
}

#[test]
fn a_merge_key_is_merged() {
    let text = "base: &base {x: 1, y: 2}\na:\n  <<: *base\n  y: 3\n";
    let found = mistakes(text, |root| {
        root.ignore("base");
        let mut a = root.section("a");
        assert_eq!((a.get("x"), a.get("y")), (Some(1u32), Some(3u32)));
    });
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_secret_is_never_shown() {
    assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
}

#[test]
fn an_unknown_key_is_refused_whatever_its_value() {
    for empty in ["{}", "[]", "", "null", "''"] {
        let text = format!("spec:\n  containers: []\n  hostName:\n  affinity: {empty}\n");
        let found = mistakes(&text, |root| assert!(root.serde::<Spec>("spec").is_some()));
        assert_eq!(found, ["f.yaml:4:3: spec.affinity: unknown key"], "{empty:?}");
    }
}

#[test]
fn keys_are_found_in_any_case_where_that_is_asked() {
    let text =
        "a:\n  Spec:\n    HOSTNAME: h\n    containers: [{IMAGE: i, Port: 1}]\n  lABELS: {App: x, app: y}\n  Old: 1\n";
    let read = |root: &mut Section| {
        let mut a = root.section("a").in_any_case();
        let spec: Option<Spec> = a.serde("spec");
        let containers = vec![Container { image: "i".into(), port: Some(1) }];
        assert_eq!(spec, Some(Spec { host_name: Some("h".into()), containers }));
        let labels: std::collections::BTreeMap<String, String> = a.get("labels").expect("a map");
        assert_eq!(labels.len(), 2, "a map's keys are the user's");
        assert!(a.has("old"));
        a.refuse("old", "no");
    };
    assert_eq!(mistakes(text, read), ["f.yaml:6:3: a.old: is not supported: no"]);
    // Not elsewhere.
    let found = mistakes("Spec: {hostname: h}\n", |root| assert!(root.serde::<Spec>("spec").is_none()));
    assert_eq!(found, ["f.yaml:1:1: Spec: unknown key; did you mean spec?"]);
    // Twice is once too often.
    let text = "a:\n  spec: {hostName: a, hostname: b}\n  SPEC: {}\n";
    let found = mistakes(text, |root| drop(root.section("a").in_any_case().serde::<Spec>("spec")));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("f.yaml:2:23: a.spec.hostname: is given twice"), "{found:?}");
    assert!(found[1].starts_with("f.yaml:3:3: a.SPEC: is given twice"), "{found:?}");
}

/// What ContainerSSH's reader takes of YAML, and Kubernetes' of its own types.
#[test]
fn numbers_and_truth_values_are_text_as_the_file_spells_them() {
    let text = "a: [1.20, True, 007, 0x1F, -5, &x 1.50, *x, plain]\nspec: {hostName: 1.10, containers: [{image: true, port: 80}]}\n\
                on: [yes, Off, true, \"n\"]\nlast: 1_0\n";
    let found = mistakes(text, |root| {
        let a: Vec<String> = root.get("a").expect("a list");
        assert_eq!(a, ["1.20", "True", "007", "0x1F", "-5", "1.50", "1.50", "plain"]);
        let spec: Spec = root.serde("spec").expect("a spec");
        assert_eq!((spec.host_name.as_deref(), spec.containers[0].image.as_str()), (Some("1.10"), "true"));
        assert_eq!(spec.containers[0].port, Some(80));
        assert_eq!(root.value("spec").expect("a value")["hostName"], "1.10");
        assert_eq!(root.get::<Vec<bool>>("on"), Some(vec![true, false, true, false]));
        assert_eq!(root.get::<String>("last").as_deref(), Some("1_0"));
    });
    assert!(found.is_empty(), "{found:?}");
    let found = mistakes("a: maybe\nb: 1\n", |root| {
        root.get::<bool>("a");
        root.get::<bool>("b");
    });
    assert_eq!(
        found,
        ["f.yaml:1:4: a: expected true or false, found text", "f.yaml:2:4: b: expected true or false, found a number"]
    );
}

/// As Go listens.
#[test]
fn an_address_without_host_is_everywhere() {
    let text = "a: ':22'\nb: localhost:80\nc: ':x'\nd: example.org:80\n";
    let found = mistakes(text, |root| {
        let mut at = |key| root.get::<std::net::SocketAddr>(key).map(|at| at.to_string());
        assert_eq!((at("a").as_deref(), at("b").as_deref()), (Some("[::]:22"), Some("127.0.0.1:80")));
        assert_eq!((at("c"), at("d")), (None, None));
    });
    assert_eq!(found.len(), 2, "{found:?}");
}

/// As Go reads JSON.
#[test]
fn keys_of_a_json_file_are_found_in_any_case() {
    let text = r#"{"SSH": {"Listen": ":22", "Labels": {"A": "b", "a": "c"}}}"#;
    let read = |name: &str| {
        let document = Document::parse(name, text).expect("JSON");
        let mut root = document.root();
        let mut ssh = root.section("ssh");
        let listen = ssh.get::<std::net::SocketAddr>("listen").is_some();
        let labels = ssh.get::<std::collections::BTreeMap<String, String>>("labels").map_or(0, |labels| labels.len());
        drop((ssh, root));
        (listen, labels, document.finish().is_ok())
    };
    assert_eq!(read("f.json"), (true, 2, true));
    assert_eq!(read("f.yaml"), (false, 0, false));
}

#[test]
fn no_configuration_without_a_reason() {
    let document = Document::parse("f.yaml", "a: 1\n").expect("YAML");
    document.root().ignore("a");
    let mistakes = document.finish_with(None::<()>).expect_err("nothing was read");
    assert_eq!(mistakes.0.len(), 1);
    assert!(mistakes.to_string().starts_with("f.yaml: "), "{mistakes}");
    let document = Document::parse("f.yaml", "a: 1\n").expect("YAML");
    assert_eq!(document.finish_with(Some(1)), Ok(1));
    let document = Document::parse("f.yaml", "a: 1\n").expect("YAML");
    drop(document.root().section("b"));
    let mistakes = document.finish_with(Some(1)).expect_err("an unknown key");
    assert!(mistakes.to_string().starts_with("f.yaml:1:1: a: unknown key"), "{mistakes}");
}

#[test]
fn a_duration_without_unit_that_is_next_to_nothing_is_doubted() {
    let document = Document::parse("f.yaml", "a: 5\nb: 60000000000\nc: 0\nd: 5ns\n").expect("YAML");
    let mut root = document.root();
    let read: Vec<Duration> = ["a", "b", "c", "d"].map(|key| root.get(key).expect("a duration")).into();
    drop(root);
    assert_eq!(read, [5, 60_000_000_000, 0, 5].map(Duration::from_nanos));
    let warned: Vec<String> = document.warnings().iter().map(ToString::to_string).collect();
    let wanted =
        "f.yaml:1:4: a: a number without unit counts nanoseconds, so this is 5ns: write 5s if seconds are meant";
    assert_eq!(warned, [wanted]);
}
