//! Every example of ContainerSSH's documentation: what runs there runs here, from YAML and from JSON, and what does not is refused by name.
//!
//! `examples/containerssh.yaml` has them, a document each. Its comments say what is to come of it:
//! `expect: runs` (a command over SSH), `shell` (a shell, and no command), `starts` (both processes; what it names is not there) or `refused`.
//! `told:` is a mistake, with line and column where the document has them; `warns:` a warning; `logs:` something in a process's log.
//! An example holds only what it is about: here it gets what it needs to start.

use podbay_tests::{PATIENCE, Setup, World, connection, finish, image, only_embedded, program, wait_until};
use serde_json::{Map, Value, json};
use std::{path::Path, process::Command, time::Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Runs,
    Shell,
    Starts,
    Refused,
}

#[derive(Debug)]
struct Example {
    name: &'static str,
    expect: Expect,
    told: Vec<&'static str>,
    warns: Vec<&'static str>,
    logs: Vec<&'static str>,
    text: String,
}

fn examples() -> Vec<Example> {
    let all = include_str!("../examples/containerssh.yaml");
    // The file's own first line is none of an example's.
    let all = all.split_once('\n').expect("a first line").1;
    all.split("\n---\n")
        .map(|text| {
            let said = |what: &str| {
                let start = format!("# {what}: ");
                let lines = text.lines().take_while(|line| line.starts_with('#'));
                lines.filter_map(|line| line.strip_prefix(&start)).collect::<Vec<_>>()
            };
            let expect = match said("expect").as_slice() {
                ["runs"] => Expect::Runs,
                ["shell"] => Expect::Shell,
                ["starts"] => Expect::Starts,
                ["refused"] => Expect::Refused,
                other => panic!("{other:?} in {text}"),
            };
            let example = Example {
                name: said("name")[0],
                expect,
                told: said("told"),
                warns: said("warns"),
                logs: said("logs"),
                text: format!("{}\n", text.trim_end()),
            };
            assert_eq!(example.told.is_empty(), expect != Expect::Refused, "{example:?}");
            example
        })
        .collect()
}

/// `LINE:COLUMN` where that is there, and the rest: key and what to do.
fn place_and_message(told: &str) -> (Option<&str>, &str) {
    match told.split_once(": ") {
        Some((place, message)) if place.starts_with(|c: char| c.is_ascii_digit()) => (Some(place), message),
        _ => (None, told),
    }
}

/// `podbay check` of the example as it stands, and of the same as JSON.
#[test]
fn every_example_is_checked_as_it_stands() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).expect("writes");
        let done = finish(Command::new(program("podbay")).arg("check").arg(&file), b"");
        (done.status.code(), done.stderr.replace(&file.display().to_string(), "FILE"))
    };
    let examples = examples();
    assert!(examples.len() > 60, "{}", examples.len());
    for example in &examples {
        let value: Value = serde_yaml::from_str(&example.text).expect(example.name);
        let code = Some(if example.expect == Expect::Refused { 2 } else { 0 });
        for (name, text) in [("f.yaml", &example.text), ("f.json", &format!("{value:#}"))] {
            let (status, said) = check(name, text);
            assert_eq!(status, code, "{}, {name}: {said}", example.name);
            for told in &example.told {
                let (place, message) = place_and_message(told);
                let line = said.lines().find(|line| line.contains(message));
                let line = line.unwrap_or_else(|| panic!("{}, {name}: {message} is not in\n{said}", example.name));
                // JSON has other lines, but it has them.
                let rest = line.strip_prefix("FILE:").unwrap_or_default();
                let there = place.filter(|_| name == "f.yaml").map_or_else(
                    || rest.starts_with(|c: char| c.is_ascii_digit()),
                    |place| rest.starts_with(&format!("{place}: {message}")),
                );
                assert!(there, "{}, {name}: {told} is not {line}", example.name);
            }
            for warning in &example.warns {
                let there = said.lines().any(|line| line.starts_with("warning: FILE:") && line.contains(warning));
                assert!(there, "{}, {name}: {warning} is not in\n{said}", example.name);
            }
        }
    }
}

fn find<'a>(map: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    map.as_object_mut()?.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}

fn merged(one: &mut Value, other: &Value) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            for (key, value) in other {
                merged(one.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (one, other) => *one = other.clone(),
    }
}

