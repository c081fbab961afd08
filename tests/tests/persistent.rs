//! Mode `persistent`: a user's pod outlives connections, several share it, and it goes when nobody used it for long. Told by the
//! stock OpenSSH client.

use podbay_tests::{Answered, Setup, Terminal, World, finish, wait_until};
use std::{
    io::Read as _,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// Short times for what takes minutes with the defaults.
fn quick(config: &str) -> String {
    let config = config.replace("persistentIdleTimeout: 10m", "persistentIdleTimeout: 6s");
    format!("{config}ownership: {{leaseDuration: 3s}}\n")
}

fn world(agent: &str) -> World {
    World::with(Setup::Apart, &format!("persistent{agent}"), |config| quick(&config))
}

/// A program that says when it ends by HUP, in a file of the pod's. (Its shell would also say on stderr that `sleep` got one, and
/// end by that where nobody reads.)
const TELLS: &str = "exec 2>/dev/null; trap 'echo hup >told; exit 0' HUP; echo up; while :; do sleep 0.1; done";

#[test]
fn a_pod_is_shared_outlives_its_connections_and_goes_when_idle() {
    for agent in ["", "+podbay"] {
        let world = world(agent);
        world.run("echo kept >file; exit 3").is(3, "", "");
        let pods = world.pods();
        assert_eq!(pods, ["podbay-demo"]);
        world.run("cat file").is(0, "kept\n", "");
        // Two at once, through different replicas or the same.
        let mut first = world
            .ssh(&[])
            .arg("echo up; read line; cat line")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut out = first.stdout.take().expect("piped");
        out.read_exact(&mut [0; 3]).expect("runs");
        world.run("echo from the second >line").is(0, "", "");
        drop(first.stdin.take());
        let mut text = String::new();
        out.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "from the second\n");
        first.wait().expect("ends");
        assert_eq!(world.pods(), pods);
        // While somebody is in, it stays however long that takes.
        let mut user = Terminal::start(world.ssh(&["-t"]).arg("sleep 9; stty size; cat file"), 91, 33);
        user.shows("33 91");
        user.shows("kept");
        assert_eq!(user.ends().code(), Some(0));
        world.ends_clean();
    }
}

#[test]
fn a_detached_job_is_use_and_is_collected_and_then_the_pod_goes() {
    let mut world = world("+podbay");
    let detach = ["--detach", "--", "/bin/sh", "-c", "echo begun; sleep 14; echo ended; exit 7"];
    let answered = finish(&mut world.podbay("run", &detach), b"");
    assert_eq!(answered.status.code(), Some(0), "{answered:?}");
    let id = String::from_utf8(answered.stdout).expect("text").trim().to_owned();
    let began = Instant::now();
    // Nobody claims the pod; its idle time passes, and a backend that has seen all of it is restarted.
    world.take("backend").kill();
    world.restart("backend");
    let state = |world: &World| {
        let answered = finish(&mut world.podbay("sessions", &[]), b"");
        let text = String::from_utf8(answered.stdout).expect("text");
        text.lines().find(|line| line.starts_with(&id)).unwrap_or_default().to_owned()
    };
    while began.elapsed() < Duration::from_secs(12) {
        assert_eq!(world.pods(), ["podbay-demo"], "after {:?}", began.elapsed());
        thread::sleep(Duration::from_millis(200));
    }
    wait_until("it has ended", || state(&world).ends_with("ended with status 7"));
    let kept = Instant::now();
    while kept.elapsed() < Duration::from_secs(12) {
        assert_eq!(world.pods(), ["podbay-demo"], "its exit is kept");
        thread::sleep(Duration::from_millis(200));
    }
    let Answered { status, stdout, stderr } = finish(&mut world.podbay("attach", &[&id]), b"");
    assert_eq!((status.code(), &stdout[..], stderr.as_str()), (Some(7), &b"begun\nended\n"[..], ""));
    // Its mark says another day; nothing is kept any more.
    world.ends_clean();
}

#[test]
fn programs_end_with_their_connection_and_the_pod_stays() {
    for agent in ["", "+podbay"] {
        let world = world(agent);
        let mut client = world.ssh(&[]).arg(TELLS).stdout(Stdio::piped()).spawn().expect("starts");
        client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
        client.kill().expect("it runs");
        client.wait().expect("ends");
        // The same pod, within its idle time.
        world.run("until [ -s told ]; do sleep 0.05; done; cat told").is(0, "hup\n", "");
        world.ends_clean();
    }
}

#[test]
fn of_many_logins_at_once_one_makes_the_pod() {
    let world = world("");
    let clients: Vec<_> = (0..8)
        .map(|n| {
            world.ssh(&[]).arg(format!("echo {n} >>all; echo {n}")).stdout(Stdio::piped()).spawn().expect("starts")
        })
        .collect();
    for (n, client) in clients.into_iter().enumerate() {
        let output = client.wait_with_output().expect("ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{n}\n"));
    }
    assert_eq!(world.pods(), ["podbay-demo"]);
    world.run("wc -l <all").is(0, "8\n", "");
    world.ends_clean();
}

#[test]
fn without_create_missing_pods_the_user_is_told() {
    let world = World::with(Setup::Apart, "persistent", |config| {
        config.replace("    createMissingPods: true\n    persistentIdleTimeout: 10m\n", "")
    });
    let answered = world.run("true");
    assert_eq!(answered.status.code(), Some(255), "{answered:?}");
    assert!(answered.stderr.contains("there is no pod podbay-demo"), "{answered:?}");
    world.ends_clean();
}

#[test]
fn a_killed_frontend_leaves_no_claim_that_keeps_the_pod() {
    let mut world = world("");
    let mut client = world.ssh(&[]).arg("echo up; sleep 1000").stdout(Stdio::piped()).spawn().expect("starts");
    client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
    world.take("frontend").kill();
    client.wait().expect("ends");
    wait_until("the pod is gone", || world.pods().is_empty());
    world.ends_clean();
}
