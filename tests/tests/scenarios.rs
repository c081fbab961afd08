//! The stories that Podbay is for, told by the stock OpenSSH client; each with all parts in one process and as processes
//! of their own.

use nix::sys::signal::Signal;
use podbay_tests::{Master, PATIENCE, Setup, Terminal, World, bytes, finish, image, only_embedded, sha256, wait_until};
use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const MIB: usize = 1 << 20;

fn both(story: impl Fn(&World)) {
    for setup in [Setup::Together, Setup::Apart] {
        let world = World::new(setup);
        story(&world);
        world.ends_clean();
    }
}

#[test]
fn a_command_gives_its_output_apart_and_its_exit_code() {
    both(|world| {
        world.run("echo out; echo err >&2; exit 7").is(7, "out\n", "err\n");
        world.run("true").is(0, "", "");
        world.run("exit 1").is(1, "", "");
        world.run("exit 255").is(255, "", "");
        // Without an agent a signal shows as the shell tells it.
        world.run("kill -9 $$").is(137, "", "");
        world.run("exec /nosuch/program").status.code().filter(|code| *code == 127).expect("not found");
    });
}

#[test]
fn session_mode_runs_each_program_in_a_pod_of_its_own() {
    for setup in [Setup::Together, Setup::Apart] {
        let world = World::with(setup, "session", |config| config);
        world.run("echo out; echo err >&2; exit 7").is(7, "out\n", "err\n");
        let data = bytes(5 * MIB);
        let answered = world.run_with("cat", &data);
        assert_eq!((answered.stdout.len(), sha256(&answered.stdout)), (data.len(), sha256(&data)));
        for _ in 0..10 {
            world.run("echo first").is(0, "first\n", "");
        }
        world.ends_clean();
    }
}

#[test]
fn a_shell_has_a_prompt_and_follows_the_window() {
    both(|world| {
        let mut user = Terminal::start(&world.ssh(&[]), 91, 33);
        // The prompt comes from the shell in the pod, whatever it looks like.
        user.types("PS1='pod> '; stty size; echo $TERM\n");
        user.shows("33 91");
        user.shows("xterm-256color");
        user.shows("pod> ");
        user.resizes(120, 40);
        let deadline = Instant::now() + PATIENCE;
        // A window change has no answer that the user sees; ask until it is there.
        user.types("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.05; done; echo ARRI''VED\n");
        user.shows("ARRIVED");
        assert!(Instant::now() < deadline);
        user.types("sleep 1000\n");
        user.shows("sleep 1000");
        user.types("\x03");
        user.shows("pod> ");
        user.types("exit 3\n");
        assert_eq!(user.ends().code(), Some(3));
    });
}

#[test]
fn a_hundred_mebibytes_arrive_both_ways() {
    both(|world| {
        let data = bytes(100 * MIB);
        let sum = sha256(&data);
        let up = world.run_with("sha256sum; exit 5", &data);
        assert_eq!(up.status.code(), Some(5));
        assert_eq!(String::from_utf8_lossy(&up.stdout), format!("{sum}  -\n"));
        // An upload whose program gives its own stdout away must not be cut.
        let connection = Master::start(world);
        connection.run("cat > stored", &data).is(0, "", "");
        let down = connection.run("cat stored", b"");
        assert_eq!((down.status.code(), down.stdout.len(), sha256(&down.stdout)), (Some(0), data.len(), sum));
        connection.ends();
    });
}

#[test]
fn a_filter_with_a_slow_reader_loses_nothing_and_stalls_nobody() {
    let world = World::new(Setup::Apart);
    let data = bytes(60 * MIB);
    let mut filter = world.ssh(&[]).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let (mut to, sum, total) = (filter.stdin.take().expect("piped"), sha256(&data), data.len());
    let writer = thread::spawn(move || to.write_all(&data).expect("takes all"));
    // While nothing is read, memory stays bounded and another user is served.
    let before = ["frontend", "backend", "backend-2"].map(|name| world.part(name).memory());
    world.run("echo other").is(0, "other\n", "");
    for (name, before) in ["frontend", "backend", "backend-2"].into_iter().zip(before) {
        let after = world.part(name).memory();
        assert!(after < before + 64 * MIB as u64, "{name} grew from {before} to {after}");
    }
    let (mut from, mut all) = (filter.stdout.take().expect("piped"), Vec::new());
    from.read_to_end(&mut all).expect("reads");
    writer.join().expect("no panic");
    assert!(filter.wait().expect("ends").success());
    assert_eq!((all.len(), sha256(&all)), (total, sum));
    world.ends_clean();
}

