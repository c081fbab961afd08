//! Servers that answer, and lie.

use super::*;
use std::time::Instant;
use tokio::{io::AsyncWrite, net::TcpStream, time::sleep};

/// For what is final: nobody waits for it.
const LONG: &str = "timeout: 30s, authTimeout: 31s";
/// For what is tried again until the budget is used up.
const SHORT: &str = "timeout: 900ms, authTimeout: 1s";

/// What a server does once it was asked.
#[derive(Clone)]
enum Lie {
    /// Sends this, and closes.
    Says(Vec<u8>),
    /// Sends this, and then nothing.
    Stops(Vec<u8>),
    /// Sends this, and then that for ever, at once or slowly.
    Goes(Vec<u8>, Vec<u8>, Duration),
}

async fn tell(lie: &Lie, stream: &mut (impl AsyncWrite + Unpin)) {
    match lie {
        Lie::Says(bytes) => drop(stream.write_all(bytes).await),
        Lie::Stops(bytes) => {
            let _ = stream.write_all(bytes).await;
            std::future::pending::<()>().await;
        }
        Lie::Goes(bytes, more, pause) => {
            let mut result = stream.write_all(bytes).await;
            while result.is_ok() {
                sleep(*pause).await;
                result = stream.write_all(more).await;
            }
        }
    }
}

async fn read_question(stream: &mut TcpStream) {
    let (mut question, mut bytes) = (Vec::new(), [0; 4096]);
    while !question.ends_with(b"}") {
        match stream.read(&mut bytes).await {
            Ok(n) if n > 0 => question.extend_from_slice(&bytes[..n]),
            _ => return,
        }
    }
}

/// What comes of a first call (a last one may have no time left), and of how many.
async fn asked(url: &str, times: &str) -> Result<Value, (CallError, u32)> {
    let mut first = None;
    let failed = |error: &CallError, _| {
        first.get_or_insert_with(|| error.clone());
    };
    let (calls, question) = (CallMetrics::new(Service::Auth), json!({"username": "a"}));
    let answer = client(url, times).ask("/password", &question, calls.plain(), Ok, failed).await;
    answer.map(|answer| answer.value).map_err(|gave_up| (first.expect("told of each"), gave_up.tries))
}

/// What comes of a lie, and that it comes in time.
async fn answered(lie: Lie, times: &str) -> Result<Value, (CallError, u32)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let lie = lie.clone();
            tokio::spawn(async move {
                read_question(&mut stream).await;
                tell(&lie, &mut stream).await;
            });
        }
    });
    let began = Instant::now();
    let answer = asked(&url, times).await;
    // Machines may be busy, but nothing final waits for the budget.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    server.abort();
    answer
}

fn ok(head: &str, body: impl AsRef<[u8]>) -> Lie {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{head}\r\n", body.len());
    Lie::Says([head.as_bytes(), body].concat())
}

fn says(text: &str) -> Lie {
    Lie::Says(text.as_bytes().to_vec())
}

const NO: Duration = Duration::ZERO;
const SLOWLY: Duration = Duration::from_millis(30);
const YES: &str = r#"{"success": true}"#;

