mod lies;

use super::*;
use crate::config::Document;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// Answers each call with the next of these bytes, and the last one for ever; counts calls.
async fn server(answers: Vec<String>) -> (String, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let n = counted.fetch_add(1, Ordering::SeqCst);
            let answer = answers.get(n).or(answers.last()).cloned().unwrap_or_default();
            tokio::spawn(async move {
                let mut request = vec![0; 64 * 1024];
                let mut have = 0;
                // Head and body: both are small here.
                while let Ok(n) = stream.read(&mut request[have..]).await {
                    have += n;
                    let text = String::from_utf8_lossy(&request[..have]).into_owned();
                    if n == 0 || text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('}')) {
                        break;
                    }
                }
                if answer.is_empty() {
                    return std::future::pending::<()>().await;
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (url, calls, task)
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nlocation: http://127.0.0.1:1/\r\n\r\n{body}", body.len())
}

fn client(url: &str, more: &str) -> Client {
    let document = Document::parse("t", &format!("w: {{url: '{url}', {more}}}")).expect("YAML");
    let endpoint = endpoint(&mut document.root().section("w"), Duration::from_mins(1));
    document.finish().expect("no mistake");
    Client::new(endpoint.expect("an endpoint"))
}

async fn asked(client: &Client, metrics: &CallMetrics) -> Result<Value, GaveUp> {
    let (body, counted) = (json!({"username": "a"}), metrics.of("password"));
    client.ask("/password", &body, counted, Ok, |_, _| {}).await.map(|answer| answer.value)
}

async fn ask(client: &Client) -> Result<Value, GaveUp> {
    asked(client, &CallMetrics::new(Service::Auth)).await
}

#[tokio::test]
async fn a_server_that_is_out_of_order_is_asked_again() {
    let (url, calls, _server) =
        server(vec![http("500 no", "x"), http("503 no", ""), http("200 OK", "{\"a\": 1}")]).await;
    assert_eq!(ask(&client(&url, "")).await.expect("an answer"), json!({"a": 1}));
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_opinion_is_final_and_told() {
    let big = format!("\"{}\"", "x".repeat(client::MAX_ANSWER));
    for (answer, last) in [
        (http("403 no", "go\naway"), CallError::Status(403, ": goaway".into())),
        (http("302 there", ""), CallError::Redirect(302)),
        (http("200 OK", &big), CallError::TooLarge),
    ] {
        let (url, calls, _server) = server(vec![answer]).await;
        assert_eq!(ask(&client(&url, "")).await, Err(GaveUp { last, tries: 1 }));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
    let (url, ..) = server(vec![http("200 OK", "no json")]).await;
    let error = ask(&client(&url, "")).await.expect_err("no JSON").last;
    assert!(matches!(error, CallError::Decode(_)), "{error}");
}

#[tokio::test]
async fn a_silent_or_absent_server_costs_no_more_than_the_budget() {
    let (url, calls, _server) = server(vec![String::new()]).await;
    let began = std::time::Instant::now();
    let gave_up = ask(&client(&url, "timeout: 200ms, authTimeout: 1s")).await.expect_err("nothing");
    assert!(matches!(gave_up.last, CallError::Timeout(_)) && gave_up.tries >= 2, "{gave_up}");
    assert_eq!(calls.load(Ordering::SeqCst), gave_up.tries as usize);
    assert!(began.elapsed() < Duration::from_secs(20));
    let absent = ask(&client("http://127.0.0.1:1", "authTimeout: 300ms")).await.expect_err("nobody");
    assert!(matches!(absent.last, CallError::Connection(_)), "{absent}");
}

#[test]
fn keys_are_checked() {
    for (keys, told) in [
        ("url: 'ftp://x'", "w.url: must begin with https:// or http://"),
        ("url: 'https://a:b@x'", "w.url: must hold no user name"),
        ("url: 'http://x', timeout: 1ms", "w.timeout: must be at least 100ms"),
        ("url: 'http://x', allowRedirects: true", "w.allowRedirects: redirects are never followed"),
        ("url: 'https://x', cipher: [a]", "w.cipher: a is not known"),
        ("url: 'http://x', tlsVersion: '1.1'", "w.tlsVersion: \"1.1\" is none of 1.2, 1.3"),
        ("url: 'https://x', cert: /nosuch", "w.cert: /nosuch: "),
        ("url: 'https://x', cacert: '-----BEGIN'", "w.cacert: TLS: "),
        ("timeout: 1s", "w.timeout: says how"),
    ] {
        let document = Document::parse("t", &format!("w: {{{keys}}}")).expect("YAML");
        drop(endpoint(&mut document.root().section("w"), Duration::from_mins(1)));
        let mistakes = document.finish().expect_err(keys).to_string();
        assert!(mistakes.contains(told), "{keys}: {mistakes}");
    }
}

fn facts(answer: Value) -> Result<Facts, String> {
    let Value::Object(mut object) = answer else { return Err("no object".into()) };
    let facts = Json::take(&mut object)?.into_facts().map_err(|error| error.to_string())?;
    if object.is_empty() { Ok(facts) } else { Err(format!("left: {object:?}")) }
}

#[test]
fn facts_are_read_strictly_merged_and_told_without_what_is_sensitive() {
    let mut known = facts(json!({
        "authenticatedUsername": "alice", "username": "a", "remoteAddress": "[::1]:5", "metadata": null,
        "environment": {"TOKEN": {"value": "hunter2", "sensitive": true}, "A": {"value": "1"}},
        "files": {"/etc/x": {"value": "aGk="}},
    }))
    .expect("facts");
    assert!(!format!("{known:?}").contains("hunter2"));
    known.merge(
        facts(json!({"metadata": {"team": {"value": "x"}}, "environment": {"A": {"value": "2"}}})).expect("facts"),
    );
    let mut told = serde_json::Map::new();
    known.put(&mut told, false);
    assert_eq!(
        Value::Object(told),
        json!({
            "authenticatedUsername": "alice",
            "metadata": {"team": {"value": "x", "sensitive": false}},
            "environment": {"A": {"value": "2", "sensitive": false}},
            "files": {"/etc/x": {"value": "aGk=", "sensitive": false}},
        })
    );
    let mut told = serde_json::Map::new();
    known.put(&mut told, true);
    assert_eq!(told["environment"]["TOKEN"]["value"], "hunter2");
    for wrong in [
        json!({"metadata": {"a": "b"}}),
        json!({"metadata": {"a": {"value": "b", "other": 1}}}),
        json!({"environment": {"A B": {"value": ""}}}),
        json!({"files": {"relative": {"value": ""}}}),
        json!({"files": {"/x": {"value": "%"}}}),
        json!({"remoteAddress": "1.2.3.4"}),
        json!({"authenticatedUsername": "x".repeat(257)}),
        json!({"metadata": {"a": {"value": "x".repeat(17 * 1024)}}}),
        json!({"unknown": 1}),
    ] {
        facts(wrong.clone()).expect_err(&wrong.to_string());
    }
}

#[tokio::test]
async fn the_server_is_checked_and_knows_its_client() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let authority = || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
    };
    let (ours, other) = (authority(), authority());
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let issue = |name: &str, host: &str| {
        let key = KeyPair::generate().expect("a key");
        let cert =
            CertificateParams::new(vec![host.to_owned()]).expect("params").signed_by(&key, &ours).expect("signed");
        std::fs::write(path(&format!("{name}.pem")), cert.pem()).expect("writes");
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).expect("writes");
    };
    issue("server", "localhost");
    issue("client", "podbay");
    std::fs::write(path("ca"), ours.pem()).expect("writes");
    std::fs::write(path("other"), other.pem()).expect("writes");
    let config = crate::tls::server(&path("server.pem"), &path("server.key"), Some(&path("ca"))).expect("TLS");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("an address").port();
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(Arc::clone(&config)).accept(stream).await else {
                continue;
            };
            let mut bytes = [0; 4096];
            while stream.read(&mut bytes).await.is_ok_and(|n| n > 0 && !bytes[..n].ends_with(b"}")) {}
            let _ = stream.write_all(http("200 OK", "{\"in\": true}").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    let with = |host: &str, keys: &str| {
        let keys = keys.replace("DIR", &dir.path().display().to_string());
        client(&format!("https://{host}:{port}"), &format!("authTimeout: 400ms, {keys}"))
    };
    let identity = "cert: DIR/client.pem, key: DIR/client.key";
    // The last as ContainerSSH dumps it.
    for more in
        ["", ", curves: [x25519, secp256r1, secp384r1, secp521r1], cipher: [TLS_AES_128_GCM_SHA256], tlsVersion: 1.2"]
    {
        let client = with("localhost", &format!("cacert: DIR/ca, {identity}{more}"));
        assert_eq!(ask(&client).await.expect("in"), json!({"in": true}));
    }
    for (host, keys) in [
        ("localhost", "cacert: DIR/ca".to_owned()),
        ("localhost", format!("cacert: DIR/other, {identity}")),
        ("127.0.0.1", format!("cacert: DIR/ca, {identity}")),
    ] {
        let refused = ask(&with(host, &keys)).await.expect_err("refused").last;
        assert!(matches!(refused, CallError::Connection(_)), "{host} {keys}: {refused}");
    }
    server.abort();
}

#[tokio::test]
async fn calls_are_counted_under_containersshs_names() {
    let mut registry = prometheus_client::registry::Registry::default();
    let (auth, config) = (CallMetrics::new(Service::Auth), CallMetrics::new(Service::Config));
    auth.register(&mut registry, "auth_webhook_duration");
    config.register(&mut registry, "config_webhook_duration");
    let (url, _, _server) = server(vec![http("500 no", ""), http("500 no", ""), http("200 OK", "{}")]).await;
    asked(&client(&url, ""), &auth).await.expect("an answer");
    let (url, _, _server) = server(vec![http("404 no", "")]).await;
    asked(&client(&url, ""), &auth).await.expect_err("an opinion");
    let (url, _, _server) = server(vec![http("200 OK", "{}")]).await;
    let answer = |_| Err::<(), _>("it is not what belongs here".to_owned());
    let gave_up = client(&url, "").ask("", &json!({}), config.plain(), answer, |_, _| {}).await.expect_err("not read");
    assert_eq!(gave_up.last, CallError::Decode("it is not what belongs here".to_owned()));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
    for line in [
        "# TYPE containerssh_auth_server_requests counter",
        "# UNIT containerssh_auth_server_requests requests",
        r#"containerssh_auth_server_requests_total{authtype="password",retry="0"} 2"#,
        r#"containerssh_auth_server_requests_total{authtype="password",retry="1"} 2"#,
        "# TYPE containerssh_auth_server_failures counter",
        "# UNIT containerssh_auth_server_failures failures",
        r#"containerssh_auth_server_failures_total{authtype="password",reason="AUTH_INVALID_STATUS",retry="0",type="soft"} 2"#,
        r#"containerssh_auth_server_failures_total{authtype="password",reason="AUTH_INVALID_STATUS",retry="1",type="soft"} 1"#,
        r#"containerssh_auth_server_failures_total{authtype="password",reason="AUTH_INVALID_STATUS",retry="0",type="hard"} 1"#,
        r#"containerssh_config_server_requests_total{retry="0"} 1"#,
        r#"containerssh_config_server_failures_total{reason="HTTP_CLIENT_DECODE_FAILED",retry="0",type="soft"} 1"#,
        r#"containerssh_config_server_failures_total{reason="HTTP_CLIENT_DECODE_FAILED",retry="0",type="hard"} 1"#,
        r#"auth_webhook_duration_seconds_count{authtype="password"} 4"#,
        r"config_webhook_duration_seconds_count{} 1",
    ] {
        assert!(text.lines().any(|there| there == line), "no {line} in:\n{text}");
    }
}
