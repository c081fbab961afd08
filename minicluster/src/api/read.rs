//! Get, list and watch.

use super::{Api, Body, Query, json_answer, route::Objects, table};
use crate::{
    kinds::Kind,
    selector::Selector,
    status::ApiError,
    store::{Change, Key, List, Store, text},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

impl Api {
    pub(super) fn read(
        &self,
        verb: &str,
        objects: &Objects,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        let as_table = objects.kind == Kind::Pod && table::is_wanted(headers);
        let answer = |value: &Value| json_answer(StatusCode::OK, value);
        match verb {
            "watch" => self.watch(objects, query, as_table),
            "list" => {
                let list = self.list(objects, query)?;
                Ok(answer(&if as_table { table::of_list(&list) } else { list }))
            }
            _ => {
                let key = Key::new(objects.kind, objects.namespace.as_deref().unwrap_or_default(), objects.name());
                let object = self.store.get(&key)?;
                Ok(answer(&if as_table { table::of_object(&object) } else { Value::clone(&object) }))
            }
        }
    }

    pub(super) fn selector(objects: &Objects, query: &Query) -> Result<Selector, ApiError> {
        Selector::parse(objects.kind, query.get("labelSelector"), query.get("fieldSelector"))
    }

    fn list(&self, objects: &Objects, query: &Query) -> Result<Value, ApiError> {
        let kind = objects.kind;
        let namespace = objects.namespace.as_deref();
        let selector = Self::selector(objects, query)?;
        let (List { version, items }, after) = match query.get("continue") {
            "" => (self.list_at_version(kind, namespace, query)?, None),
            token => {
                let (version, after) = decode_continue(token)?;
                (self.store.list_at(kind, namespace, version)?, Some(after))
            }
        };
        let rest = |key: &Key| match &after {
            Some((namespace, name)) => (&key.namespace, &key.name) > (namespace, name),
            None => true,
        };
        let mut matching = items.into_iter().filter(|(key, object)| rest(key) && selector.matches(object)).peekable();
        let limit = query.number("limit")?.filter(|limit| *limit > 0);
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let page: Vec<(Key, Arc<Value>)> = matching.by_ref().take(limit).collect();
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if let (true, Some((last, _)), Value::Object(metadata)) =
            (matching.peek().is_some(), page.last(), &mut metadata)
        {
            metadata.insert("continue".into(), encode_continue(version, last).into());
            if selector.is_everything() {
                metadata.insert("remainingItemCount".into(), matching.count().into());
            }
        }
        Ok(json!({
            "kind": format!("{}List", kind.kind()), "apiVersion": kind.api_version(), "metadata": metadata,
            "items": page.iter().map(|(_, object)| Value::clone(object)).collect::<Vec<_>>(),
        }))
    }

    /// `resourceVersion` and `resourceVersionMatch` of a list.
    fn list_at_version(&self, kind: Kind, namespace: Option<&str>, query: &Query) -> Result<List, ApiError> {
        let asked = query.number("resourceVersion")?.unwrap_or(0);
        if query.get("resourceVersionMatch") == "Exact" {
            return self.store.list_at(kind, namespace, asked);
        }
        let list = self.store.list(kind, namespace);
        if asked > list.version {
            let message = format!("Too large resource version: {asked}, current: {}", list.version);
            return Err(ApiError::new(504, "Timeout", message));
        }
        Ok(list)
    }

    fn watch(&self, objects: &Objects, query: &Query, as_table: bool) -> Result<Response<Body>, ApiError> {
        if query.flag("sendInitialEvents") {
            let message = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(ApiError::new(422, "Invalid", message));
        }
        let kind = objects.kind;
        let namespace = objects.namespace.clone();
        let selector = Self::selector(objects, query)?;
        let changed = self.store.subscribe();
        let mut pending = VecDeque::new();
        let asked = query.number("resourceVersion")?.unwrap_or(0);
        let version = if asked == 0 {
            let list = self.store.list(kind, namespace.as_deref());
            for (_, object) in list.items.iter().filter(|(_, object)| selector.matches(object)) {
                pending.push_back(line("ADDED", object, as_table));
            }
            list.version
        } else {
            asked
        };
        let seconds = query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
        let mut dropped = self.drop_watches.subscribe();
        dropped.mark_unchanged();
        let watch = Watch {
            store: self.store.clone(),
            kind,
            namespace,
            selector,
            as_table,
            version,
            pending,
            changed,
            dropped,
            deadline: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
            bookmarks: query.flag("allowWatchBookmarks").then_some(self.bookmarks),
            over: false,
        };
        let frames = stream::unfold(watch, |mut watch| async {
            watch.next().await.map(|line| (Ok::<_, Infallible>(Frame::data(line)), watch))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

/// A running watch. It keeps no queue of its own: it reads the store's history at its client's pace.
struct Watch {
    store: Arc<Store>,
    kind: Kind,
    namespace: Option<String>,
    selector: Selector,
    as_table: bool,
    /// All changes up to this one are in `pending` or were sent.
    version: u64,
    pending: VecDeque<Bytes>,
    changed: watch::Receiver<u64>,
    dropped: watch::Receiver<()>,
    deadline: Option<Instant>,
    bookmarks: Option<Duration>,
    over: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            self.changed.mark_unchanged();
            match self.store.changes(self.kind, self.namespace.as_deref(), self.version) {
                Ok((version, changes)) => {
                    self.version = version;
                    let lines: Vec<Bytes> = changes.iter().filter_map(|change| self.line(change)).collect();
                    self.pending.extend(lines);
                }
                Err(error) => {
                    self.over = true;
                    self.pending.push_back(line("ERROR", &error.status(), false));
                }
            }
            if self.pending.is_empty() {
                self.wait().await;
            }
        }
    }

    async fn wait(&mut self) {
        let never = Instant::now() + Duration::from_hours(24 * 365);
        let bookmark_at = self.bookmarks.map_or(never, |every| Instant::now() + every);
        tokio::select! {
            _ = self.changed.changed() => {}
            _ = self.dropped.changed() => self.over = true,
            () = sleep_until(self.deadline.unwrap_or(never)) => {
                self.over = true;
                if self.bookmarks.is_some() {
                    self.bookmark();
                }
            }
            () = sleep_until(bookmark_at) => self.bookmark(),
        }
    }

    fn bookmark(&mut self) {
        let object = json!({
            "kind": self.kind.kind(), "apiVersion": self.kind.api_version(),
            "metadata": { "resourceVersion": self.version.to_string(), "creationTimestamp": null },
        });
        self.pending.push_back(line("BOOKMARK", &object, false));
    }

    /// What a change is to this watch: an object that begins or ceases to match is added or deleted.
    fn line(&self, change: &Change) -> Option<Bytes> {
        let matches =
            |object: &Option<Arc<Value>>| object.as_ref().filter(|object| self.selector.matches(object)).cloned();
        match (matches(&change.before), matches(&change.after), &change.gone) {
            (None, Some(after), _) => Some(line("ADDED", &after, self.as_table)),
            (Some(_), Some(after), _) => Some(line("MODIFIED", &after, self.as_table)),
            (Some(_), None, Some(gone)) => Some(line("DELETED", gone, self.as_table)),
            (Some(before), None, None) => {
                let mut before = Value::clone(&before);
                if let Some(version) = before.pointer_mut("/metadata/resourceVersion") {
                    *version = change.version.to_string().into();
                }
                Some(line("DELETED", &before, self.as_table))
            }
            (None, None, _) => None,
        }
    }
}

fn line(kind: &str, object: &Value, as_table: bool) -> Bytes {
    let table = as_table.then(|| table::of_object(object));
    let mut line = json!({ "type": kind, "object": table.as_ref().unwrap_or(object) }).to_string();
    line.push('\n');
    line.into()
}

fn encode_continue(version: u64, last: &Key) -> String {
    URL_SAFE_NO_PAD.encode(json!({ "rv": version, "namespace": last.namespace, "start": last.name }).to_string())
}

fn decode_continue(token: &str) -> Result<(u64, (String, String)), ApiError> {
    let read = || {
        let token: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let field = |pointer| text(&token, pointer).to_owned();
        Some((token.get("rv")?.as_u64()?, (field("/namespace"), field("/start"))))
    };
    read().ok_or_else(|| {
        ApiError::bad_request("continue key is not valid: encoded in a way that this server does not know")
    })
}
