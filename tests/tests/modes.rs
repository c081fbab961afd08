//! The modes step by step: what a pod looks like at the API while its programs run, what its programs see, and what goes when. Told by
//! the stock OpenSSH client; the same on any cluster.

use k8s_openapi::api::core::v1::{Container, Pod};
use podbay_tests::{Answered, Master, Setup, World, cluster::has_containerssh_agent, finish, wait_until};
use std::{
    io::{Read as _, Write as _},
    process::{Child, Stdio},
};

/// Every agent level that pods can have here.
fn levels() -> Vec<&'static str> {
    let all = ["", "+containerssh", "+podbay", "+injected"];
    all.into_iter().filter(|level| *level != "+containerssh" || has_containerssh_agent().is_ok()).collect()
}

fn pods(world: &World) -> Vec<Pod> {
    world.pods_in(world.real().map_or("default", |real| &real.namespace))
}

/// A client's connection is up before its pod is.
#[track_caller]
fn there_are(world: &World, n: usize) -> Vec<Pod> {
    wait_until("there are so many pods", || pods(world).len() == n);
    pods(world)
}

#[track_caller]
fn pod(world: &World) -> Pod {
    there_are(world, 1).remove(0)
}

fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    Some(pod.metadata.labels.as_ref()?.get(name)?.as_str())
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    Some(pod.metadata.annotations.as_ref()?.get(name)?.as_str())
}

fn console(pod: &Pod) -> &Container {
    let containers = &pod.spec.as_ref().expect("a spec").containers;
    containers.iter().find(|one| one.name == "shell").expect("the console container")
}

fn restarts(pod: &Pod) -> &str {
    // The API server's default.
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
}

/// Whose it is, for whoever looks at the cluster; gives the connection's id.
#[track_caller]
fn is_marked(pod: &Pod) -> String {
    let connection = label(pod, "containerssh_connection_id").expect("the connection's id").to_owned();
    assert!(connection.len() == 32 && connection.bytes().all(|b| b"0123456789abcdef".contains(&b)), "{connection}");
    assert_eq!(label(pod, "containerssh_username"), Some("demo"));
    assert_eq!(annotation(pod, "containerssh_ip"), Some("127.0.0.1"));
    // The operator's own stay beside them.
    assert_eq!((label(pod, "team"), annotation(pod, "note")), (Some("blue"), Some("x y")));
    connection
}

/// With a label and an annotation of the operator's, and a variable of the container's own.
fn world(mode: &str) -> World {
    World::with(Setup::Apart, mode, |config| {
        config
            .replace("    metadata:\n", "    metadata:\n      labels: {team: blue}\n      annotations: {note: x y}\n")
            .replace("        - name: shell\n", "        - name: shell\n          env: [{name: OWN, value: pod's}]\n")
            .replace("persistentIdleTimeout: 10m", "persistentIdleTimeout: 5s")
    })
}

/// A command that has begun; a line ends it. (Not the end of its input: of a client that shares a connection and has itself no
/// terminal, OpenSSH says that the modes of its terminal are all off, so no byte means the end.)
fn running(connection: &Master<'_>, options: &[&str]) -> Child {
    let mut ssh = connection.ssh(options);
    let ssh = ssh
        .arg("echo up; read line; exit 4")
        .env("A", "b")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut client = ssh.spawn().expect("starts");
    client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
    client
}

#[track_caller]
fn ends(mut client: Child) {
    client.stdin.take().expect("piped").write_all(b"\n").expect("takes it");
    assert_eq!(client.wait().expect("ends").code(), Some(4));
}

/// What a program sees of variables: the container's own, the client's, and TERM exactly where there is a terminal.
#[track_caller]
fn sees_its_variables(world: &World) {
    let env = ["-o", "SetEnv=A=\"b c\" OWN=mine"];
    let with = |options: &[&str], command: &str| -> Answered {
        let all: Vec<&str> = env.iter().chain(options).copied().collect();
        let mut ssh = world.ssh(&all);
        finish(ssh.arg(command).env("TERM", "xterm-256color"), b"")
    };
    with(&["-T"], "echo \"$A/$OWN/$TERM\"").is(0, "b c/mine/\n", "");
    let on_terminal = with(&["-tt"], "echo \"$A/$OWN/$TERM\"");
    assert_eq!(on_terminal.stdout, b"b c/mine/xterm-256color\r\n", "{on_terminal:?}");
    world.run("echo \"$A/$OWN\"").is(0, "/pod's\n", "");
}

