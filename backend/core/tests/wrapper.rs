//! The wrapper in the real shells of this machine: dash, bash and busybox ash, where they are installed.

use podbay_backend_core::{
    cluster::StreamEnd,
    wrapper::{Nonce, Program, Wrapped, ZERO, for_container, for_exec, true_end},
};
use proptest::prelude::*;
use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The shells to try: (binary, argv[0]).
fn shells() -> Vec<(&'static str, &'static str)> {
    let all = [("/bin/dash", "sh"), ("/bin/bash", "sh"), ("/bin/bash", "bash"), ("/usr/bin/busybox", "sh")];
    let found: Vec<_> = all.into_iter().filter(|(path, _)| Path::new(path).exists()).collect();
    assert!(!found.is_empty(), "no shell to test with");
    found
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// Where programs are, before them a `sleep` that makes the wrapper's wait behind its last words none.
fn quick_path() -> String {
    format!("{}/tests/quick:/usr/local/bin:/usr/bin:/bin", env!("CARGO_MANIFEST_DIR"))
}

/// `wrapped`, run by this shell.
fn command((path, name): (&str, &str), wrapped: &Wrapped) -> Command {
    let mut command = Command::new(path);
    command.arg0(name).args(&wrapped.command[1..]).env_clear().env("PATH", quick_path());
    command
}

struct Ran {
    stdout: Vec<u8>,
    stderr: String,
    code: Option<i32>,
}

/// Runs it with pipes: answers the marks as the session engine does, then gives `stdin`.
fn run(shell: (&str, &str), wrapped: &Wrapped, nonce: &Nonce, stdin: &[u8], quiet: bool) -> Ran {
    let mut child = command(shell, wrapped)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the shell starts");
    let mut input = child.stdin.take().expect("piped");
    let mut output = child.stdout.take().expect("piped");
    let mut errors = child.stderr.take().expect("piped");
    let errors = thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).expect("stderr is text");
        text
    });
    let mut first = Vec::new();
    if let Some(preamble) = &wrapped.preamble {
        if !quiet {
            first = read_to(&mut output, &mut nonce.wants(), Vec::new());
        }
        input.write_all(preamble).expect("it reads its preamble");
    }
    let mut stdout = read_to(&mut output, &mut nonce.runs(), first);
    let stdin = stdin.to_vec();
    let writer = thread::spawn(move || {
        let _ = input.write_all(&stdin);
    });
    output.read_to_end(&mut stdout).expect("stdout");
    writer.join().expect("written");
    let status = child.wait().expect("it ends");
    let code = if quiet { status.code() } else { told(status) };
    let (stdout, told) = last_words(nonce, stdout);
    let (stderr, other) = last_words(nonce, errors.join().expect("read").into_bytes());
    assert_eq!(told, other, "{shell:?}: told on both outputs");
    // The one status that an exec can't tell is told there all the same.
    assert!(code.is_none() || code == told.map(i32::from), "{shell:?}: {code:?} {told:?}");
    Ran { stdout, stderr: String::from_utf8(stderr).expect("text"), code }
}

/// Takes the wrapper's last words out.
fn last_words(nonce: &Nonce, bytes: Vec<u8>) -> (Vec<u8>, Option<u8>) {
    let mut token = nonce.ended();
    let rest = token.take(bytes.into()).concat();
    assert_eq!(token.held(), 0);
    (rest, token.status())
}

/// What the session engine makes of an exec'd script's end.
fn told(status: ExitStatus) -> Option<i32> {
    let end = match u8::try_from(status.code()?).expect("a status") {
        0 => StreamEnd::Success,
        code => StreamEnd::ExitCode(code),
    };
    match true_end(end) {
        StreamEnd::Success => Some(0),
        StreamEnd::ExitCode(code) => Some(code.into()),
        StreamEnd::Failed { .. } | StreamEnd::Lost(_) => None,
    }
}

