//! The `Cluster` port on an API server that behaves as the real one: watches, patches and deletions.

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_through_drops_and_expired_versions() {
    let world = World::demo().await;
    let opened = world.connect(1).await;
    let pod = PodRef { namespace: opened.pod_namespace, name: opened.pod_name, uid: None };
    let mut changes = world.cluster.watch_pod(&pod).await.expect("a watch");
    let first = timeout(PATIENCE, changes.recv()).await.expect("in time");
    assert!(matches!(first, Some(PodChange::Now(_))), "{first:?}");
    for action in [Action::DropWatches, Action::ExpireVersions, Action::CutConnections, Action::ApiDown { millis: 500 }]
    {
        world.minicluster.faults().act(action).await;
    }
    world.cluster.ping().await.err();
    let until = Instant::now() + PATIENCE;
    while world.cluster.delete_pod(&pod, None).await.is_err() {
        assert!(Instant::now() < until, "the API comes back");
        sleep(Duration::from_millis(50)).await;
    }
    let gone = async {
        while let Some(change) = changes.recv().await {
            if matches!(change, PodChange::Gone(_)) {
                return;
            }
        }
        panic!("the watch ended without Gone");
    };
    timeout(PATIENCE, gone).await.expect("the end is seen");
    world.end(1).await;
}

#[tokio::test]
async fn a_pod_with_the_agent_injected_is_one_that_the_api_takes() {
    let world = World::demo().await;
    for clash in
        ["", ", initContainers: [{name: podbay-agent, image: i}], volumes: [{name: podbay-agent, emptyDir: {}}]"]
    {
        let text = format!(
            "kubernetes: {{pod: {{agentInjection: {{enabled: true, image: 'example.org/podbay-agent:1'}}, spec: {{containers: \
             [{{name: shell, image: 'podbay/demo:1'}}]{clash}}}}}}}"
        );
        let document = Document::parse("test", &text).expect("YAML");
        let settings = Settings::read(&mut document.root());
        document.finish().unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let message = v1::OpenConnectionRequest {
            connection_id: "0".repeat(32),
            owner_id: "1".repeat(32),
            user: Some(v1::User { name: "alice".into(), authenticated_name: String::new() }),
            ..v1::OpenConnectionRequest::default()
        };
        let who = OpenRequest::parse(message, CALLER).expect("a request").who;
        let pod = template::connection_pod(&settings.expect("settings").pod, &who, &std::collections::BTreeMap::new());
        let made = world.cluster.try_pod(&pod).await.expect("the API takes it").spec.expect("a spec");
        let inits = made.init_containers.expect("init containers");
        assert_eq!(inits[0].image.as_deref(), Some("example.org/podbay-agent:1"));
        let mounts = made.containers[0].volume_mounts.clone().unwrap_or_default();
        assert!(mounts.iter().any(|mount| mount.read_only == Some(true)), "{mounts:?}");
    }
}

#[tokio::test]
async fn a_pod_is_patched_and_deleted_only_as_it_was_meant() {
    let world = World::demo().await;
    world.connect(1).await;
    let found = world.cluster.list_pods("default", "").await.expect("lists").remove(0);
    let meta = &found.metadata;
    let name = meta.name.clone().expect("a name");
    let pod = PodRef { namespace: "default".into(), name, uid: meta.uid.clone() };
    let note = |value: serde_json::Value| serde_json::json!({"metadata": {"annotations": {"a.example/x": value}}});
    let notes =
        |pod: k8s_openapi::api::core::v1::Pod| pod.metadata.annotations.expect("notes").get("a.example/x").cloned();
    let changed = world.cluster.patch_pod(&pod, note("1".into())).await.expect("patched");
    assert_eq!(notes(changed).as_deref(), Some("1"));
    let other = PodRef { uid: Some("another".into()), ..pod.clone() };
    let refused = world.cluster.patch_pod(&other, note("2".into())).await.expect_err("another pod");
    assert!(matches!(refused, ClusterError::Conflict { .. } | ClusterError::NotFound { .. }), "{refused:?}");
    let refused = world.cluster.delete_pod_unchanged(&found).await.expect_err("it has changed");
    assert!(matches!(refused, ClusterError::Conflict { .. }), "{refused:?}");
    let now = world.cluster.patch_pod(&pod, note(serde_json::Value::Null)).await.expect("patched");
    assert_eq!(notes(now), None);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = world.cluster.get_pod(&pod).await.expect("there");
        match world.cluster.delete_pod_unchanged(&now).await {
            Ok(()) => break,
            // Its status moved on.
            Err(ClusterError::Conflict { .. }) => assert!(Instant::now() < deadline),
            Err(error) => panic!("{error}"),
        }
    }
    world.minicluster.shutdown().await;
}
