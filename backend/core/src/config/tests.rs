use super::*;
use crate::policy::{Mode as Rules, Rule};
use podbay_runtime::config::Document;
use std::time::Duration;

fn read(text: &str) -> Result<Settings, Vec<String>> {
    let document = Document::parse("f.yaml", text).expect("YAML");
    let settings = Settings::read(&mut document.root());
    match document.finish() {
        Ok(()) => Ok(settings.expect("settings where there is no mistake")),
        Err(mistakes) => Err(mistakes.0.iter().map(ToString::to_string).collect()),
    }
}

#[test]
fn the_least_configuration_has_containersshs_defaults() {
    let settings = read("kubernetes: {pod: {disableAgent: true}}").expect("good");
    let pod = &settings.pod;
    assert!(matches!(settings.connection, Connection::InCluster));
    assert_eq!((pod.namespace(), pod.prefix().as_str(), pod.console.as_str()), ("default", "containerssh-", "shell"));
    assert_eq!(pod.spec.containers[0].image.as_deref(), Some("containerssh/containerssh-guest-image"));
    assert_eq!(pod.idle_command, IDLE);
    assert_eq!(pod.shell_command, ["/bin/bash"]);
    assert_eq!(pod.subsystems["sftp"], "/usr/lib/openssh/sftp-server");
    assert_eq!((pod.mode, settings.timeouts), (Mode::Connection, Timeouts::default()));
    assert_eq!(settings.ownership, Ownership::new("default"));
    assert_eq!(settings.ownership.heartbeat(), Duration::from_secs(30));
}

