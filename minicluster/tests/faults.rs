//! Faults of the API itself.

mod world;

use futures::StreamExt as _;
use kube::{
    Api, Error,
    api::{AttachParams, ListParams, PostParams, WatchParams},
};
use podbay_minicluster::{Action, Fault, On};
use std::time::Duration;
use tokio::time::Instant;
use world::{World, condition, idle, until, within};

fn code<T>(result: kube::Result<T>) -> Option<u16> {
    match result {
        Err(Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_come_as_often_as_was_asked_and_only_where() {
    let world = World::start().await;
    world.faults().add(Fault::Error {
        on: On::request("list", "pods"),
        code: 503,
        reason: "ServiceUnavailable".into(),
        message: "later".into(),
        retry_after_seconds: Some(1),
        times: Some(2),
    });
    let list = || async { code(world.pods().list(&ListParams::default()).await) };
    assert_eq!((list().await, list().await, list().await), (Some(503), Some(503), None));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_and_admission_are_403_with_their_texts() {
    let world = World::start().await;
    let create = On::request("create", "pods");
    let quota = world.faults().add(Fault::quota(create.clone()));
    let refused = world.pods().create(&PostParams::default(), &idle("b")).await.expect_err("refused").to_string();
    assert!(refused.contains("pods \"b\" is forbidden: exceeded quota"), "{refused}");
    world.faults().clear(quota);
    world.faults().add(Fault::admission(create, "no pods on Tuesdays"));
    let refused = world.pods().create(&PostParams::default(), &idle("b")).await;
    assert!(refused.as_ref().expect_err("refused").to_string().contains("denied the request: no pods on Tuesdays"));
    assert_eq!(code(refused), Some(403));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn latency_delays_what_it_names() {
    let world = World::start().await;
    world.faults().add(Fault::Latency { on: On::request("get", "pods"), millis: 300 });
    // Others are not delayed: shown by the list's coming first.
    let began = Instant::now();
    let get = async { (world.pods().get_opt("x").await, began.elapsed()) };
    let list = async { (world.pods().list(&ListParams::default()).await, began.elapsed()) };
    let ((got, get_took), (listed, list_took)) = tokio::join!(get, list);
    assert!(got.expect("an answer").is_none() && listed.is_ok());
    assert!(get_took >= Duration::from_millis(300) && list_took < get_took, "{get_took:?} {list_took:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_has_had_its_effect_and_a_cut_one_has_not() {
    let world = World::start().await;
    let on = On::request("create", "pods");
    world.faults().add(Fault::Cut { on: on.clone(), times: Some(1) });
    let cut = world.pods().create(&PostParams::default(), &idle("p")).await;
    assert!(cut.is_err() && code(cut).is_none());
    assert!(world.pods().get_opt("p").await.expect("an answer").is_none());
    world.faults().add(Fault::LoseAnswer { on, times: Some(1) });
    let lost = world.pods().create(&PostParams::default(), &idle("p")).await;
    assert!(lost.is_err() && code(lost).is_none());
    assert!(world.pods().get_opt("p").await.expect("an answer").is_some());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_cuts_everything_and_passes_while_pods_run_on() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let pods: Api<_> = world.pods();
    let mut watch = pods.watch(&WatchParams::default(), "0").await.expect("a watch").boxed();
    within("the first event", watch.next()).await.expect("one").expect("an event");
    let exec = AttachParams::default().stdin(false).stdout(true).stderr(true);
    let mut stream = world.exec("p", &["sh", "-c", "echo up; exec sleep 1000"], &exec).await;
    stream.until_stdout("up").await;
    let processes = world.cluster.processes().len();
    assert!(world.faults().act(Action::ApiDown { millis: 600_000 }).await);
    let outcome = stream.outcome().await;
    assert!(outcome.status.is_null() && !outcome.closed);
    while let Some(Ok(_)) = within("the watch's end", watch.next()).await {}
    assert!(world.pods().list(&ListParams::default()).await.is_err());
    assert_eq!(world.cluster.processes().len(), processes);
    world.faults().clear_all();
    let pod = until("the API is back", || async { world.pods().get("p").await.ok() }).await;
    assert_eq!(condition(&pod, "Ready"), "True");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_deletion_keeps_the_object_and_not_the_processes() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    world.faults().add(Fault::SlowDelete { on: On::pod("p"), millis: 1500 });
    let began = Instant::now();
    world.delete("p", 1).await;
    until("no process is left", || async { world.cluster.processes().is_empty().then_some(()) }).await;
    let pod = world.pods().get_opt("p").await.expect("an answer").expect("still there");
    assert!(pod.metadata.deletion_timestamp.is_some());
    world.wait_gone("p").await;
    assert!(began.elapsed() >= Duration::from_millis(1500));
    world.end().await;
}