/// Reads until the mark; gives what follows it.
fn read_to(output: &mut impl Read, mark: &mut podbay_backend_core::wrapper::Mark, first: Vec<u8>) -> Vec<u8> {
    let mut bytes = first;
    loop {
        if let Some(rest) = mark.take(&bytes).expect("not that much noise") {
            return rest.to_vec();
        }
        let mut buffer = vec![0; 4096];
        let n = output.read(&mut buffer).expect("output");
        assert!(n > 0, "the output ended before the mark");
        buffer.truncate(n);
        bytes = buffer;
    }
}

/// A program that prints the variables A and B and all its arguments, each with a NUL after it.
const SHOW: &str = r#"printf '%s\000' "$A" "$B" "$@""#;

fn shows(shell: (&str, &str), values: &[String; 2], arguments: &[String], container: bool) -> Vec<Vec<u8>> {
    let nonce = Nonce::new([3; 16]);
    let argv = [strings(&["/bin/bash", "-c", SHOW, "x"]), arguments.to_vec()].concat();
    let environment = [("A".to_owned(), values[0].clone()), ("B".to_owned(), values[1].clone())];
    let program = Program { argv: &argv, environment: &environment, size: None };
    let wrapped = if container { for_container(program, &nonce) } else { for_exec(program, &nonce) }.expect("valid");
    let ran = run(shell, &wrapped, &nonce, b"", container);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{shell:?}");
    ran.stdout.strip_suffix(&[0]).expect("a last NUL").split(|&b| b == 0).map(<[u8]>::to_vec).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever stands in the values, the program gets just that: as arguments, and by the preamble.
    #[test]
    fn values_arrive_as_they_are(
        a in r#"([^\x00]|[$`"'\\\n\r!*%x]|\$\(|;|&){0,60}"#,
        b in r"[ \t\n]{0,3}[-+=e.a][^\x00]{0,20}\n{0,3}",
        arguments in prop::collection::vec(r#"([^\x00]|[$`"'\\\n!*%]){0,30}"#, 0..4),
        long in prop::bool::ANY,
    ) {
        let a = if long { a + &"p%d\\é".repeat(900) } else { a };
        let wanted: Vec<Vec<u8>> =
            [&a, &b].into_iter().chain(&arguments).map(|text| text.clone().into_bytes()).collect();
        for shell in shells() {
            for container in [false, true] {
                prop_assert_eq!(&shows(shell, &[a.clone(), b.clone()], &arguments, container), &wanted, "{:?}", shell);
            }
        }
    }
}

#[test]
fn a_hundred_kib_of_environment_and_the_stdin_behind_it_are_whole() {
    let nonce = Nonce::new([4; 16]);
    let environment: Vec<_> =
        (0..25).map(|i| (format!("V{i}"), format!("{i:03}\n").repeat(1024) + &"x".repeat(1024))).collect();
    let total: usize = environment.iter().map(|(_, value)| value.len()).sum();
    assert!(total > 100 * 1024, "{total}");
    let script = "i=0; n=0; while [ $i -lt 25 ]; do eval v=\\$V$i; n=$((n + ${#v})); i=$((i + 1)); done; echo $n; cat";
    let argv = strings(&["/bin/sh", "-c", script]);
    let stdin: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    for shell in shells() {
        let program = Program { argv: &argv, environment: &environment, size: None };
        let wrapped = for_exec(program, &nonce).expect("valid");
        let ran = run(shell, &wrapped, &nonce, &stdin, false);
        let newline = ran.stdout.iter().position(|&b| b == b'\n').expect("a line");
        assert_eq!(String::from_utf8_lossy(&ran.stdout[..newline]), total.to_string(), "{shell:?}");
        assert_eq!(ran.stdout.len() - newline - 1, stdin.len());
        assert!(ran.stdout[newline + 1..] == stdin, "{shell:?}: the stdin behind the preamble was changed");
    }
}

#[test]
fn the_status_is_the_programs() {
    let nonce = Nonce::new([5; 16]);
    let cases: [(&[&str], i32, &str); 9] = [
        (&["/bin/sh", "-c", "exit 7"], 7, ""),
        (&["/bin/sh", "-c", "exit 255"], 255, ""),
        (&["/bin/sh", "-c", "kill -9 $$"], 137, ""),
        (&["/bin/sh", "-c", "kill -TERM $$"], 143, ""),
        // The wrapper lives through signals that are sent to the whole group.
        (&["/bin/sh", "-c", "trap : INT; for s in INT QUIT TERM HUP; do kill -$s $PPID; done; exit 9"], 9, ""),
        (&["/nonexistent/program"], 127, "not found"),
        (&["/etc/passwd"], 126, "ermission denied"),
        (&["/bin/sh", "-c", "exit 0"], 0, ""),
        // A shell's builtin of that name is not the program.
        (&["exit", "3"], 127, "not found"),
    ];
    for shell in shells() {
        for (argv, code, stderr) in cases {
            let argv = strings(argv);
            let program = Program { argv: &argv, environment: &[], size: None };
            let ran = run(shell, &for_exec(program, &nonce).expect("valid"), &nonce, b"", false);
            assert_eq!(ran.code, Some(code), "{shell:?} {argv:?}: {}", ran.stderr);
            let missing = ran.stderr.contains("No such file");
            assert!(ran.stderr.contains(stderr) || missing, "{shell:?} {argv:?}: {}", ran.stderr);
            assert_eq!(ran.stderr.is_empty(), stderr.is_empty(), "{shell:?} {argv:?}: {}", ran.stderr);
        }
    }
}

/// A Status of Success can be false, so no program's own 0 is told by one; the one status that is says that it isn't known.
#[test]
fn a_success_is_told_as_a_failure_and_the_other_way_round() {
    let nonce = Nonce::new([5; 16]);
    for shell in shells() {
        for (code, raw, meant) in [(0, i32::from(ZERO), Some(0)), (i32::from(ZERO), 0, None), (1, 1, Some(1))] {
            for long in [false, true] {
                let argv = strings(&["/bin/sh", "-c", &format!("exit {code}")]);
                let environment = [("A".to_owned(), "x".repeat(if long { 5000 } else { 1 }))];
                let program = Program { argv: &argv, environment: &environment, size: None };
                let exec = for_exec(program, &nonce).expect("valid");
                assert_eq!(exec.preamble.is_some(), long);
                assert_eq!(run(shell, &exec, &nonce, b"", false).code, meant, "{shell:?} {code}");
                // What stands in a pod's status is the program's own.
                let container = for_container(program, &nonce).expect("valid");
                assert_eq!(run(shell, &container, &nonce, b"", true).code, Some(code), "{shell:?} {code}");
                if !long {
                    let status = command(shell, &exec).stdout(Stdio::null()).status().expect("ends");
                    assert_eq!(status.code(), Some(raw), "{shell:?} {code}");
                }
            }
        }
    }
}

#[test]
fn a_name_that_a_shell_keeps_for_itself_does_not_end_the_wrapper() {
    let nonce = Nonce::new([6; 16]);
    let names =
        ["UID", "EUID", "PPID", "OPTIND", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO", "IFS", "LC_ALL", "LINENO", "PS4"];
    let environment: Vec<_> = names.iter().map(|name| ((*name).to_owned(), "xx_YY.none".to_owned())).collect();
    let argv = strings(&["/bin/echo", "alive"]);
    for shell in shells() {
        let program = Program { argv: &argv, environment: &environment, size: None };
        let ran = run(shell, &for_exec(program, &nonce).expect("valid"), &nonce, b"", false);
        assert_eq!((ran.code, ran.stdout.as_slice(), ran.stderr.as_str()), (Some(0), &b"alive\n"[..], ""), "{shell:?}");
    }
}

#[test]
fn outputs_stay_open_until_the_program_ends_and_no_longer() {
    let nonce = Nonce::new([7; 16]);
    // Closes both outputs, reads its stdin to the end and only then ends, leaving a child behind that holds nothing.
    let script =
        "exec >/dev/null 2>&1; wc -c | grep -qx 500000 || exit 1; sleep 30 <&- & echo $! >\"$PIDFILE\"; exit 0";
    let argv = strings(&["/bin/sh", "-c", script]);
    for shell in shells() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let environment = [("PIDFILE".to_owned(), file.path().display().to_string())];
        let program = Program { argv: &argv, environment: &environment, size: None };
        let wrapped = for_exec(program, &nonce).expect("valid");
        let mut child = command(shell, &wrapped)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut output = child.stdout.take().expect("piped");
        let mut stdin = child.stdin.take().expect("piped");
        assert_eq!(read_to(&mut output, &mut nonce.runs(), Vec::new()), b"");
        let (ended, end) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut rest = Vec::new();
            output.read_to_end(&mut rest).expect("stdout");
            ended.send(Instant::now()).expect("told");
            rest
        });
        stdin.write_all(&vec![b'x'; 499_999]).expect("the program reads");
        assert!(end.recv_timeout(Duration::from_millis(200)).is_err(), "{shell:?}: stdout ended before the program");
        stdin.write_all(b"x").expect("the program reads");
        drop(stdin);
        let began = Instant::now();
        end.recv_timeout(PATIENCE).expect("stdout ends with the program, though a child of it lives");
        assert!(began.elapsed() < Duration::from_secs(25));
        assert_eq!(last_words(&nonce, reader.join().expect("read")), (Vec::new(), Some(0)));
        assert_eq!(told(child.wait().expect("ends")), Some(0), "{shell:?}");
        let pid = std::fs::read_to_string(file.path()).expect("a pid");
        assert!(Command::new("kill").arg(pid.trim()).status().expect("kill").success());
    }
}

