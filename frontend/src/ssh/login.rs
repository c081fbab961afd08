//! Attempts to log in, as russh's callbacks see them: who answers, what is remembered of an attempt, and what a failed one costs.

use super::{Conn, handler::Callbacks};
use crate::{
    auth::{Subject, Verdict},
    config::Config,
    metrics::{Method, Outcome},
};
use podbay_runtime::{codes, webhook::Facts};
use russh::{
    Error, MethodSet,
    keys::{Algorithm, PublicKey},
    server::Auth,
};
use std::sync::{Arc, atomic::Ordering};
use tracing::{debug, info};

/// After so many failures the connection has had its chances.
const MAX_FAILURES: usize = 6;

/// A key that was offered.
pub(super) struct Offered {
    pub user: String,
    pub key: PublicKey,
    pub verdict: Verdict,
    /// By which configuration. It counts under no other.
    pub by: Arc<Config>,
}

/// Whom a webhook is asked about.
pub(super) fn subject<'a>(conn: &'a Conn, user: &'a str) -> Subject<'a> {
    let version = conn.version.get().map_or("", String::as_str);
    // Whoever is asked next says so; the file is asked once.
    conn.retried.store(false, Ordering::Relaxed);
    let (metrics, retried) = (&conn.server.metrics, &conn.retried);
    Subject { user, remote: (conn.remote, conn.port).into(), connection: conn.id, version, metrics, retried }
}

/// Signatures that are worth nothing.
pub(super) const fn is_sha1(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa)
}

impl Callbacks {
    /// What an attempt that begins now is judged by, to its end: the process's configuration, and not the one that the connection
    /// came under. Whoever was taken out of it is out, connected or not.
    pub(super) fn judge(&self) -> Arc<Config> {
        Arc::clone(&self.conn.server.current().config)
    }

    fn methods(&self) -> MethodSet {
        let config = self.judge();
        config.auth.methods(&config.users)
    }

    /// Waits for the answer to an attempt, unless the client leaves: then nobody is asked any more.
    pub(super) async fn answer(&self, answer: impl Future<Output = Verdict>) -> Result<Verdict, Error> {
        tokio::select! {
            verdict = answer => Ok(verdict),
            () = self.watch.left() => {
                debug!(connection = %self.conn.id, "the client left while a webhook was asked about it");
                Err(Error::Disconnect)
            }
        }
    }

    /// What is said of a key. Asked once, whether it is offered or signed with first.
    pub(super) async fn of_key(
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
    pub(super) async fn proven(
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

    pub(super) fn failed(&mut self, user: &str, method: Method, verdict: &Verdict) -> Result<Auth, Error> {
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
