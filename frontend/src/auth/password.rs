//! Password hashes: argon2, bcrypt, and the crypt(3) hashes of SHA-256 and SHA-512.

use argon2::{Argon2, password_hash::PasswordVerifier as _};
use password_hash::phc;
use podbay_runtime::config::Secret;
use sha_crypt::ShaCrypt;

/// The most that one login may cost: memory, and work.
const MAX_ARGON2_KIB: u32 = 256 * 1024;
const MAX_ARGON2_PASSES: u32 = 20;
const MAX_BCRYPT_COST: u32 = 16;
const MAX_SHA_ROUNDS: u32 = 5_000_000;

/// Without `rounds=`, crypt(3) makes this many.
const DEFAULT_SHA_ROUNDS: u32 = 5000;

/// Why a hash can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Perhaps a password in clear.
    #[error(
        "is no password hash: expected argon2 ($argon2id$…), bcrypt ($2b$…), SHA-512-crypt ($6$…) or SHA-256-crypt ($5$…)"
    )]
    Unknown,
    /// Recognised, but not well-formed.
    #[error("is a malformed {0} hash")]
    Malformed(&'static str),
    /// A login would cost too much.
    #[error("costs too much: at most 256 MiB and 20 passes of argon2, bcrypt cost 16, 5000000 rounds of SHA-crypt")]
    Cost,
}

/// A hash that can be verified.
#[derive(Debug, Clone)]
pub struct PasswordHash {
    kind: Kind,
    text: Secret,
    cost: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Argon2,
    Bcrypt,
    Sha,
}

impl PasswordHash {
    /// Recognises a hash by its prefix.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let (kind, cost) = if text.starts_with("$argon2") {
            (Kind::Argon2, argon2_cost(text)?)
        } else if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| text.starts_with(prefix)) {
            (Kind::Bcrypt, bcrypt_cost(text)?)
        } else if text.starts_with("$5$") || text.starts_with("$6$") {
            (Kind::Sha, sha_cost(text)?)
        } else {
            return Err(HashError::Unknown);
        };
        Ok(Self { kind, text: Secret::new(text), cost })
    }

    /// Roughly how long it takes, in units of nothing; to compare.
    pub const fn cost(&self) -> u64 {
        self.cost
    }

    /// Whether the password is the right one. Slow on purpose: not for an async task. Comparisons take constant time.
    pub fn verify(&self, password: &str) -> bool {
        let text = self.text.expose();
        match self.kind {
            Kind::Argon2 => phc::PasswordHash::new(text)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()),
            Kind::Bcrypt => bcrypt::verify(password, text).unwrap_or(false),
            Kind::Sha => {
                sha_crypt::PasswordVerifier::verify_password(&ShaCrypt::default(), password.as_bytes(), text).is_ok()
            }
        }
    }
}

fn argon2_cost(text: &str) -> Result<u64, HashError> {
    let malformed = || HashError::Malformed("argon2");
    let hash = phc::PasswordHash::new(text).map_err(|_| malformed())?;
    let params = argon2::Params::try_from(&hash).map_err(|_| malformed())?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err(malformed());
    }
    if params.m_cost() > MAX_ARGON2_KIB || params.t_cost() > MAX_ARGON2_PASSES {
        return Err(HashError::Cost);
    }
    Ok(u64::from(params.m_cost()) * u64::from(params.t_cost()) * 1000)
}

fn bcrypt_cost(text: &str) -> Result<u64, HashError> {
    let hash: bcrypt::HashParts = text.parse().map_err(|_| HashError::Malformed("bcrypt"))?;
    if text.len() != 60 {
        return Err(HashError::Malformed("bcrypt"));
    }
    if hash.get_cost() > MAX_BCRYPT_COST {
        return Err(HashError::Cost);
    }
    Ok(40_000 << hash.get_cost())
}

/// `$6$[rounds=N$]SALT$HASH`, the hash of 86 characters; `$5$` likewise, of 43.
fn sha_cost(text: &str) -> Result<u64, HashError> {
    let malformed = || HashError::Malformed("SHA-crypt");
    let mut fields = text.split('$').skip(1);
    let length = if fields.next() == Some("6") { 86 } else { 43 };
    let mut field = fields.next().ok_or_else(malformed)?;
    let mut rounds = DEFAULT_SHA_ROUNDS;
    if let Some(given) = field.strip_prefix("rounds=") {
        rounds = given.parse().map_err(|_| malformed())?;
        field = fields.next().ok_or_else(malformed)?;
    }
    let (salt, hash) = (field, fields.next().ok_or_else(malformed)?);
    let alphabet = |text: &str| text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.' || c == b'/');
    if fields.next().is_some() || salt.len() > 16 || hash.len() != length || !alphabet(salt) || !alphabet(hash) {
        return Err(malformed());
    }
    if rounds > MAX_SHA_ROUNDS {
        return Err(HashError::Cost);
    }
    Ok(u64::from(rounds) * 700)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Of "password", by `openssl passwd -6 -salt podbaytest password`.
    pub const SHA512: &str =
        "$6$podbaytest$7cD6izFwe9pO5DxvnyUadk0Ja29snA//6iAVWQvxFDNmpLnU5EaPSVaT67gl3UOT.eXYZ45CnwtzwxrrbIsYe.";
    /// `openssl passwd -5 -salt podbaytest password`
    const SHA256: &str = "$5$podbaytest$uUNYQ0qLwSMYEn/3KAItafZ5ZghxbhW7/ilV3n08GJ/";

    #[test]
    fn verifies_each_kind() {
        use argon2::password_hash::PasswordHasher as _;
        let argon2 = Argon2::new(
            argon2::Algorithm::Argon2id,
            argon2::Version::V0x13,
            argon2::Params::new(64, 1, 1, None).expect("parameters"),
        );
        let argon2 = argon2.hash_password_with_salt(b"password", b"saltsaltsalt").expect("hashes").to_string();
        let bcrypt = bcrypt::hash_with_salt("password", 4, [7; 16]).expect("hashes").to_string();
        for text in [SHA512, SHA256, &argon2, &bcrypt] {
            let hash = PasswordHash::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(hash.verify("password"), "{text}");
            assert!(!hash.verify("passwore") && !hash.verify(""), "{text}");
            assert!(!format!("{hash:?}").contains(&text[10..]), "shown by Debug");
        }
    }

    #[test]
    fn refuses_what_is_none_or_costs_too_much() {
        for text in ["", "password", "$1$abc$def", "$y$j9T$x"] {
            assert_eq!(PasswordHash::parse(text).expect_err("refused"), HashError::Unknown, "{text}");
        }
        for text in ["$6$", "$6$salt", "$6$salt$short", "$5$rounds=x$a$b", "$2b$12$abc", "$argon2id$v=19$m=64"] {
            assert!(matches!(PasswordHash::parse(text), Err(HashError::Malformed(_))), "{text}");
        }
        let bcrypt_text = bcrypt::hash_with_salt("x", 4, [7; 16]).expect("hashes").to_string();
        let dear = [
            format!("$6$rounds=5000001$salt${}", "a".repeat(86)),
            bcrypt_text.replace("$04$", "$17$"),
            "$argon2id$v=19$m=1000000,t=1,p=1$c2FsdHNhbHRzYWx0$MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI".to_owned(),
        ];
        for text in dear {
            assert_eq!(PasswordHash::parse(&text).expect_err("refused"), HashError::Cost, "{text}");
        }
    }
}
