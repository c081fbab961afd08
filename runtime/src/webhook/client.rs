//! Asking: a JSON object over, one back, within bounds.

use super::{config::Endpoint, metrics::Counted, unique::Unique};
use crate::codes;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// The largest answer.
pub const MAX_ANSWER: usize = 1024 * 1024;

/// Of what a webhook says with an error, for the log.
const EXCERPT: usize = 200;

/// Between calls: at first, and at most. Half of it is jitter.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Why a call gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No connection, no TLS, or it broke.
    #[error("can't be reached: {0}")]
    Connection(String),
    /// Not within `timeout`.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Another status than 200, with the beginning of the body.
    #[error("answered {0}{1}")]
    Status(u16, String),
    /// It wants to be asked elsewhere.
    #[error("answered {0}, a redirect, which is not followed")]
    Redirect(u16),
    /// Longer than [`MAX_ANSWER`].
    #[error("answered with more than {MAX_ANSWER} bytes")]
    TooLarge,
    /// Not the JSON that belongs here.
    #[error("answered with what is no valid answer: {0}")]
    Decode(String),
}

impl CallError {
    /// The same without the server's own words: many a framework repeats the question in them, with the password that it held.
    #[must_use]
    pub fn wordless(&self) -> Self {
        match self {
            Self::Status(status, _) => Self::Status(*status, String::new()),
            Self::Connection(_) | Self::Timeout(_) | Self::Redirect(_) | Self::TooLarge | Self::Decode(_) => {
                self.clone()
            }
        }
    }

    /// Whether the next call may go better: the server is out of order, not of another opinion.
    const fn may_pass(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Timeout(_) => true,
            Self::Status(status, _) => *status >= 500 || *status == 408 || *status == 429,
            Self::Redirect(_) | Self::TooLarge | Self::Decode(_) => false,
        }
    }
}

/// What was made of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// Itself.
    pub value: T,
    /// How many calls it took.
    pub tries: u32,
}

/// No answer, after all tries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{last} ({tries} tries)")]
pub struct GaveUp {
    /// Why the last try failed.
    pub last: CallError,
    /// How many there were.
    pub tries: u32,
}

/// Asks one webhook. Clones share everything.
///
/// Each call has a connection of its own, which is closed with it: none is left open, and a server that was replaced is found.
#[derive(Debug, Clone)]
pub struct Client(Arc<Endpoint>);

impl Client {
    /// Asks there.
    pub fn new(endpoint: Endpoint) -> Self {
        Self(Arc::new(endpoint))
    }

    /// Where.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0
    }

    /// Posts `body` to the URL with `path` behind it, and again with pauses while the server is out of order, within the endpoint's
    /// budget. `read` makes something of the answer, or says why it is none: then it is final. `failed` is told of each call that failed.
    ///
    /// Cancel safe: dropping it ends the call and all further ones.
    ///
    /// # Errors
    /// The last call's, when there is no time for another, or another would not help.
    pub async fn ask<T>(
        &self,
        path: &str,
        body: &Value,
        counted: Counted<'_>,
        read: impl Fn(Value) -> Result<T, String>,
        mut failed: impl FnMut(&CallError, u32),
    ) -> Result<Answer<T>, GaveUp> {
        let deadline = Instant::now() + self.0.budget;
        // `Value` writes without fail.
        let body = Bytes::from(body.to_string());
        let (mut tries, mut pause) = (0, PAUSES.0);
        loop {
            tries += 1;
            let bound = self.0.timeout.min(deadline.saturating_duration_since(Instant::now()));
            let began = Instant::now();
            counted.asking(tries);
            tracing::debug!(
                code = codes::HTTP_CLIENT_REQUEST,
                method = "POST",
                url = self.0.url,
                path,
                tries,
                "asking a webhook"
            );
            let answer = timeout(bound, self.call(path, Some(body.clone()))).await;
            let answer = answer
                .unwrap_or(Err(CallError::Timeout(bound)))
                .and_then(|body| serde_json::from_slice(&body).map_err(|error| CallError::Decode(error.to_string())))
                .and_then(|Unique(value)| read(value).map_err(CallError::Decode));
            counted.took(began.elapsed());
            let last = match answer {
                Ok(value) => {
                    tracing::debug!(
                        code = codes::HTTP_CLIENT_RESPONSE,
                        statusCode = 200,
                        path,
                        tries,
                        "a webhook has answered"
                    );
                    return Ok(Answer { value, tries });
                }
                Err(error) => error,
            };
            counted.failed(tries, &last, "soft");
            failed(&last, tries);
            let wait = pause.mul_f64(rand::random_range(0.5..=1.0));
            if !last.may_pass() || Instant::now() + wait >= deadline {
                counted.failed(tries, &last, "hard");
                return Err(GaveUp { last, tries });
            }
            sleep(wait).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Gets the URL, once, within `timeout`: what is there with status 200.
    ///
    /// Cancel safe: dropping it ends the call.
    ///
    /// # Errors
    /// Any other outcome.
    pub async fn get(&self) -> Result<Bytes, CallError> {
        let bound = self.0.timeout;
        timeout(bound, self.call("", None)).await.unwrap_or(Err(CallError::Timeout(bound)))
    }

    /// Posts a body, or gets where there is none.
    async fn call(&self, path: &str, body: Option<Bytes>) -> Result<Bytes, CallError> {
        let broken = |error: &dyn std::fmt::Display| CallError::Connection(error.to_string());
        let at = &*self.0;
        let stream = TcpStream::connect((at.host.as_str(), at.port)).await.map_err(|error| broken(&error))?;
        stream.set_nodelay(true).map_err(|error| broken(&error))?;
        match &at.tls {
            None => self.exchange(stream, path, body).await,
            Some((config, name)) => {
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(name.clone(), stream).await.map_err(|error| broken(&error))?;
                self.exchange(stream, path, body).await
            }
        }
    }

    async fn exchange<S>(&self, stream: S, path: &str, body: Option<Bytes>) -> Result<Bytes, CallError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error: hyper::Error| CallError::Connection(error.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let at = &*self.0;
        let host = if at.host.contains(':') {
            format!("[{}]:{}", at.host, at.port)
        } else {
            format!("{}:{}", at.host, at.port)
        };
        let below = if path.is_empty() { &at.path } else { at.path.trim_end_matches('/') };
        let target = format!("{below}{path}");
        let target = if target.is_empty() { "/" } else { &target };
        let request = match body {
            Some(_) => Request::post(target)
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json"),
            None => Request::get(target),
        };
        let request = request
            .header(header::HOST, host)
            .header(header::CONNECTION, "close")
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| CallError::Connection(error.to_string()))?;
        let answer = async move {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            if status.is_redirection() {
                return Err(CallError::Redirect(status.as_u16()));
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    CallError::TooLarge
                } else {
                    CallError::Connection(error.to_string())
                }
            })?;
            let body = body.to_bytes();
            if status == StatusCode::OK {
                return Ok(body);
            }
            let text = String::from_utf8_lossy(&body);
            let text: String = text.chars().filter(|c| !c.is_control()).take(EXCERPT).collect();
            Err(CallError::Status(status.as_u16(), if text.is_empty() { text } else { format!(": {text}") }))
        };
        let (mut answer, connection) = (pin!(answer), pin!(connection));
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            // What it has read is in the answer's hands by now.
            _ = connection => answer.await,
        }
    }
}
