//! Pods as processes: how they start, end, restart and fail, and that nothing of them is left.

mod world;

use futures::StreamExt as _;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, LogParams, Preconditions, WatchEvent, WatchParams};
use podbay_minicluster::{Action, Fault, On, faults::Pull, image::Image};
use serde_json::json;
use std::{fs, time::Duration};
use tokio::time::Instant;
use world::{World, condition, idle, is_alive, options, phase, pod_of, script, state, until, waits_for, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_program_ends_with_its_code_and_its_message() {
    let world = World::start().await;
    world.create(&script("good", "echo done")).await;
    world.create(&script("bad", "printf why >\"$PODBAY_TERMINATION_LOG\"; exit 3")).await;
    world.create(&script("killed", "kill -KILL $$$$")).await;
    let good = world.wait("good", "ended", |pod| phase(pod) == "Succeeded").await;
    let ended = state(&good, "main");
    assert_eq!(ended.pointer("/terminated/exitCode"), Some(&json!(0)));
    assert_eq!(ended.pointer("/terminated/reason"), Some(&json!("Completed")));
    assert_eq!(condition(&good, "Ready"), "False");
    let bad = state(&world.wait("bad", "ended", |pod| phase(pod) == "Failed").await, "main");
    assert_eq!(bad.pointer("/terminated/exitCode"), Some(&json!(3)));
    assert_eq!(bad.pointer("/terminated/reason"), Some(&json!("Error")));
    assert_eq!(bad.pointer("/terminated/message"), Some(&json!("why")));
    let killed = state(&world.wait("killed", "ended", |pod| phase(pod) == "Failed").await, "main");
    assert_eq!(killed.pointer("/terminated/exitCode"), Some(&json!(137)));
    assert_eq!(world.pods().logs("good", &LogParams::default()).await.expect("a log"), "done\n");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_its_own_directory_its_environment_and_what_the_spec_says() {
    let world = World::start().await;
    let pod = pod_of(
        "p",
        json!({
            "restartPolicy": "Never",
            "containers": [{
                "name": "main", "image": "podbay/demo:1", "workingDir": "/no/such/dir",
                "command": ["/bin/sh", "-c"], "args": ["echo \"$HOSTNAME|$GREETING|$(GREETING)|$APP\"; pwd; sleep 1000"],
                "env": [
                    { "name": "NAME", "value": "world" }, { "name": "GREETING", "value": "hello $(NAME)" },
                    { "name": "APP", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
                ],
            }],
        }),
    );
    world.run(&pod).await;
    world.run(&idle("q")).await;
    let log = until("a log", || async {
        world.pods().logs("p", &LogParams::default()).await.ok().filter(|log| log.lines().count() == 2)
    })
    .await;
    let (first, cwd) = log.split_once('\n').expect("two lines");
    assert_eq!(first, "p|hello world|hello world|p");
    assert!(
        cwd.trim_end().ends_with("/no/such/dir") && cwd.starts_with(world.cluster.state_dir().to_str().expect("text"))
    );
    let home = |pod: &'static str| {
        let world = &world;
        async move { world.run_in(pod, &["sh", "-c", "echo $HOME"]).await.stdout() }
    };
    assert_ne!(home("p").await, home("q").await);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_is_restarted_with_a_growing_pause() {
    let world = World::start().await;
    let mut pod = script("crash", "echo run; exit 1");
    pod.spec.as_mut().expect("a spec").restart_policy = Some("OnFailure".into());
    world.create(&pod).await;
    let waiting = world.wait("crash", "in its pause", |pod| waits_for(pod, "CrashLoopBackOff")).await;
    assert_eq!(phase(&waiting), "Running");
    let status = waiting.status.and_then(|status| status.container_statuses).expect("statuses").remove(0);
    assert!(status.restart_count >= 1);
    assert_eq!(status.last_state.and_then(|last| last.terminated).map(|ended| ended.exit_code), Some(1));
    world
        .create(&{
            let mut pod = script("once", "exit 0");
            pod.spec.as_mut().expect("a spec").restart_policy = Some("OnFailure".into());
            pod
        })
        .await;
    world.wait("once", "over", |pod| phase(pod) == "Succeeded").await;
    assert!(world.reasons("crash").await.contains(&"BackOff".into()));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_the_image_does_not_have_is_a_start_error() {
    let world = World::start().await;
    let pod = |name: &str, image: &str, command: &str| {
        pod_of(
            name,
            json!({ "restartPolicy": "Never", "containers": [{ "name": "main", "image": image, "command": [command] }] }),
        )
    };
    world.create(&pod("a", "podbay/noshell:1", "/bin/sh")).await;
    let ended = state(&world.wait("a", "failed", |pod| phase(pod) == "Failed").await, "main");
    assert_eq!(ended.pointer("/terminated/reason"), Some(&json!("StartError")));
    assert_eq!(ended.pointer("/terminated/exitCode"), Some(&json!(128)));
    let message =
        ended.pointer("/terminated/message").and_then(|message| message.as_str()).unwrap_or_default().to_owned();
    assert!(message.contains("stat /bin/sh: no such file or directory"), "{message}");
    world.create(&pod("b", "podbay/noshell:1", "true")).await;
    world.wait("b", "over", |pod| phase(pod) == "Succeeded").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_can_not_be_had_say_why() {
    let mut options = options().await;
    options.images.insert("private/app:1".into(), Image::host());
    let world = World::with(options).await;
    world.faults().add(Fault::Pull { image: "private/app:1".into(), failure: Pull::Unauthorized });
    let pod = |name: &str, image: &str, policy: &str| {
        pod_of(
            name,
            json!({ "containers": [{ "name": "main", "image": image, "imagePullPolicy": policy, "command": ["sleep", "1000"] }] }),
        )
    };
    for (name, image, policy, reason, text) in [
        ("missing", "localhost/nosuch:1", "IfNotPresent", "ErrImagePull", "localhost/nosuch:1: not found"),
        ("private", "private/app:1", "Always", "ErrImagePull", "authorization failed"),
        ("never", "localhost/nosuch:1", "Never", "ErrImageNeverPull", "is not present with pull policy of Never"),
        ("invalid", "Not A Name", "Always", "InvalidImageName", "couldn't parse image name"),
    ] {
        world.create(&pod(name, image, policy)).await;
        // The two reasons take turns; the second carries the text of the first.
        let failed = world
            .wait(name, reason, |pod| {
                waits_for(pod, reason) || reason == "ErrImagePull" && waits_for(pod, "ImagePullBackOff")
            })
            .await;
        assert!(state(&failed, "main").to_string().contains(text), "{}", state(&failed, "main"));
        assert_eq!(phase(&failed), "Pending");
    }
    world.wait("missing", "backing off", |pod| waits_for(pod, "ImagePullBackOff")).await;
    let reasons = world.reasons("missing").await;
    assert!(
        ["Scheduled", "Pulling", "Failed", "BackOff"].iter().all(|reason| reasons.contains(&(*reason).to_owned())),
        "{reasons:?}"
    );
    world.faults().clear_all();
    world.wait("private", "ready", |pod| condition(pod, "Ready") == "True").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_a_config_error() {
    let world = World::start().await;
    let env = json!([{ "name": "X", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }]);
    world
        .create(&pod_of("p", json!({ "containers": [{ "name": "main", "image": "podbay/demo:1", "env": env }] })))
        .await;
    let waiting = world.wait("p", "refused", |pod| waits_for(pod, "CreateContainerConfigError")).await;
    assert_eq!(state(&waiting, "main").pointer("/waiting/message"), Some(&json!("secret \"s\" not found")));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unschedulable_pods_and_pods_that_never_start_go_on_when_the_fault_is_cleared() {
    let world = World::start().await;
    let no_node = world.faults().add(Fault::unschedulable(On::pod("a")));
    let stuck = world.faults().add(Fault::NeverStarts { on: On::pod("b") });
    world.create(&idle("a")).await;
    world.create(&idle("b")).await;
    let pending = world.wait("a", "unschedulable", |pod| condition(pod, "PodScheduled") == "False").await;
    assert!(serde_json::to_string(&pending.status).expect("JSON").contains("0/1 nodes are available"));
    assert!(world.reasons("a").await.contains(&"FailedScheduling".into()));
    let creating = world.wait("b", "creating", |pod| condition(pod, "PodScheduled") == "True").await;
    assert!(waits_for(&creating, "ContainerCreating"));
    assert!(world.faults().clear(no_node) && world.faults().clear(stuck));
    world.wait("a", "ready", |pod| condition(pod, "Ready") == "True").await;
    world.wait("b", "ready", |pod| condition(pod, "Ready") == "True").await;
    // One without a node goes at once.
    world.faults().add(Fault::unschedulable(On::pod("c")));
    world.create(&idle("c")).await;
    world.wait("c", "unschedulable", |pod| condition(pod, "PodScheduled") == "False").await;
    world.pods().delete("c", &DeleteParams::default()).await.expect("deleted");
    assert!(world.pods().get_opt("c").await.expect("an answer").is_none());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_terminates_within_its_grace_and_says_how_it_ended() {
    let world = World::start().await;
    // Takes TERM and ends by itself.
    world.run(&script("polite", "trap 'exit 5' TERM; while :; do sleep 0.02; done")).await;
    // Takes no TERM.
    world.run(&script("deaf", "trap '' TERM; while :; do sleep 0.02; done")).await;
    let pods = world.pods();
    let mut watch = pods.watch(&WatchParams::default(), "0").await.expect("a watch").boxed();
    let began = Instant::now();
    let marked = pods.delete("polite", &DeleteParams::default().grace_period(30)).await.expect("deleted");
    assert!(marked.left().expect("the pod").metadata.deletion_timestamp.is_some());
    pods.delete("deaf", &DeleteParams::default()).await.expect("deleted");
    let mut ends = Vec::new();
    while ends.len() < 2 {
        if let WatchEvent::Deleted(pod) = within("an event", watch.next()).await.expect("more").expect("an event") {
            ends.push((pod.name_any(), state(&pod, "main").pointer("/terminated/exitCode").cloned()));
        }
    }
    assert_eq!(ends, [("polite".to_owned(), Some(json!(5))), ("deaf".to_owned(), Some(json!(137)))]);
    // The spec's grace of one second was given, and not the default of thirty.
    assert!((Duration::from_secs(1)..Duration::from_secs(20)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert!(world.cluster.processes().is_empty());
    assert!(world.reasons("deaf").await.contains(&"Killing".into()));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_deletion_can_shorten_the_grace() {
    let world = World::start().await;
    let mut pod = script("p", "trap '' TERM; while :; do sleep 0.02; done");
    pod.spec.as_mut().expect("a spec").termination_grace_period_seconds = Some(3600);
    world.run(&pod).await;
    world.pods().delete("p", &DeleteParams::default()).await.expect("deleted");
    world.wait("p", "terminating", |pod| pod.metadata.deletion_timestamp.is_some()).await;
    world.delete("p", 1).await;
    world.wait_gone("p").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_with_another_uid_is_refused_and_a_forced_one_frees_the_name_at_once() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let first = world.pods().get("p").await.expect("there").uid();
    let other = Preconditions { uid: Some("other".into()), resource_version: None };
    let refused = world.pods().delete("p", &DeleteParams::default().preconditions(other)).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 409));
    world.delete("p", 0).await;
    world.run(&idle("p")).await;
    assert_ne!(world.pods().get("p").await.expect("there").uid(), first);
    // What was killed for the first one has not taken the second one with it.
    until("the first one's processes are gone", || async {
        (world.cluster.processes().iter().filter(|process| process.supervisor).count() == 1).then_some(())
    })
    .await;
    assert!(world.run_in("p", &["true"]).await.is_success());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_over_its_active_deadline_fails() {
    let world = World::start().await;
    let mut pod = idle("p");
    pod.spec.as_mut().expect("a spec").active_deadline_seconds = Some(1);
    world.create(&pod).await;
    let failed = world.wait("p", "failed", |pod| phase(pod) == "Failed").await;
    assert_eq!(failed.status.and_then(|status| status.reason).as_deref(), Some("DeadlineExceeded"));
    assert!(world.cluster.processes().is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_out_of_memory_says_so() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let kill = |pod: &str| Action::OomKill { namespace: "default".into(), pod: pod.into(), container: "main".into() };
    assert!(world.faults().act(kill("p")).await);
    let ended = state(&world.wait("p", "failed", |pod| phase(pod) == "Failed").await, "main");
    assert_eq!(ended.pointer("/terminated/reason"), Some(&json!("OOMKilled")));
    assert_eq!(ended.pointer("/terminated/exitCode"), Some(&json!(137)));
    assert!(!world.faults().act(kill("other")).await);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_daemonised_ends_with_its_container() {
    let world = World::start().await;
    // (In a pod's command `$$` is written `$$$$`; in an exec's it is not.)
    // Two forks and a session of its own, deaf to every polite signal, with its stdio let go.
    let daemon = "(setsid sh -c 'trap \"\" TERM HUP INT; echo $$ >pid; while :; do sleep 0.02; done' </dev/null >/dev/null 2>&1 &)";
    world.run(&script("p", &format!("{}; exec sleep 1000", daemon.replace("$$", "$$$$")))).await;
    let pid = |name: &'static str| {
        let world = &world;
        async move {
            let read = until("the daemon's pid", || async {
                let said = world.run_in(name, &["sh", "-c", "cat $HOME/pid"]).await.stdout();
                said.trim().parse::<u32>().ok()
            });
            read.await
        }
    };
    let daemon_of_p = pid("p").await;
    assert!(is_alive(daemon_of_p));
    assert!(world.cluster.processes().iter().any(|process| process.pid == daemon_of_p && !process.supervisor));
    world.delete("p", 1).await;
    world.wait_gone("p").await;
    assert!(!is_alive(daemon_of_p));

    // The same when it was an exec that left it, and the container's own program that ended.
    world.run(&script("q", "while ! [ -e stop ]; do sleep 0.02; done")).await;
    assert!(world.run_in("q", &["sh", "-c", daemon]).await.is_success());
    let daemon_of_q = pid("q").await;
    assert!(world.run_in("q", &["sh", "-c", "touch $HOME/stop"]).await.is_success());
    world.wait("q", "over", |pod| phase(pod) == "Succeeded").await;
    assert!(!is_alive(daemon_of_q));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_and_drop_leave_no_process_and_no_file() {
    let world = World::start().await;
    world.run(&script("p", "trap '' TERM; while :; do sleep 0.02; done")).await;
    world.end().await;

    let world = World::start().await;
    world.run(&script("p", "trap '' TERM; while :; do sleep 0.02; done")).await;
    let processes = world.cluster.processes();
    let state = world.cluster.state_dir().to_owned();
    assert!(processes.len() >= 2);
    drop(world);
    until("all processes are gone", || async { processes.iter().all(|process| !is_alive(process.pid)).then_some(()) })
        .await;
    until("the state directory is gone", || async { (!state.exists()).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_was_there_stays_without_what_was_made_in_it() {
    let given = tempfile::tempdir().expect("a directory");
    fs::write(given.path().join("mine"), "x").expect("written");
    let mut options = options().await;
    options.state_dir = Some(given.path().to_owned());
    let world = World::with(options).await;
    world.run(&idle("p")).await;
    assert!(given.path().join("pods").exists());
    within("shutdown", world.cluster.shutdown()).await;
    let left: Vec<_> = fs::read_dir(given.path()).expect("there").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["mine"]);
}
