//! A replica of a backend: the two services and health, on a port of its own, in a runtime of its own that can be killed
//! like a process.

use super::program;
use podbay::v1::{
    self,
    connection_service_server::{ConnectionService, ConnectionServiceServer},
    session_service_server::{SessionService, SessionServiceServer},
};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

/// What OpenConnection does.
#[derive(Debug, Clone)]
pub enum Opening {
    /// Accepted and Opened at once.
    AtOnce,
    /// Accepted, a Progress, and after this time Opened.
    After(Duration),
    /// Accepted and Opened after this time.
    Late(Duration),
    /// A refusal.
    Refuse(v1::Reason, String),
    /// Nothing at all.
    Silent,
    /// Accepted, then nothing.
    AcceptOnly,
}

/// What a test sets and sees; shared by all replicas.
#[derive(Debug)]
pub struct Script {
    pub opening: Opening,
    pub timeouts: Duration,
    pub subsystems: Vec<String>,
    pub max_sessions: u32,
    /// The rest of the policy.
    pub policy: v1::Policy,
    /// As backends of today do.
    pub keeps_restrictions: bool,
    /// What Accepted tells.
    pub first_heartbeat: Option<Duration>,
    /// What heartbeats' answers tell.
    pub heartbeat: Option<Duration>,
    pub owner_expired: bool,
    /// What heartbeats say that operators ended: ids and messages.
    pub terminated: Vec<(String, String)>,
    pub opened: Vec<v1::OpenConnectionRequest>,
    /// Opening streams that the caller dropped.
    pub abandoned: usize,
    pub closed: Vec<String>,
    pub heartbeats: Vec<v1::HeartbeatRequest>,
    pub signals: Vec<String>,
    pub sizes: Vec<(u32, u32)>,
    pub sessions: Vec<(SocketAddr, v1::Open)>,
    pub running: usize,
    /// Sessions that their client gave up.
    pub given_up: usize,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            opening: Opening::AtOnce,
            timeouts: Duration::from_mins(1),
            subsystems: vec!["echo".to_owned()],
            max_sessions: 0,
            policy: v1::Policy::default(),
            keeps_restrictions: true,
            first_heartbeat: None,
            heartbeat: Some(Duration::from_millis(200)),
            owner_expired: false,
            terminated: Vec::new(),
            opened: Vec::new(),
            abandoned: 0,
            closed: Vec::new(),
            heartbeats: Vec::new(),
            signals: Vec::new(),
            sizes: Vec::new(),
            sessions: Vec::new(),
            running: 0,
            given_up: 0,
        }
    }
}

/// Shared script.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Script>>);

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One replica.
pub struct Replica {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Replica {
    /// Starts one; with TLS where files are given.
    pub fn start(script: &Shared, tls: Option<&super::tls::Files>) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), script, tls)
    }

    /// The same at this address.
    pub fn start_at(address: SocketAddr, script: &Shared, tls: Option<&super::tls::Files>) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("binds");
        listener.set_nonblocking(true).expect("sets");
        let address = listener.local_addr().expect("an address");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let service = Service { script: script.clone(), address };
        let tls = tls.map(|files| {
            podbay_runtime::tls::Followed::server(files.cert.clone(), files.key.clone(), Some(files.ca.clone()))
                .expect("TLS")
        });
        if let Some(tls) = &tls {
            let follow = Arc::clone(tls).follow(Duration::from_millis(100), CancellationToken::new(), |_| {});
            runtime.spawn(follow);
        }
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let (_health, health_service) = tonic_health::server::health_reporter();
            let server = Server::builder()
                .initial_stream_window_size(512 * 1024)
                .initial_connection_window_size(64 * 1024 * 1024)
                .max_concurrent_streams(128)
                .add_service(health_service)
                .add_service(ConnectionServiceServer::new(service.clone()))
                .add_service(SessionServiceServer::new(service).max_decoding_message_size(podbay::MAX_MESSAGE));
            let served = match tls {
                Some(tls) => {
                    let limits = podbay_runtime::tls::Limits::default();
                    let incoming =
                        podbay_runtime::tls::incoming(listener, tls, limits, CancellationToken::new(), |_, _| {});
                    server.serve_with_incoming(incoming).await
                }
                None => server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))).await,
            };
            served.expect("serves");
        });
        Self { address, runtime: Some(runtime) }
    }

    /// As `kill -9`: every task and socket is gone.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Both services.
#[derive(Debug, Clone)]
struct Service {
    script: Shared,
    address: SocketAddr,
}

type Responses<T> = ReceiverStream<Result<T, Status>>;

#[async_trait::async_trait]
impl ConnectionService for Service {
    type OpenConnectionStream = Responses<v1::OpenConnectionResponse>;