#[test]
fn the_end_of_input_and_of_output_are_told_apart() {
    both(|world| {
        // Output goes on after the end of input, and input is taken after the end of output.
        world.run_with("cat; echo after; exit 4", b"in\n").is(4, "in\nafter\n", "");
        let connection = Master::start(world);
        connection.run("exec >&-; cat > kept", &bytes(3 * MIB)).is(0, "", "");
        connection.run("sha256sum < kept", b"").is(0, &format!("{}  -\n", sha256(&bytes(3 * MIB))), "");
        connection.ends();
    });
}

#[test]
fn the_end_of_input_ends_a_program_on_a_terminal_too() {
    for mode in ["connection", "session"] {
        for setup in [Setup::Together, Setup::Apart] {
            let world = World::with(setup, mode, |config| config);
            for cut in [false, true] {
                if cut && (setup == Setup::Together || only_embedded("its containerd has the defect or not")) {
                    continue;
                }
                if cut {
                    world.fault(r#"{"add": {"fault": "real", "what": "criTtyEofCut", "on": true}}"#);
                }
                for (stdin, shown) in [("x\n", "x\r\nx\r\n"), ("x", "xx")] {
                    let answered = finish(world.ssh(&["-tt"]).arg("cat; exit 3"), stdin.as_bytes());
                    let text = String::from_utf8_lossy(&answered.stdout);
                    assert_eq!((answered.status.code(), &*text), (Some(3), shown), "{mode} {setup:?} {answered:?}");
                }
            }
            world.ends_clean();
        }
    }
}

#[test]
fn twenty_channels_on_one_connection_do_not_wait_for_each_other() {
    let world = World::new(Setup::Apart);
    let connection = Master::start(&world);
    let on = |command: &str| {
        let mut ssh = connection.ssh(&[]);
        ssh.arg(command);
        ssh
    };
    // One whose output nobody reads, and one whose program reads nothing.
    let mut unread = on("yes").stdout(Stdio::piped()).spawn().expect("starts");
    let mut unreading = on("sleep 1000").stdin(Stdio::piped()).spawn().expect("starts");
    let mut stdin = unreading.stdin.take().expect("piped");
    let stuffing = thread::spawn(move || while stdin.write_all(&[0; 8192]).is_ok() {});
    let others: Vec<_> = (0..18)
        .map(|n| {
            on(&format!("head -c 1000000 /dev/zero | wc -c; echo {n}")).stdout(Stdio::piped()).spawn().expect("starts")
        })
        .collect();
    for (n, other) in others.into_iter().enumerate() {
        let output = other.wait_with_output().expect("ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("1000000\n{n}\n"));
    }
    for child in [&mut unread, &mut unreading] {
        child.kill().expect("it runs");
        child.wait().expect("ends");
    }
    stuffing.join().expect("no panic");
    connection.ends();
    world.ends_clean();
}

#[test]
fn a_killed_client_leaves_no_pod() {
    both(|world| {
        let mut client = world.ssh(&[]).arg("echo up; sleep 1000").stdout(Stdio::piped()).spawn().expect("starts");
        client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
        assert_eq!(world.pods().len(), 1);
        client.kill().expect("it runs");
        client.wait().expect("ends");
        wait_until("the pod is gone", || world.pods().is_empty());
    });
}

#[test]
fn a_killed_pod_ends_the_session_truly() {
    both(|world| {
        let mut client = world.ssh(&[]);
        client.arg("echo up; sleep 1000").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = client.spawn().expect("starts");
        client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
        world.deletes(world.pods().first().expect("a pod"));
        let output = client.wait_with_output().expect("ends");
        assert!(output.status.code().is_some_and(|code| code != 0), "{output:?}");
    });
}

#[test]
fn who_may_not_in_stays_out() {
    both(|world| {
        let key = world.file("other_key");
        let _ = std::fs::remove_file(&key);
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.expect("runs").success());
        let other = format!("IdentityFile={}", key.display());
        // -i and -o add to what the file names; -F none and by hand is another client.
        let port = std::fs::read_to_string(world.ssh_config()).expect("reads");
        let port = port.lines().find_map(|line| line.trim().strip_prefix("Port ")).expect("a port").to_owned();
        let known = format!("UserKnownHostsFile={}", world.state().join("known_hosts").display());
        for (user, identity) in [("demo", other.as_str()), ("nobody", other.as_str())] {
            let mut ssh = Command::new("ssh");
            ssh.args(["-F", "none", "-p", &port, "-o", identity, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]);
            ssh.args(["-o", &known, "-o", "HostKeyAlias=demo", "-l", user, "127.0.0.1", "true"]);
            let output = ssh.output().expect("runs");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(255) && text.contains("Permission denied"), "{output:?}");
        }
        assert!(world.pods().is_empty());
    });
}

