//! Holders of OpenSSH user certificates, made by `ssh-keygen -s` and shown by the stock client. What is expected of a forced
//! command was seen on OpenSSH's own sshd.

use podbay_tests::{Answered, Running, Setup, Terminal, World, finish, wait_until};
use std::process::Command;

struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().expect("a directory"));
        for name in ["ca", "other", "id"] {
            this.keygen(&["-q", "-t", "ed25519", "-N", "", "-f", name]);
        }
        this
    }

    fn keygen(&self, arguments: &[&str]) {
        let made = finish(Command::new("ssh-keygen").current_dir(self.0.path()).args(arguments), b"");
        assert!(made.status.success(), "{made:?}");
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// A Podbay that trusts it, with these sections besides.
    fn world(&self, mode: &str, more: &str) -> World {
        let ca = self.file("ca.pub");
        World::with(Setup::Apart, mode, |config| config + &format!("\nauth: {{trustedUserCAKeys: ['{ca}']}}\n{more}"))
    }

    /// Makes the one certificate there is, for `ada` unless `sign` names others.
    fn signs(&self, sign: &[&str]) {
        let _ = std::fs::remove_file(self.file("id-cert.pub"));
        self.keygen(&[&["-q", "-I", "the laptop", "-V", "+1h"], sign, &["id.pub"]].concat());
    }

    /// Ada's client, with a certificate of these options.
    fn ssh(&self, world: &World, options: &[&str], client: &[&str]) -> Command {
        let options = options.iter().flat_map(|option| ["-O", *option]);
        self.signs(&["-s", "ca", "-n", "ada"].into_iter().chain(options).collect::<Vec<_>>());
        self.client(world, "ada", client)
    }

    fn client(&self, world: &World, user: &str, client: &[&str]) -> Command {
        let (user, identity) = (format!("User={user}"), format!("IdentityFile={}", self.file("id")));
        let own = ["-o", &user, "-o", &identity, "-o", "IdentitiesOnly=yes"];
        world.ssh(&[&own, client].concat())
    }
}

#[track_caller]
fn denied(answered: &Answered) {
    assert!(answered.status.code() == Some(255) && answered.stderr.contains("Permission denied"), "{answered:?}");
}

#[test]
fn holders_of_certificates_log_in_as_their_principals() {
    let authority = Authority::new();
    let world = authority.world("connection", "");
    let with = |sign: &[&str], user: &str| {
        authority.signs(sign);
        finish(authority.client(&world, user, &[]).arg("echo in"), b"")
    };
    with(&["-s", "ca", "-n", "ada,grace"], "ada").is(0, "in\n", "");
    with(&["-s", "ca", "-n", "ada", "-O", "source-address=127.0.0.0/8"], "ada").is(0, "in\n", "");
    for (sign, user) in [
        (&["-s", "ca", "-n", "ada"][..], "grace"),
        (&["-s", "other", "-n", "ada"], "ada"),
        (&["-s", "ca", "-n", "ada", "-h"], "ada"),
        (&["-s", "ca", "-n", "ada", "-O", "verify-required"], "ada"),
        (&["-s", "ca", "-n", "ada", "-O", "critical:no-such@example.org=x"], "ada"),
        (&["-s", "ca", "-n", "ada", "-O", "force-command= "], "ada"),
        (&["-s", "ca", "-n", "ada", "-O", "source-address=10.0.0.0/8"], "ada"),
        (&["-s", "ca"], "ada"),
    ] {
        denied(&with(sign, user));
    }
    let log = world.part("frontend").said();
    for told in ["verify-required", "no-such@example.org", "force-command is blank", "the laptop"] {
        assert!(log.contains(told), "{told}: {log}");
    }
    // Users of the file are still there, and without their key they are not.
    world.run("echo file").is(0, "file\n", "");
    world.ends_clean();
}

const FORCED: &str = "force-command=echo \"forced:${SSH_ORIGINAL_COMMAND-none}\"; exit 3";

