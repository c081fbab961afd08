//! russh's callbacks of one connection.
//!
//! They run on the connection's only task, so they decide from memory and hand everything that takes time to tasks; the
//! one thing that is awaited here is the answer to an attempt to log in (a password's hash, a webhook), before the connection has any
//! channel.

use super::{
    Conn, LateAnswer,
    input::Input,
    login::{Offered, is_sha1, subject},
    shared::Stage,
    watch::Watch,
};
use crate::{
    auth::{Permits, Verdict, certificate_metadata},
    backend::Phase,
    metrics::{Direction, Method, Turned},
    session::Session as Program,
};
use podbay_frontend_core::{
    ChannelState, Program as What, PtyRequest, Request, Start, Step, WindowSize, channel::NotText,
};
use podbay_runtime::{codes, webhook::Facts};
use prometheus_client::metrics::counter::Counter;
use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Error, Pty, Sig,
    keys::{Certificate, PublicKey},
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::sleep_until,
};
use tracing::{debug, info};
use zeroize::Zeroizing;

/// A wrong password is answered after this, whatever it cost to check.
const WRONG_PASSWORD: Duration = Duration::from_millis(500);

/// More keys are not looked at, however good they are: an accepted offer is no failure, and may cost a question to a webhook.
const MAX_OFFERS: usize = 64;

/// How long a connection's first requests may wait until the backend has told its policy. Later ones are held to it when their
/// program starts.
const POLICY: Duration = Duration::from_secs(2);

/// Refusals by policy that a connection may have in the log; a client can ask without end.
const MAX_TOLD: usize = 100;

/// Signals that wait for a program.
const SIGNALS: usize = 32;

/// RFC 4254 section 5.1.
const RESOURCE_SHORTAGE: u32 = 4;
const PROHIBITED: u32 = 1;

/// Told to who asks for one session too many.
pub const TOO_MANY: &str = "too many sessions at once on this connection";

/// The callbacks of one connection.
pub struct Callbacks {
    pub(super) conn: Arc<Conn>,
    pub(super) failures: usize,
    pub(super) user: String,
    /// What is known about the user who logged in.
    pub(super) known: Facts,
    /// Of a certificate; else everything.
    permits: Permits,
    /// The last key that was offered, and what was said of it: it is not asked again when its signature comes.
    pub(super) offered: Option<Offered>,
    offers: usize,
    pub(super) watch: Watch,
    channels: HashMap<ChannelId, Entry>,
    opened: usize,
    /// The policy was waited for.
    waited: bool,
    /// Refusals by policy that were logged.
    told: usize,
    input_bytes: Counter,
}

/// A session channel.
struct Entry {
    input: Arc<Input>,
    state: ChannelState,
    run: Run,
}

enum Run {
    /// No program was asked for.
    Waiting { write: ChannelWriteHalf<Msg>, slot: Slot },
    /// One was.
    Started { signals: mpsc::Sender<String>, size: watch::Sender<Option<WindowSize>>, task: AbortHandle },
}

/// A session channel counts as open until this is dropped.
#[derive(Debug)]
pub struct Slot(Arc<Conn>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.channels.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        for entry in self.channels.values() {
            entry.stop();
        }
    }
}

impl Entry {
    fn stop(&self) {
        self.input.close();
        if let Run::Started { task, .. } = &self.run {
            task.abort();
        }
    }

    fn finished(&self) -> bool {
        matches!(&self.run, Run::Started { task, .. } if task.is_finished())
    }
}

impl Callbacks {
    pub fn new(conn: Arc<Conn>, watch: Watch) -> Self {
        let input_bytes = conn.server.metrics.bytes(Direction::Input);
        Self {
            conn,
            failures: 0,
            user: String::new(),
            known: Facts::default(),
            permits: Permits::all(),
            offered: None,
            offers: 0,
            watch,
            channels: HashMap::new(),
            opened: 0,
            waited: false,
            told: 0,
            input_bytes,
        }
    }