/// Reads until the wrapper's last words are there; gives what else there was.
fn read_words(output: &mut impl Read, token: &mut podbay_backend_core::wrapper::Token, first: Vec<u8>) -> Vec<u8> {
    let mut rest = token.take(first.into()).concat();
    while token.status().is_none() {
        let mut buffer = vec![0; 4096];
        let n = output.read(&mut buffer).expect("output");
        assert!(n > 0, "the output ended before the last words");
        buffer.truncate(n);
        rest.extend(token.take(buffer.into()).concat());
    }
    rest
}

/// In a pod of its own and on a terminal nothing follows a program's end; there the wrapper stays until TERM, so that its
/// words arrive, and ends with the status all the same.
#[test]
fn where_nothing_follows_it_says_so_and_stays_until_it_is_told_to_end() {
    let nonce = Nonce::new([11; 16]);
    let argv = strings(&["/bin/sh", "-c", "sleep 30 <&- >/dev/null 2>&1 & echo out; exit 4"]);
    let program = Program { argv: &argv, environment: &[], size: None };
    for shell in shells() {
        let wrapped = for_container(program, &nonce).expect("valid");
        let mut command = command(shell, &wrapped);
        command.env("PATH", "/usr/bin:/bin").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(wrapped.preamble.as_ref().expect("one")).expect("taken");
        let mut output = child.stdout.take().expect("piped");
        let first = read_to(&mut output, &mut nonce.runs(), Vec::new());
        let mut token = nonce.ended();
        assert_eq!(read_words(&mut output, &mut token, first), b"out\n");
        assert_eq!((token.status(), token.is_over()), (Some(4), true), "{shell:?}");
        assert_eq!(child.try_wait().expect("asked"), None, "{shell:?}: it was gone at once");
        assert!(Command::new("kill").arg(child.id().to_string()).status().expect("kill").success());
        let status = child.wait().expect("ends");
        assert_eq!((status.code(), status.signal()), (Some(4), None), "{shell:?}");

        let mut terminal = on_terminal(shell, &for_exec(program, &nonce).expect("valid"));
        let first = read_to(&mut terminal.master, &mut nonce.runs(), Vec::new());
        let mut token = nonce.ended();
        assert_eq!(read_words(&mut terminal.master, &mut token, first), b"out\r\n");
        assert_eq!((token.status(), token.is_over()), (Some(4), true), "{shell:?}");
        drop(terminal.master);
        terminal.child.wait().expect("a hang-up ends it");
    }
}

