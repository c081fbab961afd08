//! Who may log in: users of the file with a password hash or public keys, those whom a webhook knows, and holders of certificates
//! that a trusted CA signed. [`AuthConfig`] says who is asked about whom.
//!
//! Nothing here tells a client whether a user exists: unknown users cost the same work, and get the same answers.

mod certificate;
mod door;
mod keys;
mod network;
mod password;
mod webhook;

pub use certificate::{Authorities, CertificateError, Permits, metadata as certificate_metadata};
pub use door::AuthConfig;
pub use keys::{KeyError, parse_authorized_key};
pub use network::{Network, NotANetwork};
pub use password::{HashError, PasswordHash};
pub use webhook::{Question, Subject, Verdict};

use russh::keys::{Algorithm, PublicKey};
use std::{collections::HashMap, sync::Arc};
use subtle::{Choice, ConstantTimeEq as _};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// The longest name and password that are looked at.
const MAX_NAME: usize = 256;
const MAX_PASSWORD: usize = 4096;

/// One user.
#[derive(Debug, Clone, Default)]
pub struct User {
    /// Absent: no login by password.
    pub password: Option<PasswordHash>,
    /// Public keys that may log in.
    pub keys: Vec<PublicKey>,
}

/// All users.
#[derive(Debug, Clone)]
pub struct Users {
    by_name: Arc<HashMap<String, User>>,
    /// What an unknown user is checked against, in vain.
    decoy: Arc<User>,
    /// Hashes are slow on purpose, and some take much memory: so many at once.
    hashing: Arc<Semaphore>,
}

impl Users {
    /// Users by name.
    pub fn new(users: HashMap<String, User>) -> Self {
        let decoy = User {
            password: users.values().filter_map(|user| user.password.clone()).max_by_key(PasswordHash::cost),
            keys: users.values().map(|user| user.keys.clone()).max_by_key(Vec::len).unwrap_or_default(),
        };
        let at_once = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { by_name: Arc::new(users), decoy: Arc::new(decoy), hashing: Arc::new(Semaphore::new(at_once)) }
    }

    /// Bounds that hold for the process are those of these users, who counted before.
    pub fn share_bounds(&mut self, before: &Self) {
        self.hashing = Arc::clone(&before.hashing);
    }

    /// Whether anybody has a password.
    pub fn has_passwords(&self) -> bool {
        self.decoy.password.is_some()
    }

    /// Whether anybody has a key.
    pub fn has_keys(&self) -> bool {
        !self.decoy.keys.is_empty()
    }

    /// Whether the user is one of these: then nobody else is asked about it.
    pub fn names(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The user, or the decoy, and whether it is the user.
    fn find(&self, name: &str) -> (&User, Choice) {
        match self.by_name.get(name).filter(|_| name.len() <= MAX_NAME) {
            Some(user) => (user, Choice::from(1)),
            None => (&self.decoy, Choice::from(0)),
        }
    }

    /// Whether the key may log in as the user. SHA-1 signatures may not.
    pub fn accepts_key(&self, name: &str, key: &PublicKey, algorithm: &Algorithm) -> bool {
        if matches!(algorithm, Algorithm::Rsa { hash: None }) {
            return false;
        }
        let Ok(given) = key.to_bytes() else { return false };
        let (user, known) = self.find(name);
        let mut found = Choice::from(0);
        for key in &user.keys {
            if let Ok(key) = key.to_bytes() {
                found |= key.ct_eq(&given);
            }
        }
        (found & known).into()
    }

    /// Whether the password is the user's. Takes as long for an unknown user as for one with a password. Cancel safe; the
    /// hashing that has begun goes on in its thread.
    pub async fn accepts_password(&self, name: &str, password: Zeroizing<String>) -> bool {
        if password.len() > MAX_PASSWORD {
            return false;
        }
        let (user, known) = self.find(name);
        let (hash, real) = match (&user.password, &self.decoy.password) {
            (Some(hash), _) => (hash.clone(), known),
            (None, Some(decoy)) => (decoy.clone(), Choice::from(0)),
            (None, None) => return false,
        };
        let Ok(permit) = Arc::clone(&self.hashing).acquire_owned().await else { return false };
        let verified = tokio::task::spawn_blocking(move || {
            let verified = hash.verify(&password);
            drop(permit);
            verified
        });
        let verified = Choice::from(u8::from(verified.await.unwrap_or(false)));
        (verified & real).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::PrivateKey;

    fn key() -> PublicKey {
        PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key").public_key().clone()
    }

    fn password(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    #[tokio::test]
    async fn a_user_logs_in_with_what_is_theirs() {
        let (alices, bobs) = (key(), key());
        let hash = PasswordHash::parse(password::tests::SHA512).expect("a hash");
        let users = Users::new(
            [
                ("alice".to_owned(), User { password: Some(hash), keys: vec![alices.clone()] }),
                ("bob".to_owned(), User { password: None, keys: vec![bobs.clone()] }),
            ]
            .into(),
        );
        let ed25519 = Algorithm::Ed25519;
        assert!(users.accepts_key("alice", &alices, &ed25519) && users.accepts_key("bob", &bobs, &ed25519));
        for (name, key) in [("alice", &bobs), ("bob", &alices), ("carol", &alices), ("carol", &bobs), ("", &alices)] {
            assert!(!users.accepts_key(name, key, &ed25519), "{name}");
        }
        assert!(!users.accepts_key("alice", &alices, &Algorithm::Rsa { hash: None }));
        assert!(users.accepts_password("alice", password("password")).await);
        for (name, text) in [("alice", "Password"), ("alice", ""), ("bob", "password"), ("carol", "password")] {
            assert!(!users.accepts_password(name, password(text)).await, "{name} {text}");
        }
    }

    #[tokio::test]
    async fn without_passwords_none_is_accepted() {
        let users = Users::new([("bob".to_owned(), User { password: None, keys: vec![key()] })].into());
        assert!(!users.has_passwords() && !users.accepts_password("bob", password("")).await);
    }
}
