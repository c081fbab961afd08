//! `podbay.v1.SessionService`.

use super::Service;
use crate::callers::Caller;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use podbay::v1::{self, Reason, Refusal, session_service_server::SessionService};
use podbay_backend_core::{
    config::duration_proto,
    identity::User,
    session::{Opening, Report, ToClient, first_frame},
};
use podbay_runtime::codes;
use std::{pin::Pin, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Frames under way to a client before its program's output is read no more: 8 × 32 KiB.
const FRAMES: usize = 8;

/// The most sessions on a page, but for those of its last pod.
const LISTED: u32 = 500;

/// A page ends at this size, too: clients take messages of 4 MiB, and the last pod comes on top.
const LISTED_BYTES: usize = 1 << 20;

/// Pods that are asked at once.
const LISTED_AT_ONCE: usize = 8;

/// How long a stream may be there without its Open.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl SessionService for Service {
    type RunSessionStream = Pin<Box<dyn Stream<Item = Result<v1::RunSessionResponse, Status>> + Send>>;

    async fn run_session(
        &self,
        request: Request<Streaming<v1::RunSessionRequest>>,
    ) -> Result<Response<Self::RunSessionStream>, Status> {
        let caller = self.caller(&request).and_then(|caller| self.takes_new().map(|()| caller));
        let caller = caller.map_err(|refusal| self.refused("RunSession", &refusal))?;
        let (to_client, frames) = mpsc::channel(FRAMES);
        let this = self.clone();
        // Response headers go at once; the task ends when the client drops the stream.
        self.streams.spawn(async move { this.run(caller, request.into_inner(), to_client).await });
        let frames = ReceiverStream::new(frames).map(|item| item.map_err(Refusal::into_status));
        Ok(Response::new(Box::pin(frames)))
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::DetachResponse>, Status> {
        self.counted("Detach", async {
            let caller = self.caller(&request)?;
            let v1::DetachRequest { handle, session_id, keep } = request.into_inner();
            let contents = self.connections.keys().open(&handle, caller.service())?;
            let keep = keep.map(Duration::try_from).transpose();
            let keep = keep.map_err(|_| Refusal::new(Reason::InvalidRequest, "keep is not a positive time"))?;
            let kept = self.sessions.detach(&contents, session(&session_id)?, keep).await;
            let kept = kept.map_err(|refusal| refusal.about(contents.connection))?;
            Ok(v1::DetachResponse { keep: Some(duration_proto(kept)) })
        })
        .await
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        self.counted("ListSessions", async {
            let caller = self.caller(&request)?;
            self.sessions_of(&caller, request.into_inner()).await
        })
        .await
    }

    async fn collect_exit(
        &self,
        request: Request<v1::CollectExitRequest>,
    ) -> Result<Response<v1::CollectExitResponse>, Status> {
        self.counted("CollectExit", async {
            let caller = self.caller(&request)?;
            let v1::CollectExitRequest { handle, session_id, wait } = request.into_inner();
            let contents = self.connections.keys().open(&handle, caller.service())?;
            let wait = wait.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or_default();
            let exit = self.sessions.collect_exit(&contents, session(&session_id)?, wait).await;
            Ok(v1::CollectExitResponse { exit: exit.map_err(|refusal| refusal.about(contents.connection))? })
        })
        .await
    }

    async fn ack_exit(&self, request: Request<v1::AckExitRequest>) -> Result<Response<v1::AckExitResponse>, Status> {
        self.counted("AckExit", async {
            let caller = self.caller(&request)?;
            let v1::AckExitRequest { handle, session_id } = request.into_inner();
            let contents = self.connections.keys().open(&handle, caller.service())?;
            let done = self.sessions.ack_exit(&contents, session(&session_id)?).await;
            done.map_err(|refusal| refusal.about(contents.connection))?;
            Ok(v1::AckExitResponse {})
        })
        .await
    }
}

fn session(text: &str) -> Result<podbay::SessionId, Refusal> {
    text.parse().map_err(|_| Refusal::new(Reason::InvalidRequest, "session_id must be 32 lower-case hex digits"))
}

impl Service {
    /// The sessions of a user, pod by pod until the page is full: a page ends where a pod does.
    async fn sessions_of(
        &self,
        caller: &Caller,
        request: v1::ListSessionsRequest,
    ) -> Result<v1::ListSessionsResponse, Refusal> {
        let v1::ListSessionsRequest { user, page_size, page_token } = request;
        caller.may_act_for(&User::named(user.as_str()))?;
        let most = if page_size == 0 { LISTED } else { page_size.min(LISTED) } as usize;
        let pods = self.connections.pods_of(&user, &page_token).await?;
        let bound = self.connections.lifecycle().timeouts().http;
        // One that does not answer costs its own time only.
        let asked = futures::stream::iter(pods).map(|pod| {
            let sessions = self.sessions.clone();
            async move {
                let listed = sessions.in_pod(&pod.place, Instant::now() + bound).await;
                (pod, listed)
            }
        });
        let mut asked = std::pin::pin!(asked.buffered(LISTED_AT_ONCE));
        let (mut page, mut bytes) = (v1::ListSessionsResponse::default(), 0);
        while let Some((pod, listed)) = asked.next().await {
            let Some(listed) = listed else {
                tracing::info!(pod = pod.place.pod.name, "no sessions can be listed: no podbay-agent answers");
                continue;
            };
            if listed.is_empty() {
                continue;
            }
            let handle = Bytes::from(self.connections.keys().seal(&pod.contents, caller.service())?);
            bytes += listed.len() * (handle.len() + 256);
            let connection_id = pod.marks.connection.to_string();
            page.sessions.extend(listed.into_iter().map(|session| v1::Session {
                connection_id: connection_id.clone(),
                handle: handle.clone(),
                ..session
            }));
            if page.sessions.len() >= most || bytes >= LISTED_BYTES {
                page.next_page_token = pod.place.pod.name;
                break;
            }
        }
        Ok(page)
    }

    async fn run(&self, caller: Caller, mut client: Streaming<v1::RunSessionRequest>, to_client: ToClient) {
        let started = Instant::now();
        let open = tokio::select! {
            open = self.open(&caller, &mut client) => open,
            () = to_client.closed() => return,
        };
        let (handle, opening) = match open {
            Ok(open) => open,
            Err(refusal) => {
                self.metrics.call("RunSession", podbay::code_of(refusal.reason()), started.elapsed());
                let reason = refusal.reason().as_str_name();
                tracing::info!(caller = caller.service(), reason, why = refusal.message, "session refused");
                // The client may be gone.
                let _ = to_client.send(Err(refusal)).await;
                return;
            }
        };
        let (connection, session) = (handle.connection, opening.session);
        tracing::debug!(%connection, %session, user = handle.user.name, "session opened");
        self.metrics.sessions.inc();
        let run = self.sessions.run(&handle, caller.service(), opening, client, to_client, self.stopping.clone());
        let Report { kind, refusal, bytes: [stdin, stdout, stderr] } = Box::pin(run).await;
        self.metrics.sessions.dec();
        self.metrics.session_end(kind);
        self.metrics.bytes(stdin, stdout, stderr);
        let code = match (kind, &refusal) {
            ("refused", Some(refusal)) => {
                self.metrics.session_refused(refusal.reason());
                podbay::code_of(refusal.reason())
            }
            ("gone", _) => tonic::Code::Cancelled,
            _ => tonic::Code::Ok,
        };
        self.metrics.call("RunSession", code, started.elapsed());
        let reason = refusal.as_ref().map(|refusal| refusal.reason().as_str_name());
        let why = refusal.map(|refusal| refusal.message);
        let code = (kind == "lost").then_some(codes::KUBERNETES_EXIT_CODE_FAILED);
        tracing::info!(code, %connection, %session, kind, reason, why, stdin, stdout, stderr, "session ended");
    }

    /// Reads and checks the first frame.
    async fn open(
        &self,
        caller: &Caller,
        client: &mut Streaming<v1::RunSessionRequest>,
    ) -> Result<(podbay_backend_core::handle::Contents, Opening), Refusal> {
        let violation = |text: &str| Refusal::new(Reason::ProtocolViolation, text);
        let first = match timeout(OPEN_WITHIN, client.message()).await {
            Err(_) => return Err(violation("no Open within 10 s")),
            Ok(Err(status)) => return Err(violation(&format!("the first frame can't be read: {}", status.message()))),
            Ok(Ok(None)) => return Err(violation("the stream ended without Open")),
            Ok(Ok(Some(first))) => first,
        };
        let open = first_frame(first)?;
        let handle = self.connections.keys().open(&open.handle, caller.service())?;
        let opening = Opening::parse(&open, &handle).map_err(|refusal| refusal.about(handle.connection))?;
        Ok((handle, opening))
    }
}
