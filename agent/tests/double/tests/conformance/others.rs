//! `signal`, `wait-signal`, `write-file`, and what needs no mode.

use crate::agents::{Agent, BOTH, Run, eventually, read_until};
use std::{
    fs::{self, Permissions},
    io::Read as _,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    process::{Child, Command, Stdio},
};

const SIGNALS: [(&str, i32); 13] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("KILL", 9),
    ("PIPE", 13),
    ("QUIT", 3),
    ("SEGV", 11),
    ("TERM", 15),
    ("USR1", 10),
    ("USR2", 12),
];

/// A process that waits to be killed, also where the test runs with signals ignored (`nohup`).
fn victim() -> Child {
    let child = Command::new("env").args(["--default-signal", "sleep", "60"]).spawn().expect("starts");
    let name = || fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap_or_default();
    // Not before it is what it shall be.
    eventually("sleeps", || name() == "sleep\n");
    child
}

fn silent(run: &Run) {
    assert_eq!((run.text(), run.stderr.as_str()), ("", ""));
}

#[test]
fn each_signal_is_sent_to_that_process() {
    for agent in BOTH {
        for (name, number) in SIGNALS {
            let mut victim = victim();
            let run = agent.run(&["signal", "--pid", &victim.id().to_string(), "--signal", name]);
            silent(&run);
            assert_eq!(run.code, 0, "{agent:?} {name}");
            assert_eq!(victim.wait().expect("ends").signal(), Some(number), "{agent:?} {name}");
        }
    }
}

#[test]
fn the_backends_way_of_sending_one() {
    for agent in BOTH {
        let mut victim = victim();
        let pid = victim.id().to_string();
        let run = agent.run(&["console", "--pid", "--", agent.path(), "signal", "--pid", &pid, "--signal", "USR1"]);
        assert_eq!((run.text_after_pid(), run.code), ("", 0), "{agent:?}");
        assert_eq!(victim.wait().expect("ends").signal(), Some(10));
    }
}

#[test]
fn children_are_not_signalled() {
    for agent in BOTH {
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", "sleep 60 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let stdout = leader.stdout.take().expect("piped");
        let child = String::from_utf8(read_until(&stdout, |all| all.ends_with(b"\n"))).expect("text");
        let child = child.trim();
        assert_eq!(agent.run(&["signal", "--pid", &leader.id().to_string(), "--signal", "KILL"]).code, 0);
        leader.wait().expect("ends");
        assert_eq!(agent.run(&["signal", "--pid", child, "--signal", "KILL"]).code, 0, "{agent:?}: alive");
    }
}

#[test]
fn a_process_that_is_gone_is_code_3() {
    for agent in BOTH {
        let mut gone = victim();
        gone.kill().expect("killed");
        gone.wait().expect("ends");
        let args = ["signal", "--pid", &gone.id().to_string(), "--signal", "TERM"];
        assert_eq!(agent.refusal(&args), 3, "{agent:?}");
    }
}

#[test]
fn mistakes_are_code_1() {
    for agent in BOTH {
        for args in [
            &[][..],
            &["nonsense"],
            &["signal"],
            &["signal", "--pid", "1"],
            &["signal", "--signal", "TERM"],
            &["signal", "--pid", "0", "--signal", "TERM"],
            &["signal", "--pid", "x", "--signal", "TERM"],
            &["signal", "--pid", "-5", "--signal", "TERM"],
            &["signal", "--pid", "1", "--pid", "1", "--signal", "TERM"],
            &["signal", "--pid", "1", "--signal", "SIGTERM"],
            &["signal", "--pid", "1", "--signal", "term"],
            &["signal", "--pid", "1", "--signal", "WINCH"],
            &["wait-signal"],
            &["wait-signal", "--signal"],
            &["wait-signal", "--signal", "CHLD"],
            &["wait-signal", "--message", "x"],
            &["wait-signal", "--signal", "INT", "--message", "x", "--message", "y"],
            &["write-file"],
            &["write-file", "/no/such/folder/file"],
            &["write-file", "/usr"],
        ] {
            assert_eq!(agent.refusal(args), 1, "{agent:?} {args:?}");
        }
    }
}

/// Whether the process is in `rt_sigtimedwait`.
/// It waits in `rt_sigtimedwait`; or, ours, which supervises meanwhile, in `poll` or `ppoll` with its signals blocked (the
/// standard library polls once, too, as a program starts).
fn waits_for_signals(child: &Child) -> bool {
    let (waits, polls) = if cfg!(target_arch = "x86_64") { ("128 ", ["7 ", "271 "]) } else { ("137 ", ["73 ", "73 "]) };
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap_or_default();
    let blocked = read("status").lines().find_map(|line| line.strip_prefix("SigBlk:")?.trim().parse::<Hex>().ok());
    let call = read("syscall");
    call.starts_with(waits)
        || polls.iter().any(|poll| call.starts_with(poll)) && blocked.is_some_and(|Hex(mask)| mask != 0)
}

