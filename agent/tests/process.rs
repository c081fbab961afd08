//! Programs started for real, with the real stub.

use podbay_agent::{
    process::{Environment, Exit, Io, Program, SignalError, Spec, StartError, Starter, Stdio},
    pty::{Mode, Request, Size},
    signal::Signal,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, OwnedFd},
    io::Errno,
};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(20);
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

fn starter() -> Starter {
    Starter::with_stub(podbay_agent_embed::BUILT_AT)
}

fn spec(argv: &[&str], stdio: Stdio) -> Spec {
    let mut environment = Environment::new();
    environment.set("PATH", PATH).expect("a variable");
    let argv = argv.iter().map(Into::into).collect();
    Spec { argv, environment, working_directory: None, stdio }
}

fn sh(script: &str, stdio: Stdio) -> Spec {
    spec(&["sh", "-c", script], stdio)
}

fn terminal() -> Stdio {
    let size = Size { columns: 91, rows: 17, width: 0, height: 0 };
    Stdio::Terminal(Request { term: "vt220".into(), size, modes: vec![Mode { opcode: 72, value: 0 }] })
}

/// One test at a time: a program that another thread starts meanwhile may hold a descriptor of this one's for a moment, and
/// the supervisor has one thread.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Reads until the end, or until what was read contains `until`; never for ever.
fn read(from: &impl AsFd, until: Option<&str>) -> String {
    let deadline = Instant::now() + DEADLINE;
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let ready = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&left)).expect("poll");
        assert_ne!(ready, 0, "in time; so far: {}", String::from_utf8_lossy(&text));
        let mut buffer = [0; 4096];
        match rustix::io::read(from, &mut buffer) {
            Ok(0) | Err(Errno::IO) => return String::from_utf8(text).expect("text"),
            Ok(n) => text.extend_from_slice(&buffer[..n]),
            Err(error) => panic!("{error}"),
        }
        if until.is_some_and(|until| String::from_utf8_lossy(&text).contains(until)) {
            return String::from_utf8(text).expect("text");
        }
    }
}

/// Waits for a program's end; never for ever.
fn ends(program: &mut Program) -> Exit {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(exit) = program.try_wait().expect("a child") {
            return exit;
        }
        assert!(Instant::now() < deadline, "it ends in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn pipes(program: &mut Program) -> (fs::File, OwnedFd, OwnedFd) {
    match std::mem::replace(&mut program.io, Io::Inherited) {
        Io::Pipes { stdin, stdout, stderr } => (stdin.into(), stdout, stderr),
        other => panic!("pipes, not {other:?}"),
    }
}

fn output(spec: &Spec) -> (String, Exit) {
    let mut program = starter().start(spec).expect("starts");
    let text = match &program.io {
        Io::Terminal(master) => read(master, None),
        Io::Pipes { stdout, .. } => read(stdout, None),
        Io::Inherited => String::new(),
    };
    (text, ends(&mut program))
}

#[test]
fn bytes_go_through_the_pipes_and_the_code_comes_back() {
    let _alone = alone();
    let mut program = starter().start(&sh("cat; echo oops >&2; exit 7", Stdio::Pipes)).expect("starts");
    let (mut stdin, stdout, stderr) = pipes(&mut program);
    stdin.write_all(b"there and back").expect("written");
    drop(stdin);
    assert_eq!(read(&stdout, None), "there and back");
    assert_eq!(read(&stderr, None), "oops\n");
    assert_eq!(ends(&mut program), Exit::Code(7));
    assert_eq!(program.signal(Signal::Term), Err(SignalError::Ended));
}

#[test]
fn the_environment_is_the_given_one_and_nothing_else() {
    let _alone = alone();
    let mut spec = spec(&["env"], Stdio::Pipes);
    spec.environment.set("A", "first").expect("set");
    spec.environment.set("A", "second\nline").expect("set");
    let (text, exit) = output(&spec);
    assert_eq!((text.as_str(), exit), (format!("PATH={PATH}\nA=second\nline\n").as_str(), Exit::Code(0)));
}

#[test]
fn a_program_has_its_own_session_and_group_and_starts_in_its_folder() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    for stdio in [Stdio::Pipes, terminal()] {
        let mut spec = sh("pwd -P; echo $$; cut -d' ' -f5,6 /proc/$$/stat", stdio);
        spec.working_directory = Some(folder.path().into());
        let (text, _) = output(&spec);
        let lines: Vec<_> = text.lines().collect();
        let [pwd, pid, ids] = lines[..] else { panic!("{text:?}") };
        assert_eq!(pwd, folder.path().canonicalize().expect("a path").to_str().expect("UTF-8"));
        assert_eq!(ids, format!("{pid} {pid}"));
    }
}

