//! A configuration that changes while the frontend runs: new connections get the new one, old ones keep theirs.

mod support;

use podbay_frontend::Config;
use podbay_runtime::config::{Document, Noted};
use russh::{
    SendError,
    client::Handle,
    keys::{
        Algorithm, HashAlg, PrivateKey, PublicKeyOrCertificate,
        agent::AgentIdentity,
        signature::Signer as _,
        ssh_key::{LineEnding, Signature},
    },
};
use std::{
    path::Path,
    sync::{Arc, Mutex},
};
use support::{PATIENCE, World, tls::Files, until, world::AnyServer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};

const FILE: &str = "
ssh: {hostkeys: [@DIR@/hostkey], banner: first}
users: [{name: alice, authorizedKeys: ['@ID@']}]
frontend: {drainTimeout: 2s, backend: {addresses: ['@BACKEND@'], plaintext: true}}
";

fn new_host_key(world: &Path) -> PrivateKey {
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key");
    std::fs::write(world.join("hostkey"), key.to_openssh(LineEnding::LF).expect("PEM").as_bytes()).expect("writes");
    key
}

/// Waits until so many readings ended so.
async fn reloaded(world: &World, result: &str, times: u64) {
    let line = format!("podbay_config_reloads_total{{result=\"{result}\"}} {times}");
    until(&line, || world.encoded().lines().any(|found| found == line)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_added_can_log_in_who_is_removed_cant_and_connections_that_are_there_go_on() {
    let world = World::with_file(FILE, |dir| drop(new_host_key(dir))).await;
    let mut child = world.ssh(&["host", "read line; echo \"$line\""]).with_stdin().spawn();
    until("it runs", || world.script.lock().running == 1).await;
    let bob = |world: &World| world.ssh_with_wrong_key(&["User=bob"], &["host", "echo bob"]);
    assert_eq!(bob(&world).run().await.status, Some(255));

    world.replace_file(&FILE.replace("alice", "bob").replace("@ID@", "@WRONG@"));
    world.asked.notify_one();
    reloaded(&world, "ok", 1).await;
    let answered = bob(&world).run().await;
    assert_eq!((answered.status, answered.stdout.as_str()), (Some(0), "bob\n"), "{answered:?}");
    let denied = world.ssh(&["host", "true"]).run().await;
    assert!(denied.status == Some(255) && denied.stderr.contains("Permission denied"), "{denied:?}");

    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"still here\n").await.expect("writes");
    let mut stdout = String::new();
    child.stdout.take().expect("stdout").read_to_string(&mut stdout).await.expect("reads");
    assert_eq!((stdout.as_str(), child.wait().await.expect("ends").code()), ("still here\n", Some(0)));
}

/// Signs with alice's key once the server has said that it would take it, and has read its configuration again.
struct Slowly<'a>(&'a World, &'a str);

impl russh::Signer for Slowly<'_> {
    type Error = SendError;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, SendError> {
        let Self(world, text) = self;
        world.replace_file(text);
        world.asked.notify_one();
        reloaded(world, "ok", 1).await;
        let signature: Signature = world.key.try_sign(&data).expect("a signature");
        let signature: Vec<u8> = signature.try_into().expect("its bytes");
        data.extend(u32::try_from(signature.len()).expect("short").to_be_bytes());
        data.extend(signature);
        Ok(data)
    }
}

