//! The authentication webhook from the frontend's side: who is asked about whom, and when nobody is any more.

mod support;

use podbay_frontend::auth::AuthConfig;
use podbay_runtime::{
    config::Document,
    webhook::{Client, endpoint},
};
use std::{sync::Arc, time::Duration};
use support::{PATIENCE, World, world::AnyServer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

fn client(listener: &TcpListener) -> Client {
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let document = Document::parse("t", &format!("w: {{url: '{url}', timeout: 1m, authTimeout: 1m}}")).expect("YAML");
    let endpoint = endpoint(&mut document.root().section("w"), Duration::from_mins(1));
    document.finish().expect("no mistake");
    Client::new(endpoint.expect("an endpoint"))
}

/// The next question: its path, its JSON, and the stream for the answer.
async fn question(listener: &TcpListener) -> (String, String, TcpStream) {
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.expect("asked in time").expect("accepts");
    let mut text = String::new();
    while !text.ends_with('}') {
        let mut bytes = [0; 4096];
        let n = timeout(PATIENCE, stream.read(&mut bytes)).await.expect("in time").expect("reads");
        assert!(n > 0, "ended: {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    let (head, body) = text.split_once("\r\n\r\n").expect("a body");
    (head.lines().next().expect("a line").to_owned(), body.to_owned(), stream)
}

async fn answer(mut stream: TcpStream, body: &str) {
    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await.expect("writes");
}

async fn connect(world: &World) -> russh::client::Handle<AnyServer> {
    let config = Arc::new(russh::client::Config::default());
    russh::client::connect(config, world.address, AnyServer).await.expect("connects")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_webhooks_say_reaches_the_backend_and_what_a_refused_attempt_brought_does_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let (password, authz) = (client(&listener), client(&listener));
    let auth = AuthConfig { password: Some(password), authz: Some(authz), ..AuthConfig::default() };
    let world = World::with(1, |config| config.auth = auth).await;
    let mut ssh = connect(&world).await;
    let login = tokio::spawn(async move {
        let refused = ssh.authenticate_password("carol", "wrong").await.expect("an answer").success();
        (refused, ssh.authenticate_password("carol", "right").await.expect("an answer").success(), ssh)
    });
    let (path, body, stream) = question(&listener).await;
    assert!(path.starts_with("POST /password ") && body.contains("\"passwordBase64\":\"d3Jvbmc=\""), "{path} {body}");
    assert!(body.contains("\"clientVersion\":\"SSH-2.0-") && body.contains("\"remoteAddress\":\"127.0.0.1:"), "{body}");
    answer(stream, r#"{"success": false, "metadata": {"ghost": {"value": "1"}}}"#).await;
    let (path, body, stream) = question(&listener).await;
    assert!(path.starts_with("POST /password ") && !body.contains("ghost"), "{body}");
    let facts = r#"{"success": true, "authenticatedUsername": "Carol", "metadata": {"team": {"value": "red"}},
        "environment": {"TOKEN": {"value": "s3cret", "sensitive": true}}, "files": {"/f": {"value": "aGk="}}}"#;
    answer(stream, facts).await;
    let (path, body, stream) = question(&listener).await;
    assert!(path.starts_with("POST /authz ") && body.contains("\"authenticatedUsername\":\"Carol\""), "{path} {body}");
    assert!(body.contains("red") && !body.contains("s3cret") && !body.contains("password"), "{body}");
    answer(stream, r#"{"success": true}"#).await;
    let (refused, accepted, _ssh) = timeout(PATIENCE, login).await.expect("in time").expect("no panic");
    assert!(!refused && accepted);
    support::until("the backend is asked", || !world.script.lock().opened.is_empty()).await;
    let request = world.script.lock().opened.first().cloned().expect("a request");
    assert_eq!(request.user.expect("a user").authenticated_name, "Carol");
    assert_eq!(request.metadata, [("team".to_owned(), "red".to_owned())].into());
    assert_eq!(request.environment, [("TOKEN".to_owned(), "s3cret".to_owned())].into());
    assert_eq!(request.sensitive_environment, ["TOKEN"]);
    assert_eq!(request.files["/f"].as_ref(), b"hi");
    assert!(request.client_version.starts_with("SSH-2.0-") && request.remote_port > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_about_users_of_the_file_and_nobody_any_more_when_the_client_leaves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let auth =
        AuthConfig { password: Some(client(&listener)), public_key: Some(client(&listener)), ..AuthConfig::default() };
    let world = World::with(1, |config| config.auth = auth).await;
    // The file's: if she were asked about, this would wait for an answer that never comes.
    world.ssh(&["host", "true"]).run().await.is(0, "", "");
    assert!(!connect(&world).await.authenticate_password("alice", "wrong").await.expect("an answer").success());
    let mut ssh = connect(&world).await;
    let login = tokio::spawn(async move { ssh.authenticate_password("carol", "x").await.map(drop) });
    let (_, _, mut stream) = question(&listener).await;
    login.abort();
    let _ = login.await;
    let read = timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("the call ends with its client");
    assert!(read.is_err() || read.is_ok_and(|n| n == 0));
    let again = timeout(Duration::from_secs(1), listener.accept()).await;
    assert!(again.is_err(), "asked again about nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sha1_signature_does_not_profit_from_a_better_offer() {
    use russh::keys::{HashAlg, PrivateKeyWithHashAlg, load_secret_key};
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let auth = AuthConfig { public_key: Some(client(&listener)), ..AuthConfig::default() };
    let world = World::with(1, |config| config.auth = auth).await;
    let path = world.dir.path().join("rsa");
    let keygen = tokio::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"])
        .arg(&path)
        .status()
        .await;
    assert!(keygen.expect("runs").success());
    let key = Arc::new(load_secret_key(&path, None).expect("a key"));
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let answers = tokio::spawn(async move {
        loop {
            let (_, _, stream) = question(&listener).await;
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            answer(stream, r#"{"success": true}"#).await;
        }
    });
    for (hash, gets_in) in [(None, false), (Some(HashAlg::Sha256), true)] {
        let mut ssh = connect(&world).await;
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&key), hash);
        assert_eq!(ssh.authenticate_publickey("carol", key).await.expect("an answer").success(), gets_in, "{hash:?}");
    }
    answers.abort();
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1, "nobody is asked about SHA-1");
}

/// Answers every question with the bytes that it is given, and counts questions. Nothing = no answer.
#[derive(Clone, Default)]
struct Liar {
    lie: Arc<std::sync::Mutex<Vec<u8>>>,
    asked: Arc<std::sync::atomic::AtomicUsize>,
}

impl Liar {
    async fn start(&self) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                let (_, _, mut stream) = question(&listener).await;
                this.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let lie = this.lie.lock().expect("a lock").clone();
                tokio::spawn(async move {
                    if lie.is_empty() {
                        let _ = stream.read(&mut [0; 16]).await;
                    }
                    let _ = stream.write_all(&lie).await;
                });
            }
        });
        let text = format!("w: {{url: '{url}', timeout: 900ms, authTimeout: 1s}}");
        let document = Document::parse("t", &text).expect("YAML");
        let endpoint = endpoint(&mut document.root().section("w"), Duration::from_mins(1));
        Client::new(endpoint.expect("an endpoint"))
    }

    fn tells(&self, lie: Vec<u8>) {
        *self.lie.lock().expect("a lock") = lie;
    }
}