#[test]
fn a_certificate_forces_its_command_on_every_session() {
    let authority = Authority::new();
    for mode in ["connection", "session", "connection+podbay"] {
        let world = authority.world(mode, "");
        let ssh = |client: &[&str], last: &[&str]| {
            finish(authority.ssh(&world, &[FORCED], client).args(last), b"echo from a shell\n")
        };
        ssh(&[], &["id  'x' > y "]).is(3, "forced:id  'x' > y \n", "");
        ssh(&["-T"], &[]).is(3, "forced:none\n", "");
        // What a client says itself is not believed.
        let lie = ["-o", "SetEnv=SSH_ORIGINAL_COMMAND=lie"];
        ssh(&lie, &["id"]).is(3, "forced:id\n", "");
        let terminal = ssh(&["-tt"], &[]);
        assert_eq!(terminal.status.code(), Some(3), "{terminal:?}");
        assert!(String::from_utf8_lossy(&terminal.stdout).contains("forced:none\r\n"), "{terminal:?}");
        // sshd tells a subsystem's program, and refuses one that it does not have.
        let subsystem = ssh(&["-s"], &["sftp"]);
        let told = String::from_utf8_lossy(&subsystem.stdout).into_owned();
        assert!(told.starts_with("forced:/") && told.ends_with("sftp-server\n"), "{subsystem:?}");
        assert_eq!(subsystem.status.code(), Some(3), "{subsystem:?}");
        let nosuch = ssh(&["-s"], &["nosuch"]);
        assert!(nosuch.stderr.contains("subsystem request failed on channel 0"), "{nosuch:?}");
        // Another session of the same connection is no way around it.
        let socket = format!("ControlPath={}", world.file("control").display());
        let master = &mut authority.ssh(&world, &[FORCED], &["-o", &socket, "-o", "ControlMaster=yes", "-N"]);
        let master = Running::start("ssh", master);
        wait_until("the first client is in", || world.file("control").exists());
        for n in 0..3 {
            let over = authority.client(&world, "ada", &["-o", &socket]).arg(format!("id {n}")).output().expect("runs");
            assert_eq!(String::from_utf8_lossy(&over.stdout), format!("forced:id {n}\n"));
        }
        master.kill();
        // The next login of the same user is not the last one's.
        let next = finish(authority.ssh(&world, &[], &[]).arg("echo free"), b"");
        next.is(0, "free\n", "");
        let said = ["backend", "backend-2"].map(|name| world.part(name).said()).concat();
        assert!(said.contains("SECURITY_EXEC_FORCING_COMMAND"), "{said}");
        world.ends_clean();
    }
}

#[test]
fn the_servers_own_policy_goes_before_a_certificates() {
    let authority = Authority::new();
    let world = authority.world("connection", "security: {forceCommand: 'echo \"server:$SSH_ORIGINAL_COMMAND\"'}\n");
    finish(authority.ssh(&world, &[FORCED], &[]).arg("id"), b"").is(0, "server:id\n", "");
    world.ends_clean();
    // What is off is off, whatever would run in its place.
    let world = authority.world("connection", "security: {command: {mode: disable}}\n");
    let refused = finish(authority.ssh(&world, &[FORCED], &[]).arg("id"), b"");
    assert!(refused.stderr.contains("exec request failed on channel 0"), "{refused:?}");
    finish(&mut authority.ssh(&world, &[FORCED], &["-T"]), b"").is(3, "forced:none\n", "");
    world.ends_clean();
}

#[test]
fn without_permit_pty_there_is_no_terminal() {
    let authority = Authority::new();
    let world = authority.world("connection", "");
    for options in [&["no-pty"][..], &["clear"]] {
        let refused = finish(&mut authority.ssh(&world, options, &["-tt"]), b"");
        assert!(refused.stderr.contains("PTY allocation request failed on channel 0"), "{refused:?}");
        assert_eq!(refused.status.code(), Some(255), "{refused:?}");
        finish(authority.ssh(&world, options, &[]).arg("tty; echo in"), b"").is(0, "not a tty\nin\n", "");
        // As with sshd, OpenSSH goes on without one where it was not told that it must have it.
        let mut user = Terminal::start(&authority.ssh(&world, options, &[]), 80, 24);
        user.shows("PTY allocation request failed on channel 0");
        user.types("test -t 0 || echo no ''terminal; exit 4\n");
        user.shows("no terminal");
        assert_eq!(user.ends().code(), Some(4));
    }
    let mut user = Terminal::start(&authority.ssh(&world, &["clear", "permit-pty"], &[]), 91, 33);
    user.types("stty size; exit 5\n");
    user.shows("33 91");
    assert_eq!(user.ends().code(), Some(5));
    wait_until("nothing is left", || world.pods().is_empty());
    world.ends_clean();
}
