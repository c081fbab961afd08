//! Tools that people use over ssh, unchanged: each does its work, and what arrived is compared at the far end.

use podbay_tests::{Master, PATIENCE, Setup, Terminal, World, bytes, python, sha256};
use std::{fs, path::Path, process::Command, time::Instant};

/// One connection, so one pod, that all tools of a story share; without agent and with it.
fn shared(story: impl Fn(&World, &Master<'_>, &Path)) {
    shared_as(|_, world, connection, config| story(world, connection, config));
}

/// The same, for stories that want to know which of the two it is.
fn shared_as(story: impl Fn(bool, &World, &Master<'_>, &Path)) {
    for (agent, mode) in [(false, "connection"), (true, "connection+podbay")] {
        let world = World::with(Setup::Apart, mode, |config| config);
        let connection = Master::start(&world);
        let config = connection.config();
        story(agent, &world, &connection, &config);
        connection.ends();
        world.ends_clean();
    }
}

#[track_caller]
fn does(command: &mut Command) -> String {
    let began = Instant::now();
    let done = command.output().expect("the tool is installed");
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {said}");
    assert!(began.elapsed() < PATIENCE * 10, "{command:?} took {:?}", began.elapsed());
    said.into_owned()
}

/// Files of many sizes, the largest of 3 MB, one in a folder.
fn files(folder: &Path, count: usize) {
    fs::create_dir_all(folder.join("inner")).expect("a folder");
    let all = bytes(3_000_000);
    fs::write(folder.join("inner/large"), &all).expect("writes");
    for n in 0..count {
        let from = n * 1000;
        fs::write(folder.join(format!("file {n}")), &all[from..from + n * 97]).expect("writes");
    }
}

/// What `sha256sum` says of all files here, in the order of their names.
const SUMS: &str = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";

fn sums_here(folder: &Path) -> String {
    does(Command::new("sh").args(["-c", SUMS]).current_dir(folder))
}

#[track_caller]
fn same_there(connection: &Master<'_>, folder: &str, here: &Path) {
    connection.run(&format!("cd {folder} && {SUMS}"), b"").is(0, &sums_here(here), "");
}

#[test]
fn scp_by_both_of_its_protocols() {
    shared(|world, connection, config| {
        let here = world.file("scp");
        files(&here, 30);
        for (protocol, there) in [("-s", "by-sftp"), ("-O", "by-scp")] {
            let scp = || {
                let mut scp = Command::new("scp");
                scp.args(["-q", "-r", protocol, "-F"]).arg(config);
                scp
            };
            does(scp().arg(&here).arg(format!("demo:{there}")));
            same_there(connection, there, &here);
            let back = world.file(there);
            does(scp().arg(format!("demo:{there}")).arg(&back));
            assert_eq!(sums_here(&back), sums_here(&here));
        }
    });
}

#[test]
fn sftp_of_whole_folders() {
    shared(|world, connection, config| {
        let (here, back, script) = (world.file("sftp"), world.file("back"), world.file("script"));
        files(&here, 30);
        let text = format!(
            "mkdir there\nput -r {here}/* there\nrename \"there/file 3\" \"there/file 03\"\n\
             rename \"there/file 03\" \"there/file 3\"\nget -r there {back}\n",
            here = here.display(),
            back = back.display()
        );
        fs::write(&script, text).expect("writes");
        does(Command::new("sftp").arg("-q").arg("-F").arg(config).arg("-b").arg(&script).arg("demo"));
        same_there(connection, "there", &here);
        assert_eq!(sums_here(&back), sums_here(&here));
    });
}

#[test]
fn rsync_of_what_changed() {
    shared(|world, connection, config| {
        let (here, back) = (world.file("rsync"), world.file("back"));
        files(&here, 100);
        let rsync = |from: &str, to: &str| {
            let ssh = format!("ssh -F {}", config.display());
            does(Command::new("rsync").args(["-a", "--delete", "--checksum", "--stats", "-e", &ssh, from, to]))
        };
        let ours = format!("{}/", here.display());
        rsync(&ours, "demo:synced/");
        same_there(connection, "synced", &here);
        fs::remove_file(here.join("file 7")).expect("removes");
        fs::write(here.join("inner/large"), bytes(2_900_000)).expect("writes");
        let told = rsync(&ours, "demo:synced/");
        assert!(told.contains("files transferred: 1\n"), "{told}");
        same_there(connection, "synced", &here);
        rsync("demo:synced/", &format!("{}/", back.display()));
        assert_eq!(sums_here(&back), sums_here(&here));
    });
}

#[test]
fn git_pushes_and_clones() {
    shared(|world, connection, config| {
        let (here, clone) = (world.file("git"), world.file("clone"));
        files(&here, 50);
        let git = |folder: &Path, args: &[&str]| {
            let mut git = Command::new("git");
            git.arg("-C").arg(folder).args(["-c", "user.name=demo", "-c", "user.email=demo@localhost"]).args(args);
            git.env("GIT_SSH_COMMAND", format!("ssh -F {}", config.display())).env("GIT_CONFIG_GLOBAL", "/dev/null");
            does(&mut git)
        };
        connection.run("git init -q --bare -b main repository.git", b"").is(0, "", "");
        git(&here, &["init", "-q", "-b", "main"]);
        git(&here, &["add", "-A"]);
        git(&here, &["commit", "-q", "-m", "first"]);
        let there = String::from_utf8(connection.run("cd repository.git && pwd -P", b"").stdout).expect("a path");
        let url = format!("demo:{}", there.trim());
        git(&here, &["push", "-q", &url, "main"]);
        git(world.state(), &["clone", "-q", &url, clone.to_str().expect("UTF-8")]);
        fs::write(clone.join("more"), bytes(500_000)).expect("writes");
        git(&clone, &["add", "-A"]);
        git(&clone, &["commit", "-q", "-m", "second"]);
        git(&clone, &["push", "--verbose", "origin", "main"]);
        let head = git(&clone, &["rev-parse", "HEAD"]);
        connection
            .run("git -C repository.git rev-parse main && git -C repository.git fsck --strict", b"")
            .is(0, &head, "");
    });
}

#[test]
fn top_follows_the_window() {
    shared(|_world, connection, _config| {
        let mut user = Terminal::start(connection.ssh(&["-t"]).arg("top -d 1; stty size"), 100, 30);
        user.shows("load average");
        user.shows("PID");
        user.resizes(60, 12);
        // Drawn anew, as each second: with the size that the kernel of the far end has by then.
        user.shows("load average");
        user.shows("PID");
        user.types("q");
        user.shows("12 60");
        assert_eq!(user.ends().code(), Some(0));
    });
}

#[test]
fn tmux_is_left_and_come_back_to() {
    shared(|_world, connection, _config| {
        let tmux = |then: &str, columns| {
            Terminal::start(connection.ssh(&["-t"]).arg(format!("tmux -u -S tmux.socket {then}")), columns, 24)
        };
        let mut user = tmux("new -s work /bin/sh", 90);
        user.types("N=41; echo beg''un $((N+1))\n");
        user.shows("begun 42");
        user.resizes(70, 20);
        // The status line takes one row.
        user.types("until [ \"$(stty size)\" = '19 70' ]; do sleep 0.05; done; echo SI''ZED\n");
        user.shows("SIZED");
        user.types("\x02d");
        user.shows("detached");
        assert_eq!(user.ends().code(), Some(0));
        let mut user = tmux("attach -t work", 110);
        user.shows("SIZED");
        user.types("echo still $((N+2))\n");
        user.shows("still 43");
        user.types("exit\n");
        user.shows("exited");
        assert_eq!(user.ends().code(), Some(0));
    });
}

#[test]
fn ansible_pings_and_copies_a_hundred_files() {
    shared_as(|agent, world, connection, config| {
        let (here, far) = (world.file("ansible"), world.file("far"));
        // Some four commands a file, each with a start of Python at both ends: a hundred only once, where it is the judge.
        let count = if world.real().is_some() && agent { 100 } else { 10 };
        files(&here, count - 1);
        let inventory = world.file("inventory");
        let text = format!(
            "demo ansible_ssh_common_args='-F {}' ansible_python_interpreter=/usr/bin/python3 ansible_remote_tmp={}\n",
            config.display(),
            world.file("remote").display()
        );
        fs::write(&inventory, text).expect("writes");
        let ansible = |module: &str, args: &str| {
            let mut command = Command::new(python().with_file_name("ansible"));
            command.arg("-i").arg(&inventory).args(["demo", "-m", module, "-a", args]);
            command.env("ANSIBLE_HOME", world.file("home")).env("ANSIBLE_PIPELINING", "1").env("LC_ALL", "C.UTF-8");
            // The inventory's configuration shares a connection already.
            does(command.env("ANSIBLE_SSH_ARGS", "").current_dir(world.state()))
        };
        assert!(ansible("ping", "").contains("\"ping\": \"pong\""));
        let told = ansible("copy", &format!("src={}/ dest={}/", here.display(), far.display()));
        assert!(told.contains("\"changed\": true"), "{told}");
        same_there(connection, &far.display().to_string(), &here);
    });
}

#[test]
fn fifty_megabytes_are_stored_whole() {
    let data = bytes(50_000_000);
    let sum = sha256(&data);
    shared(|_world, connection, _config| {
        connection.run("cat >file", &data).is(0, "", "");
        connection.run("sha256sum <file", b"").is(0, &format!("{sum}  -\n"), "");
    });
    for mode in ["session", "session+podbay"] {
        let world = World::with(Setup::Apart, mode, |config| config);
        world.run_with("cat >file; sha256sum <file", &data).is(0, &format!("{sum}  -\n"), "");
        world.ends_clean();
    }
}
