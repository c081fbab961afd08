//! Attempts to log in, as russh's callbacks see them: who answers, what is remembered of an attempt, and what a failed one costs.

use super::{Conn, watch::Watch};
use crate::{
    auth::{Permits, Subject, Verdict, certificate_metadata},
    config::Config,
    metrics::{Method, Outcome},
};
use podbay_runtime::{codes, webhook::Facts};
use russh::{
    Error, MethodSet,
    keys::{Algorithm, Certificate, HashAlg, PublicKey},
    server::{Auth, PublicKeyOffer, VerifiedPublicKey},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};
use zeroize::Zeroizing;

/// A wrong password is answered after this, whatever it cost to check.
const WRONG_PASSWORD: Duration = Duration::from_millis(500);

/// More keys are not looked at, however good they are: an accepted offer is no failure, and may cost a question to a webhook.
const MAX_OFFERS: usize = 64;

/// After so many failures the connection has had its chances.
const MAX_FAILURES: usize = 6;

/// The attempts of one connection to log in, and what is known of the user once one has succeeded.
pub struct Login {
    conn: Arc<Conn>,
    watch: Watch,
    failures: usize,
    /// Who logged in; empty before.
    user: String,
    /// What is known about that user.
    known: Facts,
    /// Of a certificate; else everything.
    permits: Permits,
    /// The last key that was offered, and what was said of it: it is not asked again when its signature comes.
    offered: Option<Offered>,
    offers: usize,
}

/// A key that was offered.
struct Offered {
    user: String,
    key: PublicKey,
    verdict: Verdict,
    /// By which configuration. It counts under no other.
    by: Arc<Config>,
}

/// Whom a webhook is asked about.
fn subject<'a>(conn: &'a Conn, user: &'a str) -> Subject<'a> {
    let version = conn.version.get().map_or("", String::as_str);
    // Whoever is asked next says so; the file is asked once.
    conn.retried.store(false, Ordering::Relaxed);
    let (metrics, retried) = (&conn.server.metrics, &conn.retried);
    Subject { user, remote: (conn.remote, conn.port).into(), connection: conn.id, version, metrics, retried }
}

/// Signatures that are worth nothing.
const fn is_sha1(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa)
}

impl Login {
    /// Of a client that has just connected; the watch tells when it leaves while a webhook is asked about it.
    pub fn new(conn: Arc<Conn>, watch: Watch) -> Self {
        Self {
            conn,
            watch,
            failures: 0,
            user: String::new(),
            known: Facts::default(),
            permits: Permits::all(),
            offered: None,
            offers: 0,
        }
    }

    /// The name that was logged in with; empty before.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether the user may have a terminal.
    pub const fn permits_terminal(&self) -> bool {
        self.permits.pty
    }

