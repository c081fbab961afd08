//! `podbay-backend` with a configuration of kuberun starts, and says that it is deprecated.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_start_is_a_structured_warning() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("cert"), made.cert.pem()).expect("written");
    std::fs::write(at("key"), made.signing_key.serialize_pem()).expect("written");
    let text = format!(
        "backend: kuberun
kuberun: {{connection: {{host: 'http://127.0.0.1:1', insecure: true}}}}
grpc: {{listen: '127.0.0.1:0', tls: {{certFile: {cert:?}, keyFile: {key:?}, clientCAFile: {cert:?}}}, callers: []}}
log: {{format: ljson, level: 4}}
",
        cert = at("cert"),
        key = at("key"),
    );
    std::fs::write(at("config"), text).expect("written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_podbay-backend"))
        .args(["--config", &at("config")])
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let _running = Running(child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut wanted = vec!["KUBERUN_DEPRECATED", "KUBERUN_INSECURE"];
    let mut seen = String::new();
    while !wanted.is_empty() {
        let line =
            receiver.recv_timeout(Duration::from_mins(1)).unwrap_or_else(|_| panic!("no {wanted:?} in:\n{seen}"));
        let code = wanted.iter().position(|code| line.contains(&format!("\"code\":\"{code}\"")));
        if let Some(code) = code {
            assert!(line.contains("\"level\":\"warning\""), "{line}");
            if wanted.remove(code) == "KUBERUN_DEPRECATED" {
                let text = "You are using the kuberun backend deprecated since ContainerSSH 0.4.";
                assert!(line.contains(text) && line.contains("\"backend\":\"kubernetes\""), "{line}");
            }
        }
        seen = seen + &line + "\n";
    }
}