async fn connect(world: &World) -> Handle<AnyServer> {
    let config = Arc::new(russh::client::Config::default());
    russh::client::connect(config, world.address, AnyServer).await.expect("connects")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_removed_between_connecting_and_logging_in_stays_out() {
    let hash = support::world::PASSWORD_HASH;
    let alices = format!("{{name: alice, passwordHash: '{hash}', authorizedKeys: ['@ID@']}}");
    let bobs = "{name: bob, authorizedKeys: ['@WRONG@']}";
    let before = FILE.replace("{name: alice, authorizedKeys: ['@ID@']}", &format!("{alices}, {bobs}"));
    let without = before.replace(&format!("{alices}, "), "").replace("@WRONG@", "@ID@");
    let by_key = async |world: &World, client: &mut Handle<AnyServer>, user: &str, text: &str| {
        let mut signer = Slowly(world, text);
        let signed = client.authenticate_publickey_with(user, world.key.public_key().clone(), None, &mut signer);
        timeout(PATIENCE, signed).await.expect("in time").expect("an answer").success()
    };

    // The control: an unrelated reading between the offer and the signature hinders nobody.
    let world = World::with_file(&before, |dir| drop(new_host_key(dir))).await;
    let mut client = connect(&world).await;
    assert!(by_key(&world, &mut client, "alice", &before.replace("banner: first", "banner: second")).await);

    let world = World::with_file(&before, |dir| drop(new_host_key(dir))).await;
    let (mut offered, mut silent) = (connect(&world).await, connect(&world).await);
    until("both are there", || world.metric("connections", "Unauthenticated") == 2).await;
    assert!(!by_key(&world, &mut offered, "alice", &without).await, "her key was good when it was offered");
    assert!(!silent.authenticate_password("alice", "password").await.expect("an answer").success());
    // Nor is it the connections that are refused: who is there now may log in by them.
    let key = russh::keys::PrivateKeyWithHashAlg::new(Arc::new(world.key.clone()), None);
    assert!(silent.authenticate_publickey("bob", key).await.expect("an answer").success());
}

/// What a server shows before anybody has logged in.
struct Shown(Arc<Mutex<(Option<String>, String)>>);

impl russh::client::Handler for Shown {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        if let PublicKeyOrCertificate::PublicKey { key, .. } = key {
            self.0.lock().expect("a lock").0 = Some(key.to_openssh().expect("a line"));
        }
        Ok(true)
    }

    async fn auth_banner(&mut self, banner: &str, _: &mut russh::client::Session) -> Result<(), Self::Error> {
        banner.trim().clone_into(&mut self.0.lock().expect("a lock").1);
        Ok(())
    }
}

/// The host key, the banner, and the methods that are offered.
async fn shows(world: &World) -> (String, String, Vec<String>) {
    let shown = Arc::<Mutex<(Option<String>, String)>>::default();
    let config = Arc::new(russh::client::Config::default());
    let mut client = russh::client::connect(config, world.address, Shown(Arc::clone(&shown))).await.expect("connects");
    let answer = client.authenticate_none("alice").await.expect("an answer");
    let russh::client::AuthResult::Failure { remaining_methods, .. } = answer else { panic!("no proof was asked for") };
    let methods = remaining_methods.iter().map(String::from).collect();
    let (key, banner) = shown.lock().expect("a lock").clone();
    (key.expect("a key"), banner, methods)
}

