//! One SSH connection from accept to its end.

use super::{
    gate::Gated,
    handler::Callbacks,
    options::socket_options,
    prompt::Prompt,
    shared::{Conn, Stage},
    watch::Watch,
};
use crate::{
    backend::Phase,
    listen::Permit,
    metrics::{ConnectionState, Turned},
    server::Server,
};
use podbay_frontend_core::penalties::Offence;
use podbay_runtime::codes;
use russh::{
    Disconnect, Error,
    server::{Handle, run_stream},
};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{debug, info, warn};

/// Reading may be stopped by the cap for this long; then the fullest channel is closed.
const CAPPED: Duration = Duration::from_secs(10);

/// Between telling a client that its connection ends and cutting it.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection that can't be used is kept for this long without a session, so that a client that is about to ask for
/// one is told why there is none.
const UNUSABLE: Duration = Duration::from_secs(10);

/// Serves one client until it is gone. Its programs are gone then too; closing it at the backend goes on elsewhere.
pub async fn serve(server: Arc<Server>, stream: TcpStream, peer: SocketAddr, permit: Permit) {
    let current = server.current();
    let config = &current.config;
    let conn = Conn::new(Arc::clone(&server), Arc::clone(config), peer);
    debug!(code = codes::SSH_CONNECTED, connection = %conn.id, remote = %conn.remote, "connected");
    if let Err(error) = socket_options(&stream, &config.ssh) {
        debug!(connection = %conn.id, "socket options: {error}");
    }
    let counted = Counted::new(&server, ConnectionState::Unauthenticated);
    let keyed_by = Instant::now() + config.frontend.handshake_timeout;
    let logged_in_by = Instant::now() + config.frontend.login_grace_time;
    let watch = if config.auth.asks() { Watch::new(&stream) } else { Watch::default() };
    let gated = Gated::new(Prompt::new(stream).telling(Arc::clone(&conn.version)), conn.gate.clone());
    // russh's task can't be dropped from here: cutting its stream ends it, also when this future is dropped.
    let ending = Ending(Arc::clone(&conn));
    let began = Instant::now();
    let started = run_stream(Arc::clone(&current.russh), gated, Callbacks::new(Arc::clone(&conn), watch));
    let mut session = match timeout_at(keyed_by, started).await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => {
            punish(&conn, began);
            return garbage(&conn, &error);
        }
        Err(_) => {
            punish(&conn, began);
            return garbage(&conn, &Error::ConnectionTimeout);
        }
    };
    let handle = session.handle();
    let result = tokio::select! {
        result = &mut session => result,
        () = supervise(&conn, &handle, (keyed_by, logged_in_by), counted, permit) => {
            conn.gate.cut();
            session.await
        }
    };
    punish(&conn, began);
    finished(&conn, &result, began);
    drop(ending);
    conn.tasks.close();
    conn.tasks.wait().await;
}

/// What a connection that is over costs its address: nothing where somebody has logged in, or where it is we who end.
fn punish(conn: &Conn, began: Instant) {
    if *conn.stage.borrow() == Stage::LoggedIn || conn.server.is_ending() {
        return;
    }
    let offence = if conn.failures.load(Ordering::Relaxed) > 0 {
        Offence::AuthFail
    } else if began.elapsed() >= conn.config.frontend.login_grace_time {
        Offence::GraceExceeded
    } else {
        Offence::NoAuth
    };
    conn.server.door.punish(conn.remote, offence);
}

/// Ends everything of a connection when dropped.
struct Ending(Arc<Conn>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.gate.cut();
        self.0.gone.cancel();
    }
}

/// Returns when the connection is to be cut.
async fn supervise(
    conn: &Conn,
    handle: &Handle,
    (keyed_by, logged_in_by): (Instant, Instant),
    counted: Counted,
    mut permit: Permit,
) {
    let server = &conn.server;
    {
        let mut counted = counted;
        let mut stage = conn.stage.subscribe();
        let login = async {
            let keyed = timeout_at(keyed_by, stage.wait_for(|stage| *stage >= Stage::Keyed)).await.is_ok();
            keyed && timeout_at(logged_in_by, stage.wait_for(|stage| *stage == Stage::LoggedIn)).await.is_ok()
        };
        let logged_in = tokio::select! {
            logged_in = login => logged_in,
            reason = ended(conn) => return farewell(handle, reason).await,
        };
        if !logged_in {
            conn.server.metrics.turned(Turned::LoginGrace);
            return;
        }
        counted.logged_in = true;
    }
    permit.logged_in();
    let _counted = Counted::new(server, ConnectionState::LoggedIn);
    tokio::select! {
        reason = ended(conn) => farewell(handle, reason).await,
        reason = unusable(conn) => farewell(handle, reason).await,
        never = watch_cap(conn, handle) => match never {},
    }
}