    async fn open_connection(
        &self,
        request: Request<v1::OpenConnectionRequest>,
    ) -> Result<Response<Self::OpenConnectionStream>, Status> {
        use v1::open_connection_response::Event;
        let request = request.into_inner();
        let (events, stream) = mpsc::channel(8);
        let script = self.script.clone();
        let (opening, accepted) = {
            let mut script = script.lock();
            script.opened.push(request.clone());
            let wire = |d: Duration| prost_types::Duration::try_from(d).ok();
            let timeout = wire(script.timeouts);
            let timeouts = v1::Timeouts {
                pod_start: timeout,
                pod_stop: timeout,
                command_start: timeout,
                signal: timeout,
                window: timeout,
            };
            let (subsystems, max_sessions) = (script.subsystems.clone(), script.max_sessions);
            let policy = v1::Policy { subsystems, max_sessions, ..script.policy.clone() };
            let mode = v1::ExecutionMode::Connection.into();
            (
                script.opening.clone(),
                v1::Accepted {
                    timeouts: Some(timeouts),
                    policy: Some(policy),
                    mode,
                    backend_wait: None,
                    heartbeat_interval: script.first_heartbeat.and_then(wire),
                    restricted: script.keeps_restrictions && request.restrictions.is_some(),
                },
            )
        };
        tokio::spawn(async move {
            let send = |event| events.send(Ok(v1::OpenConnectionResponse { event: Some(event) }));
            let opened = Event::Opened(v1::Opened {
                handle: format!("handle of {}", request.connection_id).into(),
                pod_namespace: "ns".to_owned(),
                pod_name: "pod".to_owned(),
                agent_level: v1::AgentLevel::None.into(),
            });
            match opening {
                Opening::AtOnce => {
                    let _ = send(Event::Accepted(accepted)).await;
                    let _ = send(opened).await;
                }
                Opening::After(time) => {
                    let _ = send(Event::Accepted(accepted)).await;
                    let message = "waiting for a node: 0/3 nodes are available".to_owned();
                    let _ = send(Event::Progress(v1::Progress { message, ..Default::default() })).await;
                    tokio::select! {
                        () = tokio::time::sleep(time) => drop(send(opened).await),
                        () = events.closed() => script.lock().abandoned += 1,
                    }
                }
                Opening::Late(time) => {
                    tokio::time::sleep(time).await;
                    let _ = send(Event::Accepted(accepted)).await;
                    let _ = send(opened).await;
                }
                Opening::Refuse(reason, message) => {
                    let _ = events.send(Err(v1::Refusal::new(reason, message).into_status())).await;
                }
                Opening::Silent => {
                    events.closed().await;
                    script.lock().abandoned += 1;
                }
                Opening::AcceptOnly => {
                    let _ = send(Event::Accepted(accepted)).await;
                    events.closed().await;
                    script.lock().abandoned += 1;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn close_connection(
        &self,
        request: Request<v1::CloseConnectionRequest>,
    ) -> Result<Response<v1::CloseConnectionResponse>, Status> {
        self.script.lock().closed.push(request.into_inner().connection_id);
        Ok(Response::new(v1::CloseConnectionResponse { pods_deleted: 1 }))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let mut script = self.script.lock();
        let request = request.into_inner();
        let handles = request.handles.iter().map(|_| bytes::Bytes::new()).collect();
        let expired = script.owner_expired && !request.leaving;
        script.heartbeats.push(request);
        if expired {
            script.owner_expired = false;
            return Err(v1::Refusal::new(v1::Reason::OwnerExpired, "the lease ran out").into_status());
        }
        Ok(Response::new(v1::HeartbeatResponse {
            interval: script.heartbeat.and_then(|d| prost_types::Duration::try_from(d).ok()),
            lease_duration: None,
            handles,
            terminated: script
                .terminated
                .iter()
                .map(|(id, message)| v1::TerminatedConnection { connection_id: id.clone(), message: message.clone() })
                .collect(),
        }))
    }

    async fn list_connections(
        &self,
        _: Request<v1::ListConnectionsRequest>,
    ) -> Result<Response<v1::ListConnectionsResponse>, Status> {
        Err(Status::unimplemented("a test's backend"))
    }

    async fn terminate_connection(
        &self,
        _: Request<v1::TerminateConnectionRequest>,
    ) -> Result<Response<v1::TerminateConnectionResponse>, Status> {
        Err(Status::unimplemented("a test's backend"))
    }
}

#[async_trait::async_trait]
impl SessionService for Service {
    type RunSessionStream = Responses<v1::RunSessionResponse>;

    async fn run_session(
        &self,
        request: Request<Streaming<v1::RunSessionRequest>>,
    ) -> Result<Response<Self::RunSessionStream>, Status> {
        let (frames, stream) = mpsc::channel(4);
        tokio::spawn(program::run(self.script.clone(), self.address, request.into_inner(), frames));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn detach(&self, _: Request<v1::DetachRequest>) -> Result<Response<v1::DetachResponse>, Status> {
        Err(Status::unimplemented("a test's backend"))
    }

    async fn list_sessions(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        Err(Status::unimplemented("a test's backend"))
    }

    async fn collect_exit(
        &self,
        _: Request<v1::CollectExitRequest>,
    ) -> Result<Response<v1::CollectExitResponse>, Status> {
        Err(Status::unimplemented("a test's backend"))
    }

    async fn ack_exit(&self, _: Request<v1::AckExitRequest>) -> Result<Response<v1::AckExitResponse>, Status> {
        Err(Status::unimplemented("a test's backend"))
    }
}
