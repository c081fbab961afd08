//! OpenSSH user certificates, signed by a CA that is trusted (OpenSSH's `TrustedUserCAKeys`). Pure.
//!
//! Whether the client has the certificate's key is russh's to verify; everything that the certificate says is checked here.

use super::Network;
use podbay::v1;
use podbay_runtime::webhook::Entry;
use russh::keys::{
    Algorithm, Certificate, PublicKey,
    ssh_key::{certificate::CertType, public::KeyData},
};
use std::{collections::BTreeMap, net::IpAddr};

/// The CAs.
#[derive(Debug, Clone, Default)]
pub struct Authorities(Vec<PublicKey>);

/// Why a certificate does not log its holder in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not by one of ours.
    #[error("it is signed by none of auth.trustedUserCAKeys")]
    Authority,
    /// A host's.
    #[error("it is no user's certificate")]
    NotAUsers,
    /// SHA-1, or the signature is wrong.
    #[error("its signature is not valid, or made with SHA-1")]
    Signature,
    /// Too early or too late.
    #[error("it is valid from {0} to {1} (Unix seconds), not now")]
    Expired(u64, u64),
    /// Another user's, or nobody's in particular.
    #[error("the user is none of its principals")]
    Principal,
    /// `source-address`.
    #[error("its source-address does not name where the client is")]
    Address,
    /// `force-command` that no server could run.
    #[error("its force-command is blank, longer than 16 KiB, or holds a NUL")]
    Command,
    /// A restriction that would not be kept.
    #[error("its critical option {0:?} is not supported, and a restriction is never ignored")]
    Option(String),
}

/// The longest `force-command`: what the contract takes.
const MAX_COMMAND: usize = 16 * 1024;

/// What a certificate lets its holder do. Of OpenSSH's other extensions nothing is kept: whoever has `permit-port-forwarding`,
/// `permit-agent-forwarding`, `permit-X11-forwarding` or `permit-user-rc` gets none of it here either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permits {
    /// `permit-pty`
    pub pty: bool,
    /// `force-command`: what runs whatever is asked for.
    pub force_command: Option<String>,
}

impl Permits {
    /// Everything: what who has no certificate may do.
    pub const fn all() -> Self {
        Self { pty: true, force_command: None }
    }

    /// What the backend is to keep; `None` = there is no restriction.
    pub fn restrictions(&self) -> Option<v1::Restrictions> {
        (*self != Self::all())
            .then(|| v1::Restrictions { force_command: self.force_command.clone(), no_terminal: !self.pty })
    }
}

impl Authorities {
    /// These keys.
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self(keys)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the certificate lets this user in from there, at `now` (Unix seconds), and with what restrictions.
    ///
    /// # Errors
    /// Why not.
    pub fn check(
        &self,
        certificate: &Certificate,
        user: &str,
        remote: IpAddr,
        now: u64,
    ) -> Result<Permits, CertificateError> {
        if !self.0.iter().any(|key| key.key_data() == certificate.signature_key()) {
            return Err(CertificateError::Authority);
        }
        if certificate.cert_type() != CertType::User {
            return Err(CertificateError::NotAUsers);
        }
        let sha1 = matches!(certificate.signature().algorithm(), Algorithm::Rsa { hash: None } | Algorithm::Dsa);
        if sha1 || certificate.verify_signature().is_err() {
            return Err(CertificateError::Signature);
        }
        let (from, to) = (certificate.valid_after(), certificate.valid_before());
        if now < from || now >= to {
            return Err(CertificateError::Expired(from, to));
        }
        // As OpenSSH: with trusted CAs a certificate without principals is nobody's.
        if !certificate.valid_principals().iter().any(|principal| principal == user) {
            return Err(CertificateError::Principal);
        }
        let mut force_command = None;
        for (name, value) in certificate.critical_options().iter() {
            match name.as_str() {
                "force-command" => {
                    if value.trim().is_empty() || value.len() > MAX_COMMAND || value.contains('\0') {
                        return Err(CertificateError::Command);
                    }
                    force_command = Some(value.clone());
                }
                "source-address" => {
                    let networks: Result<Vec<Network>, _> = value.split(',').map(str::parse).collect();
                    if !networks.is_ok_and(|networks| networks.iter().any(|network| network.contains(remote))) {
                        return Err(CertificateError::Address);
                    }
                }
                other => return Err(CertificateError::Option(other.chars().take(60).collect())),
            }
        }
        Ok(Permits { pty: certificate.extensions().contains_key("permit-pty"), force_command })
    }
}