#[tokio::test(flavor = "multi_thread")]
async fn host_keys_banner_methods_and_bounds_are_those_of_the_moment() {
    let first = Mutex::new(None);
    let world = World::with_file(FILE, |dir| *first.lock().expect("a lock") = Some(new_host_key(dir))).await;
    let line = |key: &PrivateKey| key.public_key().to_openssh().expect("a line");
    let first = first.into_inner().expect("a lock").expect("a key");
    let shown = shows(&world).await;
    assert_eq!(shown, (line(&first), "first".to_owned(), vec!["publickey".to_owned()]));

    // A file that the configuration names has changed, and nothing else.
    let second = new_host_key(world.dir.path());
    world.asked.notify_one();
    reloaded(&world, "ok", 1).await;
    assert_eq!(shows(&world).await.0, line(&second));

    let hash = support::world::PASSWORD_HASH;
    let changed = FILE
        .replace("banner: first", "banner: second")
        .replace("{name: alice", &format!("{{name: alice, passwordHash: '{hash}'"))
        .replace("{drainTimeout", "{maxConnections: 1, drainTimeout");
    world.replace_file(&changed);
    world.asked.notify_one();
    reloaded(&world, "ok", 2).await;
    until("nobody is there", || world.metric("connections", "") == 0).await;
    let shown = shows(&world).await;
    assert_eq!(
        (shown.1.as_str(), shown.2.as_slice()),
        ("second", &["publickey".to_owned(), "password".to_owned()][..])
    );
    until("nobody is there", || world.metric("connections", "") == 0).await;
    let client = world.client().await;
    let turned = world.ssh(&["host", "true"]).run().await;
    assert_eq!(turned.status, Some(255), "{turned:?}");
    assert_eq!(world.metric("refused_total", "TooManyConnections"), 1);
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_is_counted() {
    let world = World::with_file(FILE, |dir| drop(new_host_key(dir))).await;
    for (n, bad) in [FILE.replace("alice", "alice, x: y"), "ssh: [".to_owned(), FILE.replace("/hostkey", "/nosuch")]
        .iter()
        .enumerate()
    {
        world.replace_file(bad);
        world.asked.notify_one();
        reloaded(&world, "refused", n as u64 + 1).await;
        world.ssh(&["host", "echo ok"]).run().await.is(0, "ok\n", "");
    }
    // Back to what counts.
    world.replace_file(FILE);
    world.asked.notify_one();
    reloaded(&world, "unchanged", 1).await;
    reloaded(&world, "ok", 0).await;
}

/// Answers one question with yes: a webhook that only this CA's clients may ask.
async fn answers_once(listener: &TcpListener, files: &Files) {
    let tls = podbay_runtime::tls::server(&files.cert, &files.key, Some(&files.ca)).expect("TLS");
    let (stream, _) = listener.accept().await.expect("accepts");
    let mut stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.expect("a client of the same CA");
    let mut text = Vec::new();
    while !text.ends_with(b"}") {
        assert!(stream.read_buf(&mut text).await.expect("reads") > 0, "ended early");
    }
    let answer = "{\"success\": true}";
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
    stream.write_all(answer.as_bytes()).await.expect("writes");
    let _ = stream.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_certificates_of_a_webhook_are_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("an address").port();
    let text = format!(
        "{FILE}auth:
  password:
    method: webhook
    webhook:
      {{url: 'https://localhost:{port}', timeout: 1m, authTimeout: 1m, cacert: @DIR@/web-ca, cert: @DIR@/web-cert, key: @DIR@/web-key}}
"
    );
    let made = tempfile::tempdir().expect("a directory");
    let [first, second] = ["first", "second"].map(|name| {
        let dir = made.path().join(name);
        std::fs::create_dir(&dir).expect("a directory");
        Files::make(&dir)
    });
    let puts = |dir: &Path, files: &Files| {
        for (from, name) in [(&files.ca, "web-ca"), (&files.cert, "web-cert"), (&files.key, "web-key")] {
            std::fs::copy(from, dir.join("new")).expect("copies");
            std::fs::rename(dir.join("new"), dir.join(name)).expect("renames");
        }
    };
    let world = World::with_file(&text, |dir| {
        drop(new_host_key(dir));
        puts(dir, &first);
    })
    .await;
    let logs_in = async |files: &Files| {
        let config = Arc::new(russh::client::Config::default());
        let mut client = russh::client::connect(config, world.address, AnyServer).await.expect("connects");
        let login = client.authenticate_password("carol", "password");
        let both = async { tokio::join!(answers_once(&listener, files), login).1 };
        timeout(PATIENCE, both).await.expect("in time").expect("an answer").success()
    };
    assert!(logs_in(&first).await);
    puts(world.dir.path(), &second);
    world.asked.notify_one();
    reloaded(&world, "ok", 1).await;
    assert!(logs_in(&second).await);
}

#[test]
fn files_that_a_configuration_names_are_followed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    drop(new_host_key(dir.path()));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    for name in ["ca", "cert", "web-ca", "web-cert"] {
        std::fs::write(path(name), made.cert.pem()).expect("writes");
    }
    for name in ["key", "web-key"] {
        std::fs::write(path(name), made.signing_key.serialize_pem()).expect("writes");
    }
    let user_ca = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key");
    std::fs::write(path("user-ca"), user_ca.public_key().to_openssh().expect("a line")).expect("writes");
    let text = "
ssh: {hostkeys: [DIR/hostkey]}
auth:
  password: {method: webhook, webhook: {url: 'https://h', cacert: DIR/web-ca, cert: DIR/web-cert, key: DIR/web-key}}
  trustedUserCAKeys: [DIR/user-ca]
frontend: {backend: {addresses: ['b:1'], tls: {ca: DIR/ca, cert: DIR/cert, key: DIR/key}}}
";
    let file = path("podbay.yaml");
    std::fs::write(&file, text.replace("DIR", &dir.path().display().to_string())).expect("writes");
    let noted = Noted::default();
    let document = Document::read_noting(&file, &noted).expect("YAML");
    Config::from_document(document).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let seen = noted.seen();
    assert_eq!(seen, seen.again());
    let names = ["ca", "cert", "hostkey", "key", "podbay.yaml", "user-ca", "web-ca", "web-cert", "web-key"];
    let mut files: Vec<_> = seen.files().collect();
    files.sort_unstable();
    assert_eq!(files, names.map(path));
}