/// With pipes it depends on who else holds them. In a PID namespace of its own, since it looks at 64 processes at most.
#[test]
fn with_pipes_nothing_follows_where_nobody_else_holds_them() {
    let nonce = Nonce::new([12; 16]);
    let alone = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !Command::new("unshare").args(alone).arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("not told: this machine gives no PID namespaces");
        return;
    }
    let cases = [
        ("echo out; exit 4", "4!"),
        // Until it has given them away, the child holds them.
        ("sleep 5 >/dev/null 2>&1 & until [ /proc/$!/exe -ef /bin/sleep ]; do :; done; echo out; exit 4", "4!"),
        ("sleep 5 2>/dev/null & echo out; exit 4", "4;"),
        ("sleep 5 >/dev/null & echo out; exit 4", "4;"),
        ("sleep 5 5>&1 >/dev/null 2>&1 & echo out; exit 4", "4;"),
        ("kill -9 $$", "137;"),
    ];
    for shell in shells() {
        for (script, words) in cases {
            let argv = strings(&["/bin/sh", "-c", script]);
            let wrapped = for_exec(Program { argv: &argv, environment: &[], size: None }, &nonce).expect("valid");
            let mut command = Command::new("unshare");
            // As in a pod: the namespace's first process is another, with outputs of its own.
            let first = "\"$@\" & exec >/dev/null 2>&1; wait";
            command.args(alone).args(["/bin/sh", "-c", first, "first", shell.0]);
            if shell.0.ends_with("busybox") {
                command.arg("sh");
            }
            command.args(&wrapped.command[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("starts");
            let mut output = child.stdout.take().expect("piped");
            let mut errors = child.stderr.take().expect("piped");
            let first = read_to(&mut output, &mut nonce.runs(), Vec::new());
            let mut token = nonce.ended();
            read_words(&mut output, &mut token, first);
            let mut other = nonce.ended();
            read_words(&mut errors, &mut other, Vec::new());
            let said = |token: &podbay_backend_core::wrapper::Token| {
                format!("{}{}", token.status().expect("words"), if token.is_over() { '!' } else { ';' })
            };
            assert_eq!((said(&token), said(&other)), (words.to_owned(), words.to_owned()), "{shell:?} {script}");
            child.kill().expect("killed");
            child.wait().expect("ends");
        }
    }
}

/// A shell on a terminal of its own, as session leader.
struct OnTerminal {
    child: Child,
    master: File,
}

fn on_terminal(shell: (&str, &str), wrapped: &Wrapped) -> OnTerminal {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&master).expect("granted");
    unlockpt(&master).expect("unlocked");
    let name = ptsname(&master, Vec::new()).expect("its name");
    let slave = File::options().read(true).write(true).open(name.to_str().expect("ascii")).expect("opens");
    let copy = |slave: &File| Stdio::from(OwnedFd::from(slave.try_clone().expect("a copy")));
    let mut command = Command::new("setsid");
    command.arg("--ctty").arg(shell.0).args(&wrapped.command[1..]).env_clear().env("PATH", quick_path());
    if shell.0.ends_with("busybox") {
        command = Command::new("setsid");
        command.args(["--ctty", shell.0, "sh"]).args(&wrapped.command[1..]).env_clear().env("PATH", quick_path());
    }
    let child = command.stdin(copy(&slave)).stdout(copy(&slave)).stderr(copy(&slave)).spawn().expect("starts");
    OnTerminal { child, master: File::from(master) }
}

