//! `pods/exec` and `pods/attach`: the remote command protocol over WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`).
//!
//! Each message is a channel byte and data: 0 stdin, 1 stdout, 2 stderr, 3 the final Status, 4 resize, 255 close (v5).
//! The two directions run apart; the one from the client is always read, up to [`UNREAD`] bytes ahead of the program.

mod session;

use super::{
    Api, Body, Connection, Query, full,
    log::container_of,
    route::{Objects, Target},
};
use crate::{
    kinds::Kind,
    kubelet::hub::STDOUT,
    status::ApiError,
    stdio::Wanted,
    store::{Key, text},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{
        CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use session::{Job, Session};
use std::sync::Arc;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

/// Largest message from a client.
const MAX_MESSAGE: usize = 1024 * 1024;
const READ_BUFFER: usize = 32 * 1024;
/// More than one of our own messages; a message is only written when the one before has gone out.
const MAX_WRITE_BUFFER: usize = 256 * 1024;

/// The subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    V4,
    /// Channels can be closed one by one.
    V5,
}

impl Protocol {
    const ALL: [(Self, &'static str); 2] = [(Self::V5, "v5.channel.k8s.io"), (Self::V4, "v4.channel.k8s.io")];

    /// The client's first choice that we have.
    fn negotiate(headers: &HeaderMap) -> Option<(Self, &'static str)> {
        let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
        offered
            .flat_map(|value| value.split(','))
            .find_map(|offer| Self::ALL.into_iter().find(|(_, name)| *name == offer.trim()))
    }
}

impl Api {
    pub(super) fn stream(
        self: &Arc<Self>,
        objects: &Objects,
        query: &Query,
        request: &Request<Bytes>,
        upgraded: OnUpgrade,
        connection: Connection,
    ) -> Result<Response<Body>, ApiError> {
        let name = objects.name();
        let key = Key::new(Kind::Pod, objects.namespace.as_deref().unwrap_or_default(), name);
        let pod = self.store.get(&key)?;
        let container = container_of(&pod, query.get("container"))?;
        let wanted = wanted(query)?;
        let command = match objects.target {
            Target::Exec(_) => {
                let command = query.all("command");
                if command.is_empty() {
                    return Err(ApiError::bad_request("you must specify at least one command for the container"));
                }
                Some(command)
            }
            _ => None,
        };
        if text(&pod, "/spec/nodeName").is_empty() {
            return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let (protocol, response) = upgrade(request.headers())?;
        let live = self.kubelet.pod(text(&pod, "/metadata/uid")).and_then(|pod| pod.live(&container));
        let job = match (live, command) {
            (None, _) => Job::Missing(format!("container not found (\"{container}\")")),
            (Some(live), Some(command)) => Job::Exec { live, command },
            (Some(live), None) => Job::Attach { live },
        };
        let mut breaks = self.breaks.subscribe();
        breaks.mark_unchanged();
        let session = Session { job, wanted, protocol, breaks, faults: self.faults.clone() };
        self.tasks.spawn(async move {
            let work = async {
                match upgraded.await {
                    Ok(upgraded) => {
                        let config = WebSocketConfig::default()
                            .read_buffer_size(READ_BUFFER)
                            .write_buffer_size(0)
                            .max_write_buffer_size(MAX_WRITE_BUFFER)
                            .max_message_size(Some(MAX_MESSAGE))
                            .max_frame_size(Some(MAX_MESSAGE));
                        let io = TokioIo::new(upgraded);
                        session.run(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await).await;
                    }
                    Err(error) => tracing::debug!(%error, "an upgrade failed"),
                }
            };
            connection.cut.run_until_cancelled(work).await;
        });
        Ok(response)
    }
}

/// The streams that are asked for. With a terminal there is no stderr.
fn wanted(query: &Query) -> Result<Wanted, ApiError> {
    let tty = query.flag("tty");
    let wanted =
        Wanted { stdin: query.flag("stdin"), stdout: query.flag("stdout"), stderr: query.flag("stderr") && !tty, tty };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(wanted)
}

/// The answer to an upgrade request, and the protocol chosen.
fn upgrade(headers: &HeaderMap) -> Result<(Protocol, Response<Body>), ApiError> {
    let has = |name, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    if has(UPGRADE, "SPDY/3.1") {
        let message = "SPDY is not served here: use WebSocket (v5.channel.k8s.io or v4.channel.k8s.io)";
        return Err(ApiError::bad_request(message));
    }
    if !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| has(SEC_WEBSOCKET_VERSION, "13"));
    let key = key.ok_or_else(|| ApiError::bad_request("not a WebSocket (version 13) request"))?;
    let (protocol, name) = Protocol::negotiate(headers)
        .ok_or_else(|| ApiError::new(403, "Forbidden", "no WebSocket subprotocol that is served here was offered"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|error| ApiError::internal(&error.to_string()))?;
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answers = response.headers_mut();
    answers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    answers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    Ok((protocol, response))
}

/// The channel of the empty message that says that the connection stands: the lowest one that the server writes.
pub(super) fn first_channel(wanted: Wanted) -> u8 {
    match (wanted.stdout, wanted.stderr) {
        (true, _) => STDOUT,
        (false, true) => crate::kubelet::hub::STDERR,
        (false, false) => session::STATUS,
    }
}
