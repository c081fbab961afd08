//! Configurations that change while processes run, as operators, editors and Kubernetes change them.

use nix::sys::signal::Signal;
use podbay_tests::{Master, Running, Setup, World, finish, only_embedded, wait_until};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
};

const TAKEN: &str = "the configuration was read again, and counts for what begins from now on";
const REFUSED: &str = "going on with the old configuration";

/// How often this part has said so.
fn times(part: &Running, text: &str) -> usize {
    part.said().matches(text).count()
}

/// Waits until all these have said so once more than before.
#[track_caller]
fn say_once_more(world: &World, parts: &[&str], text: &str, act: impl FnOnce()) {
    let before: Vec<usize> = parts.iter().map(|part| times(world.part(part), text)).collect();
    act();
    for (part, before) in parts.iter().zip(before) {
        wait_until(&format!("{part} says {text:?}"), || times(world.part(part), text) == before + 1);
    }
}

/// As editors do.
fn replace(world: &World, name: &str, text: &str) {
    let (new, file) = (world.state().join(format!("{name}.new")), world.state().join(name));
    fs::write(&new, text).expect("writes");
    fs::rename(new, file).expect("renames");
}

fn metrics(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("writes");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads");
    text
}

/// The demo's user, and another one of the same key.
fn with_another_user(config: &str) -> String {
    let (before, key) = config.split_once("  - name: demo\n    authorizedKeys:\n").expect("the demo's user");
    let key = key.lines().next().expect("a key");
    config.replacen(
        &format!("{before}  - name"),
        &format!("{before}  - name: other\n    authorizedKeys:\n{key}\n  - name"),
        1,
    )
}

