//! Fresh credentials for one cluster: a CA that signs the server's and one client's certificate, a bearer token, and the
//! kubeconfig that names them. The CA's key is forgotten at once.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rand::RngExt as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use std::{fmt, io, net::SocketAddr, sync::Arc};

pub(crate) struct Credentials {
    /// Asks for a client certificate, does not insist on it.
    pub tls: Arc<ServerConfig>,
    pub ca: String,
    pub token: String,
    pub kubeconfig: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    pub fn new(address: SocketAddr) -> io::Result<Self> {
        Self::make(address).map_err(io::Error::other)
    }

    fn make(address: SocketAddr) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "podbay-minicluster-ca");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);

        let names =
            [address.ip().to_string(), "localhost".into(), "kubernetes".into(), "kubernetes.default.svc".into()];
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name.push(DnType::CommonName, "podbay-minicluster");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_key = KeyPair::generate()?;
        let server = server.signed_by(&server_key, &issuer)?;

        let mut client = CertificateParams::default();
        client.distinguished_name.push(DnType::OrganizationName, "system:masters");
        client.distinguished_name.push(DnType::CommonName, "admin");
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client_key = KeyPair::generate()?;
        let client = client.signed_by(&client_key, &issuer)?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca_certificate.der().clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![server.der().clone()], key)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];

        let secret: [u8; 32] = rand::rng().random();
        Ok(Self {
            tls: Arc::new(tls),
            kubeconfig: kubeconfig(address, &ca_certificate.pem(), &client.pem(), &client_key.serialize_pem()),
            ca: ca_certificate.pem(),
            token: base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret),
        })
    }
}

/// JSON, which is YAML too.
fn kubeconfig(address: SocketAddr, ca: &str, certificate: &str, key: &str) -> String {
    let name = "podbay-minicluster";
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": name, "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority-data": STANDARD.encode(ca),
        }}],
        "users": [{ "name": name, "user": {
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
        }}],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name, "namespace": "default" }}],
        "current-context": name,
    });
    format!("{config:#}\n")
}