#[tokio::test]
async fn a_body_that_is_not_one_json_value_is_no_answer() {
    for (what, lie) in [
        ("HTML", ok("content-type: text/html\r\n", "<html>{\"success\": true}</html>")),
        ("HTML that says it is JSON", ok("content-type: application/json\r\n", "<html></html>")),
        ("nothing", ok("", "")),
        ("half of it", ok("", r#"{"success": tr"#)),
        ("two answers", ok("", format!("{YES}{YES}"))),
        ("something behind it", ok("", format!("{YES}\0"))),
        ("two minds", ok("", r#"{"success": true, "success": false}"#)),
        ("two minds, deeper", ok("", r#"{"success": true, "metadata": {"a": {"value": "1", "value": "2"}}}"#)),
        ("no UTF-8", ok("", b"{\"success\": true, \"authenticatedUsername\": \"\xff\"}")),
        ("UTF-16", ok("", b"\xff\xfe{\0}\0")),
        ("a deep one", ok("", "[".repeat(500_000))),
        ("a deep object", ok("", "{\"a\":".repeat(200_000))),
        ("compressed", ok("content-encoding: gzip\r\n", b"\x1f\x8b\x08\0\0\0\0\0\0\x03")),
        ("NaN", ok("", r#"{"success": NaN}"#)),
    ] {
        let (error, tries) = answered(lie, LONG).await.expect_err(what);
        assert!(matches!(error, CallError::Decode(_)) && tries == 1, "{what}: {error}");
    }
}

#[tokio::test]
async fn an_answer_without_end_ends() {
    let big = |head: &str, bytes: usize| Lie::Says([head.as_bytes(), &vec![b' '; bytes]].concat());
    for (what, lie) in [
        ("10 MiB", big("HTTP/1.1 200 OK\r\ncontent-length: 10485760\r\n\r\n", 10 << 20)),
        ("10 MiB until the end", big("HTTP/1.1 200 OK\r\n\r\n", 10 << 20)),
        (
            "chunks for ever",
            Lie::Goes(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
                [&b"1000\r\n"[..], &[b' '; 4096], b"\r\n"].concat(),
                NO,
            ),
        ),
        ("an error page for ever", Lie::Goes(b"HTTP/1.1 403 No\r\n\r\n".to_vec(), vec![b'x'; 4096], NO)),
    ] {
        let (error, tries) = answered(lie, LONG).await.expect_err(what);
        assert_eq!((error, tries), (CallError::TooLarge, 1), "{what}");
    }
}

#[tokio::test]
async fn slowness_and_broken_connections_cost_the_budget_and_no_more() {
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    for (what, lie) in [
        ("a head byte by byte", Lie::Goes(b"HTTP/1.1 200 OK\r\nx: ".to_vec(), b"x".to_vec(), SLOWLY)),
        ("a body byte by byte", Lie::Goes(head(1000), b" ".to_vec(), SLOWLY)),
        ("a body that stops", Lie::Stops([head(100), YES.into()].concat())),
        ("a length of 10 MiB and no byte", Lie::Stops(head(10 << 20))),
        ("wait, for ever", Lie::Goes(Vec::new(), b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), SLOWLY)),
    ] {
        let (error, tries) = answered(lie, SHORT).await.expect_err(what);
        assert!(matches!(error, CallError::Timeout(_)) && tries <= 4, "{what}: {error}");
    }
    for (what, lie) in [
        ("closed", says("")),
        ("a body that is cut", Lie::Says([head(100), YES.into()].concat())),
        (
            "chunks that are cut",
            says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n11\r\n{\"success\": true}\r\n"),
        ),
        ("a chunk that is none", says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n")),
        ("two lengths", says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}")),
        ("no HTTP", says("220 mail.example.org ESMTP\r\n")),
        ("TLS", Lie::Says(b"\x15\x03\x03\0\x02\x02\x28".to_vec())),
        ("a head without end", Lie::Goes(b"HTTP/1.1 200 OK\r\n".to_vec(), b"x-filling: x\r\n".repeat(200), NO)),
    ] {
        let (error, tries) = answered(lie, SHORT).await.expect_err(what);
        assert!(matches!(error, CallError::Connection(_)) && tries > 1, "{what}: {error}");
    }
}

#[tokio::test]
async fn only_200_is_an_answer_whatever_comes_with_it() {
    for status in [201, 202, 203, 206, 400, 401, 403, 404, 405, 413, 418] {
        let (error, tries) =
            answered(Lie::Says(http(&format!("{status} x"), YES).into()), LONG).await.expect_err("no answer");
        assert_eq!((error, tries), (CallError::Status(status, format!(": {YES}")), 1));
    }
    for status in [300, 301, 302, 303, 304, 307, 308] {
        let (error, tries) =
            answered(Lie::Says(http(&format!("{status} x"), YES).into()), LONG).await.expect_err("no answer");
        assert_eq!((error, tries), (CallError::Redirect(status), 1));
    }
    for status in [408, 429, 500, 503] {
        let (error, tries) =
            answered(Lie::Says(http(&format!("{status} x"), YES).into()), SHORT).await.expect_err("no answer");
        assert!(matches!(error, CallError::Status(told, _) if told == status) && tries > 1, "{error}");
    }
}

/// Not a lie: the reference does not look at it either, and simple servers send none.
#[tokio::test]
async fn the_content_type_says_nothing() {
    for head in ["", "content-type: text/html\r\n", "content-type: application/json; charset=latin1\r\n"] {
        assert_eq!(answered(ok(head, YES), LONG).await, Ok(json!({"success": true})), "{head}");
    }
}

#[tokio::test]
async fn what_is_no_tls_is_no_server() {
    for bytes in [&b"HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"success\": true}"[..], b"", &[0x16; 4000]] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("an address").port();
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(bytes).await;
            }
        });
        let (error, tries) = asked(&format!("https://localhost:{port}"), SHORT).await.expect_err("no TLS");
        assert!(matches!(error, CallError::Connection(_)) && tries > 1, "{error}");
        server.abort();
    }
}
