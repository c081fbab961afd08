//! `pods/log`.

use super::{Api, Body, Query, route::Objects};
use crate::{
    kinds::Kind,
    kubelet::{FoundLog, log::Log},
    status::ApiError,
    store::{Key, text},
};
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use std::{convert::Infallible, sync::Arc};

impl Api {
    pub(super) fn log(&self, objects: &Objects, name: &str, query: &Query) -> Result<Response<Body>, ApiError> {
        let key = Key::new(Kind::Pod, objects.namespace.as_deref().unwrap_or_default(), name);
        let pod = self.store.get(&key)?;
        let container = container_of(&pod, query.get("container"))?;
        let waits = |reason: &str| {
            ApiError::bad_request(format!("container {container:?} in pod {name:?} is waiting to start: {reason}"))
        };
        let Some(handle) = self.kubelet.pod(text(&pod, "/metadata/uid")) else {
            return Err(waits("ContainerCreating"));
        };
        let log = match handle.log(&container, query.flag("previous")) {
            FoundLog::Log(log) => log,
            FoundLog::NotStarted { reason } => return Err(waits(&reason)),
            FoundLog::NoContainer => return Err(not_valid(&container, name)),
            FoundLog::NoPrevious => {
                return Err(ApiError::bad_request(format!(
                    "previous terminated container {container:?} in pod {name:?} not found"
                )));
            }
        };
        let offset = match query.number("tailLines")? {
            Some(lines) => log.tail(usize::try_from(lines).unwrap_or(usize::MAX)),
            None => 0,
        };
        let left = query.number("limitBytes")?.unwrap_or(u64::MAX);
        let reader = Reader { log, offset, left, follow: query.flag("follow") };
        let frames = stream::unfold(reader, |mut reader| async {
            reader.next().await.map(|bytes| (Ok::<_, Infallible>(Frame::data(bytes)), reader))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }
}

struct Reader {
    log: Arc<Log>,
    offset: u64,
    left: u64,
    follow: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        let mut end = self.log.subscribe();
        loop {
            // Before reading: what is written after a closed end was seen does not exist.
            let closed = end.borrow_and_update().closed;
            let (mut bytes, next) = self.log.read(self.offset);
            self.offset = next;
            bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= bytes.len() as u64;
            if !bytes.is_empty() {
                return Some(bytes);
            }
            if closed || !self.follow || self.left == 0 || end.changed().await.is_err() {
                return None;
            }
        }
    }
}

/// The container that is asked for, or the only one.
pub(super) fn container_of(pod: &Value, asked: &str) -> Result<String, ApiError> {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = containers.iter().map(|container| text(container, "/name")).collect();
    let pod = text(pod, "/metadata/name");
    match (asked, names.as_slice()) {
        ("", [only]) => Ok((*only).to_owned()),
        ("", names) => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {pod}, choose one of: [{}]",
            names.join(" ")
        ))),
        (asked, names) if names.contains(&asked) => Ok(asked.to_owned()),
        (asked, _) => Err(not_valid(asked, pod)),
    }
}

fn not_valid(container: &str, pod: &str) -> ApiError {
    ApiError::bad_request(format!("container {container} is not valid for pod {pod}"))
}