#[test]
fn in_mode_connection_a_pod_is_its_connections() {
    for level in levels() {
        let world = world(&format!("connection{level}"));
        let first = Master::start(&world);
        // It is there before any program.
        let idle = pod(&world);
        let connection = is_marked(&idle);
        assert_eq!(idle.metadata.name, Some(format!("podbay-{connection}")));
        assert_eq!(restarts(&idle), "Always");
        let container = console(&idle);
        let command = container.command.as_ref().expect("the idle command");
        assert!(command.iter().any(|word| word == "wait-signal") || level.is_empty(), "{command:?}");
        assert_eq!((container.stdin.unwrap_or(false), container.tty.unwrap_or(false)), (false, false));
        // Any number of sessions, with terminal and without, and it is the same pod all the while.
        let sessions: Vec<Child> = [&["-T"][..], &["-tt"], &["-T"]].map(|options| running(&first, options)).into();
        assert_eq!(pod(&world).metadata.uid, idle.metadata.uid);
        let [a, b, c]: [Child; 3] = sessions.try_into().expect("three");
        ends(a);
        ends(c);
        drop(b);
        assert_eq!(pod(&world).metadata.uid, idle.metadata.uid);
        // Another connection has another one.
        let second = Master::start(&world);
        there_are(&world, 2);
        first.ends();
        assert_ne!(is_marked(&pod(&world)), connection);
        second.ends();
        wait_until("no pod is left", || world.pods().is_empty());
        sees_its_variables(&world);
        world.ends_clean();
    }
}

#[test]
fn in_mode_session_a_pod_is_its_programs() {
    for level in levels() {
        let world = world(&format!("session{level}"));
        let connection = Master::start(&world);
        assert_eq!(world.pods(), [""; 0], "no program, no pod");
        let plain = running(&connection, &["-o", "SendEnv=A", "-T"]);
        let first = pod(&world);
        let id = is_marked(&first);
        let terminal = running(&connection, &["-tt"]);
        let both = there_are(&world, 2);
        let second = both.iter().find(|pod| pod.metadata.uid != first.metadata.uid).expect("another");
        assert_eq!(is_marked(second), id, "of one connection");
        assert_ne!(label(second, "podbay.dev/session"), label(&first, "podbay.dev/session"));
        for pod in &both {
            assert_eq!(restarts(pod), "Never");
        }
        // With podbay-agent the pod waits, and the program has its own terminal and input over the link.
        if matches!(level, "" | "+containerssh") {
            for (pod, tty) in [(&first, false), (second, true)] {
                let container = console(pod);
                // An image's first program, which tells the agent's level, is an exec in a pod that waits.
                let waits = container.command.iter().flatten().any(|word| word == "wait-signal");
                if waits {
                    continue;
                }
                let wanted = (true, true, tty);
                let is = (container.stdin, container.stdin_once, container.tty);
                assert_eq!((is.0 == Some(true), is.1 == Some(true), is.2 == Some(true)), wanted, "{level}");
            }
        }
        // The client's variables are the program's alone (below), and in no object that others can read.
        let text = serde_json::to_string(&both).expect("JSON");
        assert!(text.contains("OWN") && !text.contains("\"A\"") && !text.contains("A=b"), "{level}: {text}");
        // Each goes with its program, and the connection stays.
        ends(plain);
        there_are(&world, 1);
        connection.run("exit 6", b"").is(6, "", "");
        // What is still there goes with the connection.
        connection.ends();
        wait_until("no pod is left", || world.pods().is_empty());
        drop(terminal);
        sees_its_variables(&world);
        world.ends_clean();
    }
}

#[test]
fn in_mode_persistent_a_pod_is_its_users() {
    for level in levels() {
        let world = world(&format!("persistent{level}"));
        let connection = Master::start(&world);
        let made = pod(&world);
        assert_eq!((made.metadata.name.as_deref(), restarts(&made)), (Some("podbay-demo"), "Always"));
        assert_eq!((label(&made, "containerssh_username"), label(&made, "team")), (Some("demo"), Some("blue")));
        let one = running(&connection, &["-o", "SendEnv=A", "-T"]);
        let other = Master::start(&world);
        let two = running(&other, &["-tt"]);
        assert_eq!(pod(&world).metadata.uid, made.metadata.uid);
        connection.ends();
        drop(one);
        // The other's programs are not its business.
        ends(two);
        assert_eq!(pod(&world).metadata.uid, made.metadata.uid);
        // A client's variables are the program's, never the pod's: the next user of it may have others.
        assert!(console(&pod(&world)).env.iter().flatten().all(|variable| variable.name != "A"));
        sees_its_variables(&world);
        other.ends();
        world.ends_clean();
    }
}

#[test]
fn without_a_shell_command_the_image_says_what_a_shell_is() {
    let world = World::with(Setup::Apart, "session", |config| {
        let start = config.find("    shellCommand: [").expect("a shell command");
        let end = start + config[start..].find('\n').expect("a line");
        format!("{}    shellCommand: []{}", &config[..start], &config[end..])
    });
    // CMD of both clusters' images is bash.
    let shell = finish(&mut world.ssh(&["-T"]), b"echo \"${BASH_VERSION:+bash} $0\"; exit 5\n");
    let text = String::from_utf8_lossy(&shell.stdout);
    assert!(text.starts_with("bash ") && text.trim_end().ends_with("bash"), "{shell:?}");
    assert_eq!(shell.status.code(), Some(5), "{shell:?}");
    // An exec replaces it.
    world.run("echo exec; exit 3").is(3, "exec\n", "");
    world.ends_clean();
}