#[test]
fn a_terminal_is_controlling_sized_and_named_before_the_first_instruction() {
    let _alone = alone();
    let (text, exit) =
        output(&sh("stty size; echo $TERM; tty </dev/tty >/dev/null && echo ctty; stty | grep -c onlcr", terminal()));
    // No CR before LF: ONLCR was switched off by a mode.
    assert_eq!((text.as_str(), exit), ("17 91\nvt220\nctty\n1\n", Exit::Code(0)));
}

#[test]
fn signals_start_as_the_system_has_them() {
    let _alone = alone();
    // The test's own thread blocks and (Rust's runtime) ignores some; none of it may reach the program.
    let mut block = nix::sys::signal::SigSet::empty();
    block.add(nix::sys::signal::Signal::SIGTERM);
    block.add(nix::sys::signal::Signal::SIGCHLD);
    block.thread_block().expect("blocked");
    let (text, _) = output(&spec(&["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"], Stdio::Pipes));
    let masks: Vec<u64> = text
        .lines()
        .map(|line| u64::from_str_radix(line.split_once('\t').expect("a mask").1, 16).expect("hex"))
        .collect();
    // 32 and 33 are the C library's own, which no program can set; who started the tests may have them ignored.
    assert_eq!(masks.iter().map(|mask| mask & !0x1_8000_0000).collect::<Vec<_>>(), [0, 0], "{text}");
}

#[test]
fn an_ignored_signal_of_the_agent_is_not_the_programs() {
    let _alone = alone();
    // A shell that ignores HUP and INT starts us, as nohup and `&` do; the stub by itself would pass that on.
    let test = std::env::current_exe().expect("our program");
    let script =
        format!("trap '' HUP INT; exec '{}' --exact --nocapture signals_start_as_the_system_has_them", test.display());
    let output = Command::new("sh").args(["-c", &script]).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn no_descriptor_leaks_into_a_program() {
    let _alone = alone();
    let _open = fs::File::open("/dev/null").expect("opens");
    // Without close-on-exec, as a container runtime may leave one.
    let null = fs::File::open("/dev/null").expect("opens");
    rustix::io::fcntl_setfd(&null, rustix::io::FdFlags::empty()).expect("set");
    let (text, _) = output(&sh("for fd in /proc/$$/fd/*; do [ -e $fd ] && echo ${fd##*/}; done", Stdio::Pipes));
    assert_eq!(text, "0\n1\n2\n");
}

#[test]
fn what_can_go_wrong_is_told_apart() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &[u8], mode| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        path.into_os_string().into_string().expect("UTF-8")
    };
    let fails = |argv: &[&str]| starter().start(&spec(argv, Stdio::Pipes)).expect_err("can't start");
    assert_eq!(fails(&["no-such-program"]), StartError::NotFound);
    assert_eq!(fails(&["/no/such/program"]), StartError::NotFound);
    assert_eq!(fails(&[""]), StartError::NotFound);
    assert_eq!(fails(&[]), StartError::Invalid);
    assert_eq!(fails(&["a\0b"]), StartError::Invalid);
    assert_eq!(fails(&[&file("text", b"#!/bin/sh\n", 0o644)]), StartError::PermissionDenied);
    assert_eq!(fails(&["/usr"]), StartError::PermissionDenied);
    assert_eq!(fails(&[&file("script", b"#!/no/such/interpreter\n", 0o755)]), StartError::NotFound);
    assert_eq!(fails(&[&file("elf", b"\x7fELF\x02\x01\x01junk", 0o755)]), StartError::Exec(Errno::NOEXEC));
    assert_eq!(fails(&["true", &"x".repeat(1 << 20)]), StartError::Exec(Errno::TOOBIG));
    for (directory, errno) in [("/no/such", Errno::NOENT), ("/etc/passwd", Errno::NOTDIR)] {
        let mut spec = spec(&["true"], Stdio::Pipes);
        spec.working_directory = Some(directory.into());
        assert_eq!(starter().start(&spec).expect_err("can't start"), StartError::WorkingDirectory(errno));
    }
    let missing = Starter::with_stub("/no/such/agent").start(&spec(&["true"], Stdio::Pipes));
    assert!(matches!(missing, Err(StartError::Agent(_))), "{missing:?}");
    let silent = Starter::with_stub("/bin/false").start(&spec(&["true"], Stdio::Pipes));
    assert!(matches!(silent, Err(StartError::Agent(_))), "{silent:?}");
}

