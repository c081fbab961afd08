use super::*;
use futures::StreamExt as _;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use std::time::Instant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    /// A CA and one certificate for both sides.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_cert = ca.self_signed(&ca_key).expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        leaf.subject_alt_names.push(SanType::URI("spiffe://x/frontend".try_into().expect("a URI")));
        leaf.distinguished_name.push(rcgen::DnType::CommonName, "frontend");
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, &ca_key)).expect("a certificate");
        std::fs::write(dir.path().join("ca"), ca_cert.pem()).expect("writes");
        std::fs::write(dir.path().join("cert"), leaf.pem()).expect("writes");
        std::fs::write(dir.path().join("key"), key.serialize_pem()).expect("writes");
        Self { dir }
    }

    /// A server's side.
    fn server(&self) -> Arc<Followed<rustls::ServerConfig>> {
        Followed::server(self.path("cert"), self.path("key"), Some(self.path("ca"))).expect("a server")
    }

    /// Puts another's files in the place of these.
    fn become_those_of(&self, other: &Self, names: &[&str]) {
        for name in names {
            std::fs::rename(other.path(name), self.path(name)).expect("renames");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[tokio::test]
async fn garbage_hurts_nobody_and_names_are_read() {
    let files = Files::new();
    let server = files.server();
    let client = client(&files.path("ca"), Some((&files.path("cert"), &files.path("key")))).expect("a client");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let (refused, mut refusals) = tokio::sync::mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let limits = Limits { handshakes: 2, handshake_timeout: Duration::from_secs(30) };
    let mut incoming = std::pin::pin!(incoming(listener, server, limits, stop.clone(), move |who, _| {
        let _ = refused.send(who);
    }));
    let mut garbage = TcpStream::connect(address).await.expect("connects");
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("writes");
    let dial = tokio::spawn(async move {
        let stream = TcpStream::connect(address).await.expect("connects");
        let name = "localhost".try_into().expect("a name");
        let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, stream).await.expect("handshake");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nx").await.expect("writes");
        let _ = stream.read(&mut [0]).await;
    });
    let mut stream = incoming.next().await.expect("a connection").expect("no error");
    let names = peer_names(stream.get_ref().get_ref().1.peer_certificates().expect("a certificate"));
    assert_eq!(names, ["dns:localhost", "uri:spiffe://x/frontend", "cn:frontend"]);
    let mut read = [0; 25];
    stream.read_exact(&mut read).await.expect("reads");
    assert_eq!(&read[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nx");
    drop(stream);
    dial.await.expect("the client ends");
    let refusal = refusals.recv().await.expect("a refusal");
    assert!(matches!(refusal, Refused::Handshake(peer) if peer == garbage.local_addr().expect("an address")));
    stop.cancel();
    assert!(incoming.next().await.is_none());
}

#[test]
fn a_missing_or_wrong_file_is_named() {
    let files = Files::new();
    let error = client(&files.path("nosuch"), None).expect_err("no file").to_string();
    assert!(error.contains("nosuch"), "{error}");
    let error = client(&files.path("key"), None).expect_err("no certificate").to_string();
    assert!(error.contains("key: "), "{error}");
    assert_eq!(peer_names(&[]), Vec::<String>::new());
    assert_eq!(peer_names(&[CertificateDer::from(vec![1, 2, 3])]), Vec::<String>::new());
}

#[tokio::test]
async fn garbage_after_a_good_handshake_is_cut_and_told_with_its_address() {
    let files = Files::new();
    let client = client(&files.path("ca"), Some((&files.path("cert"), &files.path("key")))).expect("a client");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let (refused, mut refusals) = tokio::sync::mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let limits = Limits { handshakes: 8, handshake_timeout: Duration::from_secs(2) };
    let mut incoming = std::pin::pin!(incoming(listener, files.server(), limits, stop.clone(), move |who, error| {
        let _ = refused.send((who, error.to_string()));
    }));
    let connect = async || {
        let stream = TcpStream::connect(address).await.expect("connects");
        let name = "localhost".try_into().expect("a name");
        tokio_rustls::TlsConnector::from(client.clone()).connect(name, stream).await.expect("handshake")
    };
    for (sent, why) in [
        (&b"GET / HTTP/1.1\r\n"[..], "not HTTP/2"),
        (b"PRI * HTTP/2.0\r\n\r\nSN", "not HTTP/2"),
        // One that says nothing, or not all: its time is over.
        (b"", "too long"),
        (b"PRI * HTTP", "too long"),
    ] {
        let mut peer = connect().await;
        peer.write_all(sent).await.expect("writes");
        peer.flush().await.expect("writes");
        let began = Instant::now();
        let ended = tokio::time::timeout(Duration::from_secs(30), peer.read(&mut [0])).await.expect("it is cut");
        assert!(ended.is_err() || ended.is_ok_and(|n| n == 0));
        let own = peer.get_ref().0.local_addr().expect("an address");
        let (who, error) = refusals.recv().await.expect("a refusal");
        assert!(matches!(who, Refused::Garbage(peer) if peer == own), "{who:?}");
        assert!(error.contains(why), "{error}");
        assert!(why != "not HTTP/2" || began.elapsed() < Duration::from_secs(1), "at once");
    }
    // Whoever speaks slowly, but right, gets in; so does a peer that sends all at once.
    let mut slow = connect().await;
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
        slow.write_all(&[*byte]).await.expect("writes");
        slow.flush().await.expect("writes");
    }
    let stream = incoming.next().await.expect("a connection").expect("no error");
    let socket = socket2::SockRef::from(stream.get_ref().get_ref().0);
    assert_eq!(socket.tcp_user_timeout().expect("reads"), Some(Duration::from_secs(30)));
    assert!(socket.tcp_nodelay().expect("reads"));
}

#[test]
fn files_are_followed_and_bad_ones_change_nothing() {
    let files = Files::new();
    let server = files.server();
    let client = Followed::client(files.path("ca"), Some((files.path("cert"), files.path("key")))).expect("a client");
    let (first, first_client) = (server.load(), client.load());
    assert!(matches!(server.check(), Checked::Same) && matches!(client.check(), Checked::Same));
    // A certificate without its key yet, as it is between two writes: told once.
    let new = Files::new();
    files.become_those_of(&new, &["cert"]);
    let Checked::Bad(error) = server.check() else { panic!("the key is another one's") };
    assert!(error.to_string().contains("/key: is not the key of the certificate in "), "{error}");
    assert!(matches!(client.check(), Checked::Bad(_)));
    assert!(matches!(server.check(), Checked::Same));
    assert!(Arc::ptr_eq(&first, &server.load()) && Arc::ptr_eq(&first_client, &client.load()));
    files.become_those_of(&new, &["key", "ca"]);
    assert!(matches!(server.check(), Checked::New) && matches!(client.check(), Checked::New));
    assert!(!Arc::ptr_eq(&first, &server.load()) && !Arc::ptr_eq(&first_client, &client.load()));
    // A file that is gone, and one that is none.
    let good = server.load();
    std::fs::remove_file(files.path("ca")).expect("removes");
    let Checked::Bad(error) = server.check() else { panic!("the CA is gone") };
    assert!(error.to_string().contains("ca: "), "{error}");
    std::fs::write(files.path("ca"), "nonsense").expect("writes");
    assert!(matches!(server.check(), Checked::Bad(_)));
    assert!(Arc::ptr_eq(&good, &server.load()));
}

#[test]
fn what_is_wrong_with_files_is_told_of_the_file_that_it_is() {
    let (files, other) = (Files::new(), Files::new());
    let (cert, key, ca) = (files.path("cert"), files.path("key"), files.path("ca"));
    let told = |cert: &Path, key: &Path| match server(cert, key, Some(&ca)) {
        Err(TlsError::File { path, error }) => (path, error),
        Err(TlsError::Config(error)) => panic!("of no file: {error}"),
        Ok(_) => panic!("it is taken"),
    };
    let strange = other.path("key");
    let not_its_key = format!("is not the key of the certificate in {}", cert.display());
    assert_eq!(told(&cert, &strange), (strange.clone(), not_its_key.clone()));
    assert_eq!(told(&cert, &cert), (cert.clone(), "holds no private key in PEM (or one with a passphrase)".to_owned()));
    assert_eq!(told(&key, &key), (key.clone(), "holds no PEM certificate".to_owned()));
    let client = client(&ca, Some((&cert, &strange))).map(drop).expect_err("another's key").to_string();
    assert_eq!(client, format!("{}: {not_its_key}", strange.display()));
}

#[test]
fn a_certificate_out_of_time_is_told_with_its_date() {
    let dir = tempfile::tempdir().expect("a directory");
    let written = |from, to| {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        let pem = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem();
        let path = dir.path().join(format!("{from}"));
        std::fs::write(&path, pem).expect("writes");
        out_of_time(&path)
    };
    let old = written(2000, 2001).expect("it has expired");
    assert!(old.contains("/2000: the certificate has expired on Jan  1") && old.contains("2001"), "{old}");
    let new = written(2500, 2501).expect("it is not valid yet");
    assert!(new.contains("is not valid before") && new.ends_with("is the clock right?"), "{new}");
    assert_eq!(written(2001, 2501), None);
    assert_eq!(out_of_time(&dir.path().join("nothing")), None);
}
