//! A CA of the demo's own, and the certificates that its processes and gRPC clients show each other.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use std::net::{IpAddr, Ipv4Addr};

/// A certificate and its key, in PEM.
pub struct Identity {
    pub cert: String,
    pub key: String,
}

/// Everything that mTLS needs. The CA's own key is not kept.
pub struct Credentials {
    pub ca: String,
    /// The backend, as `localhost` and 127.0.0.1.
    pub backend: Identity,
    /// The frontend, as `frontend.podbay`.
    pub frontend: Identity,
    /// Any other gRPC client of the demo's user, as `client.podbay`.
    pub client: Identity,
}

/// Makes them anew.
pub fn make() -> Result<Credentials, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "podbay demo CA");
    let pem = ca.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(ca, &ca_key);
    let sign = |name: &str, usage, loopback: bool| -> Result<Identity, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(usage);
        if loopback {
            params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        }
        Ok(Identity { cert: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
    };
    Ok(Credentials {
        backend: sign("localhost", ExtendedKeyUsagePurpose::ServerAuth, true)?,
        frontend: sign("frontend.podbay", ExtendedKeyUsagePurpose::ClientAuth, false)?,
        client: sign("client.podbay", ExtendedKeyUsagePurpose::ClientAuth, false)?,
        ca: pem,
    })
}
