//! `console`.

use crate::agents::{BOTH, OnTerminal, finish, read_until};
use rustix::{event::PollFlags, termios};
use std::{
    ffi::OsStr,
    os::unix::{ffi::OsStrExt as _, fs::symlink, process::CommandExt as _},
    process::Command,
};

#[test]
fn the_process_id_comes_first_and_is_the_programs() {
    for agent in BOTH {
        let run = agent.run(&["console", "--pid", "--", "/bin/sh", "-c", "echo $$; exit 42"]);
        assert_eq!((run.text_after_pid(), run.code), (format!("{}\n", run.pid).as_str(), 42), "{agent:?}");
        assert_eq!(run.stderr, "");
    }
}

#[test]
fn without_options_there_is_only_the_program() {
    for agent in BOTH {
        let run = agent.run_with(&["console", "--", "/bin/cat", "-"], b"in and out\0\n");
        assert_eq!((run.stdout.as_slice(), run.code), (&b"in and out\0\n"[..], 0), "{agent:?}");
    }
}

#[test]
fn arguments_pass_as_they_are() {
    for agent in BOTH {
        let script = r#"printf '%s|' "$0" "$@""#;
        let odd = OsStr::from_bytes(b"\xff\n --pid");
        let args = ["console", "--", "/bin/sh", "-c", script, "zero", "", "--"].map(OsStr::new);
        let run = agent.run(&[&args[..], &[odd]].concat());
        assert_eq!(run.stdout, b"zero||--|\xff\n --pid|", "{agent:?}");
    }
}

#[test]
fn the_start_byte_is_taken_and_only_that() {
    for agent in BOTH {
        for (stdin, rest) in [(&b"\0\n\0more"[..], "\n\0more"), (b"\n\0", "\0"), (b"\0", "")] {
            let run = agent.run_with(&["console", "--wait", "--pid", "--", "/bin/cat"], stdin);
            assert_eq!((run.text_after_pid(), run.code), (rest, 0), "{agent:?} {stdin:?}");
        }
        for stdin in [&b""[..], b"x\0", b"\r", b" "] {
            let run = agent.run_with(&["console", "--wait", "--pid", "--", "/bin/cat"], stdin);
            assert_eq!((run.stdout.as_slice(), run.code), (&b""[..], 2), "{agent:?} {stdin:?}");
            assert!(!run.stderr.is_empty());
        }
    }
}

#[test]
fn nothing_happens_before_the_start_byte() {
    for agent in BOTH {
        let mut child = agent.command(&["console", "--wait", "--pid", "--", "/bin/echo"]).spawn().expect("starts");
        let stdout = child.stdout.take().expect("piped");
        let mut fds = [rustix::event::PollFd::new(&stdout, PollFlags::IN)];
        // Enough for either of them to have started long ago; nothing to wait for in their place.
        let quiet = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&quiet)), Ok(0), "{agent:?}");
        rustix::io::write(child.stdin.take().expect("piped"), b"\0").expect("written");
        let pid = child.id().to_le_bytes();
        assert_eq!(read_until(&stdout, |_| false), [&pid[..], b"\n"].concat(), "{agent:?}");
        child.wait().expect("ends");
    }
}

#[test]
fn variables_are_added() {
    for agent in BOTH {
        let script = r#"printf '%s|' "$NEW" "$EMPTY" "$ODD" "$TWICE""#;
        let run = agent.run(&[
            "console",
            "--env",
            "NEW=a b",
            "--env",
            "EMPTY=",
            "--env",
            "ODD=--x=\n",
            "--env",
            "TWICE=1",
            "--env",
            "TWICE=2",
            "--",
            "/bin/sh",
            "-c",
            script,
        ]);
        // A shell takes the later one of two.
        assert_eq!(run.text(), "a b||--x=\n|2|", "{agent:?}");
    }
}

#[test]
fn the_rest_of_the_environment_is_inherited() {
    for agent in BOTH {
        let mut command = agent.command(&["console", "--", "/usr/bin/env"]);
        command.env_clear().env("ALSO", "=").env("KEPT", "yes");
        assert_eq!(finish(command, b"").text(), "ALSO==\nKEPT=yes\n", "{agent:?}");
    }
}

#[test]
fn variables_keep_their_order() {
    for agent in BOTH {
        // The outer `env` leaves it in the order of its arguments.
        let args = ["-i", "Z=1", "A=2", agent.path(), "console", "--env", "Y=3", "--env", "B=4", "--", "/usr/bin/env"];
        let output = Command::new("/usr/bin/env").args(args).output().expect("runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "Z=1\nA=2\nY=3\nB=4\n", "{agent:?}");
    }
}

#[test]
fn folder_files_and_umask_are_inherited() {
    for agent in BOTH {
        let script =
            "umask 027; cd /usr; exec 7</dev/null; exec \"$0\" console -- /bin/sh -c 'pwd; umask; ls /proc/self/fd/7'";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, agent.path()]);
        let output = command.output().expect("runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "/usr\n0027\n/proc/self/fd/7\n", "{agent:?}");
    }
}