#[test]
fn the_path_that_counts_is_the_programs() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy("/bin/echo", folder.path().join("only-here")).expect("copied");
    let mut spec = spec(&["only-here", "found"], Stdio::Pipes);
    assert_eq!(starter().start(&spec).expect_err("not in PATH"), StartError::NotFound);
    spec.environment.set("PATH", folder.path()).expect("set");
    assert_eq!(output(&spec).0, "found\n");
}

#[test]
fn a_death_by_signal_is_told_as_such() {
    let _alone = alone();
    for signal in Signal::ALL {
        // Cores off, so that the flag is known; busybox and dash both take numbers.
        let number = signal.os().as_raw();
        let (_, exit) = output(&sh(&format!("ulimit -c 0; kill -{number} $$; sleep 30"), Stdio::Pipes));
        assert_eq!(exit, Exit::Signal { number, core_dumped: false });
        assert_eq!(exit.signal_name().as_deref(), Some(signal.name()));
        assert_eq!(i32::from(exit.shell_code()), 128 + number);
    }
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let _alone = alone();
    for stdio in [Stdio::Pipes, terminal()] {
        // The shell waits for a child; both must go, or the pipe (the terminal) would stay open.
        let mut program = starter().start(&sh("sh -c 'echo ready; sleep 60' ; true", stdio)).expect("starts");
        let io = std::mem::replace(&mut program.io, Io::Inherited);
        let out = match &io {
            Io::Terminal(master) => master.as_fd(),
            Io::Pipes { stdout, .. } => stdout.as_fd(),
            Io::Inherited => panic!("neither"),
        };
        read(&out, Some("ready"));
        program.signal_group(Signal::Term).expect("sent");
        assert_eq!(ends(&mut program), Exit::Signal { number: 15, core_dumped: false });
        read(&out, None);
    }
}

#[test]
fn with_a_terminal_the_foreground_group_gets_the_signal() {
    let _alone = alone();
    // Job control puts the inner shell into a group of its own in the foreground; the outer one lives to tell.
    let script =
        "set -m; sh -c 'trap \"echo got it; exit 5\" USR1; echo ready; while :; do sleep 0.01; done'; echo status $?";
    let program = starter().start(&sh(script, terminal())).expect("starts");
    let Io::Terminal(master) = &program.io else { panic!("a terminal") };
    read(master, Some("ready"));
    assert_ne!(master.foreground(), Ok(Some(program.pid())));
    program.signal(Signal::Usr1).expect("sent");
    let text = read(master, None);
    assert!(text.contains("got it") && text.contains("status 5"), "{text:?}");
}

#[test]
fn a_launch_can_be_polled() {
    let _alone = alone();
    let mut launching = starter().launch(&spec(&["true"], Stdio::Pipes)).expect("launched");
    let deadline = Instant::now() + DEADLINE;
    while !launching.is_decided() {
        assert!(Instant::now() < deadline, "in time");
        poll(&mut [PollFd::new(&launching, PollFlags::IN)], None).expect("poll");
    }
    let mut program = launching.finish().expect("runs");
    assert_eq!(ends(&mut program), Exit::Code(0));
    assert_eq!(program.try_wait().expect("known"), Some(Exit::Code(0)));
}

#[test]
fn a_program_can_have_our_stdio() {
    let _alone = alone();
    let mut program = starter().start(&sh("exit 3", Stdio::Inherit)).expect("starts");
    assert_eq!(ends(&mut program), Exit::Code(3));
}

#[test]
fn a_person_who_calls_the_stub_is_told() {
    let _alone = alone();
    let mut child = Command::new(podbay_agent_embed::BUILT_AT)
        .args(["exec-child", "-", "", "true"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("read");
    assert_eq!(child.wait().expect("ends").code(), Some(127));
    assert!(said.contains("not for people"), "{said:?}");
}
