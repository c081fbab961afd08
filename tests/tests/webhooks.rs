//! Users whom webhooks know: authentication, then configuration, by the server of deploy/examples; and webhooks that are down, slow or lie.

use k8s_openapi::api::core::v1::Pod;
use podbay_tests::{Answered, Running, Setup, World, finish, image, image_with_agent, wait_until};
use serde_json::json;
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// "sesame", as `webhook.py --hash` writes it.
fn hash(dir: &Path) -> String {
    let script = "import sys; sys.path.insert(0, sys.argv[1]); import webhook; print(webhook.hash_password(b'sesame', b'0123456789abcdef'))";
    let done = finish(Command::new("python3").args(["-B", "-c", script]).arg(dir), b"");
    assert!(done.status.success(), "{done:?}");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the project").join("deploy/examples")
}

fn key(world: &World) -> PathBuf {
    let ssh = std::fs::read_to_string(world.ssh_config()).expect("ssh_config");
    let file = ssh.lines().find_map(|line| line.trim().strip_prefix("IdentityFile ")).expect("a key");
    PathBuf::from(file.trim_matches('"'))
}

/// As somebody, with the demo's key.
fn ssh(world: &World, user: &str, options: &[&str], command: &str) -> Answered {
    let user = format!("User={user}");
    let mut all = vec!["-o", user.as_str(), "-o", "NumberOfPasswordPrompts=1"];
    for option in options {
        all.extend(["-o", option]);
    }
    finish(world.ssh(&all).arg(command), b"")
}

/// With a password, typed by a program as OpenSSH allows it.
fn ssh_with_password(world: &World, user: &str, password: &str, command: &str) -> Answered {
    let askpass = world.file("askpass");
    std::fs::write(&askpass, format!("#!/bin/sh\necho '{password}'\n")).expect("writes");
    std::fs::set_permissions(&askpass, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("sets the mode");
    let user = format!("User={user}");
    let options = [
        "-o",
        &user,
        "-o",
        "PubkeyAuthentication=no",
        "-o",
        "BatchMode=no",
        "-o",
        "NumberOfPasswordPrompts=1",
        "-o",
        "PreferredAuthentications=password",
    ];
    finish(world.ssh(&options).arg(command).env("SSH_ASKPASS", &askpass).env("SSH_ASKPASS_REQUIRE", "force"), b"")
}

struct Server {
    running: Running,
    url: String,
    users: PathBuf,
}

fn webhook(dir: &Path) -> Server {
    let users = dir.join("users.json");
    std::fs::write(&users, "{}").expect("writes");
    let script = examples().join("webhook.py");
    let mut command = Command::new("python3");
    let mut running = Running::start(
        "webhook",
        command.arg("-B").arg(script).args(["--listen", "127.0.0.1:0", "--users"]).arg(&users),
    );
    running.says("listening on ");
    let said = running.said();
    let address = said.lines().find_map(|line| line.strip_prefix("listening on ")).expect("an address");
    let url = format!("http://{address}");
    Server { running, url, users }
}

#[test]
fn a_user_whom_webhooks_know_gets_their_own_pod() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = webhook(dir.path());
    let url = &server.url;
    let sections = |namespace: &str| {
        format!(
            "
auth:
  password: {{method: webhook, webhook: {{url: '{url}'}}}}
  publicKey: {{method: webhook, webhook: {{url: '{url}'}}}}
  authz: {{method: webhook, webhook: {{url: '{url}'}}}}
configserver: {{url: '{url}/config', namespaces: ['{namespace}']}}
"
        )
    };
    let world = World::with_namespaces(Setup::Apart, "connection+podbay", &["team-red"], |config, others| {
        config + &sections(&others[0])
    });
    let red = world.others()[0].clone();
    let public = std::fs::read_to_string(key(&world).with_extension("pub")).unwrap_or_else(|_| {
        let printed = finish(Command::new("ssh-keygen").arg("-y").arg("-f").arg(key(&world)), b"");
        String::from_utf8_lossy(&printed.stdout).into_owned()
    });
    // On the embedded cluster programs see this machine's files.
    let file = if world.real().is_some() { PathBuf::from("/tmp/greeting") } else { world.file("greeting") };
    let users = json!({
        "ada": {"keys": [public.trim()], "name": "ada.lovelace", "team": "red", "namespace": red, "image": image_with_agent(),
                "environment": {"GREETING": "hello ada"}, "token": "s3cret", "files": {file.to_str().expect("text"): "from the webhook"}},
        "bob": {"password": hash(&examples())},
        // Another image, without agent.
        "kay": {"keys": [public.trim()], "image": image(), "pod": {"disableAgent": true}},
        "eve": {"keys": [public.trim()], "locked": true},
        "gus": {"keys": [public.trim()], "namespace": "kube-system"},
    });
    std::fs::write(&server.users, users.to_string()).expect("writes");

    let answered = ssh(
        &world,
        "ada",
        &[],
        "echo $GREETING $TOKEN; cat \"$0\"".replace("\"$0\"", file.to_str().expect("text")).as_str(),
    );
    answered.is(0, "hello ada s3cret\nfrom the webhook", "");
    ssh_with_password(&world, "bob", "sesame", "echo ${GREETING-none}").is(0, "none\n", "");
    // In its own namespace, under its own name, and not in the file's.
    let mut master = Running::start("ssh", world.ssh(&["-o", "User=ada"]).arg("echo there; sleep 600"));
    master.says("there");
    // Earlier connections' pods may take a while to go.
    wait_until("hers is the only pod", || world.pods_in(&red).len() == 1);
    let pods = world.pods_in(&red);
    let image_of = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
    assert_eq!(image_of(&pods[0]), Some(image_with_agent()));
    let labels = pods[0].metadata.labels.clone().expect("labels");
    assert_eq!((labels["team"].as_str(), labels["containerssh_username"].as_str()), ("red", "ada.lovelace"));
    assert_eq!(pods[0].metadata.annotations.as_ref().expect("notes")["podbay.dev/user"], "ada");
    master.kill();
    wait_until("its pod is gone", || world.pods_in(&red).is_empty());

    let mut master = Running::start("ssh", world.ssh(&["-o", "User=kay"]).arg("echo there; exec sleep 600"));
    master.says("there");
    let usual = world.real().map_or("default", |real| &real.namespace);
    wait_until("theirs is the only pod, of their image", || {
        world.pods_in(usual).iter().map(image_of).collect::<Vec<_>>() == [Some(image())]
    });
    master.kill();
    wait_until("its pod is gone", || world.pods().is_empty());

    for (user, password) in [("bob", "wrong"), ("nobody", "sesame")] {
        let refused = ssh_with_password(&world, user, password, "true");
        assert!(refused.status.code() == Some(255) && refused.stderr.contains("Permission denied"), "{refused:?}");
    }
    let locked = ssh(&world, "eve", &[], "true");
    assert!(locked.status.code() == Some(255) && locked.stderr.contains("Permission denied"), "{locked:?}");
    let elsewhere = ssh(&world, "gus", &[], "true");
    assert!(elsewhere.stderr.contains("the configuration that was found for you can't be used"), "{elsewhere:?}");
    assert!(world.part("frontend").said().contains("login failed"));
    assert!(!world.part("frontend").said().contains("sesame"), "a password in the log");
    // The demo's own user is the file's, and no webhook is asked about it; its settings are asked for.
    world.run("echo file").is(0, "file\n", "");
    assert!(!server.running.said().contains("s3cret"));
    world.ends_clean();
    server.running.kill();
}

