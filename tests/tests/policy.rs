//! What a policy allows and what not, as users of the stock OpenSSH client see it.

use podbay_tests::{Answered, Master, Setup, Terminal, World, finish, wait_until};

fn under(mode: &str, security: &str) -> World {
    World::with(Setup::Apart, mode, |config| format!("{config}security:\n{security}"))
}

/// The client's own words for a request that was answered with failure.
#[track_caller]
fn refused(answered: &Answered, request: &str) {
    assert_eq!(answered.status.code(), Some(255), "{answered:?}");
    assert!(answered.stdout.is_empty(), "{answered:?}");
    assert!(answered.stderr.contains(&format!("{request} request failed on channel 0")), "{answered:?}");
}

#[test]
fn a_forced_command_runs_whatever_is_asked_for() {
    for mode in ["connection", "session", "connection+podbay"] {
        let world = under(mode, "  forceCommand: 'echo \"forced:${SSH_ORIGINAL_COMMAND-none}\"; exit 3'\n");
        world.run("id  'x' > y ").is(3, "forced:id  'x' > y \n", "");
        finish(&mut world.ssh(&["-T"]), b"echo from a shell\n").is(3, "forced:none\n", "");
        // What a client says itself is not believed.
        let lie = "SetEnv=SSH_ORIGINAL_COMMAND=lie";
        finish(&mut world.ssh(&["-T", "-o", lie]), b"").is(3, "forced:none\n", "");
        finish(world.ssh(&["-o", lie]).arg("id"), b"").is(3, "forced:id\n", "");
        let terminal = finish(&mut world.ssh(&["-tt"]), b"");
        assert_eq!((terminal.status.code(), &*terminal.stdout), (Some(3), &b"forced:none\r\n"[..]));
        // Also where there is no such subsystem.
        for subsystem in ["sftp", "nosuch"] {
            finish(world.ssh(&["-s"]).arg(subsystem), b"").is(3, &format!("forced:{subsystem}\n"), "");
        }
        world.ends_clean();
    }
}

#[test]
fn a_filter_lets_pass_what_is_exactly_on_its_list() {
    let world = under(
        "connection",
        "  defaultMode: filter\n  command: {allow: ['echo yes', 'echo \"$GOOD-$BAD\"']}\n  env: {allow: [GOOD]}\n  \
         subsystem: {allow: [sftp]}\n",
    );
    world.run("echo yes").is(0, "yes\n", "");
    for other in ["echo yes ", " echo yes", "echo  yes", "echo yes; id", "ECHO yes", "echo"] {
        refused(&world.run(other), "exec");
    }
    finish(world.ssh(&["-o", "SetEnv=GOOD=1 BAD=2"]).arg("echo \"$GOOD-$BAD\""), b"").is(0, "1-\n", "");
    refused(&finish(&mut world.ssh(&["-T"]), b"echo no\n"), "shell");
    refused(&finish(world.ssh(&["-s"]).arg("other"), b""), "subsystem");
    // Nothing on stdin: the server ends by itself.
    assert_eq!(finish(world.ssh(&["-s"]).arg("sftp"), b"").status.code(), Some(0));
    world.ends_clean();
}

#[test]
fn what_is_disabled_is_refused_and_the_rest_works() {
    let world = under(
        "connection",
        "  command: {mode: disable, allow: [id]}\n  subsystem: {mode: disable, allow: [sftp]}\n  env: {mode: disable, allow: [X]}\n  \
         tty: {mode: disable}\n  signal: {mode: disable}\n",
    );
    refused(&world.run("id"), "exec");
    refused(&finish(world.ssh(&["-s"]).arg("sftp"), b""), "subsystem");
    let shell = b"echo \"[$X]\"; test -t 0 || echo no terminal; exit 4\n";
    finish(&mut world.ssh(&["-T", "-o", "SetEnv=X=1"]), shell).is(4, "[]\nno terminal\n", "");
    // OpenSSH says so, and goes on without where it was not told that it must have one.
    let answered = finish(&mut world.ssh(&["-tt"]), shell);
    assert!(answered.stderr.contains("PTY allocation request failed on channel 0"), "{answered:?}");
    assert_eq!(answered.status.code(), Some(255), "{answered:?}");
    let mut user = Terminal::start(&world.ssh(&[]), 80, 24);
    user.shows("PTY allocation request failed on channel 0");
    user.types("test -t 0 || echo no ''terminal; exit 4\n");
    user.shows("no terminal");
    assert_eq!(user.ends().code(), Some(4));
    let said = world.part("frontend").said();
    for code in
        ["SECURITY_EXEC_REJECTED", "SECURITY_SUBSYSTEM_REJECTED", "SECURITY_ENV_REJECTED", "SECURITY_TTY_REJECTED"]
    {
        assert!(said.contains(code), "{code}: {said}");
    }
    world.ends_clean();

    let world = under("connection", "  shell: {mode: disable}\n");
    refused(&finish(&mut world.ssh(&["-T"]), b"echo no\n"), "shell");
    world.run("echo yes; exit 5").is(5, "yes\n", "");
    world.ends_clean();
}

#[test]
fn a_session_ends_when_its_time_is_over_and_says_so_before() {
    for mode in ["connection", "session", "connection+podbay"] {
        let world = under(mode, "  maxSessionTime: 4s\n");
        world.run("echo short; exit 6").is(6, "short\n", "");
        let answered = world.run("echo on; while sleep 0.2; do echo more; done");
        assert_eq!(answered.status.code(), Some(255), "{answered:?}");
        assert!(answered.stdout.starts_with(b"on\nmore\n"), "{answered:?}");
        let warned = answered.stderr.find("podbay: this session ends in 1s: its time is over then\n");
        let cut = answered.stderr.find("podbay: ended: sessions last at most 4s here");
        assert!(warned.is_some() && cut > warned, "{answered:?}");
        world.ends_clean();
    }
}

#[test]
fn a_session_without_a_byte_for_long_ends_and_its_program_with_it() {
    let world = under("connection+podbay", "  idleTimeout: 4s\n");
    let connection = Master::start(&world);
    connection.run("i=0; while [ $i -lt 30 ]; do echo; sleep 0.2; i=$((i + 1)); done; exit 7", b"").is(
        7,
        &"\n".repeat(30),
        "",
    );
    let answered = connection.run("echo $$ > pid; exec sleep 1000", b"");
    assert_eq!(answered.status.code(), Some(255), "{answered:?}");
    let warned = answered.stderr.find("podbay: this session ends in 1s: nothing is read or written\n");
    let cut = answered.stderr.find("podbay: ended: nothing was read or written for 4s");
    assert!(warned.is_some() && cut > warned, "{answered:?}");
    wait_until("the program has ended", || {
        connection.run("kill -0 $(cat pid) 2>&1 || echo gone", b"").stdout.ends_with(b"gone\n")
    });
    connection.ends();
    world.ends_clean();
}
