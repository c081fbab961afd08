//! The API server: requests in, answers out.

mod delete;
mod discovery;
mod log;
mod query;
mod read;
mod route;
mod stream;
mod table;
mod write;

use crate::{
    faults::{Action, Break, Command, Fate, FaultTable},
    kubelet::Kubelet,
    status::ApiError,
    store::Store,
};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WARNING},
};
use http_body_util::{BodyExt as _, Full, Limited, combinators::BoxBody};
use hyper::body::Incoming;
use query::Query;
use route::{Admin, Objects, Route, Target};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// A request's largest body: the real server's limit.
const MAX_BODY: usize = 3 * 1024 * 1024;

/// In place of an answer: the connection is to be cut.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut on purpose")]
pub(crate) struct Cut;

/// What is known of the connection that a request came on.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// It showed a client certificate of ours.
    pub authenticated: bool,
    /// Cancelled when the connection is to be cut.
    pub cut: CancellationToken,
}

/// Requests so far, by (verb, resource).
pub type Counts = BTreeMap<(String, String), u64>;

#[derive(Debug)]
pub(crate) struct Api {
    pub store: Arc<Store>,
    pub kubelet: Arc<Kubelet>,
    pub faults: Arc<FaultTable>,
    pub token: String,
    pub version: String,
    pub address: String,
    /// Seconds, where a pod doesn't say.
    pub grace: i64,
    pub bookmarks: Duration,
    counts: Mutex<Counts>,
    /// Connections run under this; replaced when they are cut.
    connections: Mutex<CancellationToken>,
    /// Until when new connections are closed at once.
    down: watch::Sender<Option<tokio::time::Instant>>,
    drop_watches: watch::Sender<()>,
    breaks: watch::Sender<Option<Break>>,
    /// Streams and other work that outlives a request.
    pub tasks: TaskTracker,
}

/// What the API server is told at its start.
pub(crate) struct Setup {
    pub token: String,
    pub version: String,
    pub address: String,
    pub grace: i64,
    pub bookmarks: Duration,
}

impl Api {
    pub fn new(store: Arc<Store>, kubelet: Arc<Kubelet>, faults: Arc<FaultTable>, setup: Setup) -> Arc<Self> {
        let Setup { token, version, address, grace, bookmarks } = setup;
        Arc::new(Self {
            store,
            kubelet,
            faults,
            token,
            version,
            address,
            grace,
            bookmarks,
            counts: Mutex::default(),
            connections: Mutex::default(),
            down: watch::Sender::new(None),
            drop_watches: watch::Sender::new(()),
            breaks: watch::Sender::new(None),
            tasks: TaskTracker::new(),
        })
    }

    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn connections(&self) -> MutexGuard<'_, CancellationToken> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token for a new connection; `None` while the API is down.
    pub fn admit(&self) -> Option<CancellationToken> {
        let down = self.down.borrow().is_some_and(|until| tokio::time::Instant::now() < until);
        (!down).then(|| self.connections().child_token())
    }

    pub fn cut_connections(&self) {
        std::mem::take(&mut *self.connections()).cancel();
    }

    /// Ends [`Action::ApiDown`] early.
    pub fn up(&self) {
        self.down.send_replace(None);
    }

    /// Does an action; false if there was nothing to do it to.
    pub async fn act(&self, action: Action) -> bool {
        match action {
            Action::DropWatches => {
                self.drop_watches.send_replace(());
            }
            Action::ExpireVersions => self.store.expire(),
            Action::BreakStreams { how } => {
                self.breaks.send_replace(Some(how));
            }
            Action::CutConnections => self.cut_connections(),
            Action::ApiDown { millis } => {
                let until = tokio::time::Instant::now() + Duration::from_millis(millis);
                self.down.send_replace(Some(until));
                self.cut_connections();
            }
            Action::OomKill { namespace, pod, container } => {
                return self.kubelet.oom_kill(&namespace, &pod, &container).await;
            }
            Action::Evict { namespace, pod, message } => return self.kubelet.evict(&namespace, &pod, &message),
        }
        true
    }

