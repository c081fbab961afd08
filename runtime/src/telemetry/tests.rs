use super::{
    format::Frame,
    record::{Record, Value},
    *,
};
use crate::config::Document;
use jiff::Zoned;
use serde_json::{Value as Json, json};
use std::os::unix::{fs::PermissionsExt as _, net::UnixDatagram, net::UnixListener};
use tracing::Level as Grade;

fn log(text: &str) -> Result<Log, String> {
    let document = Document::parse("f.yaml", text).expect("YAML");
    let log = Log::from_section(&mut document.root().section("log"));
    document.finish().map(|()| log).map_err(|mistakes| mistakes.to_string())
}

#[test]
fn a_level_is_a_level_or_directives_that_name_one_each() {
    for good in [
        "off",
        "error",
        "warn",
        "info",
        "debug",
        "trace",
        "INFO",
        "notice",
        "warning",
        "critical",
        "crit",
        "emerg",
        "5",
        "info,podbay_frontend=debug",
        "podbay=debug",
        "info,podbay_backend::service=off",
        "warn,[session{user=x}]=debug",
    ] {
        log(&format!("log: {{level: \"{good}\"}}")).expect(good);
    }
    for bad in
        ["verbose", "info,verbose", "podbay=loud", "", "info,", "=", "podbay=", "podbay_frontend", "info, podbay=debug"]
    {
        let told = log(&format!("log: {{level: \"{bad}\"}}")).expect_err(bad);
        assert!(told.starts_with("f.yaml:1:14: log.level: is none of off, error"), "{bad}: {told}");
    }
}

#[test]
fn containersshs_levels_let_through_what_they_say() {
    let all = [
        (Grade::ERROR, Some("LOG_WRITE_FAILED")), // crit
        (Grade::ERROR, None),
        (Grade::WARN, None),
        (Grade::INFO, None),
        (Grade::DEBUG, None),
    ];
    for (level, lines) in [
        ("emerg", 0),
        ("0", 0),
        ("alert", 0),
        ("crit", 1),
        ("2", 1),
        ("3", 2),
        ("error", 2),
        ("warning", 3),
        ("4", 3),
        ("notice", 3),
        ("5", 3),
        ("info", 4),
        ("6", 4),
        ("debug", 5),
        ("7", 5),
    ] {
        let level = log(&format!("log: {{level: '{level}'}}")).expect("good").level;
        let most: tracing_subscriber::filter::LevelFilter = level.directives().parse().expect("a level");
        let through = all.iter().filter(|(grade, code)| *grade <= most && Severity::of(*grade, *code) <= level.least());
        assert_eq!(through.count(), lines, "{level:?}");
    }
}

#[test]
fn containersshs_destinations_are_taken_or_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("x.log");
    let text = format!("log: {{destination: file, file: {file:?}, format: text}}");
    let read = log(&text).expect("good");
    assert_eq!((read.destination, read.format), (Destination::File(file), Format::Text));
    let text =
        "log: {destination: syslog, syslog: {destination: 'localhost:514', facility: local7, tag: x, pid: true}}";
    let syslog = Syslog { destination: "localhost:514".into(), facility: 23, tag: "x".into(), pid: true };
    assert_eq!(log(text).expect("good").destination, Destination::Syslog(syslog));
    let Destination::Syslog(syslog) = log("log: {destination: syslog}").expect("good").destination else {
        panic!("syslog")
    };
    assert_eq!((syslog.destination.as_str(), syslog.facility, syslog.tag.as_str()), ("/dev/log", 4, "ContainerSSH"));
    for (bad, told) in [
        ("destination: file, file: /nosuch/dir/x", "log.file: there is no directory for /nosuch/dir/x"),
        ("destination: test", "log.destination: \"test\" is none of stderr, stdout, file, syslog"),
        ("format: xml", "log.format: \"xml\" is none of plain, json, ljson, text"),
        ("syslog: {facility: me}", "log.syslog.facility: \"me\" is none of kern, user"),
        ("syslog: {destination: here}", "log.syslog.destination: must be the path of a Unix socket, or host:port"),
        ("syslog: {tag: 'a b'}", "log.syslog.tag: must be"),
        ("stdout: x", "log.stdout: unknown key"),
    ] {
        let error = log(&format!("log: {{{bad}}}")).expect_err(bad);
        assert!(error.contains(told), "{bad}: {error}");
    }
}