/// What later webhooks and the backend may want to know of it.
pub fn metadata(certificate: &Certificate) -> BTreeMap<String, Entry<String>> {
    let authority = KeyData::clone(certificate.signature_key()).fingerprint(russh::keys::HashAlg::Sha256).to_string();
    [
        ("SSH_CERTIFICATE_KEY_ID", certificate.key_id().chars().filter(|c| *c != '\0').take(1024).collect()),
        ("SSH_CERTIFICATE_SERIAL", certificate.serial().to_string()),
        ("SSH_CERTIFICATE_CA", authority),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), Entry::new(value, false)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::{PrivateKey, ssh_key::certificate::Builder};

    fn key() -> PrivateKey {
        PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key")
    }

    fn signed(authority: &PrivateKey, change: impl FnOnce(&mut Builder)) -> Certificate {
        let mut builder =
            Builder::new(vec![7; 16], key().public_key().key_data().clone(), 1000, 2000).expect("a builder");
        builder.key_id("alice's laptop").expect("an id");
        builder.serial(42).expect("a serial");
        builder.valid_principal("alice").expect("a principal");
        builder.extension("permit-pty", "").expect("an extension");
        change(&mut builder);
        builder.sign(authority).expect("signed")
    }

    #[test]
    fn only_what_holds_here_and_now_lets_its_principal_in() {
        let authority = key();
        let authorities = Authorities::new(vec![key().public_key().clone(), authority.public_key().clone()]);
        let remote: IpAddr = "10.1.2.3".parse().expect("an address");
        let check = |certificate: &Certificate, user, now| authorities.check(certificate, user, remote, now);
        let plain = signed(&authority, |_| {});
        assert_eq!(check(&plain, "alice", 1000), Ok(Permits::all()));
        assert_eq!(check(&plain, "alice", 1999), Ok(Permits::all()));
        for now in [0, 999, 2000, u64::MAX] {
            assert_eq!(check(&plain, "alice", now), Err(CertificateError::Expired(1000, 2000)));
        }
        assert_eq!(check(&plain, "bob", 1500), Err(CertificateError::Principal));
        assert_eq!(check(&signed(&key(), |_| {}), "alice", 1500), Err(CertificateError::Authority));
        let host = signed(&authority, |builder| drop(builder.cert_type(CertType::Host)));
        assert_eq!(check(&host, "alice", 1500), Err(CertificateError::NotAUsers));
        let from =
            |networks: &str| signed(&authority, |builder| drop(builder.critical_option("source-address", networks)));
        assert_eq!(check(&from("192.168.0.0/16,10.0.0.0/8"), "alice", 1500), Ok(Permits::all()));
        for networks in ["192.168.0.0/16", "10.0.0.0/8,nonsense", "10.1.2.3/8", ""] {
            assert_eq!(check(&from(networks), "alice", 1500), Err(CertificateError::Address), "{networks}");
        }
        let forced = |command: &str| {
            let with = |builder: &mut Builder| drop(builder.critical_option("force-command", command));
            check(&signed(&authority, with), "alice", 1500)
        };
        let permits = forced("id; echo \"$SSH_ORIGINAL_COMMAND\" ").expect("in");
        assert!(permits.pty);
        assert_eq!(permits.force_command.as_deref(), Some("id; echo \"$SSH_ORIGINAL_COMMAND\" "), "to the last blank");
        for command in ["", " \t\n", "a\0b", &"x".repeat(MAX_COMMAND + 1)] {
            assert_eq!(forced(command), Err(CertificateError::Command));
        }
        for option in ["verify-required", "no-such@example.org", "Force-Command", "permit-pty"] {
            let restricted = signed(&authority, |builder| drop(builder.critical_option(option, "x")));
            assert_eq!(check(&restricted, "alice", 1500), Err(CertificateError::Option(option.to_owned())));
        }
        let metadata = metadata(&plain);
        assert_eq!(metadata["SSH_CERTIFICATE_KEY_ID"].value, "alice's laptop");
        assert_eq!(metadata["SSH_CERTIFICATE_SERIAL"].value, "42");
    }

    #[test]
    fn a_certificate_without_principals_or_terminal_is_less() {
        let authority = key();
        let authorities = Authorities::new(vec![authority.public_key().clone()]);
        let mut builder =
            Builder::new(vec![7; 16], key().public_key().key_data().clone(), 1000, 2000).expect("a builder");
        builder.all_principals_valid().expect("all");
        let anybodys = builder.sign(&authority).expect("signed");
        let remote = "::1".parse().expect("an address");
        assert_eq!(authorities.check(&anybodys, "alice", remote, 1500), Err(CertificateError::Principal));
        let mut builder =
            Builder::new(vec![7; 16], key().public_key().key_data().clone(), 1000, 2000).expect("a builder");
        builder.valid_principal("alice").expect("a principal");
        let bare = builder.sign(&authority).expect("signed");
        let permits = authorities.check(&bare, "alice", remote, 1500).expect("in");
        assert_eq!(permits, Permits { pty: false, force_command: None });
        assert_eq!(permits.restrictions(), Some(v1::Restrictions { force_command: None, no_terminal: true }));
        assert_eq!(Permits::all().restrictions(), None);
    }
}