impl OnTerminal {
    /// Reads to the end: a terminal whose last slave is closed gives an error.
    fn rest(&mut self, mut bytes: Vec<u8>) -> String {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = self.master.read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8(bytes).expect("text")
    }
}

#[test]
fn on_a_terminal_the_first_command_sees_size_and_environment_and_no_echo() {
    let nonce = Nonce::new([8; 16]);
    let argv = strings(&["/bin/sh", "-c", "stty size; echo \"$TERM ${#LONG}\"; stty -a | grep -c -- -echo\\ || :"]);
    for shell in shells() {
        for long in [0, 60_000] {
            for container in [false, true] {
                let long_value = "^C\u{3}\u{4}\u{16}\r\n".repeat(long / 7);
                let environment = [("TERM".to_owned(), "xterm".to_owned()), ("LONG".to_owned(), long_value.clone())];
                let program = Program { argv: &argv, environment: &environment, size: Some((101, 33)) };
                let wrapped =
                    if container { for_container(program, &nonce) } else { for_exec(program, &nonce) }.expect("valid");
                let mut terminal = on_terminal(shell, &wrapped);
                let mut first = Vec::new();
                if let Some(preamble) = wrapped.preamble.clone() {
                    if !container {
                        first = read_to(&mut terminal.master, &mut nonce.wants(), Vec::new());
                    }
                    let mut writer = terminal.master.try_clone().expect("a copy");
                    thread::spawn(move || writer.write_all(&preamble));
                }
                let rest = read_to(&mut terminal.master, &mut nonce.runs(), first);
                let (shown, told_there) = last_words(&nonce, terminal.rest(rest).into_bytes());
                assert_eq!(told_there, Some(0), "once, on the one output");
                let shown = String::from_utf8(shown).expect("text");
                assert_eq!(shown, format!("33 101\r\nxterm {}\r\n0\r\n", long_value.len()), "{shell:?}");
                let status = terminal.child.wait().expect("ends");
                assert_eq!(if container { status.code() } else { told(status) }, Some(0));
            }
        }
    }
}

