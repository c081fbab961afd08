//! russh's callbacks of one connection.
//!
//! They run on the connection's only task, so they decide from memory and hand everything that takes time to tasks; the
//! one thing that is awaited here is the answer to an attempt to log in (a password's hash, a webhook), before the connection has any
//! channel.

use super::{Conn, channels::Channels, login::Login, shared::Stage, signal::signal_name, watch::Watch};
use crate::{
    backend::Phase,
    metrics::{Direction, Turned},
};
use podbay_frontend_core::{Program as What, PtyRequest, Request, WindowSize, channel::NotText};
use podbay_runtime::codes;
use prometheus_client::metrics::counter::Counter;
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Error, Pty, Sig,
    keys::Certificate,
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{debug, info};

/// How long a connection's first requests may wait until the backend has told its policy. Later ones are held to it when their
/// program starts.
const POLICY: Duration = Duration::from_secs(2);

/// Refusals by policy that a connection may have in the log; a client can ask without end.
const MAX_TOLD: usize = 100;

/// RFC 4254 section 5.1.
const RESOURCE_SHORTAGE: u32 = 4;
const PROHIBITED: u32 = 1;

/// The callbacks of one connection.
pub struct Callbacks {
    conn: Arc<Conn>,
    login: Login,
    channels: Channels,
    /// The policy was waited for.
    waited: bool,
    /// Refusals by policy that were logged.
    told: usize,
    input_bytes: Counter,
}

impl Callbacks {
    pub fn new(conn: Arc<Conn>, watch: Watch) -> Self {
        let input_bytes = conn.server.metrics.bytes(Direction::Input);
        let (login, channels) = (Login::new(Arc::clone(&conn), watch), Channels::new(Arc::clone(&conn)));
        Self { conn, login, channels, waited: false, told: 0, input_bytes }
    }

    fn turned(&self, why: Turned) {
        self.conn.server.metrics.turned(why);
    }

    /// Waits until the policy is known, once. Clients send what they have right behind the login, before the backend has
    /// answered, and what was answered with success can't be taken back. Nothing runs yet that this could hold up.
    async fn policy_known(&mut self) {
        if std::mem::replace(&mut self.waited, true) {
            return;
        }
        let mut phase = self.conn.phase.subscribe();
        tokio::select! {
            _ = phase.wait_for(|phase| !matches!(phase, Phase::Asking)) => {}
            () = tokio::time::sleep(POLICY) => {}
            () = self.conn.gone.cancelled() => {}
        }
    }

    /// The log gets ContainerSSH's code; names only of what is no secret.
    fn denied(&mut self, code: &'static str, name: Option<&str>) {
        self.told += 1;
        if self.told <= MAX_TOLD {
            info!(connection = %self.conn.id, user = self.login.user(), code, name, "refused by policy");
        }
    }

    /// Takes a channel request and answers it, or has it answered.
    fn request(&mut self, id: ChannelId, request: Request, session: &mut Session) -> Result<(), Error> {
        self.conn.soft_stop().other_input(Instant::now());
        let denied = self.conn.phase.borrow().terms().and_then(|terms| terms.policy.refuses(&request));
        if let Some(denied) = denied {
            self.denied(denied.code(), request.name());
            self.turned(Turned::Request);
            return session.channel_failure(id);
        }
        self.channels.request(id, request, session)
    }

    async fn reject(&mut self, reply: ChannelOpenHandle, code: &'static str, why: &str) -> Result<(), Error> {
        self.denied(code, None);
        self.turned(Turned::ChannelType);
        reply.reject(ChannelOpenFailure::Other { code: PROHIBITED, reason: why.to_owned() }).await;
        Ok(())
    }
}

const NO_FORWARDING: &str = "forwarding is not supported by this server yet";