    fn turned(&self, why: Turned) {
        self.conn.server.metrics.turned(why);
    }

    /// What stands against one more session channel.
    fn no_room(&self) -> Option<&'static str> {
        let limits = &self.conn.config.frontend;
        let policy = self.conn.phase.borrow().terms().map_or(0, |terms| terms.max_sessions);
        let most = match policy {
            0 => limits.max_sessions_per_connection,
            policy => policy.min(limits.max_sessions_per_connection),
        };
        if self.conn.open_channels() >= most {
            Some(TOO_MANY)
        } else if self.opened >= limits.max_channels_per_connection {
            Some("too many sessions in the life of this connection; please connect anew")
        } else {
            None
        }
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
            info!(connection = %self.conn.id, user = self.user, code, name, "refused by policy");
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
        let Some(entry) = self.channels.get_mut(&id) else { return session.channel_failure(id) };
        match entry.state.request(request) {
            Step::Accept => session.channel_success(id),
            Step::Refuse(why) => {
                let (code, connection) = (codes::SSH_CHANNEL_REQUEST_FAILED, self.conn.id);
                debug!(code, %connection, channel = id.number(), "request refused: {why}");
                self.turned(Turned::Request);
                session.channel_failure(id)
            }
            Step::Start(start) => self.start(id, *start, session),
            Step::Resize(new) => {
                if let Run::Started { size, .. } = &entry.run {
                    size.send_replace(Some(new));
                }
                session.channel_success(id)
            }
            Step::Signal(name) => match &entry.run {
                Run::Started { signals, .. } if signals.try_send(name).is_ok() => session.channel_success(id),
                Run::Started { .. } | Run::Waiting { .. } => session.channel_failure(id),
            },
        }
    }

    fn start(&mut self, id: ChannelId, start: Start, session: &mut Session) -> Result<(), Error> {
        let open = self.conn.open_channels();
        let Some(Entry { input, state, run: Run::Waiting { write, slot } }) = self.channels.remove(&id) else {
            return session.channel_failure(id);
        };
        let (signals, signals_in) = mpsc::channel(SIGNALS);
        let (size, size_in) = watch::channel(None);
        let answer = LateAnswer::new(&self.conn, session.handle(), id, open);
        let program = Program {
            conn: Arc::clone(&self.conn),
            handle: session.handle(),
            write: Arc::new(write),
            input: Arc::clone(&input),
            start,
            signals: signals_in,
            size: size_in,
            answer,
            slot,
        };
        let task = self.conn.tasks.spawn(program.run()).abort_handle();
        self.channels.insert(id, Entry { input, state, run: Run::Started { signals, size, task } });
        Ok(())
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
        self.offers += 1;
        // Before anything that is remembered by key: a signature with SHA-1 must not profit from a better offer.
        if is_sha1(offer.algorithm) {
            return self.failed(user, Method::PublicKey, &Verdict::Refused);
        }
        if self.offers > MAX_OFFERS {
            return Err(Error::NoAuthMethod);
        }
        let config = self.judge();
        if !config.auth.authorities.is_empty() {
            // russh shows the key of a certificate here and not the certificate: what it is shows with the signature.
            return Ok(Auth::Accept);
        }
        let verdict = self.of_key(&config, user, offer.public_key, offer.algorithm).await?;
        if matches!(verdict, Verdict::Accepted(_)) {
            self.offered = Some(Offered { user: user.to_owned(), key: offer.public_key.clone(), verdict, by: config });
            return Ok(Auth::Accept);
        }
        self.failed(user, Method::PublicKey, &verdict)
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        let config = self.judge();
        match self.of_key(&config, user, key.public_key, key.algorithm).await? {
            Verdict::Accepted(known) => {
                let key = fingerprint(key.public_key);
                self.proven(&config, user, Method::PublicKey, known, Some(key)).await
            }
            verdict @ (Verdict::Refused | Verdict::Unavailable) => self.failed(user, Method::PublicKey, &verdict),
        }
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, Error> {
        let (conn, config) = (Arc::clone(&self.conn), self.judge());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        match config.auth.authorities.check(certificate, user, conn.remote, now) {
            Ok(permits) => {
                let known = Facts { metadata: certificate_metadata(certificate), ..Facts::default() };
                let key = fingerprint(&PublicKey::new(certificate.public_key().clone(), ""));
                let id: String = certificate.key_id().chars().take(256).collect();
                let key = Some(format!("{key} ({id:?})"));
                let auth = self.proven(&config, user, Method::Certificate, known, key).await?;
                if auth == Auth::Accept {
                    self.permits = permits;
                }
                Ok(auth)
            }
            Err(why) => {
                info!(connection = %conn.id, remote = %conn.remote, user, "a certificate is refused: {why}");
                self.failed(user, Method::Certificate, &Verdict::Refused)
            }
        }
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Error> {
        let password = Zeroizing::new(password.to_owned());
        let not_before = tokio::time::Instant::now() + WRONG_PASSWORD;
        let (conn, config) = (Arc::clone(&self.conn), self.judge());
        let verdict = self.answer(config.auth.password(&config.users, subject(&conn, user), password)).await?;
        if let Verdict::Accepted(known) = verdict {
            return self.proven(&config, user, Method::Password, known, None).await;
        }
        sleep_until(not_before).await;
        self.failed(user, Method::Password, &verdict)
    }

    async fn authentication_banner(&mut self) -> Result<Option<String>, Error> {
        self.conn.stage.send_replace(Stage::Keyed);
        let banner = &self.conn.config.ssh.banner;
        Ok((!banner.is_empty()).then(|| if banner.ends_with('\n') { banner.clone() } else { format!("{banner}\r\n") }))
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Error> {
        self.conn.stage.send_replace(Stage::LoggedIn);
        // From here on the connection's own reads notice.
        self.watch = Watch::default();
        self.offered = None;
        self.conn.server.login(&self.conn, &self.user, std::mem::take(&mut self.known), self.permits.restrictions());
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Error> {
        self.channels.retain(|_, entry| !entry.finished());
        if let Some(why) = self.no_room() {
            self.denied(codes::SECURITY_MAX_SESSIONS, None);
            debug!(code = codes::SSH_NEW_CHANNEL_REJECTED, connection = %self.conn.id, "a channel is refused: {why}");
            self.turned(Turned::TooManySessions);
            reply.reject(ChannelOpenFailure::Other { code: RESOURCE_SHORTAGE, reason: why.to_owned() }).await;
            return Ok(());
        }
        self.opened += 1;
        self.conn.channels.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(Arc::clone(&self.conn));
        let id = channel.id();
        debug!(code = codes::SSH_NEW_CHANNEL, connection = %self.conn.id, channel = id.number(), "a channel is opened");
        // The read half is dropped: russh would wait for whoever reads it, and with it the whole connection.
        let (_, write) = channel.split();
        let input = Input::new(id, &self.conn);
        self.channels.insert(id, Entry { input, state: ChannelState::default(), run: Run::Waiting { write, slot } });
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
        if queue && let Some(entry) = self.channels.get(&id) {
            self.input_bytes.inc_by(data.len() as u64);
            entry.input.push(data);
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
        if let Some(entry) = self.channels.get(&id) {
            entry.input.eof();
        }
        Ok(())
    }

    /// The client has closed the channel, or is gone: the program is given up.
    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Error> {
        if let Some(entry) = self.channels.remove(&id) {
            entry.stop();
        }
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
        if !self.permits.pty {
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

fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(russh::keys::HashAlg::Sha256).to_string()
}

fn signal_name(signal: Sig) -> String {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => return name,
    };
    name.to_owned()
}

/// The other way.
pub fn signal_of(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    }
}
