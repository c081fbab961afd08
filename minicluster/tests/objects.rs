//! The API's objects, through the kube client: create, get, list, watch, change, delete, and its refusals.

mod world;

use futures::StreamExt as _;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, Config, Error, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
};
use podbay_minicluster::{Action, Minicluster, Options, StartError};
use serde_json::json;
use std::time::Duration;
use tokio::net::TcpListener;
use world::{World, idle, options, pod_of, until, within};

fn status<T: std::fmt::Debug>(result: kube::Result<T>) -> Status {
    match result {
        Err(Error::Api(status)) => *status,
        other => panic!("no refusal: {other:?}"),
    }
}

fn lease(name: &str) -> Lease {
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "kind": "test" } }, "spec": { "leaseDurationSeconds": 30 },
    }))
    .expect("a lease")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_credentials_is_refused_and_a_bearer_token_is_as_good_as_a_certificate() {
    let world = World::start().await;
    let kubeconfig = Kubeconfig::from_yaml(world.cluster.kubeconfig()).expect("a kubeconfig");
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config");
    config.auth_info.client_certificate_data = None;
    config.auth_info.client_key_data = None;
    let pods = |config: Config| Api::<Pod>::default_namespaced(kube::Client::try_from(config).expect("a client"));
    let refused = status(pods(config.clone()).list(&ListParams::default()).await);
    assert_eq!((refused.code, refused.reason.as_str()), (401, "Unauthorized"));
    config.auth_info.token = Some("wrong".to_owned().into());
    assert_eq!(status(pods(config.clone()).list(&ListParams::default()).await).code, 401);
    config.auth_info.token = Some(world.cluster.bearer_token().to_owned().into());
    pods(config).list(&ListParams::default()).await.expect("accepted");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_loopback() {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
    assert!(matches!(Minicluster::start(Options::new(listener)).await, Err(StartError::NotLoopback(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_what_is_wrong() {
    let world = World::start().await;
    let pods = world.pods();
    let create = PostParams::default();

    let missing = status(pods.get("x").await);
    assert_eq!((missing.code, missing.message.as_str()), (404, "pods \"x\" not found"));
    let elsewhere = Api::<Pod>::namespaced(world.client.clone(), "nowhere");
    let missing = status(elsewhere.create(&create, &idle("x")).await);
    assert_eq!((missing.code, missing.message.as_str()), (404, "namespaces \"nowhere\" not found"));

    let empty = status(pods.create(&create, &pod_of("x", json!({ "containers": [] }))).await);
    assert_eq!((empty.code, empty.reason.as_str()), (422, "Invalid"));
    assert_eq!(empty.message, "Pod \"x\" is invalid: spec.containers: Required value");
    let mut named = idle("x");
    named.labels_mut().insert("a".into(), "no spaces".into());
    assert!(status(pods.create(&create, &named).await).message.contains("metadata.labels: Invalid value"));

    world.run(&idle("x")).await;
    let twice = status(pods.create(&create, &idle("x")).await);
    assert_eq!((twice.code, twice.reason.as_str()), (409, "AlreadyExists"));
    let other = Patch::Merge(json!({ "spec": { "restartPolicy": "Always" } }));
    assert_eq!(status(pods.patch("x", &PatchParams::default(), &other).await).code, 422);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_leaves_nothing_and_generated_names_differ() {
    let world = World::start().await;
    let pods = world.pods();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let tried = pods.create(&dry, &idle("dry")).await.expect("valid");
    assert!(tried.uid().is_some());
    assert!(pods.get_opt("dry").await.expect("an answer").is_none());
    let mut nameless = idle("x");
    nameless.metadata.name = None;
    nameless.metadata.generate_name = Some("gen-".into());
    let (a, b) = (world.create(&nameless).await.name_any(), world.create(&nameless).await.name_any());
    assert!(a.starts_with("gen-") && b.starts_with("gen-") && a != b, "{a} {b}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_selected_and_paged_from_one_moment() {
    let world = World::start().await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "default");
    for n in 0..5 {
        leases.create(&PostParams::default(), &lease(&format!("l{n}"))).await.expect("created");
    }
    let page = leases.list(&ListParams::default().limit(2)).await.expect("a page");
    assert_eq!(page.items.len(), 2);
    assert_eq!(page.metadata.remaining_item_count, Some(3));
    let token = page.metadata.continue_.expect("there is more");
    // What changes meanwhile is not in the later pages.
    leases.delete("l3", &DeleteParams::default()).await.expect("deleted");
    leases.create(&PostParams::default(), &lease("l9")).await.expect("created");
    let rest = leases.list(&ListParams::default().continue_token(&token)).await.expect("the rest");
    assert_eq!(rest.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["l2", "l3", "l4"]);

    let by_name = leases.list(&ListParams::default().fields("metadata.name=l1").labels("kind in (test)")).await;
    assert_eq!(by_name.expect("a list").items.len(), 1);
    assert_eq!(leases.list(&ListParams::default().labels("kind!=test")).await.expect("a list").items.len(), 0);

    assert!(world.faults().act(Action::ExpireVersions).await);
    let expired = status(leases.list(&ListParams::default().continue_token(&token)).await);
    assert_eq!((expired.code, expired.reason.as_str()), (410, "Expired"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_changes_only_by_its_latest_version() {
    let world = World::start().await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "default");
    let first = leases.create(&PostParams::default(), &lease("l")).await.expect("created");
    let mut mine = first.clone();
    mine.spec.get_or_insert_default().holder_identity = Some("me".into());
    let second = leases.replace("l", &PostParams::default(), &mine).await.expect("replaced");
    assert_ne!(first.resource_version(), second.resource_version());
    let late = status(leases.replace("l", &PostParams::default(), &mine).await);
    assert_eq!((late.code, late.reason.as_str()), (409, "Conflict"));

    let stale = Preconditions { resource_version: first.resource_version(), uid: None };
    let refused = status(leases.delete("l", &DeleteParams::default().preconditions(stale)).await);
    assert_eq!(refused.code, 409);
    let patch = Patch::Merge(json!({ "spec": { "holderIdentity": null } }));
    let third = leases.patch("l", &PatchParams::default(), &patch).await.expect("patched");
    assert_eq!(third.spec.and_then(|spec| spec.holder_identity), None);
    leases.delete("l", &DeleteParams::default()).await.expect("deleted");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_from_a_version_with_bookmarks_and_ends_in_410_when_that_is_forgotten() {
    let mut options = options().await;
    options.bookmarks = Duration::from_millis(100);
    let world = World::with(options).await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "default");
    let start =
        leases.list(&ListParams::default()).await.expect("a list").metadata.resource_version.expect("a version");
    let params = WatchParams::default().labels("kind=test");
    let mut watch = leases.watch(&params, &start).await.expect("a watch").boxed();

    leases.create(&PostParams::default(), &lease("a")).await.expect("created");
    let relabel = |kind: &str| Patch::Merge(json!({ "metadata": { "labels": { "kind": kind } } }));
    leases.patch("a", &PatchParams::default(), &relabel("other")).await.expect("patched");
    leases.patch("a", &PatchParams::default(), &relabel("test")).await.expect("patched");
    leases.delete("a", &DeleteParams::default()).await.expect("deleted");
    let mut seen = Vec::new();
    let mut last = 0;
    while seen.last() != Some(&"bookmark") || !seen.contains(&"deleted") {
        let event = within("an event", watch.next()).await.expect("more").expect("an event");
        let (kind, version) = match &event {
            WatchEvent::Added(lease) => ("added", lease.resource_version()),
            WatchEvent::Modified(lease) => ("modified", lease.resource_version()),
            WatchEvent::Deleted(lease) => ("deleted", lease.resource_version()),
            WatchEvent::Bookmark(bookmark) => ("bookmark", Some(bookmark.metadata.resource_version.clone())),
            WatchEvent::Error(error) => panic!("{error:?}"),
        };
        let version: u64 = version.expect("a version").parse().expect("a number");
        assert!(version >= last, "versions grow");
        last = version;
        seen.push(kind);
    }
    seen.retain(|kind| *kind != "bookmark");
    // An object that ceases to match is deleted, to this watch, and added when it matches again.
    assert_eq!(seen, ["added", "deleted", "added", "deleted"]);

    assert!(world.faults().act(Action::ExpireVersions).await);
    let error = loop {
        match within("an event", watch.next()).await.expect("more").expect("an event") {
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((error.code, error.reason.as_str()), (410, "Expired"));
    assert!(within("the end", watch.next()).await.is_none());
    let mut again = leases.watch(&WatchParams::default(), &start).await.expect("a watch").boxed();
    let first = within("an event", again.next()).await.expect("more").expect("an event");
    assert!(matches!(first, WatchEvent::Error(error) if error.code == 410));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_in_time_and_when_it_is_dropped() {
    let world = World::start().await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "default");
    let mut short = leases.watch(&WatchParams::default().timeout(1), "0").await.expect("a watch").boxed();
    let last = within("a bookmark", short.next()).await.expect("one").expect("an event");
    assert!(matches!(last, WatchEvent::Bookmark(_)));
    assert!(within("the end", short.next()).await.is_none());
    let mut long = leases.watch(&WatchParams::default(), "0").await.expect("a watch").boxed();
    assert!(world.faults().act(Action::DropWatches).await);
    assert!(within("the end", long.next()).await.is_none());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_come_and_go_with_what_is_in_them() {
    let world = World::start().await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let new: Namespace = serde_json::from_value(json!({ "metadata": { "name": "team" } })).expect("a namespace");
    namespaces.create(&PostParams::default(), &new).await.expect("created");
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "team");
    pods.create(&PostParams::default(), &idle("x")).await.expect("created");
    let all: Api<Pod> = Api::all(world.client.clone());
    assert_eq!(all.list(&ListParams::default()).await.expect("a list").items.len(), 1);
    namespaces.delete("team", &DeleteParams::default()).await.expect("deleted");
    until("the namespace is gone", || async {
        namespaces.get_opt("team").await.expect("an answer").is_none().then_some(())
    })
    .await;
    assert!(all.list(&ListParams::default()).await.expect("a list").items.is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_with_the_lease_that_owned_it() {
    let world = World::start().await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "default");
    let owner = leases.create(&PostParams::default(), &lease("owner")).await.expect("created");
    let mut owned = idle("owned");
    owned.metadata.owner_references = Some(vec![
        serde_json::from_value(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "name": "owner", "uid": owner.uid(),
        }))
        .expect("an owner"),
    ]);
    world.run(&owned).await;
    world.run(&idle("free")).await;
    leases.delete("owner", &DeleteParams::default()).await.expect("deleted");
    world.wait_gone("owned").await;
    assert!(world.pods().get_opt("free").await.expect("an answer").is_some());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_by_verb_and_resource() {
    let world = World::start().await;
    let pods = world.pods();
    for _ in 0..3 {
        pods.get_opt("x").await.expect("an answer");
    }
    pods.list(&ListParams::default()).await.expect("a list");
    let counts = world.cluster.counts();
    let count = |verb: &str, resource: &str| counts.get(&(verb.into(), resource.into())).copied().unwrap_or(0);
    assert_eq!((count("get", "pods"), count("list", "pods"), count("create", "pods")), (3, 1, 0));
    world.end().await;
}