#[test]
fn an_interrupt_from_the_terminal_ends_the_program_and_its_status_is_told() {
    let nonce = Nonce::new([9; 16]);
    for shell in shells() {
        for (script, code) in
            [("echo go; exec sleep 60", 130), ("trap 'exit 5' INT; echo go; while :; do sleep 0.05; done", 5)]
        {
            let argv = strings(&["/bin/sh", "-c", script]);
            let program = Program { argv: &argv, environment: &[], size: Some((80, 24)) };
            let mut terminal = on_terminal(shell, &for_exec(program, &nonce).expect("valid"));
            let mut shown = read_to(&mut terminal.master, &mut nonce.runs(), Vec::new());
            while !shown.ends_with(b"go\r\n") {
                let mut buffer = [0; 64];
                let n = terminal.master.read(&mut buffer).expect("output");
                shown.extend_from_slice(&buffer[..n]);
            }
            terminal.master.write_all(b"\x03").expect("typed");
            let status = terminal.child.wait().expect("ends");
            assert_eq!((status.code(), status.signal()), (Some(code), None), "{shell:?} {script}");
        }
    }
}

#[test]
fn a_hang_up_ends_the_program_too() {
    let nonce = Nonce::new([10; 16]);
    for shell in shells() {
        let argv = strings(&["/bin/sh", "-c", "echo $$; exec sleep 300"]);
        let program = Program { argv: &argv, environment: &[], size: None };
        let OnTerminal { mut child, mut master } = on_terminal(shell, &for_exec(program, &nonce).expect("valid"));
        let mut shown = read_to(&mut master, &mut nonce.runs(), Vec::new());
        while !shown.ends_with(b"\r\n") {
            let mut buffer = [0; 64];
            let n = master.read(&mut buffer).expect("output");
            shown.extend_from_slice(&buffer[..n]);
        }
        let pid = String::from_utf8(shown).expect("text").trim().to_owned();
        drop(master);
        let _ = child.wait().expect("the wrapper ends");
        let until = Instant::now() + PATIENCE;
        let stat = Path::new("/proc").join(&pid).join("stat");
        // A zombie has ended; who reaps it is not our business.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < until, "{shell:?}: the program {pid} outlived its terminal");
            thread::yield_now();
        }
    }
}
