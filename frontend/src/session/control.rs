//! Signals and terminal sizes: requests with a deadline of their own, which no data holds up.

use super::{link::Link, open, output::Output};
use crate::backend::Terms;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use podbay::v1::{self, run_session_request::Frame};
use podbay_frontend_core::WindowSize;
use std::time::Duration;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tracing::debug;

/// Requests that wait for their answers; more wait for these.
const OUTSTANDING: usize = 32;

/// Added to the backend's own deadline, so that its answer arrives first.
const GRACE: Duration = Duration::from_secs(2);

/// What a client asks of a running program.
pub struct Controls {
    /// Names of signals.
    pub signals: mpsc::Receiver<String>,
    /// The latest size.
    pub size: watch::Receiver<Option<WindowSize>>,
    /// The size that Open told.
    pub first: Option<WindowSize>,
}

/// How a request ended.
struct Done {
    id: u64,
    /// The signal, where it was one.
    signal: Option<String>,
    result: Result<(), String>,
}

impl Controls {
    /// Passes requests on for as long as it is polled.
    pub async fn run(mut self, link: &Link, terms: &Terms, output: &Output) {
        let mut waiting: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
        let mut told = self.first;
        loop {
            let room = waiting.len() < OUTSTANDING;
            let asking = tokio::select! {
                Some(done) = waiting.next(), if !waiting.is_empty() => {
                    finished(link, output, done);
                    continue;
                }
                Some(name) = self.signals.recv(), if room => signal(link, name, terms.signal),
                size = next_size(&mut self.size, told), if room => {
                    told = Some(size);
                    resize(link, size, terms.window)
                }
            };
            waiting.push(asking);
        }
    }
}

/// The next size that differs from what was told. Cancel safe.
async fn next_size(size: &mut watch::Receiver<Option<WindowSize>>, told: Option<WindowSize>) -> WindowSize {
    let next = size.wait_for(|size| size.is_some() && *size != told).await.ok().and_then(|size| *size);
    match next {
        Some(next) => next,
        None => std::future::pending().await,
    }
}

fn signal(link: &Link, name: String, deadline: Duration) -> BoxFuture<'static, Done> {
    let wire = name.clone();
    let ask = |id| Frame::Signal(v1::Signal { id, name: wire, deadline: wire_duration(deadline) });
    let (id, answer) = link.ask(ask);
    answered(id, Some(name), answer, deadline)
}

fn resize(link: &Link, size: WindowSize, deadline: Duration) -> BoxFuture<'static, Done> {
    let ask = |id| Frame::Resize(v1::Resize { id, size: Some(open::size(size)), deadline: wire_duration(deadline) });
    let (id, answer) = link.ask(ask);
    answered(id, None, answer, deadline)
}

fn answered(
    id: u64,
    signal: Option<String>,
    answer: oneshot::Receiver<Option<v1::Refusal>>,
    deadline: Duration,
) -> BoxFuture<'static, Done> {
    async move {
        let result = match timeout(deadline + GRACE, answer).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(refusal))) => Err(refusal.message),
            Ok(Err(_)) => Err("the program has ended".to_owned()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        Done { id, signal, result }
    }
    .boxed()
}

/// A signal that was not delivered is told to the user; a size that was not is not.
fn finished(link: &Link, output: &Output, done: Done) {
    link.forget(done.id);
    match (done.signal, done.result) {
        (_, Ok(())) => {}
        (Some(signal), Err(why)) => output.note(&format!("signal {signal} was not delivered: {why}")),
        (None, Err(why)) => debug!("a new size was not taken: {why}"),
    }
}

fn wire_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