#[test]
fn what_changes_counts_for_new_connections_and_old_ones_keep_theirs() {
    if only_embedded("it looks at all pods of a namespace") {
        return;
    }
    let admin = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("an address");
    let world = World::with(Setup::Apart, "connection", |config| {
        config.replacen("frontend:\n", &format!("frontend:\n  admin: \"{admin}\"\n"), 1)
    });
    let other = |command: &str| finish(world.ssh(&["-o", "User=other"]).arg(command), b"");
    let file = |name: &str| fs::read_to_string(world.state().join(name)).expect("a configuration");
    let (config, second) = (file("podbay.yaml"), file("second.yaml"));
    let old = Master::start(&world);
    old.run("echo old", b"").is(0, "old\n", "");
    assert_eq!(other("echo early").status.code(), Some(255));

    // A user, a policy, and a label of pods: by SIGHUP here, and there by what the replica finds itself.
    let change = |config: &str| {
        let config = config.replacen("    metadata:\n", "    metadata:\n      labels: {since: reload}\n", 1);
        with_another_user(&config) + "security:\n  command: {mode: filter, allow: ['echo new']}\n"
    };
    let changed = change(&config);
    say_once_more(&world, &["frontend", "backend", "backend-2"], TAKEN, || {
        fs::write(world.state().join("podbay.yaml"), &changed).expect("writes");
        world.part("frontend").signal(Signal::SIGHUP);
        world.part("backend").signal(Signal::SIGHUP);
        replace(&world, "second.yaml", &change(&second));
    });
    other("echo new").is(0, "new\n", "");
    let refused = world.run("echo old");
    assert!(refused.status.code() == Some(255) && refused.stderr.contains("exec request failed"), "{refused:?}");
    old.run("echo still", b"").is(0, "still\n", "");
    let new = Master::start(&world);
    let labels = || {
        let pods = world.pods_in("default").into_iter();
        let mut found: Vec<_> = pods.map(|pod| pod.metadata.labels.unwrap_or_default().get("since").cloned()).collect();
        found.sort();
        found
    };
    wait_until("one pod each", || labels() == [None, Some("reload".to_owned())]);
    drop(new);

    // A file that can't be used changes nothing, and is told as at a start.
    say_once_more(&world, &["frontend", "backend"], REFUSED, || {
        let bad = changed.replacen("\nusers:", "\nuzers:", 1).replacen("\ngrpc:", "\ngrcp:", 1);
        replace(&world, "podbay.yaml", &bad);
    });
    for (part, told) in [("frontend", "uzers: unknown key; did you mean users?"), ("backend", "grcp: unknown key")] {
        let said = world.part(part).said();
        let line = said.lines().find(|line| line.contains(told)).unwrap_or_else(|| panic!("{told}: {said}"));
        assert!(line.contains("ERROR") && line.contains("podbay.yaml:"), "{line}");
    }
    other("echo new").is(0, "new\n", "");
    let counted = metrics(admin);
    for line in ["podbay_config_reloads_total{result=\"refused\"} 1", "podbay_config_last_reload_successful 0"] {
        assert!(counted.contains(line), "{line}: {counted}");
    }

    // As Kubernetes changes a ConfigMap. The user is gone; what can't change is told.
    let volume = |version: &str, text: &str| {
        fs::create_dir(world.state().join(version)).expect("a directory");
        fs::write(world.state().join(version).join("podbay.yaml"), text).expect("writes");
        symlink(version, world.state().join("..data_tmp")).expect("a link");
        fs::rename(world.state().join("..data_tmp"), world.state().join("..data")).expect("renames");
    };
    say_once_more(&world, &["frontend", "backend", "backend-2"], TAKEN, || {
        replace(&world, "second.yaml", &second);
        volume("..1", &with_another_user(&config));
        symlink("..data/podbay.yaml", world.state().join("podbay.yaml.new")).expect("a link");
        fs::rename(world.state().join("podbay.yaml.new"), world.state().join("podbay.yaml")).expect("renames");
    });
    world.run("echo old").is(0, "old\n", "");
    other("echo anything").is(0, "anything\n", "");
    let tells_more = || world.part("frontend").said().contains(" DEBUG podbay_frontend");
    let by_level = std::env::var_os("RUST_LOG").is_none();
    assert!(!by_level || !tells_more());
    let moved = format!("{config}ownership: {{leaseDuration: 77s}}\nlog: {{level: debug}}\n").replacen(
        &format!("\"{admin}\""),
        "127.0.0.1:1",
        1,
    );
    say_once_more(&world, &["frontend", "backend"], TAKEN, || volume("..2", &moved));
    let denied = other("echo gone");
    wait_until("its log tells more", || !by_level || tells_more());
    assert!(denied.status.code() == Some(255) && denied.stderr.contains("Permission denied"), "{denied:?}");
    for (part, key) in [("frontend", "frontend.admin"), ("backend", "ownership")] {
        let told = format!("{key} was changed, which needs a restart");
        wait_until(&told, || world.part(part).said().contains(&told));
    }
    let counted = metrics(admin);
    for line in ["podbay_config_keys_waiting_for_restart 1", "podbay_config_last_reload_successful 1"] {
        assert!(counted.contains(line), "{line}: {counted}");
    }

    // Through all of it.
    old.run("echo still", b"").is(0, "still\n", "");
    old.ends();
    for name in ["..1", "..2"] {
        fs::remove_dir_all(world.state().join(name)).expect("removes");
    }
    world.ends_clean();
}

#[test]
fn the_demo_takes_changes_and_ends_in_order_when_its_terminal_hangs_up() {
    let mut world = World::new(Setup::Together);
    let config = fs::read_to_string(world.state().join("podbay.yaml")).expect("a configuration");
    let old = Master::start(&world);
    old.run("echo old", b"").is(0, "old\n", "");
    replace(&world, "podbay.yaml", &(with_another_user(&config) + "security: {command: {mode: disable}}\n"));
    wait_until("the policy counts", || world.run("echo new").stderr.contains("exec request failed"));
    wait_until("the user counts", || {
        let shell = finish(&mut world.ssh(&["-T", "-o", "User=other"]), b"echo other\n");
        shell.status.success() && shell.stdout == b"other\n"
    });
    old.run("echo still", b"").is(0, "still\n", "");
    // Shells send one of their own.
    world.part("demo").signal(Signal::SIGHUP);
    world.part("demo").signal(Signal::SIGHUP);
    wait_until("it says so", || world.part("demo").said().contains("ended; nothing is left"));
    drop(old);
    world.take("demo").ends();
    assert!(!world.state().join("podbay.yaml").exists(), "its files are left");
}