/// The example with what it needs: keys, users and the other process's address of `base`; and where it is to run, this cluster and an
/// image that is there, at no address but the loopback's.
fn complete(base: &Value, example: &Value, expect: Expect, kubeconfig: &Path) -> Value {
    let mut whole = base.clone();
    let (ssh, sections) = (base["ssh"]["listen"].clone(), whole.as_object_mut().expect("a map"));
    sections.remove("backend");
    sections.remove("kubernetes");
    merged(&mut whole, example);
    whole["ssh"]["listen"] = ssh;
    for part in ["metrics", "health"] {
        if let Some(part) = whole.get_mut(part) {
            part["listen"] = "127.0.0.1:0".into();
        }
    }
    if expect == Expect::Refused {
        return whole;
    }
    let used = if whole["backend"] == "kuberun" { "kuberun" } else { "kubernetes" };
    let section = whole.as_object_mut().expect("a map").entry(used).or_insert_with(|| json!({}));
    let mut reached = section["connection"].as_object().cloned().unwrap_or_else(Map::new);
    reached.remove("cacertFile");
    reached.extend(connection(kubeconfig));
    section["connection"] = reached.into();
    if section.get("pod").is_none_or(Value::is_null) {
        section["pod"] = json!({});
    }
    let pod = &mut section["pod"];
    let spec = if used == "kuberun" { "podSpec" } else { "spec" };
    if find(pod, spec).is_none() {
        pod[spec] = json!({});
    }
    let spec = find(pod, spec).expect("a spec");
    if find(spec, "containers").is_none() {
        spec["containers"] = json!([{}]);
    }
    for container in find(spec, "containers").and_then(Value::as_array_mut).expect("containers") {
        container["image"] = image().into();
    }
    // An image whose own command is no shell: kuberun starts that.
    if used == "kuberun" && find(pod, "shellCommand").is_none() {
        pod["shellCommand"] = json!(["/bin/sh"]);
    }
    whole
}

/// Runs every so-manieth example; they share a cluster.
fn run(group: usize, groups: usize) {
    if only_embedded("its image and namespaces are others") {
        return;
    }
    let mut world = World::with(Setup::Apart, "connection+podbay", |config| config);
    world.namespace("users");
    let base = std::fs::read_to_string(world.state().join("podbay.yaml")).expect("reads");
    let base: Value = serde_yaml::from_str(&base).expect("YAML");
    for name in ["frontend", "backend", "backend-2"] {
        world.take(name).stop();
    }
    for example in examples().iter().skip(group).step_by(groups) {
        let value: Value = serde_yaml::from_str(&example.text).expect(example.name);
        let value = if value.is_null() { json!({}) } else { value };
        let whole = complete(&base, &value, example.expect, &world.kubeconfig());
        let yaml = serde_yaml::to_string(&whole).expect("YAML");
        for (name, text) in [("example.yaml", yaml), ("example.json", format!("{whole:#}"))] {
            eprintln!("{}, {name}", example.name);
            let file = world.state().join(name);
            std::fs::write(&file, text).expect("writes");
            if example.expect == Expect::Refused {
                is_refused(example, &file);
            } else {
                serves(&mut world, example, &whole, name);
            }
        }
    }
    world.ends_clean();
}

/// One of the processes, or both, do not start and say why. What neither of them reads is the other's to refuse.
fn is_refused(example: &Example, file: &Path) {
    let done = ["podbay-backend", "podbay-frontend"]
        .map(|name| finish(Command::new(program(name)).arg("--check").arg("--config").arg(file), b""));
    assert!(done.iter().any(|done| done.status.code() == Some(2)), "{done:?}");
    let said: String = done.iter().map(|done| done.stderr.as_str()).collect();
    for told in &example.told {
        let (_, told) = place_and_message(told);
        assert!(said.contains(told), "{}: {told} is not in\n{said}", example.name);
    }
    // A start is refused alike, before anything is bound.
    let refused = if done[0].status.code() == Some(2) { "podbay-backend" } else { "podbay-frontend" };
    let start = finish(Command::new(program(refused)).arg("--config").arg(file), b"");
    assert_eq!(start.status.code(), Some(2), "{start:?}");
}

/// Both processes come up, and a user gets what the example lets them have.
fn serves(world: &mut World, example: &Example, whole: &Value, file: &str) {
    let address = |pointer: &str| whole.pointer(pointer).and_then(Value::as_str).expect(pointer).to_owned();
    world.start_part("backend", "podbay-backend", file, &address("/grpc/listen"));
    world.start_part("frontend", "podbay-frontend", file, &address("/ssh/listen"));
    let answered = match example.expect {
        Expect::Runs => Some((3, world.run("echo works; exit 3"))),
        Expect::Shell => {
            let refused = world.run("echo works; exit 3");
            assert!(refused.stderr.contains("exec request failed on channel 0"), "{refused:?}");
            Some((4, finish(&mut world.ssh(&["-T"]), b"echo works; exit 4\n")))
        }
        Expect::Starts | Expect::Refused => None,
    };
    if let Some((code, answered)) = answered {
        assert_eq!((answered.status.code(), &*answered.stdout), (Some(code), &b"works\n"[..]), "{answered:?}");
    }
    let deadline = Instant::now() + PATIENCE;
    for text in &example.logs {
        while !["frontend", "backend"].iter().any(|name| world.part(name).said().contains(text)) {
            assert!(Instant::now() < deadline, "{}: nobody logs {text}", example.name);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    for pod in world.pods() {
        // Of mode persistent.
        if pod == "workspace" {
            world.deletes(&pod);
        }
    }
    for name in ["frontend", "backend"] {
        world.take(name).stop();
    }
    wait_until("no pod is left", || world.pods().is_empty() && world.pods_in("users").is_empty());
}

#[test]
fn the_first_third_starts_or_is_refused() {
    run(0, 3);
}

#[test]
fn the_second_third_starts_or_is_refused() {
    run(1, 3);
}

#[test]
fn the_last_third_starts_or_is_refused() {
    run(2, 3);
}