impl Handler for Callbacks {
    type Error = Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Error> {
        self.login.key_offered(user, offer).await
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        self.login.key_signed(user, key).await
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, Error> {
        self.login.certificate(user, certificate).await
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Error> {
        self.login.password(user, password).await
    }

    async fn authentication_banner(&mut self) -> Result<Option<String>, Error> {
        self.conn.stage.send_replace(Stage::Keyed);
        let banner = &self.conn.config.ssh.banner;
        Ok((!banner.is_empty()).then(|| if banner.ends_with('\n') { banner.clone() } else { format!("{banner}\r\n") }))
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Error> {
        self.conn.stage.send_replace(Stage::LoggedIn);
        self.login.succeeded();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Error> {
        if let Some(why) = self.channels.no_room() {
            self.denied(codes::SECURITY_MAX_SESSIONS, None);
            debug!(code = codes::SSH_NEW_CHANNEL_REJECTED, connection = %self.conn.id, "a channel is refused: {why}");
            self.turned(Turned::TooManySessions);
            reply.reject(ChannelOpenFailure::Other { code: RESOURCE_SHORTAGE, reason: why.to_owned() }).await;
            return Ok(());
        }
        self.channels.open(channel);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        self.reject(reply, codes::SECURITY_X11_FORWARDING_REJECTED, "X11 is not supported by this server").await
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        self.reject(reply, codes::SECURITY_FORWARDING_REJECTED, NO_FORWARDING).await
    }

    async fn channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        self.reject(reply, codes::SECURITY_FORWARDING_REJECTED, NO_FORWARDING).await
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        self.reject(reply, codes::SECURITY_FORWARDING_REJECTED, NO_FORWARDING).await
    }

    fn adjust_window(&mut self, id: ChannelId, current: u32) -> u32 {
        let target = self.conn.soft_stop().adjust_window(id.number(), current, Instant::now());
        if let Some(at) = target.hold_until {
            self.conn.gate.hold_until(at.into());
        }
        if target.stray {
            self.conn.server.metrics.stray();
        }
        target.window
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Error> {
        let queue = self.conn.received(id.number(), data.len(), session.window_size(&id)).map_err(|error| {
            info!(connection = %self.conn.id, "{error}");
            Error::Inconsistent
        })?;
        if queue && let Some(input) = self.channels.input(id) {
            self.input_bytes.inc_by(data.len() as u64);
            input.push(data);
        }
        Ok(())
    }

    async fn extended_data(&mut self, id: ChannelId, _: u32, data: &[u8], session: &mut Session) -> Result<(), Error> {
        let window = session.window_size(&id);
        self.conn.soft_stop().unwanted(id.number(), data.len(), window, Instant::now()).map_err(|_| Error::Inconsistent)
    }

    async fn window_adjusted(&mut self, _: ChannelId, _: u32, _: &mut Session) -> Result<(), Error> {
        self.conn.soft_stop().other_input(Instant::now());
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Error> {
        if let Some(input) = self.channels.input(id) {
            input.eof();
        }
        Ok(())
    }

    /// The client has closed the channel, or is gone: the program is given up.
    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Error> {
        self.channels.close(id);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        if !self.login.permits_terminal() {
            let code = codes::SSH_CHANNEL_REQUEST_FAILED;
            debug!(code, connection = %self.conn.id, "the user's certificate permits no terminal");
            self.turned(Turned::Request);
            return session.channel_failure(id);
        }
        // Opcodes that russh does not know arrive as 0.
        let modes =
            modes.iter().filter(|(code, _)| *code != Pty::TTY_OP_END).map(|(code, value)| (*code as u8, *value));
        let pty = PtyRequest {
            term: term.to_owned(),
            size: WindowSize::new(columns, rows, width, height),
            modes: modes.collect(),
        };
        self.policy_known().await;
        self.request(id, Request::Pty(pty), session)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        self.denied("SECURITY_X11_FORWARDING_REJECTED", None);
        self.request(id, Request::Unsupported, session)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        self.policy_known().await;
        self.request(id, Request::Env { name: name.to_owned(), value: value.to_owned() }, session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Error> {
        self.request(id, Request::Program(Ok(What::Shell)), session)
    }

    async fn exec_request(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Error> {
        let command = String::from_utf8(data.to_vec()).map(What::Exec).map_err(|_| NotText);
        self.request(id, Request::Program(command), session)
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<(), Error> {
        self.request(id, Request::Program(Ok(What::Subsystem(name.to_owned()))), session)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        self.request(id, Request::Resize(WindowSize::new(columns, rows, width, height)), session)
    }

    /// russh answers with what is returned.
    async fn agent_request(&mut self, _: ChannelId, _: &mut Session) -> Result<bool, Error> {
        self.turned(Turned::Request);
        Ok(false)
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, session: &mut Session) -> Result<(), Error> {
        self.request(id, Request::Signal(signal_name(signal)), session)
    }

    async fn tcpip_forward(&mut self, _: &str, _: &mut u32, _: &mut Session) -> Result<bool, Error> {
        self.denied(codes::SECURITY_REVERSE_FORWARDING_REJECTED, None);
        self.turned(Turned::Request);
        Ok(false)
    }

    async fn cancel_tcpip_forward(&mut self, _: &str, _: u32, _: &mut Session) -> Result<bool, Error> {
        Ok(false)
    }

    async fn streamlocal_forward(&mut self, _: &str, _: &mut Session) -> Result<bool, Error> {
        self.denied(codes::SECURITY_REVERSE_FORWARDING_REJECTED, None);
        self.turned(Turned::Request);
        Ok(false)
    }

    async fn cancel_streamlocal_forward(&mut self, _: &str, _: &mut Session) -> Result<bool, Error> {
        Ok(false)
    }
}