    /// A key is offered without a signature.
    pub async fn key_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Error> {
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

    /// A key has signed.
    pub async fn key_signed(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        let config = self.judge();
        match self.of_key(&config, user, key.public_key, key.algorithm).await? {
            Verdict::Accepted(known) => {
                let key = fingerprint(key.public_key);
                self.proven(&config, user, Method::PublicKey, known, Some(key)).await
            }
            verdict @ (Verdict::Refused | Verdict::Unavailable) => self.failed(user, Method::PublicKey, &verdict),
        }
    }

    /// The key of a certificate has signed.
    pub async fn certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, Error> {
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

    /// A password.
    pub async fn password(&mut self, user: &str, password: &str) -> Result<Auth, Error> {
        let password = Zeroizing::new(password.to_owned());
        let not_before = Instant::now() + WRONG_PASSWORD;
        let (conn, config) = (Arc::clone(&self.conn), self.judge());
        let verdict = self.answer(config.auth.password(&config.users, subject(&conn, user), password)).await?;
        if let Verdict::Accepted(known) = verdict {
            return self.proven(&config, user, Method::Password, known, None).await;
        }
        sleep_until(not_before).await;
        self.failed(user, Method::Password, &verdict)
    }

    /// russh has told the client that it is logged in: the connection is opened at the backend.
    pub fn succeeded(&mut self) {
        // From here on the connection's own reads notice.
        self.watch = Watch::default();
        self.offered = None;
        self.conn.server.login(&self.conn, &self.user, std::mem::take(&mut self.known), self.permits.restrictions());
    }

    /// What an attempt that begins now is judged by, to its end: the process's configuration, and not the one that the connection
    /// came under. Whoever was taken out of it is out, connected or not.
    fn judge(&self) -> Arc<Config> {
        Arc::clone(&self.conn.server.current().config)
    }

    fn methods(&self) -> MethodSet {
        let config = self.judge();
        config.auth.methods(&config.users)
    }

    /// Waits for the answer to an attempt, unless the client leaves: then nobody is asked any more.
    async fn answer(&self, answer: impl Future<Output = Verdict>) -> Result<Verdict, Error> {
        tokio::select! {
            verdict = answer => Ok(verdict),
            () = self.watch.left() => {
                debug!(connection = %self.conn.id, "the client left while a webhook was asked about it");
                Err(Error::Disconnect)
            }
        }
    }

    /// What is said of a key. Asked once, whether it is offered or signed with first.
    async fn of_key(
        &mut self,
        config: &Arc<Config>,
        user: &str,
        key: &PublicKey,
        algorithm: &Algorithm,
    ) -> Result<Verdict, Error> {
        if is_sha1(algorithm) {
            return Ok(Verdict::Refused);
        }
        if let Some(offered) = self.offered.take_if(|offered| {
            offered.user == user && offered.key.key_data() == key.key_data() && Arc::ptr_eq(&offered.by, config)
        }) {
            return Ok(offered.verdict);
        }
        let conn = Arc::clone(&self.conn);
        self.answer(config.auth.key(&config.users, subject(&conn, user), key, algorithm)).await
    }

    /// The user has proven to be who it says: now whether it may log in.
    async fn proven(
        &mut self,
        config: &Config,
        user: &str,
        method: Method,
        known: Facts,
        key: Option<String>,
    ) -> Result<Auth, Error> {
        let conn = Arc::clone(&self.conn);
        let retried = conn.retried.load(Ordering::Relaxed);
        let verdict = self.answer(config.auth.authorize(subject(&conn, user), known)).await?;
        if let Verdict::Accepted(known) = &verdict {
            let authenticated = known.authenticated.as_deref().filter(|name| *name != user);
            let code = codes::SSH_AUTH_SUCCESSFUL;
            info!(code, connection = %conn.id, remote = %conn.remote, user, authenticated, key, ?method, "logged in");
            self.known = known.clone();
            user.clone_into(&mut self.user);
            conn.server.metrics.auth(method, Outcome::Success, retried);
            return Ok(Auth::Accept);
        }
        self.failed(user, method, &verdict)
    }

    fn failed(&mut self, user: &str, method: Method, verdict: &Verdict) -> Result<Auth, Error> {
        self.failures += 1;
        // A webhook that is out of order is not the client's fault.
        if *verdict == Verdict::Refused {
            self.conn.failures.fetch_add(1, Ordering::Relaxed);
        }
        let unavailable = *verdict == Verdict::Unavailable;
        let (code, outcome) = if unavailable {
            (codes::SSH_AUTH_UNAVAILABLE, Outcome::Unavailable)
        } else {
            (codes::SSH_AUTH_FAILED, Outcome::Failure)
        };
        self.conn.server.metrics.auth(method, outcome, self.conn.retried.load(Ordering::Relaxed));
        info!(code, connection = %self.conn.id, remote = %self.conn.remote, user, ?method, unavailable, "login failed");
        if self.failures > MAX_FAILURES {
            return Err(Error::NoAuthMethod);
        }
        // Named again: russh takes a method that failed once off its own list.
        Ok(Auth::Reject { proceed_with_methods: Some(self.methods()), partial_success: false })
    }
}

fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}