struct Hex(u64);

impl std::str::FromStr for Hex {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A program that waits, and the folder of its own where it may supervise.
struct Waiting {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn waiting(agent: Agent, args: &[&str]) -> Waiting {
    let folder = tempfile::tempdir().expect("a folder");
    let child = agent.command(args).env("PODBAY_AGENT_DIR", folder.path()).spawn().expect("starts");
    let waiting = Waiting { child, _folder: folder };
    // It can't tell when it is ready, and a signal before that is its death.
    eventually("waits", || waits_for_signals(&waiting.child));
    waiting
}

fn send(child: &Child, number: i32) {
    let status = Command::new("kill").args([format!("-{number}"), child.id().to_string()]).status().expect("runs");
    assert!(status.success());
}

#[test]
fn wait_signal_waits_for_any_of_its_signals() {
    for agent in BOTH {
        for (name, number) in SIGNALS.into_iter().filter(|(name, _)| !["KILL", "PIPE"].contains(name)) {
            let args = ["wait-signal", "--signal", "PIPE", "--signal", name, "--message", "got it"];
            let mut waiting = waiting(agent, &args);
            let child = &mut waiting.child;
            send(child, number);
            let mut said = String::new();
            child.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
            assert_eq!((child.wait().expect("ends").code(), said.as_str()), (Some(0), "got it"), "{agent:?} {name}");
        }
    }
}

#[test]
fn wait_signal_leaves_other_signals_alone_and_needs_no_message() {
    for agent in BOTH {
        let mut waits = waiting(agent, &["wait-signal", "--signal", "INT"]);
        send(&waits.child, 15);
        assert_eq!(waits.child.wait().expect("ends").signal(), Some(15), "{agent:?}");
        let mut waits = waiting(agent, &["wait-signal", "--signal", "INT"]);
        send(&waits.child, 2);
        let mut said = Vec::new();
        waits.child.stdout.take().expect("piped").read_to_end(&mut said).expect("read");
        assert_eq!((waits.child.wait().expect("ends").code(), said), (Some(0), Vec::new()), "{agent:?}");
    }
}

#[test]
fn a_file_gets_the_bytes_and_the_mode_whatever_was_there() {
    for agent in BOTH {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        fs::write(file("old"), "something much longer than what follows").expect("written");
        fs::set_permissions(file("old"), Permissions::from_mode(0o644)).expect("set");
        std::os::unix::fs::symlink(file("target"), file("link")).expect("linked");
        fs::write(file("one name"), "x").expect("written");
        fs::hard_link(file("one name"), file("other name")).expect("linked");
        let bytes: Vec<u8> = (0..60_000_u32).map(|n| (n % 251) as u8).collect();
        for (name, seen_at) in [("new", "new"), ("old", "old"), ("link", "target"), ("one name", "other name")] {
            let args = ["write-file", file(name).to_str().expect("UTF-8")].map(str::to_owned);
            let run = agent.run_with(&args, &bytes);
            silent(&run);
            assert_eq!(run.code, 0, "{agent:?} {name}");
            assert!(fs::read(file(seen_at)).expect("readable") == bytes, "{agent:?} {name}");
            let mode = fs::metadata(file(seen_at)).expect("there").permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{agent:?} {name}");
        }
        assert!(fs::symlink_metadata(file("link")).expect("there").is_symlink(), "{agent:?}");
        assert_eq!(fs::read_dir(&folder).expect("readable").count(), 6, "{agent:?}: nothing is left over");
    }
}

#[test]
fn an_empty_file_is_a_file() {
    for agent in BOTH {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = agent.command(&["write-file", "relative"]);
        command.current_dir(&folder);
        assert_eq!(crate::agents::finish(command, b"").code, 0, "{agent:?}");
        assert_eq!(fs::read(folder.path().join("relative")).expect("there"), b"");
    }
}

#[test]
fn a_full_disk_is_code_1() {
    for agent in BOTH {
        assert_eq!(agent.run_with(&["write-file", "/dev/full"], b"x").code, 1, "{agent:?}");
    }
}

#[test]
fn help_and_licence_are_asked_for_and_so_go_to_stdout() {
    for agent in BOTH {
        for args in [["--help"], ["-h"], ["license"]] {
            let run = agent.run(&args);
            assert!(!run.stdout.is_empty() && run.stderr.is_empty() && run.code == 0, "{agent:?} {args:?}");
        }
    }
}
