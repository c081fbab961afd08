//! An operator who comes from ContainerSSH: lines of the log, metrics and the health endpoint are where alerts look for them.

use podbay_tests::{Setup, Signal, World, finish, only_embedded, program, wait_until};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    thread,
};

/// Webhooks: each path is out of order at its first call. Of all keys only `bob`'s are unknown.
fn webhooks() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    thread::spawn(move || {
        let mut seen = BTreeSet::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (mut request, mut bytes) = (String::new(), [0; 4096]);
            while !request.ends_with('}') {
                match stream.read(&mut bytes) {
                    Ok(n) if n > 0 => request += &String::from_utf8_lossy(&bytes[..n]),
                    _ => break,
                }
            }
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, body) = if seen.insert(path.clone()) {
                ("500 later", "")
            } else if path == "/config" {
                ("200 OK", r#"{"config": {}}"#)
            } else if request.contains("\"bob\"") {
                ("200 OK", r#"{"success": false}"#)
            } else if request.contains("\"mallory\"") {
                ("404 who", "who\u{2028}{\"level\":\"emerg\"}\n\u{202e}\u{1b}[2J")
            } else {
                ("200 OK", r#"{"success": true}"#)
            };
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    url
}

fn lines(log: &Path) -> Vec<Value> {
    let said = std::fs::read_to_string(log).unwrap_or_default();
    said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Where something is served, by the line that tells.
fn addresses(log: &Path, message: &str) -> Vec<String> {
    let lines = lines(log);
    let told = lines.iter().filter(|line| line["message"] == message);
    told.map(|line| line["details"]["address"].as_str().expect("an address").to_owned()).collect()
}

fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// A line of an exposition: the name and its labels' names.
fn sample(line: &str) -> (&str, Vec<&str>) {
    let (name, labels) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap_or_default(), "}"));
    let labels = labels.split_once('}').map_or("", |(labels, _)| labels);
    let mut names: Vec<_> = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0)).collect();
    names.sort_unstable();
    (name, names)
}

/// ContainerSSH's metrics: sample, type, unit, labels.
const METRICS: [(&str, &str, &str, &[&str]); 12] = [
    ("containerssh_ssh_connections_total", "counter", "connections", &["country"]),
    ("containerssh_ssh_current_connections", "gauge", "connections", &["country"]),
    ("containerssh_ssh_successful_handshakes_total", "counter", "handshakes", &["country"]),
    ("containerssh_ssh_failed_handshakes_total", "counter", "handshakes", &["country"]),
    ("containerssh_auth_server_requests_total", "counter", "requests", &["authtype", "retry"]),
    ("containerssh_auth_server_failures_total", "counter", "failures", &["authtype", "reason", "retry", "type"]),
    ("containerssh_auth_success_total", "counter", "success", &["authtype", "country", "retry"]),
    ("containerssh_auth_failures_total", "counter", "failures", &["authtype", "country", "retry"]),
    ("containerssh_config_server_requests_total", "counter", "requests", &["retry"]),
    ("containerssh_config_server_failures_total", "counter", "failures", &["reason", "retry", "type"]),
    ("containerssh_backend_requests_total", "counter", "requests", &["backend"]),
    ("containerssh_backend_errors_total", "counter", "errors", &["backend"]),
];

/// Names of metrics in a text, without what histograms and counters put behind them.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("podbay_") || word.starts_with("containerssh_"))
        .map(|word| {
            let ends = ["_total", "_bucket", "_count", "_sum"];
            ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
        })
        .collect()
}

