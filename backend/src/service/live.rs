//! The services as the configuration of the moment has them. A call is served to its end by what counted when it came.

use super::Service;
use arc_swap::ArcSwap;
use podbay::v1::{self, connection_service_server::ConnectionService, session_service_server::SessionService};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// The service of the moment. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Live(Arc<ArcSwap<Service>>);

impl Live {
    pub(crate) fn new(service: Service) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(service)))
    }

    pub(crate) fn now(&self) -> Arc<Service> {
        self.0.load_full()
    }

    /// For calls that come from now on.
    pub(crate) fn set(&self, service: Service) {
        self.0.store(Arc::new(service));
    }
}

#[tonic::async_trait]
impl ConnectionService for Live {
    type OpenConnectionStream = <Service as ConnectionService>::OpenConnectionStream;

    async fn open_connection(
        &self,
        request: Request<v1::OpenConnectionRequest>,
    ) -> Result<Response<Self::OpenConnectionStream>, Status> {
        self.now().open_connection(request).await
    }

    async fn close_connection(
        &self,
        request: Request<v1::CloseConnectionRequest>,
    ) -> Result<Response<v1::CloseConnectionResponse>, Status> {
        self.now().close_connection(request).await
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        self.now().heartbeat(request).await
    }

    async fn list_connections(
        &self,
        request: Request<v1::ListConnectionsRequest>,
    ) -> Result<Response<v1::ListConnectionsResponse>, Status> {
        self.now().list_connections(request).await
    }

    async fn terminate_connection(
        &self,
        request: Request<v1::TerminateConnectionRequest>,
    ) -> Result<Response<v1::TerminateConnectionResponse>, Status> {
        self.now().terminate_connection(request).await
    }
}

#[tonic::async_trait]
impl SessionService for Live {
    type RunSessionStream = <Service as SessionService>::RunSessionStream;

    async fn run_session(
        &self,
        request: Request<Streaming<v1::RunSessionRequest>>,
    ) -> Result<Response<Self::RunSessionStream>, Status> {
        self.now().run_session(request).await
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::DetachResponse>, Status> {
        self.now().detach(request).await
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        self.now().list_sessions(request).await
    }

    async fn collect_exit(
        &self,
        request: Request<v1::CollectExitRequest>,
    ) -> Result<Response<v1::CollectExitResponse>, Status> {
        self.now().collect_exit(request).await
    }

    async fn ack_exit(&self, request: Request<v1::AckExitRequest>) -> Result<Response<v1::AckExitResponse>, Status> {
        self.now().ack_exit(request).await
    }
}
