//! `backend: kuberun`: what its section becomes, and the mix-ups of the two that are caught.

use podbay_backend_core::config::{Connection, DEPRECATED_TEXT, Mode, Settings};
use podbay_runtime::config::Document;
use std::time::Duration;

type Told = Vec<String>;

/// The settings with the warnings, or the mistakes.
fn read(text: &str) -> Result<(Settings, Told), Told> {
    let document = Document::parse("f.yaml", text).expect("YAML");
    let settings = Settings::read(&mut document.root());
    let lines = |all: Vec<podbay_runtime::config::Mistake>| all.iter().map(ToString::to_string).collect();
    let warnings = lines(document.warnings());
    document.finish_with(settings).map(|settings| (settings, warnings)).map_err(|mistakes| lines(mistakes.0))
}

#[test]
fn the_smallest_has_containersshs_defaults() {
    let (settings, warnings) = read("backend: kuberun\nkuberun: {}\n").expect("good");
    let pod = &settings.pod;
    assert_eq!((pod.mode, pod.namespace(), pod.console.as_str()), (Mode::Session, "default", "shell"));
    assert_eq!(pod.spec.containers[0].image.as_deref(), Some("containerssh/containerssh-guest-image"));
    assert!(pod.shell_command.is_empty() && pod.agent.is_none());
    assert_eq!(pod.subsystems["sftp"], "/usr/lib/openssh/sftp-server");
    assert_eq!(settings.timeouts.http, Duration::from_secs(15));
    assert_eq!(settings.timeouts.signal, Duration::from_mins(1));
    assert!(settings.kuberun.is_some_and(|kuberun| !kuberun.disable_command && !kuberun.insecure));
    assert!(
        warnings[0].starts_with("f.yaml:1:10: backend: kuberun is deprecated (KUBERUN_DEPRECATED)"),
        "{warnings:?}"
    );
}

#[test]
fn every_key_goes_where_the_reference_says() {
    let text = "
backend: kuberun
kuberun:
  connection: {host: 'https://api:6443', insecure: true, timeout: 7s, qps: 2, burst: 3, bearerToken: t}
  timeout: 90000000000
  pod:
    Namespace: users
    podspec:
      containers:
      - {name: side, image: s}
      - {name: main, image: m, COMMAND: [/bin/rbash, -i], args: [x]}
      nodeselector: {disk: ssd}
      futureField: 1
    consoleContainerNumber: 1
    subsystems: {x: /x}
    disableCommand: true
    agentPath: /agent
    dsableAgent: true
";
    let (settings, warnings) = read(text).expect("good");
    let Connection::Explicit(connection) = &settings.connection else { panic!("{:?}", settings.connection) };
    assert_eq!((connection.host.as_str(), connection.qps, connection.burst), ("https://api:6443", 2.0, 3));
    assert!(connection.insecure && settings.kuberun.is_some_and(|kuberun| kuberun.insecure && kuberun.disable_command));
    assert_eq!(
        (settings.timeouts.http, settings.timeouts.pod_start),
        (Duration::from_secs(7), Duration::from_secs(90))
    );
    let pod = &settings.pod;
    assert_eq!((pod.namespace(), pod.prefix().as_str(), pod.console.as_str()), ("users", "containerssh-", "main"));
    assert_eq!(pod.shell_command, ["/bin/rbash", "-i"], "a forced command stays");
    assert_eq!(pod.subsystems.len(), 2);
    assert!(pod.agent.is_none() && pod.spec.node_selector.is_some());
    let told = warnings.join("\n");
    for wanted in [
        "f.yaml:13:7: kuberun.pod.podSpec.futureField: unknown key",
        "kuberun.pod.dsableAgent: unknown key; did you mean disableAgent?",
        "KUBERUN_INSECURE",
    ] {
        assert!(told.contains(wanted), "{wanted} is not in {told}");
    }
}

#[test]
fn disable_agent_turns_the_agent_on() {
    let text = "backend: kuberun\nkuberun: {pod: {disableAgent: true, shellCommand: [/bin/sh], agentPath: /agent}}";
    let (settings, warnings) = read(text).expect("good");
    assert_eq!(settings.pod.agent.as_deref(), Some("/agent"));
    assert!(
        warnings
            .iter()
            .any(|told| told.contains("f.yaml:2:31: kuberun.pod.disableAgent: in kuberun, true turns the agent on")),
        "{warnings:?}"
    );
    let told = read("backend: kuberun\nkuberun: {pod: {disableAgent: true}}").expect_err("no shell");
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("kuberun.pod.shellCommand: must not be empty in mode session with the agent"), "{told:?}");
}

#[test]
fn mistakes_are_told_by_kuberuns_names() {
    for (text, wanted) in [
        (
            "kuberun: {pod: {podSpec: {restartPolicy: Always}}}",
            "f.yaml:2:26: kuberun.pod.podSpec: restartPolicy \"Always\"",
        ),
        ("kuberun: {pod: {podSpec: {containers: 5}}}", "f.yaml:2:39: kuberun.pod.podSpec.containers: invalid type"),
        ("kuberun: {pod: {consoleContainerNumber: 3}}", "kuberun.pod.consoleContainerNumber: there is no container 3"),
        ("kuberun: {pod: {podSpec: {containers: [{}, {name: b}]}}}", "kuberun.pod.podSpec: containers[1] has no image"),
        ("kuberun: {connection: {hst: x}}", "f.yaml:2:24: kuberun.connection.hst: unknown key; did you mean host?"),
        ("kuberun: {connection: {cert: x}}", "kuberun.connection.cert: needs key"),
        ("kuberun: {timeouts: {}}", "kuberun.timeouts: is not supported: kuberun has one timeout for all"),
        ("kuberun: {timeout: soon}", "kuberun.timeout: not a duration"),
        ("kuberun: {podSpec: {}}", "kuberun.podSpec: is not supported: belongs into pod.podSpec"),
    ] {
        let told = read(&format!("backend: kuberun\n{text}\n")).expect_err(text);
        assert!(told.iter().any(|line| line.contains(wanted)), "{text}: {told:?}");
    }
}