/// What an attacker may choose: a name, an error's text.
const EVIL: &str = "x\n{\"level\":\"error\"}\r\t\u{1b}[2J\u{7f}\u{85}\u{9b}\u{2028}\u{202e}\") user=\"root\\";

fn record(evil: &str) -> Record {
    Record {
        level: Grade::WARN,
        target: "podbay_frontend::ssh::login".into(),
        message: format!("login failed: {evil}"),
        code: Some("SSH_AUTH_FAILED".into()),
        fields: vec![
            ("connection", Value::Shown("ab12".into())),
            ("remote", Value::Shown("192.0.2.1".into())),
            ("user", Value::Text(evil.into())),
            ("channel", Value::Plain(3.into())),
            ("pod", Value::Text("users/pod-1".into())),
            ("error", Value::Shown(evil.into())),
            ("message", Value::Text("a second".into())),
        ],
    }
}

fn at() -> Zoned {
    "2026-02-03T04:05:06.123456789+01:00[+01:00]".parse().expect("a time")
}

#[test]
fn ljson_is_containersshs() {
    let line = Format::Ljson.line(&record("bob"), &at(), Frame::Whole, true);
    let read: Json = serde_json::from_str(&line).expect("JSON");
    let details = json!({
        "module": "ssh", "connectionId": "ab12", "remoteAddr": "192.0.2.1", "username": "bob", "channelId": 3, "podName": "pod-1",
        "namespace": "users", "error": "bob", "message": "a second",
    });
    assert_eq!(
        read,
        json!({"timestamp": "2026-02-03T04:05:06+01:00", "level": "warning", "code": "SSH_AUTH_FAILED",
            "message": "login failed: bob", "details": details})
    );
    let bare: Json =
        serde_json::from_str(&Format::Ljson.line(&record("bob"), &at(), Frame::Bare, false)).expect("JSON");
    assert_eq!(bare, json!({"code": "SSH_AUTH_FAILED", "message": "login failed: bob", "details": details}));
    let nothing =
        Record { level: Grade::INFO, target: "h2".into(), message: "m".into(), code: None, fields: Vec::new() };
    let utc = at().with_time_zone(jiff::tz::TimeZone::UTC);
    assert_eq!(
        Format::Ljson.line(&nothing, &utc, Frame::Whole, false),
        r#"{"timestamp":"2026-02-03T03:05:06Z","level":"info","code":"UNKNOWN_ERROR","message":"m","details":{"module":"core"}}"#
    );
}

#[test]
fn text_is_containersshs_with_quotes() {
    assert_eq!(
        Format::Text.line(&record("bob b"), &at(), Frame::Whole, true),
        "2026-02-03T04:05:06+01:00\twarning\tlogin failed: bob b (channelId=3 connectionId=ab12 error=\"bob b\" \
         message=\"a second\" module=ssh namespace=users podName=pod-1 remoteAddr=192.0.2.1 username=\"bob b\" code=SSH_AUTH_FAILED)"
    );
}

#[test]
fn ours_keep_their_form() {
    assert_eq!(
        Format::Plain.line(&record("bob"), &at(), Frame::Whole, false),
        "2026-02-03T03:05:06.123456Z  WARN podbay_frontend::ssh::login: login failed: bob code=SSH_AUTH_FAILED \
         connection=ab12 remote=192.0.2.1 user=\"bob\" channel=3 pod=\"users/pod-1\" error=bob message=\"a second\""
    );
    let read: Json =
        serde_json::from_str(&Format::Json.line(&record("bob"), &at(), Frame::Whole, false)).expect("JSON");
    assert_eq!(
        read,
        json!({"timestamp": "2026-02-03T03:05:06.123456Z", "level": "WARN", "message": "login failed: bob",
            "code": "SSH_AUTH_FAILED", "connection": "ab12", "remote": "192.0.2.1", "user": "bob", "channel": 3,
            "pod": "users/pod-1", "error": "bob", "target": "podbay_frontend::ssh::login"})
    );
}