fn http(status: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nlocation: http://127.0.0.1:1/\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

const YES: &str = r#"{"success": true}"#;

fn lies() -> Vec<(&'static str, Vec<u8>)> {
    let ok = |body: &str| http("200 OK", body);
    vec![
        ("silence", Vec::new()),
        ("an outage", http("503 down", YES)),
        ("a redirect", http("307 there", YES)),
        ("no right to ask", http("401 who", YES)),
        ("not found", http("404 none", YES)),
        ("created", http("201 made", YES)),
        ("HTML", ok("<html>welcome</html>")),
        ("10 MiB", http("200 OK", vec![b' '; 10 << 20])),
        ("a cut body", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"success\": true}".to_vec()),
        ("no HTTP", b"+OK ready\r\n".to_vec()),
        ("a deep one", ok(&"[".repeat(300_000))),
        ("two minds", ok(r#"{"success": false, "success": true}"#)),
        ("a word", ok(r#"{"success": "true"}"#)),
        ("a number", ok(r#"{"success": 1}"#)),
        ("a list", ok("[true]")),
        ("just true", ok("true")),
        ("a key more", ok(r#"{"success": true, "admin": true}"#)),
        ("a nameless user", ok(r#"{"success": true, "authenticatedUsername": 7}"#)),
        ("a user with a line", ok(r#"{"success": true, "authenticatedUsername": "root\nadmin"}"#)),
        ("bare metadata", ok(r#"{"success": true, "metadata": {"a": "b"}}"#)),
        ("a bad variable", ok(r#"{"success": true, "environment": {"A B": {"value": ""}}}"#)),
        ("a bad path", ok(r#"{"success": true, "files": {"../x": {"value": ""}}}"#)),
        (
            "too much",
            ok(&format!(r#"{{"success": true, "metadata": {{"a": {{"value": "{}"}}}}}}"#, "x".repeat(17_000))),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_lies_lets_nobody_in_and_is_nobodys_failure() {
    use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg};
    let key = Arc::new(PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key"));
    for method in ["password", "pubkey", "authz"] {
        let (liar, honest) = (Liar::default(), Liar::default());
        honest.tells(http("200 OK", YES));
        let (asked, yes) = (liar.start().await, honest.start().await);
        let auth = match method {
            "password" => AuthConfig { password: Some(asked), ..AuthConfig::default() },
            "pubkey" => AuthConfig { public_key: Some(asked), ..AuthConfig::default() },
            _ => AuthConfig { public_key: Some(yes), authz: Some(asked), ..AuthConfig::default() },
        };
        let world = World::with(1, |config| config.auth = auth).await;
        let attempt = async || {
            let mut ssh = connect(&world).await;
            let result = if method == "password" {
                ssh.authenticate_password("carol", "sesame").await
            } else {
                ssh.authenticate_publickey("carol", PrivateKeyWithHashAlg::new(Arc::clone(&key), None)).await
            };
            (result.expect("an answer").success(), ssh)
        };
        for (number, (what, lie)) in lies().into_iter().enumerate() {
            liar.tells(lie);
            let before = liar.asked.load(std::sync::atomic::Ordering::SeqCst);
            // The budget is a second; machines may be busy.
            let (success, _) = timeout(Duration::from_secs(20), attempt()).await.expect(what);
            assert!(!success, "{method}: {what}");
            assert!(
                liar.asked.load(std::sync::atomic::Ordering::SeqCst) > before,
                "{method}: {what}: nobody was asked"
            );
            assert_eq!(world.metric("auth_attempts_total", "Unavailable"), number as u64 + 1, "{method}: {what}");
        }
        assert!(world.script.lock().opened.is_empty(), "{method}: a session began");
        assert_eq!(world.metric("auth_attempts_total", "Failure"), 0, "{method}");
        liar.tells(http("200 OK", YES));
        let (success, _ssh) = attempt().await;
        assert!(success, "{method}: an honest answer");
        support::until("the backend is asked", || !world.script.lock().opened.is_empty()).await;
    }
}