#[test]
fn the_mix_ups_get_a_hint_each() {
    for (text, wanted) in [
        (
            "kubernetes: {connection: {timeout: 5s}}",
            "f.yaml:1:27: kubernetes.connection.timeout: is not supported: it is a key of kuberun; here kubernetes.timeouts.http",
        ),
        (
            "kubernetes: {connection: {insecure: true}}",
            "connection.insecure: is not supported: the API server's certificate is always checked",
        ),
        ("kubernetes: {pod: {podSpec: {}}}", "pod.podSpec: is not supported: it is kuberun's name; here it is spec"),
        (
            "kubernetes: {pod: {podSpec: {}, spec: {}}}",
            "pod.podSpec: is not supported: it is kuberun's name; here it is spec",
        ),
        ("kubernetes: {pod: {}, spec: {}}", "kubernetes.spec: is not supported: it belongs into kubernetes.pod.spec"),
        (
            "kubernetes: {pod: {namespace: n}}",
            "pod.namespace: is not supported: it is kuberun's; here it is metadata.namespace",
        ),
        ("kubernetes: {pod: {disableCommand: true}}", "security.command.mode: disable"),
        ("kubernetes: {pod: {enableAgent: true}}", "pod.enableAgent: is not supported: no version has it"),
        (
            "{kubernetes: {}, kuberun: {}}",
            "f.yaml:1:27: kuberun: kubernetes is there too, and backend does not say which",
        ),
        ("kuberun: {}", "kuberun: is there, and backend is not: give backend: kuberun, or run podbay migrate"),
        ("backend: docker", "backend: only kubernetes is built"),
        ("backend: kubernets", "backend: \"kubernets\" is no backend"),
    ] {
        let told = read(text).expect_err(text);
        assert!(told.iter().any(|line| line.contains(wanted)), "{text}: {told:?}");
    }
    for (text, wanted) in [
        (
            "backend: kubernetes\nkubernetes: {}\nkuberun: {anything: goes}",
            "kuberun: is not used: backend is kubernetes",
        ),
        ("backend: kuberun\nkubernetes: {anything: goes}\nkuberun: {}", "kubernetes: is not used: backend is kuberun"),
        (
            "kubernetes: {pod: {spec: {containers: [{image: 'ubuntu:24.04'}]}}}",
            "the image ubuntu:24.04 has no guest agent",
        ),
        ("backend: kuberun\nkuberun: {pod: {spec: {}}}", "kuberun.pod.spec: is ignored: kuberun calls it podSpec"),
        ("backend: kuberun\nkuberun: {pod: {enableAgent: true}}", "kuberun.pod.enableAgent: is ignored"),
    ] {
        let (_, warnings) = read(text).expect(text);
        assert!(warnings.iter().any(|line| line.contains(wanted)), "{text}: {warnings:?}");
    }
    for good in [
        "kubernetes: {pod: {spec: {containers: [{image: 'registry.example/ubuntu:1'}]}}}",
        "kubernetes: {pod: {disableAgent: true, spec: {containers: [{image: ubuntu}]}}}",
    ] {
        assert_eq!(read(good).expect("good").1, Told::new(), "{good}");
    }
}

#[test]
fn the_warning_is_containersshs_own() {
    assert_eq!(
        DEPRECATED_TEXT,
        "You are using the kuberun backend deprecated since ContainerSSH 0.4. This backend will be removed in the future. Please switch to the new docker backend as soon as possible. See https://containerssh.io/deprecations/kuberun for details."
    );
}

#[test]
fn json_has_lines_and_columns_too() {
    let kuberun = "{\n\t\"backend\": \"kuberun\",\n\t\"kuberun\": {\n\t\t\"pod\": {\"podSpec\": {\"containers\": [{\"image\": []}]}},\n\t\t\"timeot\": 1\n\t}\n}\n";
    let kubernetes = "{\"kubernetes\": {\"pod\": {\"disableAgent\": true, \"podSpec\": {}, \"mode\": \"x\"}}}";
    for (text, wanted) in [
        (kuberun, "f.yaml:4:48: kuberun.pod.podSpec.containers[0].image: invalid type"),
        (kuberun, "f.yaml:5:3: kuberun.timeot: unknown key; did you mean timeout?"),
        (kubernetes, "f.yaml:1:47: kubernetes.pod.podSpec: is not supported: it is kuberun's name; here it is spec"),
        (kubernetes, "f.yaml:1:70: kubernetes.pod.mode: \"x\" is none of connection, session, persistent"),
    ] {
        let told = read(text).expect_err(text);
        assert!(told.len() == 2 && told.iter().any(|line| line.starts_with(wanted)), "{wanted}: {told:?}");
    }
    // Whole nanoseconds, as ContainerSSH's JSON has durations.
    let good =
        "{\"backend\": \"kuberun\", \"kuberun\": {\"timeout\": 5000000000, \"connection\": {\"timeout\": 7000000000}}}";
    let timeouts = read(good).expect("good").0.timeouts;
    assert_eq!((timeouts.pod_start.as_secs(), timeouts.http.as_secs()), (5, 7));
}
