//! Clients other than OpenSSH: paramiko and AsyncSSH (which wait for every answer), and a gRPC client in Python that has
//! nothing but the `.proto` files. `tests/peers/environment` makes their Python environment.

use podbay_tests::{PATIENCE, Setup, World, cluster::has_containerssh_agent, python};
use std::{path::Path, process::Command, time::Instant};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn passes(script: &str, more: &[&Path]) {
    passes_with("connection", script, more);
}

fn passes_with(mode: &str, script: &str, more: &[&Path]) {
    let world = World::with(Setup::Apart, mode, |config| config);
    let began = Instant::now();
    let mut command = Command::new(python());
    command.arg(root().join("peers").join(script)).arg(world.state()).args(more);
    let done = command.output().expect("runs");
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script} in mode {mode}: {said}");
    assert!(began.elapsed() < PATIENCE * 3, "{script} took {:?}", began.elapsed());
    world.ends_clean();
}

#[test]
fn paramiko() {
    passes("with_paramiko.py", &[]);
}

#[test]
fn asyncssh() {
    passes("with_asyncssh.py", &[]);
}

#[test]
fn every_signal_and_the_last_size_reach_their_program() {
    for mode in ["connection", "connection+containerssh", "connection+podbay", "session+podbay"] {
        if mode.ends_with("+containerssh") && has_containerssh_agent().is_err() {
            continue;
        }
        let level = mode.split_once('+').map_or("none", |(_, level)| level);
        passes_with(mode, "signals.py", &[Path::new(level)]);
    }
}

#[test]
fn a_python_grpc_client_made_from_the_protos_alone() {
    let generated = tempfile::tempdir().expect("a directory");
    let protos = root().parent().expect("the project").join("proto");
    for mode in ["connection", "connection+podbay"] {
        passes_with(mode, "grpc_client.py", &[&protos, generated.path()]);
    }
}

#[test]
fn the_example_of_a_grpc_client_does_what_it_says() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    let generated = tempfile::tempdir().expect("a directory");
    let project = root().parent().expect("the project");
    let protos = project.join("proto");
    let files = ["common", "connection", "session"].map(|name| protos.join(format!("podbay/v1/{name}.proto")));
    let to = generated.path().display();
    let made = Command::new(python())
        .args(["-m", "grpc_tools.protoc", &format!("-I{}", protos.display())])
        .args([format!("--python_out={to}"), format!("--grpc_python_out={to}")])
        .args(files)
        .status();
    assert!(made.expect("runs").success());
    let done = Command::new(python())
        .arg(project.join("deploy/examples/grpc_client.py"))
        .args([world.state().join("grpc.env").as_path(), Path::new("alice")])
        .env("PYTHONPATH", generated.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    for line in [
        "filter: same exit 0",
        "left: begun kept for 600 s",
        "again: more",
        "job: signal TERM",
        "refusal: REASON_SUBSYSTEM_UNKNOWN: ",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    world.ends_clean();
}
