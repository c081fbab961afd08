//! Settings by connection, from a webhook.

mod world;

use async_trait::async_trait;
use podbay::v1::{self, Reason, Refusal};
use podbay_backend_core::{
    config::Settings,
    connections::{Ask, ConfigWebhook, Connections, ListRequest, OpenEvent, OpenRequest},
    fake::{Call, FakeCluster},
    handle::{KeyRing, Target},
    lifecycle::Lifecycle,
    ownership::{Leases, Reaper},
};
use podbay_runtime::{config::Document, webhook::CallMetrics};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// Answers with this, and keeps the last question.
#[derive(Debug)]
struct Webhook {
    answer: Mutex<Result<Value, String>>,
    asked: Mutex<Vec<Value>>,
}

#[async_trait]
impl Ask for Webhook {
    async fn ask(&self, question: &Value, _: &CallMetrics) -> Result<Value, String> {
        self.asked.lock().expect("a lock").push(question.clone());
        self.answer.lock().expect("a lock").clone()
    }
}

struct World {
    cluster: FakeCluster,
    connections: Connections,
    webhook: Arc<Webhook>,
    settings: Settings,
    keys: Arc<KeyRing>,
}

impl World {
    fn new(answer: Value, sensitive: bool) -> Self {
        let text = "kubernetes: {pod: {disableAgent: true, metadata: {namespace: ns}}}";
        let document = Document::parse("f", text).expect("YAML");
        let mut settings = Settings::read(&mut document.root()).expect("settings");
        document.finish().expect("no mistake");
        settings.namespaces.add(&["users".to_owned()]);
        let (cluster, tracker) = (FakeCluster::new(), TaskTracker::new());
        let lifecycle = Lifecycle::new(Arc::new(cluster.clone()), settings.timeouts, tracker);
        let leases = Leases::new(Arc::new(cluster.clone()), settings.ownership.clone());
        let keys = Arc::new(KeyRing::random().expect("random"));
        let webhook = Arc::new(Webhook { answer: Mutex::new(Ok(answer)), asked: Mutex::default() });
        let asks = ConfigWebhook::new(Arc::clone(&webhook) as Arc<dyn Ask>, sensitive);
        let connections =
            Connections::new(lifecycle, leases, Arc::new(settings.clone()), Arc::clone(&keys)).with_webhook(Some(asks));
        Self { cluster, connections, webhook, settings, keys }
    }

    async fn open(&self, connection: u8) -> Result<v1::Opened, Refusal> {
        let (sender, mut events) = mpsc::channel(64);
        self.connections.open(request(connection), sender).await?;
        while let Some(event) = events.recv().await {
            if let OpenEvent::Opened(opened) = event {
                return Ok(opened);
            }
        }
        panic!("no Opened");
    }

    fn answers(&self, answer: Result<Value, String>) {
        *self.webhook.answer.lock().expect("a lock") = answer;
    }

    async fn listed(&self) -> usize {
        self.connections.list(&ListRequest::default()).await.expect("lists").connections.len()
    }
}

fn request(connection: u8) -> OpenRequest {
    let text = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    let message = v1::OpenConnectionRequest {
        connection_id: world::id(connection),
        owner_id: world::id(1),
        user: Some(v1::User { name: "ada".into(), authenticated_name: "Ada".into() }),
        remote_address: "2001:db8::1".into(),
        remote_port: 4022,
        client_version: "SSH-2.0-x".into(),
        metadata: text("team", "red"),
        environment: text("TOKEN", "s3cret"),
        sensitive_environment: vec!["TOKEN".into()],
        ..v1::OpenConnectionRequest::default()
    };
    OpenRequest::parse(message, "frontend").expect("a request")
}

fn users() -> Value {
    json!({
        "config": {"kubernetes": {"pod": {"metadata": {"namespace": "users"}, "shellCommand": ["/bin/zsh"]}, "timeouts": {"signal": "7s"}}},
        "authenticatedUsername": "ada.lovelace", "environment": {"MORE": {"value": "1"}},
    })
}

