//! `podbay.v1.ConnectionService`.

use super::Service;
use futures::{FutureExt as _, Stream, StreamExt as _, future, stream};
use podbay::{
    ConnectionId,
    v1::{self, Reason, Refusal, connection_service_server::ConnectionService, open_connection_response::Event},
};
use podbay_backend_core::connections::{Heartbeat, ListRequest, OpenEvent, OpenRequest};
use std::{pin::Pin, time::Instant};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

/// Events under way; progress is dropped while it is full.
const EVENTS: usize = 8;

#[tonic::async_trait]
impl ConnectionService for Service {
    type OpenConnectionStream = Pin<Box<dyn Stream<Item = Result<v1::OpenConnectionResponse, Status>> + Send>>;

    async fn open_connection(
        &self,
        request: Request<v1::OpenConnectionRequest>,
    ) -> Result<Response<Self::OpenConnectionStream>, Status> {
        let allowed = self.caller(&request).and_then(|caller| {
            self.takes_new()?;
            let mut request = OpenRequest::parse(request.into_inner(), caller.service())?;
            caller.may_act_for(&request.who.user)?;
            request.users = caller.users().to_vec();
            Ok(request)
        });
        let request = allowed.map_err(|refusal| self.refused("OpenConnection", &refusal))?;
        let (events, received) = mpsc::channel(EVENTS);
        let (end, ended) = oneshot::channel();
        let this = self.clone();
        // Its own task: response headers go at once, and a caller that drops the stream is seen by `events`.
        self.streams.spawn(async move {
            let started = Instant::now();
            let (connection, user) = (request.who.connection, request.who.user.name.clone());
            let result = this.connections.open(request, events).await;
            let (code, failed) = match &result {
                Ok(()) => (Code::Ok, None),
                Err(refusal) => {
                    let reason = refusal.reason().as_str_name();
                    tracing::info!(%connection, user, reason, why = refusal.message, "connection not opened");
                    (podbay::code_of(refusal.reason()), Some(refusal.reason()))
                }
            };
            this.metrics.call("OpenConnection", code, started.elapsed());
            this.metrics.pod(failed);
            if result.is_ok() {
                this.metrics.started(started.elapsed());
            }
            // The caller may be gone.
            let _ = end.send(result);
        });
        let events = ReceiverStream::new(received).map(|event| Ok(to_proto(event)));
        // The task that panicked tells nothing.
        let bug =
            || Err(Refusal::new(Reason::Internal, "the start of this connection failed; the server's log says why"));
        let last = ended.map(move |end| end.unwrap_or_else(|_| bug()).err().map(|refusal| Err(refusal.into_status())));
        let stream = events.chain(stream::once(last).filter_map(future::ready));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn close_connection(
        &self,
        request: Request<v1::CloseConnectionRequest>,
    ) -> Result<Response<v1::CloseConnectionResponse>, Status> {
        self.counted("CloseConnection", async {
            let caller = self.caller(&request)?;
            let v1::CloseConnectionRequest { connection_id: id, keep_detached } = request.into_inner();
            let pods_deleted = self.connections.close(connection_id(&id)?, caller.service(), keep_detached).await?;
            Ok(v1::CloseConnectionResponse { pods_deleted })
        })
        .await
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        self.counted("Heartbeat", async {
            let caller = self.caller(&request)?;
            let beat = Heartbeat::parse(request.into_inner(), caller.service())?;
            self.connections.heartbeat(beat).await
        })
        .await
    }

    async fn list_connections(
        &self,
        request: Request<v1::ListConnectionsRequest>,
    ) -> Result<Response<v1::ListConnectionsResponse>, Status> {
        self.counted("ListConnections", async {
            let caller = self.caller(&request)?;
            let only = (!caller.is_operator()).then(|| caller.service().to_owned());
            let list = ListRequest::parse(request.into_inner(), only)?;
            Ok(self.connections.list(&list).await?.into_proto())
        })
        .await
    }

    async fn terminate_connection(
        &self,
        request: Request<v1::TerminateConnectionRequest>,
    ) -> Result<Response<v1::TerminateConnectionResponse>, Status> {
        self.counted("TerminateConnection", async {
            let caller = self.caller(&request)?;
            caller.must_be_operator()?;
            let v1::TerminateConnectionRequest { connection_id: id, message } = request.get_ref();
            let id = connection_id(id)?;
            tracing::info!(connection = %id, caller = caller.service(), told = message, "an operator ends a connection");
            let pods_deleted = self.connections.terminate(id, message).await?;
            Ok(v1::TerminateConnectionResponse { pods_deleted })
        })
        .await
    }
}

fn connection_id(text: &str) -> Result<ConnectionId, Refusal> {
    text.parse().map_err(|_| Refusal::new(Reason::InvalidRequest, "connection_id must be 32 lower-case hex digits"))
}

fn to_proto(event: OpenEvent) -> v1::OpenConnectionResponse {
    let event = match event {
        OpenEvent::Accepted(accepted) => Event::Accepted(*accepted),
        OpenEvent::Progress(progress) => Event::Progress(progress),
        OpenEvent::Opened(opened) => Event::Opened(opened),
    };
    v1::OpenConnectionResponse { event: Some(event) }
}