#[test]
fn an_image_that_is_not_there_is_said() {
    // A real registry that does not answer may yet: such a pull is given up with the start.
    let timeouts = "  timeouts: {podStart: 8s}\n  pod:\n    mode:";
    let world = World::with(Setup::Apart, "connection", |config| {
        config.replace(&image(), "localhost/nosuch:9").replace("  pod:\n    mode:", timeouts)
    });
    let answered = world.run("true");
    assert_eq!(answered.status.code(), Some(255), "{answered:?}");
    assert!(answered.stderr.contains("localhost/nosuch:9"), "{answered:?}");
    world.ends_clean();
}

#[test]
fn garbage_on_both_ports_hurts_nobody() {
    let world = World::new(Setup::Apart);
    let text = std::fs::read_to_string(world.state().join("podbay.yaml")).expect("reads");
    let addresses: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("listen: "))
        .map(|line| line.trim_matches('"'))
        .collect();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for address in addresses {
        for garbage in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &bytes(100_000), b"SSH-2.0-x\r\n\0\0\0\x01\xff\xff\xff\xff", b""]
        {
            let mut stream = std::net::TcpStream::connect(address).expect("connects");
            let _ = stream.write_all(garbage);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            stream.set_read_timeout(Some(PATIENCE)).expect("sets");
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    world.run("echo fine").is(0, "fine\n", "");
    world.ends_clean();
}

#[test]
fn fifty_connections_at_once() {
    let world = World::new(Setup::Apart);
    let clients: Vec<_> = (0..50)
        .map(|n| {
            let mut ssh = world.ssh(&[]);
            ssh.arg(format!("echo {n}")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
        })
        .collect();
    for (n, client) in clients.into_iter().enumerate() {
        let output = client.wait_with_output().expect("ends");
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()),
            (Some(0), format!("{n}\n")),
            "{output:?}"
        );
    }
    world.ends_clean();
}

#[test]
fn the_death_of_a_replica_costs_no_connection() {
    let mut world = World::new(Setup::Apart);
    let backend = world.take("backend");
    let connection = Master::start(&world);
    let run = || connection.run("echo here", b"").stdout;
    assert_eq!(run(), b"here\n");
    // Whichever opened it: each dies in turn.
    backend.kill();
    wait_until("the other replica serves the connection", || run() == b"here\n");
    connection.ends();
    world.ends_clean();
}

#[test]
fn the_death_of_the_frontend_leaves_nothing_after_the_lease() {
    let short = |config: String| config + "ownership: {leaseDuration: 3s, backendWait: 1s}\n";
    let mut world = World::with(Setup::Apart, "connection", short);
    let mut client = world.ssh(&[]).arg("echo up; sleep 1000").stdout(Stdio::piped()).spawn().expect("starts");
    client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
    world.take("frontend").kill();
    assert_ne!(client.wait().expect("ends").code(), Some(0));
    wait_until("the reaper has deleted the pod", || world.pods().is_empty());
    world.ends_clean();
}

#[test]
fn sftp_carries_files_both_ways() {
    both(|world| {
        let data = bytes(5 * MIB);
        let (from, back) = (world.file("from"), world.file("back"));
        std::fs::write(&from, &data).expect("writes");
        let script = format!("put {} there\nget there {}\n", from.display(), back.display());
        let mut sftp = Command::new("sftp");
        let mut sftp = sftp.arg("-q").arg("-F").arg(world.ssh_config()).args(["-b", "-", "demo"]);
        sftp = sftp.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut sftp = sftp.spawn().expect("starts");
        sftp.stdin.take().expect("piped").write_all(script.as_bytes()).expect("writes");
        assert!(sftp.wait().expect("ends").success());
        assert_eq!(sha256(&std::fs::read(&back).expect("reads")), sha256(&data));
    });
}

#[test]
fn a_first_signal_drains_and_everything_ends() {
    let mut world = World::new(Setup::Apart);
    let mut client = world.ssh(&[]).arg("echo up; sleep 1000").stdout(Stdio::piped()).spawn().expect("starts");
    client.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("runs");
    let frontend = world.take("frontend");
    frontend.signal(Signal::SIGTERM);
    assert_ne!(client.wait().expect("ends").code(), Some(0));
    drop(frontend.said());
    let began = Instant::now();
    frontend.ends();
    assert!(began.elapsed() < Duration::from_secs(30));
    wait_until("no pod is left", || world.pods().is_empty());
    world.ends_clean();
}