#[test]
fn what_is_given_is_merged_by_containersshs_rules() {
    let text = "
kubernetes:
  pod:
    disableAgent: true
    metadata: {labels: {team: a}}
    spec:
      nodeSelector: {disk: ssd}
      containers:
      - image: i:1
      - {name: side, image: s}
    consoleContainerNumber: 1
    subsystems: {x: /x}
    mode: session
    shellCommand: []
  timeouts: {podStart: 5s, podStop: 0s, http: 1500000000}
ownership: {leaseDuration: 30s}
";
    let settings = read(text).expect("good");
    let pod = &settings.pod;
    assert_eq!((pod.namespace(), pod.prefix().as_str(), pod.console.as_str()), ("default", "containerssh-", "side"));
    assert_eq!((pod.spec.containers[0].name.as_str(), pod.spec.containers.len()), ("shell", 2));
    assert_eq!(pod.subsystems.keys().collect::<Vec<_>>(), ["sftp", "x"]);
    assert!(pod.shell_command.is_empty());
    let timeouts = settings.timeouts;
    assert_eq!(timeouts.pod_start, Duration::from_secs(5));
    assert_eq!(timeouts.pod_stop, Duration::from_mins(1), "0s means not set");
    assert_eq!(timeouts.http, Duration::from_millis(1500));
    assert_eq!(settings.ownership.backend_wait, Duration::from_secs(20));
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let cases = [
        (
            "kubernetes: {pod: {agentPath: agent}}",
            "f.yaml:1:31: kubernetes.pod.agentPath: \"agent\" is not an absolute",
        ),
        ("kubernetes: {pod: {agentPath: ''}}", "kubernetes.pod.agentPath: \"\" is not an absolute path"),
        ("kubernetes: {pod: {mode: session, shellCommand: []}}", "must not be empty in mode session with the agent"),
        (
            "kubernetes: {pod: {disableAgent: true, mode: x}}",
            "f.yaml:1:46: kubernetes.pod.mode: \"x\" is none of connection",
        ),
        ("kubernetes: {pod: {disableAgent: true, mode: persistent}}", "name is missing: mode persistent needs it"),
        (
            "kubernetes: {pod: {mode: persistent, metadata: {name: '{username}'}}}",
            "pod.metadata: name: {username} needs some text beside it",
        ),
        ("kubernetes: {pod: {mode: persistent, metadata: {name: A}}}", "pod.metadata: name: \"A\": pod names hold"),
        (
            "kubernetes: {pod: {mode: persistent, metadata: {name: p}, persistentIdleTimeout: 1h}}",
            "pod.persistentIdleTimeout: is only for mode persistent with createMissingPods",
        ),
        ("kubernetes: {pod: {persistentIdleTimeout: 1h}}", "persistentIdleTimeout: is only for mode persistent"),
        (
            "kubernetes: {pod: {mode: persistent, metadata: {name: p}, createMissingPods: true, idleCommand: []}}",
            "pod.idleCommand: must not be empty in mode persistent with createMissingPods",
        ),
        (
            "kubernetes: {pod: {mode: persistent, metadata: {name: p}, agentInjection: {enabled: true, image: i}}}",
            "pod.agentInjection: changes pods that we make",
        ),
        ("kubernetes: {pod: {agentInjection: {enabled: true}}}", "agentInjection.image: must name the image"),
        ("kubernetes: {pod: {agentInjection: {enabled: maybe}}}", "agentInjection.enabled: expected true or false"),
        ("kubernetes: {pod: {agentInjection: {imagePullPolicy: x}}}", "\"x\" is none of Always, IfNotPresent, Never"),
        (
            "kubernetes: {pod: {agentInjection: {resources: {limit: {}}}}}",
            "agentInjection.resources.limit: unknown key; did you mean limits?",
        ),
        (
            "kubernetes: {pod: {disableAgent: true, agentInjection: {enabled: true, image: i}}}",
            "pod.disableAgent: contradicts agentInjection.enabled",
        ),
        (
            "kubernetes: {pod: {agentPath: /a, agentInjection: {enabled: true, image: i}}}",
            "pod.agentPath: agentInjection puts the agent at /opt/podbay-agent/podbay-agent",
        ),
        (
            "kubernetes: {pod: {agentInjection: {enabled: true, image: i}, spec: {containers: [{volumeMounts: [{name: v, \
             mountPath: /run/podbay-agent}]}]}}}",
            "/run/podbay-agent is where agentInjection mounts",
        ),
        (
            "kubernetes: {pod: {disableAgent: true, consoleContainerNumber: 1}}",
            "there is no container 1: spec.containers has 1",
        ),
        ("kubernetes: {pod: {disableAgent: true, consoleContainerNumber: -1}}", "-1 is out of range"),
        ("kubernetes: {pod: {disableAgent: true, spec: {containers: [{}, {name: b}]}}}", "containers[1] has no image"),
        ("kubernetes: {pod: {disableAgent: true, spec: {containerz: [{image: x}]}}}", "kubernetes.pod.spec"),
        (
            "kubernetes: {pod: {disableAgent: true, spec: {containers: [{imag: x}]}}}",
            "kubernetes.pod.spec.containers[0].imag",
        ),
        ("kubernetes: {pod: {disableAgent: true, idleCommand: []}}", "kubernetes.pod.idleCommand: must not be empty"),
        ("kubernetes: {pod: {disableAgent: true, shellCommand: []}}", "kubernetes.pod.shellCommand: must not be empty"),
        (
            "kubernetes: {pod: {disableAgent: true, mode: session, spec: {restartPolicy: Always}}}",
            "only Never is possible",
        ),
        ("kubernetes: {pod: {disableAgent: true, metadata: {generateName: big_}}}", "pod names begin with"),
        ("kubernetes: {pod: {disableAgent: true, metadata: {namespace: My_NS}}}", "names of namespaces hold only"),
        ("kubernetes: {pod: {disableAgent: true, metadata: {uid: x}}}", "uid is set by the cluster"),
        (
            "kubernetes: {pod: {disableAgent: true, createMissingPods: true}}",
            "createMissingPods: is only for mode persistent",
        ),
        ("kubernetes: {pod: {disableAgent: true, subsystems: {x: ''}}}", "x has no program"),
        ("kubernetes: {timeouts: {podStrt: 5s}, pod: {disableAgent: true}}", "unknown key; did you mean podStart?"),
        ("kubernetes: {timeouts: {podStart: soon}, pod: {disableAgent: true}}", "not a duration"),
        (
            "kubernetes: {connection: {bearerTokenFile: /nowhere/t}, pod: {disableAgent: true}}",
            "/nowhere/t can't be read",
        ),
        ("kubernetes: {connection: {kubeconfig: k, host: h}, pod: {disableAgent: true}}", "together with kubeconfig"),
        ("kubernetes: {connection: {context: k}, pod: {disableAgent: true}}", "connection.context: needs kubeconfig"),
        ("kubernetes: {connection: {cert: x}, pod: {disableAgent: true}}", "connection.cert: needs key or keyFile"),
        ("kubernetes: {connection: {path: /x}, pod: {disableAgent: true}}", "does not end in /api"),
        ("kubernetes: {connection: {insecure: true}, pod: {disableAgent: true}}", "insecure: is not supported"),
        ("kubernetes: {connection: {timeout: 5s}, pod: {disableAgent: true}}", "kubernetes.timeouts.http bounds"),
        (
            "kubernetes: {connection: {username: u, bearerToken: t}, pod: {disableAgent: true}}",
            "connection.username: can't be used together",
        ),
        ("kubernetes: {connection: {password: p}, pod: {disableAgent: true}}", "connection.password: needs username"),
        (
            "kubernetes: {connection: {host: 'https://u:p@h'}, pod: {disableAgent: true}}",
            "connection.host: holds a user",
        ),
        ("kubernetes: {connection: {qps: -1}, pod: {disableAgent: true}}", "connection.qps: must not be negative"),
        (
            "{kubernetes: {pod: {disableAgent: true}}, ownership: {backendWait: 90s}}",
            "must be shorter than ownership.lease",
        ),
        (
            "{kubernetes: {pod: {disableAgent: true}}, ownership: {leaseDuration: 1ms}}",
            "ownership.leaseDuration: is too short",
        ),
    ];
    for (text, expected) in cases {
        let found = read(text).expect_err(text);
        assert!(found.iter().any(|mistake| mistake.contains(expected)), "{text}: {found:?}");
    }
}