#[test]
fn a_broken_pipe_ends_the_program_as_it_should() {
    for agent in BOTH {
        // What Rust's and Go's runtimes do to SIGPIPE must not reach it.
        let run = agent.run(&["console", "--", "/bin/sh", "-c", "grep SigIgn /proc/$$/status"]);
        let mask = u64::from_str_radix(run.text().trim_start_matches("SigIgn:").trim(), 16).expect("a mask");
        assert_eq!(mask & (1 << 12), 0, "{agent:?}");
    }
}

#[test]
fn there_is_no_search_for_programs_and_failures_come_after_the_process_id() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("text"), "no program").expect("written");
    std::os::unix::fs::symlink("/bin/echo", folder.path().join("here")).expect("linked");
    for agent in BOTH {
        for program in ["cat", "/no/such/program", "/usr", "./text", ""] {
            let mut command = agent.command(&["console", "--pid", "--", program]);
            command.current_dir(&folder);
            let run = finish(command, b"");
            assert_eq!((run.text_after_pid(), run.code), ("", 127), "{agent:?} {program:?}");
            assert!(!run.stderr.is_empty() && !run.stderr.ends_with('\n'), "{agent:?} {:?}", run.stderr);
        }
        // A bare name is a path, too.
        let mut command = agent.command(&["console", "--", "here", "found"]);
        command.current_dir(&folder);
        assert_eq!(finish(command, b"").text(), "found\n", "{agent:?}");
    }
}

#[test]
fn a_program_that_the_kernel_cannot_run_goes_to_no_shell() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("program");
    std::fs::write(&path, "echo a shell ran me\n").expect("written");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    for agent in BOTH {
        let run = agent.run(&[OsStr::new("console"), OsStr::new("--"), path.as_os_str()]);
        assert_eq!((run.text(), run.code), ("", 127), "{agent:?}");
    }
}

#[test]
fn mistakes_have_their_codes() {
    for agent in BOTH {
        for (args, code) in [
            (&["console", "--"][..], 1),
            (&["console", "--pid", "--wait", "--"], 1),
            (&["console"], 2),
            (&["console", "--pid"], 2),
            (&["console", "--pid", "/bin/true"], 1),
            (&["console", "--bad", "--", "/bin/true"], 1),
            (&["console", "--env"], 1),
            (&["console", "--env", "NAME", "--", "/bin/true"], 1),
            (&["console", "--env", "--NAME=x", "--", "/bin/true"], 1),
            (&["console", "--env", "--", "/bin/true"], 1),
        ] {
            assert_eq!(agent.refusal(args), code, "{agent:?} {args:?}");
        }
    }
}

#[test]
fn a_process_id_that_nobody_can_read_is_code_3() {
    for agent in BOTH {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("opens");
        let mut command = agent.command(&["console", "--pid", "--", "/bin/echo", "ran"]);
        command.stdout(full);
        assert_eq!(finish(command, b"").code, 3, "{agent:?}");
    }
}

#[test]
fn a_death_by_signal_is_the_programs_own() {
    for agent in BOTH {
        let run = agent.run(&["console", "--", "/bin/sh", "-c", "kill -9 $$"]);
        assert_eq!(run.code, 128 + 9, "{agent:?}");
    }
}

#[test]
fn on_a_terminal_the_start_newline_is_echoed_before_the_process_id() {
    for agent in BOTH {
        let mut terminal = OnTerminal::start(agent, &["console", "--wait", "--pid", "--", "/bin/echo", "x"]);
        rustix::io::write(&terminal.master, b"\n").expect("written");
        let pid = terminal.child.id().to_le_bytes();
        if pid.contains(&b'\n') {
            // One in 64 or so: see the differences.
            continue;
        }
        assert_eq!(terminal.output(), [b"\r\n", &pid[..], b"x\r\n"].concat(), "{agent:?}");
    }
}

#[test]
fn on_a_terminal_its_modes_are_as_before() {
    for agent in BOTH {
        let mut terminal = OnTerminal::start(agent, &["console", "--pid", "--", "/bin/echo", "\n"]);
        let all = terminal.output();
        assert!(all.ends_with(b"\r\n\r\n"), "{agent:?} {all:?}");
        let modes = termios::tcgetattr(&terminal.master).expect("modes");
        assert!(modes.output_modes.contains(termios::OutputModes::OPOST | termios::OutputModes::ONLCR), "{agent:?}");
    }
}

#[test]
fn its_own_name_and_place_do_not_matter() {
    let folder = tempfile::tempdir().expect("a folder");
    for agent in BOTH {
        let path = folder.path().join(format!("{agent:?}")).join("containerssh-agent");
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        symlink(agent.path(), &path).expect("linked");
        for mut command in [Command::new(&path), Command::new(agent.path())] {
            command.arg0("containerssh-agent").args(["console", "--pid", "--", "/bin/echo", "x"]);
            let output = command.output().expect("runs");
            assert_eq!(output.stdout.get(4..), Some(&b"x\n"[..]), "{agent:?}");
        }
    }
}
