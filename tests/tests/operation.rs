//! What whoever runs Podbay relies on: logs for machines, short leases, and checks that find what a start would.

use podbay_tests::{Master, Setup, World, finish, program, wait_until};
use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

/// Every line is one JSON object in which no key is there twice: readers keep only one of them, and which differs.
#[track_caller]
fn is_json(said: &str) -> usize {
    for line in said.lines() {
        let fields: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in fields.keys() {
            assert_eq!(line.matches(&format!("\"{key}\":")).count(), 1, "{key} in {line}");
        }
        let empty = fields.iter().find(|(_, value)| value.as_str() == Some(""));
        assert_eq!(empty, None, "says nothing: {line}");
    }
    said.lines().count()
}

#[test]
fn logs_are_json_without_doubles() {
    let world =
        World::with(Setup::Apart, "connection", |config| config + "log: {format: json, level: 'info,podbay=debug'}\n");
    assert_eq!(world.run("exit 3").status.code(), Some(3));
    let refused = finish(world.ssh(&["-s"]).arg("nosuch"), b"");
    assert!(!refused.status.success(), "{refused:?}");
    let said = || ["backend", "backend-2"].map(|part| world.part(part).said()).concat();
    wait_until("the ends are told", || {
        said().matches("session ended").count() >= 1 && said().contains("connection closed")
    });
    for part in ["backend", "backend-2", "frontend"] {
        assert!(is_json(&world.part(part).said()) > 0, "{part}");
    }
    assert!(said().contains("\"remote\":\"127.0.0.1\""), "{}", said());
    world.ends_clean();
}

#[test]
fn a_short_lease_costs_no_living_user_their_pod() {
    let world =
        World::with(Setup::Apart, "connection", |config| config + "ownership: {leaseDuration: 2s, backendWait: 1s}\n");
    // The frontend's first connection: nothing has told it yet how soon a heartbeat is due.
    let master = Master::start(&world);
    wait_until("its pod is there", || world.pods().len() == 1);
    let (pods, began) = (world.pods(), Instant::now());
    wait_until("leases would have run out", || began.elapsed() > Duration::from_secs(8));
    assert_eq!(world.pods(), pods);
    drop(master);
    world.ends_clean();
}

#[test]
fn a_check_and_a_start_find_the_same_mistakes() {
    let world = World::new(Setup::Apart);
    let good = std::fs::read_to_string(world.state().join("podbay.yaml")).expect("a configuration");
    let line = |key: &str| good.lines().find(|line| line.contains(key)).expect(key).to_owned();
    let file = world.file("bad.yaml");
    for (key, bad, told) in [
        ("kubeconfig:", "    kubeconfig: /nosuch/kubeconfig", "kubernetes.connection.kubeconfig: "),
        ("level:", "log: {level: verbose}", "log.level: is none of off, error, warn, info, debug, trace"),
        ("authz:", "authz: {}", "authz: is not supported"),
    ] {
        let text = if good.contains(key) { good.replace(&line(key), bad) } else { format!("{good}\n{bad}\n") };
        std::fs::write(&file, text).expect("written");
        for name in ["podbay-backend", "podbay-frontend"] {
            if name == "podbay-frontend" && key == "kubeconfig:" {
                continue; // not its section
            }
            for flags in [&["--check"][..], &[]] {
                let done = finish(Command::new(program(name)).args(flags).arg("--config").arg(&file), b"");
                assert_eq!(done.status.code(), Some(2), "{name} {flags:?}: {done:?}");
                assert!(done.stderr.contains(told), "{name} {flags:?}: {done:?}");
            }
        }
    }
    world.ends_clean();
}
