//! Holders of certificates, by the stock client and `ssh-keygen -s`: what the backend is told to keep, and what is refused at once.

mod support;

use podbay_frontend::{Config, auth::Authorities};
use russh::keys::{Algorithm, PrivateKey, ssh_key::LineEnding};
use std::{os::unix::fs::PermissionsExt as _, time::Duration};
use support::{World, world::Answered};
use tokio::process::Command;

/// A frontend that trusts a CA, whose key is in the world's directory as `ca`.
async fn world(change: impl FnOnce(&mut Config)) -> World {
    let ca = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key");
    let public = ca.public_key().clone();
    let world = World::with(1, |config| {
        config.auth.authorities = Authorities::new(vec![public]);
        change(config);
    })
    .await;
    let path = world.path("ca");
    std::fs::write(&path, ca.to_openssh(LineEnding::LF).expect("PEM").as_bytes()).expect("writes");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("sets the mode");
    keygen(&world, &["-y", "-f", "wrong"], Some("wrong.pub")).await;
    world
}

async fn keygen(world: &World, arguments: &[&str], to: Option<&str>) {
    let output = Command::new("ssh-keygen").current_dir(world.dir.path()).args(arguments).output().await.expect("runs");
    assert!(output.status.success(), "{output:?}");
    if let Some(to) = to {
        std::fs::write(world.path(to), output.stdout).expect("writes");
    }
}

/// Carol, whom only the CA knows, with a certificate of these options.
async fn carol(world: &World, options: &[&str], ssh: &[&str]) -> Answered {
    let _ = std::fs::remove_file(world.path("wrong-cert.pub"));
    let options = options.iter().flat_map(|option| ["-O", *option]);
    let all = ["-q", "-s", "ca", "-I", "the laptop", "-n", "carol", "-V", "+1h"].into_iter().chain(options);
    keygen(world, &all.chain(["wrong.pub"]).collect::<Vec<_>>(), None).await;
    world.ssh_with_wrong_key(&["User=carol"], ssh).run().await
}

fn refused(answered: &Answered) {
    assert_eq!(answered.status, Some(255), "{answered:?}");
    assert!(answered.stderr.contains("Permission denied"), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_is_told_what_to_keep() {
    let world = world(|_| {}).await;
    for (options, told) in [
        (&[][..], None),
        (&["clear", "permit-pty", "extension:no-such@example.org=x"], None),
        (&["clear"], Some((None, true))),
        (&["no-port-forwarding", "no-pty"], Some((None, true))),
        (&["force-command=id  'x' "], Some((Some("id  'x' "), false))),
        (&["clear", "force-command=true", "source-address=127.0.0.0/8"], Some((Some("true"), true))),
    ] {
        carol(&world, options, &["host", "true"]).await.is(0, "", "");
        let request = world.script.lock().opened.pop().expect("a request");
        let told = told.map(|(command, no_terminal): (Option<&str>, bool)| podbay::v1::Restrictions {
            force_command: command.map(str::to_owned),
            no_terminal,
        });
        assert_eq!(request.restrictions, told, "{options:?}");
        assert_eq!(request.metadata["SSH_CERTIFICATE_KEY_ID"], "the laptop");
    }
    // Who comes with a key of the file has none of it.
    world.ssh(&["host", "true"]).run().await.is(0, "", "");
    assert_eq!(world.script.lock().opened.pop().expect("a request").restrictions, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_not_be_kept_lets_nobody_in() {
    let world = world(|config| config.frontend.accept_timeout = Duration::from_secs(1)).await;
    for option in
        ["verify-required", "critical:no-such@example.org=x", "source-address=192.0.2.0/24", "force-command= "]
    {
        refused(&carol(&world, &[option], &["host", "true"]).await);
    }
    assert!(world.script.lock().opened.is_empty(), "the backend was asked");
    // A backend from before there were restrictions would run anything: nothing is asked of it.
    world.script.lock().keeps_restrictions = false;
    let answered = carol(&world, &["force-command=true"], &["host", "id"]).await;
    assert_eq!(answered.status, Some(255), "{answered:?}");
    assert!(answered.stderr.contains("can't keep your certificate's restrictions"), "{answered:?}");
    support::until("what was begun is undone", || !world.script.lock().closed.is_empty()).await;
    assert!(world.script.lock().sessions.is_empty(), "a program was started");
    carol(&world, &[], &["host", "true"]).await.is(0, "", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn extensions_take_away_and_give_nothing_that_is_not_there() {
    let world = world(|_| {}).await;
    let answered = carol(&world, &["no-pty"], &["-tt", "host", "true"]).await;
    assert_eq!(answered.status, Some(255), "{answered:?}");
    assert!(answered.stderr.contains("PTY allocation request failed"), "{answered:?}");
    carol(&world, &[], &["-tt", "host", "true"]).await.is(0, "", "");
    for options in [&[][..], &["clear"]] {
        let direct = carol(&world, options, &["-W", "127.0.0.1:1", "host"]).await;
        assert!(
            direct.status == Some(255) && direct.stderr.contains("stdio forwarding failed"),
            "{options:?}: {direct:?}"
        );
        let arguments = ["-o", "ExitOnForwardFailure=yes", "-R", "127.0.0.1:0:127.0.0.1:1", "host", "true"];
        let reverse = carol(&world, options, &arguments).await;
        assert_eq!(reverse.status, Some(255), "{options:?}: {reverse:?}");
        // An agent that is not forwarded is no error for OpenSSH.
        carol(&world, options, &["-A", "host", "true"]).await.is(0, "", "");
    }
}