async fn ended(conn: &Conn) -> String {
    tokio::select! {
        text = conn.ended() => {
            if conn.has_told() {
                // Its sessions tell their users first. OpenSSH throws away what it has not shown when it reads a disconnect,
                // and goes by itself after its last session.
                conn.tasks.close();
                let _ = timeout(FAREWELL, conn.tasks.wait()).await;
                sleep(FAREWELL).await;
            }
            text.to_string()
        }
        text = conn.server.all_end() => text.to_string(),
    }
}

/// Returns once the backend has failed and nobody is left to be told so in a session.
async fn unusable(conn: &Conn) -> String {
    let mut phase = conn.phase.subscribe();
    let text = match phase.wait_for(|phase| matches!(phase, Phase::Failed(_))).await.as_deref() {
        Ok(Phase::Failed(text)) => text.to_string(),
        Ok(Phase::Asking | Phase::Starting { .. } | Phase::Open(_)) | Err(_) => String::new(),
    };
    loop {
        sleep(UNUSABLE).await;
        if conn.open_channels() == 0 {
            return text;
        }
    }
}

/// Tells the client why, if it still reads, and returns when it has had the time to.
async fn farewell(handle: &Handle, text: String) {
    let _ = timeout(FAREWELL, async {
        let _ = handle.disconnect(Disconnect::ByApplication, text, String::new()).await;
        std::future::pending::<()>().await;
    })
    .await;
}

/// While the connection is over its cap nothing is read, so keepalives fail too: that must not last.
async fn watch_cap(conn: &Conn, handle: &Handle) -> Infallible {
    loop {
        conn.capped.notified().await;
        loop {
            sleep(CAPPED).await;
            if !conn.soft_stop().capped() {
                break;
            }
            let fullest = conn.soft_stop().fullest();
            let Some((id, input)) = fullest.and_then(|id| Some((id, conn.input(id)?))) else { break };
            conn.server.metrics.turned(Turned::Cap);
            warn!(connection = %conn.id, channel = id, "closed a channel whose input nobody reads");
            if !input.evict() {
                // No program to end: the channel itself.
                let _ = handle.close(input.channel).await;
            }
        }
    }
}

/// Counts a connection in a state.
struct Counted {
    server: Arc<Server>,
    state: ConnectionState,
    /// It leaves its state for the better.
    logged_in: bool,
}

impl Counted {
    fn new(server: &Arc<Server>, state: ConnectionState) -> Self {
        server.metrics.entered(state);
        Self { server: Arc::clone(server), state, logged_in: state == ConnectionState::LoggedIn }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.server.metrics.left(self.state);
        if !self.logged_in {
            self.server.metrics.handshake(false);
        }
    }
}

fn garbage(conn: &Conn, error: &Error) {
    conn.server.metrics.turned(Turned::Garbage);
    let code = codes::SSH_HANDSHAKE_FAILED;
    info!(code, connection = %conn.id, remote = %conn.remote, "cut before keys were exchanged: {error}");
}

fn finished(conn: &Conn, result: &Result<(), Error>, began: Instant) {
    let (id, remote, stage) = (conn.id, conn.remote, *conn.stage.borrow());
    let ended = match result {
        Ok(()) => "the client left".to_owned(),
        Err(error) => error.to_string(),
    };
    match (result, stage) {
        (Err(Error::KeepaliveTimeout), _) => {
            conn.server.metrics.keepalive_lost();
            info!(code = codes::SSH_KEEPALIVE_NORESP, connection = %id, %remote, "the client answers no more");
        }
        (Err(error), Stage::Connected) => garbage(conn, error),
        (Ok(()) | Err(_), Stage::Connected | Stage::Keyed | Stage::LoggedIn) => {}
    }
    if stage == Stage::Keyed {
        let late = began.elapsed() >= conn.config.frontend.login_grace_time;
        let why = if late { "no login in time" } else { "gone without a login" };
        info!(code = codes::SSH_HANDSHAKE_FAILED, connection = %id, %remote, "{why}: {ended}");
    }
    debug!(code = codes::SSH_DISCONNECTED, connection = %id, ?stage, "disconnected: {ended}");
}
