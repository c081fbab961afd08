//! What is meant to differ: quirks of the original that do harm. `docs/agent.md` lists them; this shows each.

use crate::agents::{Agent, BOTH, OnTerminal, eventually, finish, read_until};
use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

#[test]
fn a_variable_is_replaced_and_not_doubled() {
    for agent in BOTH {
        let mut command = agent.command(&["console", "--env", "TERM=new", "--", "/usr/bin/env"]);
        command.env_clear().env("TERM", "old");
        let lines = match agent {
            // C's getenv finds the first: the override has no effect.
            Agent::Original => "TERM=old\nTERM=new\n",
            Agent::Ours => "TERM=new\n",
        };
        assert_eq!(finish(command, b"").text(), lines);
    }
}

#[test]
fn a_mistake_says_nothing_on_stdout() {
    for agent in BOTH {
        for args in [&["nonsense"][..], &["console", "--pid", "--bad"], &["signal"], &["wait-signal"]] {
            let stdout = agent.run(args).stdout;
            match agent {
                Agent::Original => assert!(stdout.len() > 4, "{args:?}: text where a process id is expected"),
                Agent::Ours => assert_eq!(stdout, b"", "{args:?}"),
            }
        }
    }
}

#[test]
fn no_double_dash_is_told_and_no_crash() {
    for agent in BOTH {
        let said = agent.run(&["console", "--pid"]).stderr;
        match agent {
            Agent::Original => assert!(said.starts_with("panic"), "{said}"),
            Agent::Ours => assert!(said.contains("`--`"), "{said}"),
        }
    }
}

#[test]
fn on_a_terminal_any_process_id_arrives_whole() {
    for agent in BOTH {
        // One in 256 has such a byte, at least; ids are given out in order, more or less.
        let found = (0..5000).find_map(|_| {
            let mut terminal = OnTerminal::start(agent, &["console", "--pid", "--", "/bin/echo", "x"]);
            let all = terminal.output();
            let pid = terminal.child.id().to_le_bytes();
            pid.contains(&b'\n').then_some((all, pid))
        });
        let (all, pid) = found.expect("a process id with a byte 10");
        let whole = [&pid[..], b"x\r\n"].concat();
        match agent {
            Agent::Original => assert_ne!(all, whole),
            Agent::Ours => assert_eq!(all, whole),
        }
    }
}

#[test]
fn a_file_is_the_old_one_until_it_is_the_new_one() {
    for agent in BOTH {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "old").expect("written");
        let mut child = agent.command(&[std::ffi::OsStr::new("write-file"), path.as_os_str()]).spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(b"new").expect("written");
        match agent {
            Agent::Original => {
                eventually("a part is seen", || fs::read(&path).expect("readable") != b"old");
            }
            Agent::Ours => {
                eventually("a new file grows beside it", || {
                    let entries = fs::read_dir(&folder).expect("readable").flatten();
                    entries.filter_map(|entry| entry.metadata().ok()).filter(|file| file.len() == 3).count() == 2
                });
                assert_eq!(fs::read(&path).expect("readable"), b"old");
            }
        }
        drop(stdin);
        assert!(child.wait().expect("ends").success());
        assert_eq!(fs::read(&path).expect("readable"), b"new");
    }
}

#[test]
fn a_file_that_could_not_be_read_to_its_end_is_not_told_as_written() {
    for agent in BOTH {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        // A folder can be opened, but not read.
        let mut command = Command::new(agent.path());
        command.arg("write-file").arg(&path).stdin(fs::File::open("/usr").expect("opens")).stderr(Stdio::null());
        let code = command.status().expect("runs").code();
        match agent {
            Agent::Original => assert_eq!((code, path.exists()), (Some(0), true)),
            Agent::Ours => assert_eq!((code, path.exists()), (Some(1), false)),
        }
        assert!(fs::read_dir(&folder).expect("readable").all(|entry| entry.expect("an entry").path() == path));
    }
}

#[test]
fn orphans_are_reaped() {
    for agent in BOTH {
        // The shell's child is the agent's once the shell has become that, as a container's orphans are process 1's.
        let script = "sleep 60 & echo $!; exec \"$0\" wait-signal --signal TERM";
        let folder = tempfile::tempdir().expect("a folder");
        let mut shell = Command::new("sh");
        shell.args(["-c", script, agent.path()]).env("PODBAY_AGENT_DIR", folder.path());
        let mut child = shell.stdout(Stdio::piped()).spawn().expect("starts");
        let stdout = child.stdout.take().expect("piped");
        let orphan = String::from_utf8(read_until(&stdout, |all| all.ends_with(b"\n"))).expect("text");
        let orphan = orphan.trim();
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{orphan}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        };
        // Not before it is the agent: a shell would reap it.
        eventually("is the agent", || {
            fs::read_link(format!("/proc/{}/exe", child.id()))
                .is_ok_and(|exe| exe == fs::canonicalize(agent.path()).expect("a path"))
        });
        assert!(Command::new("kill").args(["-9", orphan]).status().expect("runs").success());
        match agent {
            Agent::Original => eventually("a zombie", || state() == Some('Z')),
            Agent::Ours => eventually("gone", || state().is_none()),
        }
        child.kill().expect("killed");
        child.wait().expect("ends");
    }
}

#[test]
fn a_whole_process_group_can_be_meant() {
    let mut leader = Command::new("setsid")
        .args(["sh", "-c", "sleep 60 & echo $!; wait"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let stdout = leader.stdout.take().expect("piped");
    read_until(&stdout, |all| all.ends_with(b"\n"));
    let run = Agent::Ours.run(&["signal", "--pid", &leader.id().to_string(), "--signal", "KILL", "--group"]);
    assert_eq!(run.code, 0);
    leader.wait().expect("ends");
    // Ends only when the child is gone, too.
    read_until(&stdout, |_| false);
    assert_eq!(Agent::Original.refusal(&["signal", "--pid", "1", "--signal", "KILL", "--group"]), 1);
}

#[test]
fn forwarding_is_refused_by_name() {
    let run = Agent::Ours.run(&["forward-server"]);
    assert_eq!((run.code, run.stdout.as_slice()), (1, &b""[..]));
    assert!(run.stderr.contains("forward-server"), "{}", run.stderr);
}