    /// Ends what runs, and waits for it.
    pub async fn shut_down(&self) {
        self.cut_connections();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Answers a request.
    pub async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        connection: Connection,
    ) -> Result<Response<Body>, Cut> {
        let bearer = format!("Bearer {}", self.token);
        let known = |value: &HeaderValue| value.as_bytes() == bearer.as_bytes();
        if !connection.authenticated && !request.headers().get(AUTHORIZATION).is_some_and(known) {
            return Ok(failure(&ApiError::unauthorized()));
        }
        let parsed = Route::parse(request.uri().path())
            .and_then(|route| Ok((route, Query::parse(request.uri().query().unwrap_or_default())?)));
        let (route, query) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Ok(failure(&error)),
        };
        // Taken out before the body is read, which consumes the request. Only exec and attach use it.
        let upgrade = hyper::upgrade::on(&mut request);
        let request = match read(request).await {
            Ok(request) => request,
            Err(error) => return Ok(failure(&error)),
        };
        let objects = match route {
            Route::Admin(admin) => {
                return Ok(self.admin(admin, &request).await.unwrap_or_else(|error| failure(&error)));
            }
            Route::Fixed(path) => return self.fixed(&path).await,
            Route::Objects(objects) => objects,
        };
        let verb = match objects.verb(request.method(), &query) {
            Ok(verb) => verb,
            Err(error) => return Ok(failure(&error)),
        };
        let namespace = objects.namespace.clone().unwrap_or_default();
        let name = match &objects.target {
            Target::All if verb == "create" => write::name_in(request.body()),
            _ => objects.name().to_owned(),
        };
        let lose = match self.meet_fate(verb, &objects.resource(), &namespace, &name, &connection.cut).await {
            Ok(lose) => lose,
            Err(Outcome::Cut) => return Err(Cut),
            Err(Outcome::Answer(response)) => return Ok(*response),
        };
        let response = match &objects.target {
            Target::Exec(_) | Target::Attach(_) => self.stream(&objects, &query, &request, upgrade, connection),
            Target::All | Target::One(_) | Target::Log(_) => self.objects(verb, &objects, &query, &request),
        };
        if lose { Err(Cut) } else { Ok(response.unwrap_or_else(|error| failure(&error))) }
    }

    /// Counts, waits and fails as the faults say. True: do it, then lose the answer.
    async fn meet_fate(
        &self,
        verb: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        cut: &CancellationToken,
    ) -> Result<bool, Outcome> {
        {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry((verb.to_owned(), resource.to_owned())).or_default() += 1;
        }
        let (delay, fate) = self.faults.request(verb, resource, namespace, name);
        if !delay.is_zero() {
            tokio::select! {
                () = sleep(delay) => {}
                () = cut.cancelled() => return Err(Outcome::Cut),
            }
        }
        match fate {
            Fate::Proceed => Ok(false),
            Fate::LoseAnswer => Ok(true),
            Fate::Cut => Err(Outcome::Cut),
            Fate::Refuse { error, retry_after } => {
                let mut response = failure(&error);
                if let Some(seconds) = retry_after {
                    response.headers_mut().insert(RETRY_AFTER, seconds.into());
                }
                Err(Outcome::Answer(Box::new(response)))
            }
        }
    }

    async fn fixed(&self, path: &str) -> Result<Response<Body>, Cut> {
        let first = path.split('/').next().unwrap_or_default();
        match self.meet_fate("get", first, "", "", &CancellationToken::new()).await {
            Ok(false) => {}
            Ok(true) | Err(Outcome::Cut) => return Err(Cut),
            Err(Outcome::Answer(response)) => return Ok(*response),
        }
        if matches!(path, "healthz" | "readyz" | "livez") {
            return Ok(Response::new(full("ok")));
        }
        Ok(match discovery::answer(path, &self.version, &self.address) {
            Ok(value) => json_answer(StatusCode::OK, &value),
            Err(error) => failure(&error),
        })
    }

    fn objects(
        self: &Arc<Self>,
        verb: &'static str,
        objects: &Objects,
        query: &Query,
        request: &Request<Bytes>,
    ) -> Result<Response<Body>, ApiError> {
        match (&objects.target, request.method()) {
            (Target::Log(name), &Method::GET) => self.log(objects, name, query),
            (Target::All | Target::One(_), &Method::GET) => self.read(verb, objects, query, request.headers()),
            (Target::All, &Method::POST) => self.create(objects, query, request),
            (Target::One(name), &Method::PUT) => self.update(objects, name, query, request),
            (Target::One(name), &Method::PATCH) => self.patch(objects, name, query, request),
            (Target::One(name), &Method::DELETE) => self.delete(objects, name, query, request),
            (Target::All, &Method::DELETE) => self.delete_all(objects, query, request),
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn admin(&self, admin: Admin, request: &Request<Bytes>) -> Result<Response<Body>, ApiError> {
        let value = match (admin, request.method()) {
            (Admin::Faults, &Method::POST) => {
                let command = serde_json::from_slice(request.body())
                    .map_err(|error| ApiError::bad_request(format!("not a command: {error}")))?;
                match command {
                    Command::Add(fault) => json!({ "id": self.faults.add(fault) }),
                    Command::Clear(id) => json!({ "done": self.faults.clear(id) }),
                    Command::ClearAll => {
                        self.faults.clear_all();
                        self.up();
                        json!({ "done": true })
                    }
                    Command::Do(action) => json!({ "done": self.act(action).await }),
                }
            }
            (Admin::Counts, &Method::GET) => {
                let counts = self.counts();
                counts
                    .into_iter()
                    .map(|((verb, resource), n)| json!({ "verb": verb, "resource": resource, "count": n }))
                    .collect()
            }
            (Admin::Processes, &Method::GET) => json!(self.kubelet.processes()),
            _ => return Err(ApiError::method_not_allowed()),
        };
        Ok(json_answer(StatusCode::OK, &value))
    }
}

enum Outcome {
    Cut,
    Answer(Box<Response<Body>>),
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

fn json_answer(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn failure(error: &ApiError) -> Response<Body> {
    json_answer(StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &error.status())
}

/// Adds `Warning` headers (RFC 7234 5.5), as the real server does for fields that it dropped.
fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// A request with its body.
async fn read(request: Request<Incoming>) -> Result<Request<Bytes>, ApiError> {
    let (head, body) = request.into_parts();
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(Request::from_parts(head, body.to_bytes())),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::new(413, "RequestEntityTooLarge", format!("limit is {MAX_BODY}")))
        }
        Err(error) => Err(ApiError::bad_request(format!("the request's body can't be read: {error}"))),
    }
}