#[test]
fn nobody_splits_or_forges_a_line() {
    for format in [Format::Plain, Format::Json, Format::Ljson, Format::Text] {
        for frame in [Frame::Whole, Frame::Bare] {
            let mut evil = record(EVIL);
            evil.target = EVIL.into();
            evil.code = Some(EVIL.into());
            let line = format.line(&evil, &at(), frame, false);
            let bad = |c: char| (c.is_control() && c != '\t') || "\u{2028}\u{2029}\u{202e}".contains(c);
            assert!(!line.contains(bad), "{format:?} {frame:?}: {line:?}");
            let tabs = if (format, frame) == (Format::Text, Frame::Whole) { 2 } else { 0 };
            assert_eq!(line.matches('\t').count(), tabs, "{format:?} {frame:?}: {line:?}");
            if matches!(format, Format::Json | Format::Ljson) {
                let read: Json = serde_json::from_str(&line).expect("one object");
                let user = if format == Format::Json { &read["user"] } else { &read["details"]["username"] };
                assert_eq!(user, EVIL, "nothing is lost");
            } else {
                // A message may say anything; fields may not make others.
                let mut evil = record(EVIL);
                evil.message = "login failed".into();
                let line = format.line(&evil, &at(), frame, false);
                assert!(!line.contains(" user=\"root") && !line.contains("username=\"root"), "{format:?}: {line}");
                assert!(line.contains("user=\\\"root"), "{format:?}: {line}");
            }
        }
    }
}

#[test]
fn values_have_a_bound() {
    let output = tempfile::NamedTempFile::new().expect("a file");
    let to = Destination::File(output.path().to_owned());
    let lines =
        Lines::new(Format::Ljson, Arc::new(Least::new(Severity::Debug)), Arc::new(Output::open(to).expect("opens")));
    let subscriber = tracing_subscriber::registry().with(lines);
    let long = "ä".repeat(1 << 16);
    tracing::subscriber::with_default(subscriber, || tracing::info!(user = long, "long {long}"));
    let said = std::fs::read_to_string(output.path()).expect("read");
    assert!(said.lines().count() == 1 && said.len() < 9000, "{} bytes", said.len());
    serde_json::from_str::<Json>(&said).expect("JSON");
}

/// Says a text to an output.
fn say(output: &Output, text: &str) -> bool {
    output.write(Severity::Warning, &at(), |_, _| text.to_owned()).is_ok()
}

#[test]
fn a_file_is_appended_to_and_opened_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
    let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("a file");
    std::fs::write(&path, "before\n").expect("written");
    let output = Output::open(Destination::File(path.clone())).expect("opens");
    assert!(say(&output, "one"));
    assert_eq!(read(&path), "before\none\n");
    std::fs::rename(&path, &old).expect("moved");
    output.reopen();
    assert!(say(&output, "two"));
    assert_eq!((read(&old), read(&path)), ("before\none\n".to_owned(), "two\n".to_owned()));
    let mode = std::fs::metadata(&path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode & !0o640, 0, "{mode:o}");
    // Without a signal the move is noticed within a second or so.
    std::fs::remove_file(&path).expect("removed");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !path.exists() {
        assert!(say(&output, "three") && std::time::Instant::now() < deadline);
    }
    assert!(read(&path).ends_with("three\n"));
    Output::open(Destination::File("/nosuch/dir/log".into())).expect_err("no directory");
}

#[test]
fn syslog_gets_frames_over_either_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let frame = "<36>Feb  3 04:05:06 ContainerSSH: one\n";
    let at = |name: &str| dir.path().join(name).display().to_string();
    let to = |destination: String| {
        let read = log(&format!("log: {{destination: syslog, syslog: {{destination: '{destination}'}}}}"));
        Output::open(read.expect("good").destination)
    };
    to(at("nosuch")).expect_err("nobody listens");
    let listener = UnixListener::bind(at("stream")).expect("binds");
    let output = to(at("stream")).expect("connects");
    assert!(say(&output, "one"));
    let mut got = vec![0; frame.len()];
    std::io::Read::read_exact(&mut listener.accept().expect("accepts").0, &mut got).expect("reads");
    assert_eq!(String::from_utf8_lossy(&got), frame);

    let server = UnixDatagram::bind(at("datagram")).expect("binds");
    let output = to(at("datagram")).expect("connects");
    assert!(say(&output, "one"));
    let mut got = [0; 256];
    let n = server.recv(&mut got).expect("reads");
    assert_eq!(String::from_utf8_lossy(&got[..n]), frame);
    // Gone: told once, and tried again later.
    drop(server);
    let failed =
        |output: &Output| output.write(Severity::Err, &self::at(), |_, _| "x".into()).map_err(|(_, first)| first);
    assert_eq!((failed(&output), failed(&output)), (Err(true), Err(false)));

    let server = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    let output = to(server.local_addr().expect("bound").to_string()).expect("connects");
    assert!(say(&output, "one"));
    let n = server.recv(&mut got).expect("reads");
    assert_eq!(String::from_utf8_lossy(&got[..n]), frame);
}