#[tokio::test(start_paused = true)]
async fn an_answer_makes_the_pod_and_what_sessions_need_of_it_is_in_the_handle() {
    let world = World::new(users(), false);
    let opened = world.open(1).await.expect("opened");
    assert_eq!(opened.pod_namespace, "users");
    let contents = world.keys.open(&opened.handle, "frontend").expect("a handle");
    assert_eq!(
        (contents.shell.as_slice(), contents.timeouts.signal.as_secs()),
        (["/bin/zsh".to_owned()].as_slice(), 7)
    );
    assert_eq!((contents.user.name.as_str(), contents.user.authenticated.as_str()), ("ada", "ada.lovelace"));
    assert_eq!((contents.environment["TOKEN"].as_str(), contents.environment["MORE"].as_str()), ("s3cret", "1"));
    let asked = world.webhook.asked.lock().expect("a lock").clone();
    assert_eq!(
        asked,
        [json!({
            "username": "ada", "authenticatedUsername": "Ada", "remoteAddress": "[2001:db8::1]:4022", "clientVersion": "SSH-2.0-x",
            "remoteAddr": "2001:db8::1", "sessionId": world::id(1),
            "connectionId": world::id(1), "metadata": {"team": {"value": "red", "sensitive": false}},
        })]
    );
    // Found and closed where it is, though nothing but its id is known.
    assert_eq!(world.listed().await, 1);
    assert_eq!(world.connections.close(world::id(1).parse().expect("an id"), "frontend", false).await, Ok(1));
    assert_eq!(world.listed().await, 0);
    world.answers(Ok(json!({"config": {"kubernetes": {"pod": {"mode": "session"}}}})));
    let opened = world.open(2).await.expect("opened");
    let contents = world.keys.open(&opened.handle, "frontend").expect("a handle");
    assert!(matches!(contents.target, Target::Template(_)) && opened.pod_name.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nobody_becomes_a_user_whom_the_caller_may_not_act_for() {
    let world = World::new(users(), false);
    let opens = async |users: &[&str], connection: u8| {
        let users = users.iter().map(ToString::to_string).collect();
        let (events, mut received) = mpsc::channel(8);
        let open = world.connections.open(OpenRequest { users, ..request(connection) }, events);
        let (result, ()) = tokio::join!(open, async { while received.recv().await.is_some() {} });
        result
    };
    let refusal = opens(&["Ada"], 1).await.expect_err("the webhook says that she is ada.lovelace");
    assert_eq!(refusal.reason(), Reason::CallerNotAllowed, "{refusal:?}");
    assert_eq!(world.listed().await, 0);
    opens(&["Ada", "ada.lovelace"], 2).await.expect("opened");
}

#[tokio::test(start_paused = true)]
async fn dead_owners_lose_their_pods_in_every_namespace() {
    let world = World::new(users(), false);
    world.open(1).await.expect("opened");
    let (lifecycle, leases) = (world.connections.lifecycle().clone(), world.connections.leases().clone());
    let mut reaper = Reaper::new(lifecycle, leases, "ns").everywhere(&world.settings.namespaces);
    let duration = world.settings.ownership.lease_duration;
    let poll = world.settings.ownership.poll();
    let rounds = 4 * duration.as_millis() / poll.as_millis();
    for _ in 0..rounds {
        tokio::time::sleep(poll).await;
        reaper.round().await;
    }
    assert_eq!(world.listed().await, 0);
}

#[tokio::test(start_paused = true)]
async fn sensitive_entries_are_told_only_where_that_is_configured() {
    let world = World::new(json!({}), true);
    world.open(1).await.expect("opened");
    let asked = world.webhook.asked.lock().expect("a lock").clone();
    assert_eq!(asked[0]["environment"]["TOKEN"], json!({"value": "s3cret", "sensitive": true}));
}

#[tokio::test(start_paused = true)]
async fn without_a_good_answer_nothing_begins() {
    let world = World::new(json!({}), false);
    let file = |config: Value| Ok(json!({"files": {"/etc/x": {"value": "aGk="}}, "config": config}));
    for answer in [
        Err("can't be reached".to_owned()),
        Ok(json!([])),
        Ok(json!({"config": 1})),
        Ok(json!({"nonsense": true})),
        Ok(json!({"config": {"kubernetes": {"pod": {"mode": "persistent"}}}})),
        Ok(json!({"config": {"kubernetes": {"pod": {"metadata": {"namespace": "kube-system"}}}}})),
        Ok(json!({"metadata": {"a": {"value": "x".repeat(20_000)}}})),
        file(json!({})),
        file(json!({"kubernetes": {"pod": {"mode": "session"}}})),
    ] {
        world.answers(answer.clone());
        let refusal = world.open(1).await.expect_err("refused");
        assert_eq!(refusal.reason(), Reason::ConfigWebhook, "{answer:?}");
        assert!(
            !refusal.message.contains("reached") && !refusal.message.contains("kube-system"),
            "{}",
            refusal.message
        );
        assert_eq!(world.listed().await, 0, "{answer:?}");
    }
    assert_eq!(world.cluster.count(Call::CreatePod), 0);
    assert!(world.cluster.leases().is_empty(), "a lease was made");
}