/// What a webhook that does not do its work answers; `None` = nothing, for ever.
type Lie = Option<Vec<u8>>;

/// Answers every call with this, and counts them.
fn liar(lie: &Arc<Mutex<Lie>>) -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (lie, asked) = (Arc::clone(lie), Arc::new(AtomicBool::new(false)));
    let seen = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let lie = lie.lock().expect("a lock").clone();
            seen.store(true, Ordering::SeqCst);
            thread::spawn(move || answer(stream, lie));
        }
    });
    (url, asked)
}

fn answer(mut stream: TcpStream, lie: Lie) {
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let _ = reader.read_exact(&mut vec![0; length]);
    match lie {
        // Until the caller gives up.
        None => drop(reader.read(&mut [0])),
        Some(answer) => drop(stream.write_all(&answer)),
    }
}

fn http(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nlocation: http://127.0.0.1:1/\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// What a user is told whose settings could not be had, and whose make no sense.
const NONE: &str = "your configuration can't be asked for at the moment";
const UNUSABLE: &str = "the configuration that was found for you can't be used";

#[test]
fn a_webhook_that_fails_gives_a_clear_refusal_and_no_pod() {
    let (auth_lie, config_lie) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let (auth, auth_asked) = liar(&auth_lie);
    let (config, config_asked) = liar(&config_lie);
    let world = World::with(Setup::Apart, "connection", |text| {
        text + &format!(
            "
auth: {{publicKey: {{method: webhook, webhook: {{url: '{auth}', timeout: 500ms, authTimeout: 2s}}}}}}
configserver: {{url: '{config}/config', timeout: 500ms, authTimeout: 2s}}
"
        )
    });
    let ok = |body: &[u8]| Some(http("200 OK", body));
    let lies: [(&str, Lie, &str); 14] = [
        ("silent", None, NONE),
        ("down", Some(http("502 Bad Gateway", b"{}")), NONE),
        ("a redirect", Some(http("302 Found", b"{}")), NONE),
        ("no right to ask", Some(http("403 Forbidden", b"{}")), NONE),
        ("made", Some(http("201 Created", b"{}")), NONE),
        ("no JSON", ok(b"<html>all is well</html>"), NONE),
        ("no HTTP", Some(b"220 mail.example.org\r\n".to_vec()), NONE),
        ("cut", Some(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"success\": true}".to_vec()), NONE),
        ("10 MiB", ok(&vec![b' '; 10 << 20]), NONE),
        ("deep", ok("{\"config\":".repeat(90_000).as_bytes()), NONE),
        ("two minds", ok(br#"{"success": true, "config": {}, "success": true, "config": {}}"#), NONE),
        ("a list", ok(b"[true]"), UNUSABLE),
        ("wrong types", ok(br#"{"success": "yes", "config": []}"#), UNUSABLE),
        (
            "unknown key",
            ok(br#"{"success": true, "config": {"kubernetes": {"pod": {"nosuch": 1}}}, "nosuch": 1}"#),
            UNUSABLE,
        ),
    ];
    for (what, lie, _) in &lies {
        let (began, seen) = (Instant::now(), &auth_asked);
        seen.store(false, Ordering::SeqCst);
        auth_lie.lock().expect("a lock").clone_from(lie);
        let refused = ssh(&world, "ada", &[], "true");
        assert!(
            refused.status.code() == Some(255) && refused.stderr.contains("Permission denied"),
            "{what}: {refused:?}"
        );
        assert!(seen.load(Ordering::SeqCst) && began.elapsed() < Duration::from_secs(30), "{what}");
    }
    *auth_lie.lock().expect("a lock") = ok(br#"{"success": true}"#);
    for (what, lie, told) in &lies {
        let began = Instant::now();
        config_asked.store(false, Ordering::SeqCst);
        config_lie.lock().expect("a lock").clone_from(lie);
        let refused = ssh(&world, "ada", &[], "true");
        assert!(refused.status.code() == Some(255) && refused.stderr.contains(told), "{what}: {refused:?}");
        assert!(config_asked.load(Ordering::SeqCst) && began.elapsed() < Duration::from_secs(30), "{what}");
        assert!(world.pods().is_empty(), "{what}: a pod");
    }
    *config_lie.lock().expect("a lock") = ok(b"{}");
    ssh(&world, "ada", &[], "echo well").is(0, "well\n", "");
    // Files need an agent that writes them; without one nothing begins.
    *config_lie.lock().expect("a lock") = ok(br#"{"files": {"/x": {"value": "aGk="}}}"#);
    let refused = ssh(&world, "ada", &[], "true");
    assert!(refused.stderr.contains("files for pods need podbay-agent"), "{refused:?}");
    let log = world.part("frontend").said();
    assert!(log.contains("AUTH_BACKEND_ERROR"), "{log}");
    world.ends_clean();
}

#[test]
fn a_config_webhook_may_choose_kuberun_and_each_connection_is_warned_of() {
    let answer = Arc::new(Mutex::new(None));
    let (url, _) = liar(&answer);
    let namespace = Arc::new(Mutex::new(String::new()));
    let world = World::with(Setup::Apart, "connection", |config| {
        let line = config.lines().find_map(|line| line.trim().strip_prefix("namespace: ")).expect("a namespace");
        *namespace.lock().expect("a lock") = line.trim_matches('"').to_owned();
        config + &format!("configserver: {{url: '{url}'}}\nlog: {{format: ljson}}\n")
    });
    let kuberun = |pod: serde_json::Value| {
        let mut pod = pod;
        pod["namespace"] = namespace.lock().expect("a lock").as_str().into();
        pod["podSpec"] = json!({"containers": [{"name": "theirs", "image": image(), "command": ["/bin/sh"]}]});
        let config = json!({"config": {"backend": "kuberun", "kuberun": {"timeout": 40_000_000_000_u64, "pod": pod}}});
        *answer.lock().expect("a lock") = Some(http("200 OK", config.to_string().as_bytes()));
    };
    let events = || {
        let said = ["backend", "backend-2"].map(|name| world.part(name).said()).concat();
        let line =
            |line: &&str| line.contains("\"code\":\"KUBERUN_DEPRECATED\"") && line.contains("\"connectionId\":\"");
        said.lines()
            .filter(line)
            .filter(|line| line.contains("You are using the kuberun backend deprecated since"))
            .count()
    };
    *answer.lock().expect("a lock") = Some(http("200 OK", b"{}"));
    world.run("echo file").is(0, "file\n", "");
    assert_eq!(events(), 0, "the file's backend is kubernetes");
    kuberun(json!({}));
    world.run("echo theirs; exit 4").is(4, "theirs\n", "");
    assert_eq!(events(), 1);
    kuberun(json!({"disableCommand": true}));
    let refused = world.run("echo no");
    assert!(refused.stderr.contains("exec request failed on channel 0"), "{refused:?}");
    finish(&mut world.ssh(&["-T"]), b"echo shell; exit 3\n").is(3, "shell\n", "");
    assert_eq!(events(), 3);
    world.ends_clean();
}
