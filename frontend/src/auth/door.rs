//! Who is asked about an attempt: users of the file about themselves, the webhook about everybody else, and `authz` about all who have
//! proven to be who they say.

use super::{Authorities, MAX_NAME, Question, Subject, Users, Verdict, webhook::ask};
use podbay_runtime::webhook::{Client, Facts};
use russh::{
    MethodKind, MethodSet,
    keys::{Algorithm, PublicKey},
};
use zeroize::Zeroizing;

/// How users authenticate, besides those of the file.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// `auth.password.webhook`
    pub password: Option<Client>,
    /// `auth.publicKey.webhook`
    pub public_key: Option<Client>,
    /// `auth.authz.webhook`
    pub authz: Option<Client>,
    /// `auth.trustedUserCAKeys`
    pub authorities: Authorities,
    /// For the log, at the start.
    pub warnings: Vec<String>,
}

impl AuthConfig {
    /// Whether anybody could log in by it.
    pub fn lets_anybody_in(&self) -> bool {
        self.password.is_some() || self.public_key.is_some() || !self.authorities.is_empty()
    }

    /// Whether a webhook may be asked during a login.
    pub const fn asks(&self) -> bool {
        self.password.is_some() || self.public_key.is_some() || self.authz.is_some()
    }

    /// What clients may try: only what could work.
    pub fn methods(&self, users: &Users) -> MethodSet {
        let mut methods = MethodSet::empty();
        if self.public_key.is_some() || !self.authorities.is_empty() || users.has_keys() {
            methods.push(MethodKind::PublicKey);
        }
        if self.password.is_some() || users.has_passwords() {
            methods.push(MethodKind::Password);
        }
        methods
    }

    /// Whether the password logs the user in. Cancel safe.
    pub async fn password(&self, users: &Users, subject: Subject<'_>, password: Zeroizing<String>) -> Verdict {
        match &self.password {
            Some(_) if subject.user.len() > MAX_NAME => Verdict::Refused,
            Some(client) if !users.names(subject.user) => {
                ask(client, subject, &Question::Password(password), &Facts::default()).await
            }
            _ => of(users.accepts_password(subject.user, password).await),
        }
    }

    /// Whether the key does, once the client has proven to have it. Cancel safe.
    pub async fn key(&self, users: &Users, subject: Subject<'_>, key: &PublicKey, algorithm: &Algorithm) -> Verdict {
        match &self.public_key {
            Some(_) if subject.user.len() > MAX_NAME => Verdict::Refused,
            Some(_) if matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa) => Verdict::Refused,
            Some(client) if !users.names(subject.user) => match PublicKey::new(key.key_data().clone(), "").to_openssh()
            {
                Ok(line) => ask(client, subject, &Question::PublicKey(line), &Facts::default()).await,
                Err(_) => Verdict::Refused,
            },
            _ => of(users.accepts_key(subject.user, key, algorithm)),
        }
    }

    /// Whether a user who has proven to be one may log in; what is known is told, and what is learnt is added. Cancel safe.
    pub async fn authorize(&self, subject: Subject<'_>, mut known: Facts) -> Verdict {
        // ContainerSSH leaves it empty, and then policy and pods have no name to go by.
        known.authenticated.get_or_insert_with(|| subject.user.to_owned());
        let Some(client) = &self.authz else { return Verdict::Accepted(known) };
        match ask(client, subject, &Question::Authorization, &known).await {
            Verdict::Accepted(learnt) => {
                known.merge(learnt);
                if known.check().is_ok() { Verdict::Accepted(known) } else { Verdict::Unavailable }
            }
            other => other,
        }
    }
}

fn of(accepted: bool) -> Verdict {
    if accepted { Verdict::Accepted(Facts::default()) } else { Verdict::Refused }
}