/// As the stock client: files of ContainerSSH 0.3 have the CA there.
#[test]
fn a_certificate_without_key_has_no_effect_where_the_ca_is_given() {
    let text =
        "kubernetes: {connection: {host: h, path: /api/, certFile: /ca.crt, cacert: x}, pod: {disableAgent: true}}";
    let Connection::Explicit(explicit) = read(text).expect("good").connection else { panic!("not explicit") };
    assert_eq!((explicit.cert, explicit.path.as_str()), (None, "/api"));
    let found = read(&text.replace(", cacert: x", "")).expect_err("most likely the CA");
    assert!(found.iter().any(|mistake| mistake.contains("connection.certFile: needs key or keyFile")), "{found:?}");
}

#[test]
fn a_host_without_scheme_never_gets_credentials_in_clear() {
    let url = |keys: &str| {
        let text = format!("kubernetes: {{connection: {{{keys}}}, pod: {{disableAgent: true}}}}");
        match read(&text).expect("good").connection {
            Connection::Explicit(explicit) => explicit.url(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(url("host: 'h:6443'"), "http://h:6443");
    assert_eq!(url("host: 'h:6443', bearerToken: t"), "https://h:6443");
    assert_eq!(url("host: 'h:6443', cacertFile: c"), "https://h:6443");
    assert_eq!(url("host: 'http://h', bearerToken: t"), "http://h");
    assert_eq!(url("host: '', path: /k8s/api"), "https://kubernetes.default.svc/k8s");
    assert!(
        !format!("{:?}", read("kubernetes: {connection: {bearerToken: hunter2}, pod: {disableAgent: true}}"))
            .contains("hunter2")
    );
}

#[test]
fn max_sessions_is_containersshs() {
    let max = |value: &str| {
        let text = format!("kubernetes: {{pod: {{disableAgent: true}}}}\nsecurity: {{maxSessions: {value}}}");
        read(&text).map(|settings| settings.security.max_sessions().map(std::num::NonZeroU32::get))
    };
    for (value, wanted) in [("-1", None), ("0", None), ("1", Some(1)), ("4294967295", Some(u32::MAX))] {
        assert_eq!(max(value), Ok(wanted), "{value}");
    }
    for wrong in ["-2", "4294967296", "many"] {
        let told = max(wrong).expect_err(wrong);
        assert!(told.len() == 1 && told[0].starts_with("f.yaml:2:"), "{told:?}");
    }
}

#[test]
fn a_policy_is_containersshs_and_mistakes_are_told() {
    let with = |security: &str| read(&format!("kubernetes: {{pod: {{disableAgent: true}}}}\nsecurity: {{{security}}}"));
    let whole = "defaultMode: filter, forceCommand: 'x ', env: {mode: enable, allow: [A], deny: [B]}, \
                 command: {mode: filter, allow: ['ls ']}, shell: {mode: ''}, subsystem: {allow: [sftp]}, tty: {mode: disable}, \
                 signal: {mode: enable, deny: [KILL]}, forwarding: {forwardingMode: filter, x11ForwardingMode: disable}, \
                 maxSessionTime: 8h, idleTimeout: 900s";
    let security = with(whole).expect("valid").security;
    let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(security.default_mode, Some(Rules::Filter));
    assert_eq!(security.force_command, "x ");
    assert_eq!(security.env, Rule { mode: Some(Rules::Enable), allow: list(&["A"]), deny: list(&["B"]) });
    assert_eq!(security.command, Rule { mode: Some(Rules::Filter), allow: list(&["ls "]), deny: Vec::new() });
    assert_eq!((security.shell, security.tty), (None, Some(Rules::Disable)));
    assert_eq!(security.signal.deny, ["KILL"]);
    assert_eq!(security.forwarding.direct, Some(Rules::Filter));
    assert_eq!(security.max_session_time, std::time::Duration::from_hours(8));
    assert_eq!(security.idle_timeout, std::time::Duration::from_mins(15));
    for (wrong, wanted) in [
        ("tty: {mode: Disable}", "security.tty.mode: must be enable, filter or disable"),
        ("command: {deny: [rm]}", "security.command.deny: is not supported"),
        ("forwarding: {socketListenMode: enable}", "security.forwarding.socketListenMode: forwarding is not built"),
        ("forwarding: {socketListenMode: enabled}", "security.forwarding.socketListenMode: must be"),
        ("forceCommand: ' '", "security.forceCommand: is blank"),
        ("signal: {allow: [SIGTERM]}", "without SIG"),
        ("idleTimeout: 300", "security.idleTimeout: must be 0 (no limit) or at least 1s"),
        ("maxSesions: 1", "did you mean maxSessions"),
    ] {
        let told = with(wrong).expect_err(wrong).join("\n");
        assert!(told.contains(wanted), "{told}");
    }
}

#[test]
fn a_pods_keys_may_be_in_any_case_and_none_may_be_unknown() {
    // As ContainerSSH 0.3 wrote them.
    let text = "
kubernetes:
  pod:
    DisableAgent: true
    consolecontainernumber: 1
    metadata: {namespace: n, labels: {App: a}}
    spec:
      restartpolicy: Never
      containers:
      - {name: a, image: i}
      - {name: b, image: i, imagepullpolicy: Never, resources: {limits: {cpu: 1}}}
";
    let pod = read(text).expect("good").pod;
    assert_eq!((pod.console.as_str(), pod.namespace()), ("b", "n"));
    assert_eq!(pod.spec.restart_policy.as_deref(), Some("Never"));
    assert_eq!(pod.spec.containers[1].image_pull_policy.as_deref(), Some("Never"));
    let limits = pod.spec.containers[1].resources.as_ref().and_then(|resources| resources.limits.as_ref());
    assert_eq!(limits.expect("limits")["cpu"].0, "1");
    assert_eq!(pod.metadata.labels.expect("labels").keys().collect::<Vec<_>>(), ["App"]);
    let told = read(
        "kubernetes:\n  pod:\n    disableAgent: true\n    spec:\n      volums: []\n      affinity: {nodeAffinty: {}}\n",
    );
    assert_eq!(
        told.expect_err("unknown"),
        [
            "f.yaml:5:7: kubernetes.pod.spec.volums: unknown key; did you mean volumes?",
            "f.yaml:6:18: kubernetes.pod.spec.affinity.nodeAffinty: unknown key; did you mean nodeAffinity?",
        ]
    );
    // Beside the pod, case counts.
    assert!(read("kubernetes: {pod: {disableAgent: true}, Timeouts: {}}").is_err());
}

#[test]
fn an_agent_that_is_injected_is_found_where_it_is_put() {
    let pod = read("kubernetes: {pod: {agentInjection: {enabled: true, image: 'r/a:1', imagePullSecrets: [s]}}}");
    let pod = pod.expect("good").pod;
    assert_eq!(pod.agent.as_deref(), Some(crate::inject::AGENT));
    assert_eq!(pod.idle_command.first().map(String::as_str), Some(crate::inject::AGENT));
    let injection = pod.injection.expect("on");
    assert_eq!(injection, Injection { pull_secrets: vec!["s".into()], ..Injection::new("r/a:1") });
    // Said, and not on.
    let pod = read("kubernetes: {pod: {agentInjection: {image: 'r/a:1'}}}").expect("good").pod;
    assert_eq!((pod.injection, pod.agent.as_deref()), (None, Some("/usr/bin/containerssh-agent")));
    // Keys in any case, as in the rest of the pod.
    let pod = read("kubernetes: {pod: {agentinjection: {Enabled: true, image: i, resources: {limits: {cpu: 1}}}}}");
    let limits = pod.expect("good").pod.injection.expect("on").resources.limits.expect("limits");
    assert_eq!(limits["cpu"].0, "1");
}

#[test]
fn mode_persistent_names_its_pod() {
    let read = |keys: &str| {
        let pod = read(&format!("kubernetes: {{pod: {{mode: persistent, {keys}}}}}")).expect("good").pod;
        assert_eq!(pod.metadata.name, None);
        pod.persistent.expect("persistent")
    };
    // As ContainerSSH has it: the shell and the pod are there.
    let existing = read("metadata: {name: workspace}, idleCommand: []");
    assert_eq!((existing.name.of("alice").as_str(), existing.create_missing), ("workspace", false));
    let keyed = read("metadata: {name: 'shell-{username}'}, createMissingPods: true, persistentIdleTimeout: 12h");
    assert_eq!(keyed.name.of("alice"), "shell-alice");
    assert_eq!((keyed.create_missing, keyed.idle_timeout), (true, Some(Duration::from_hours(12))));
    assert_eq!(read("metadata: {name: p}, createMissingPods: true, persistentIdleTimeout: 0s").idle_timeout, None);
}

#[test]
fn a_security_profile_is_known_and_not_contradicted() {
    let pod = |keys: &str| format!("kubernetes: {{pod: {{disableAgent: true, {keys}}}}}");
    let profile = |keys: &str| read(&pod(keys)).map(|settings| settings.pod.security_profile);
    assert_eq!(profile("mode: connection"), Ok(SecurityProfile::Auto));
    assert_eq!(profile("securityProfile: none"), Ok(SecurityProfile::None));
    let spec = "spec: {hostNetwork: true, securityContext: {runAsUser: 0}}";
    assert_eq!(profile(spec), Ok(SecurityProfile::Auto), "where nobody asks for it, all is as it was");
    let mistakes = profile(&format!("securityProfile: restricted, {spec}")).expect_err("it contradicts itself");
    for words in ["hostNetwork: true", "securityContext.runAsUser: 0"] {
        let told = format!("{words}, which securityProfile: restricted forbids");
        assert!(mistakes.iter().any(|mistake| mistake.contains(&told)), "{mistakes:?}");
    }
    assert!(profile("securityProfile: baseline").expect_err("not one")[0].contains("none of auto, restricted, none"));
}