#[test]
fn an_operator_of_containerssh_finds_everything_again() {
    if only_embedded("it sets the pods' image") {
        return;
    }
    let (url, dir) = (webhooks(), tempfile::tempdir().expect("a directory"));
    let log = dir.path().join("containerssh.log");
    let world = World::with(Setup::Apart, "connection", |config| {
        let sections = format!(
            "
auth:
  publicKey: {{method: webhook, webhook: {{url: '{url}'}}}}
  authz: {{method: webhook, webhook: {{url: '{url}'}}}}
configserver: {{url: '{url}/config'}}
metrics: {{enable: true, listen: '127.0.0.1:0'}}
health: {{enable: true, listen: '127.0.0.1:0'}}
log: {{level: debug, format: ljson, destination: file, file: {log:?}}}
security: {{env: {{deny: [SECRET]}}}}
"
        );
        config.replacen("\ngrpc:\n", "\ngrpc:\n  adminListen: 127.0.0.1:0\n", 1) + &sections
    });
    let as_user = |user: &str, options: &[&str], command: &str| {
        let user = format!("User={user}");
        let mut all = vec!["-o", user.as_str()];
        all.extend(options);
        finish(world.ssh(&all).arg(command), b"")
    };
    as_user("ada", &["-o", "SetEnv=SECRET=x"], "exit 3").is(3, "", "");
    for user in ["bob", "mallory"] {
        let refused = as_user(user, &["-o", "NumberOfPasswordPrompts=0"], "true");
        assert_eq!(refused.status.code(), Some(255), "{user}: {refused:?}");
    }
    // A start that fails.
    let bad = finish(world.ssh(&["-s"]).arg("nosuch"), b"");
    assert!(!bad.status.success(), "{bad:?}");
    wait_until("all are gone", || {
        lines(&log).iter().filter(|line| line["message"] == "connection closed").count() >= 2
    });

    // The log: one file for three processes, and every line is one object of ContainerSSH's form.
    let told = lines(&log);
    let (mut codes, mut levels) = (BTreeSet::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for line in &told {
        let keys: Vec<_> = line.as_object().expect("an object").keys().map(String::as_str).collect();
        let mut wanted = ["timestamp", "level", "code", "message", "details"];
        wanted.sort_unstable();
        assert_eq!(keys.iter().copied().collect::<BTreeSet<_>>(), wanted.into(), "{line}");
        let (code, level) = (line["code"].as_str().expect("text"), line["level"].as_str().expect("text"));
        assert!(["debug", "info", "warning", "error"].contains(&level), "{line}");
        codes.insert(code);
        levels.entry(code.to_owned()).or_default().insert(level.to_owned());
    }
    for code in [
        "SERVICE_POOL_STARTING",
        "SERVICE_POOL_RUNNING",
        "SSH_AVAILABLE",
        "METRICS_AVAILABLE",
        "HEALTH_AVAILABLE",
        "SSH_CONNECTED",
        "SSH_DISCONNECTED",
        "SSH_HANDSHAKE_SUCCESSFUL",
        "SSH_HANDSHAKE_FAILED",
        "SSH_AUTH_SUCCESSFUL",
        "SSH_AUTH_FAILED",
        "SSH_AUTH_UNAVAILABLE",
        "SSH_NEW_CHANNEL",
        "SSH_EXIT",
        "AUTH",
        "AUTH_SUCCESSFUL",
        "AUTH_FAILED",
        "AUTH_BACKEND_ERROR",
        "CONFIG_REQUEST",
        "CONFIG_RESPONSE",
        "CONFIG_BACKEND_ERROR",
        "HTTP_CLIENT_REQUEST",
        "HTTP_CLIENT_RESPONSE",
        "SECURITY_ENV_REJECTED",
        "KUBERNETES_POD_CREATE",
        "KUBERNETES_POD_WAIT",
        "KUBERNETES_POD_REMOVE_SUCCESSFUL",
        "KUBERNETES_EXEC",
        "KUBERNETES_GUEST_AGENT_DISABLED",
    ] {
        assert!(codes.contains(code), "no {code} among {codes:?}");
    }
    assert_eq!(levels["AUTH_BACKEND_ERROR"], ["debug".to_owned(), "error".to_owned()].into());
    let login = told.iter().find(|line| line["code"] == "SSH_AUTH_SUCCESSFUL").expect("a login");
    let details = &login["details"];
    assert_eq!((&details["username"], &details["remoteAddr"]), (&"ada".into(), &"127.0.0.1".into()), "{login}");
    assert_eq!(details["connectionId"].as_str().expect("text").len(), 32);
    // What a peer says reaches the log, as text.
    let evil = |line: &&Value| line["message"].as_str().is_some_and(|text| text.contains("who\u{2028}{\"level\""));
    assert!(told.iter().any(|line| evil(&line)), "the webhook's words are lost");
    let raw = std::fs::read_to_string(&log).expect("read");
    assert!(!raw.contains(['\u{1b}', '\r', '\u{2028}', '\u{202e}']), "ends a line or steers a terminal");

    // Metrics: the frontend's where ContainerSSH's are, the backends' at theirs.
    let scraped: Vec<String> = addresses(&log, "serving metrics")
        .iter()
        .chain(&addresses(&log, "serving grpc.adminListen"))
        .map(|address| get(address, "/metrics"))
        .collect();
    assert_eq!(scraped.len(), 3);
    for exposition in &scraped {
        assert!(exposition.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"));
        assert!(exposition.ends_with("# EOF\n"));
    }
    let all = scraped.concat();
    for (name, kind, unit, labels) in METRICS {
        let family = name.strip_suffix("_total").unwrap_or(name);
        for comment in [format!("# TYPE {family} {kind}"), format!("# UNIT {family} {unit}")] {
            assert!(all.lines().any(|line| line == comment), "no {comment} in:\n{all}");
        }
        let samples: Vec<_> = all.lines().map(sample).filter(|(there, _)| *there == name).collect();
        assert!(!samples.is_empty(), "no {name} in:\n{all}");
        assert!(samples.iter().all(|(_, there)| there == labels), "{name}: {samples:?}");
    }
    for line in [
        r#"containerssh_auth_server_failures_total{authtype="pubkey",reason="AUTH_INVALID_STATUS",retry="0",type="hard"}"#,
        r#"containerssh_auth_server_failures_total{authtype="pubkey",reason="AUTH_INVALID_STATUS",retry="0",type="soft"}"#,
        r#"containerssh_auth_server_requests_total{authtype="authorization",retry="1"}"#,
        r#"containerssh_auth_success_total{authtype="authorization",retry="1",country="XX"}"#,
        r#"containerssh_auth_failures_total{authtype="pubkey",retry="0",country="XX"}"#,
        r#"containerssh_config_server_failures_total{reason="CONFIG_INVALID_STATUS_CODE",retry="0",type="soft"}"#,
        r#"containerssh_ssh_current_connections{country="XX"} 0"#,
        r#"containerssh_backend_requests_total{backend="kubernetes"}"#,
    ] {
        assert!(all.contains(line), "no {line} in:\n{all}");
    }

    // What is shipped for monitoring looks at metrics that there are.
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the project").join("deploy/monitoring");
    let there = names(&all);
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = std::fs::read_to_string(deploy.join(file)).expect(file);
        let looked_at = names(&text);
        assert!(looked_at.len() > 5, "{file}");
        let nowhere: Vec<_> = looked_at.difference(&there).collect();
        assert!(nowhere.is_empty(), "{file} looks at {nowhere:?}, which are not in:\n{all}");
    }
    serde_yaml::from_str::<Value>(&std::fs::read_to_string(deploy.join("alerts.yaml")).expect("read")).expect("YAML");
    serde_json::from_str::<Value>(&std::fs::read_to_string(deploy.join("dashboard.json")).expect("read"))
        .expect("JSON");

    // Health, on any path; and a log that is rotated.
    let health = addresses(&log, "serving health").remove(0);
    assert!(get(&health, "/any").ends_with("\"ok\""));
    let asks = |url: &str| {
        let text = std::fs::read_to_string(world.state().join("podbay.yaml")).expect("a configuration");
        let enabled = "health: {enable: true, ";
        let text = text.replace(enabled, &format!("{enabled}client: {{url: '{url}'}}, "));
        let (path, to) = (world.file("asks.yaml"), "--healthcheck");
        std::fs::write(&path, text).expect("writes");
        finish(std::process::Command::new(program("podbay-frontend")).arg("--config").arg(path).arg(to), b"")
    };
    assert_eq!(asks(&format!("http://{health}/")).status.code(), Some(0));
    // Nothing listens there.
    assert_eq!(asks("http://127.0.0.1:1/").status.code(), Some(1));
    let old = dir.path().join("containerssh.log.1");
    std::fs::rename(&log, &old).expect("moved");
    for part in ["frontend", "backend", "backend-2"] {
        world.part(part).signal(Signal::SIGHUP);
    }
    as_user("ada", &[], "exit 4").is(4, "", "");
    wait_until("the new file is written", || lines(&log).iter().any(|line| line["code"] == "SSH_AUTH_SUCCESSFUL"));
    world.ends_clean();
    let told = lines(&log);
    assert!(told.iter().any(|line| line["code"] == "SERVICE_POOL_STOPPED"));
}
