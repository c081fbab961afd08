//! What is spoken on an exec's connection besides `v5.channel.k8s.io`, by a client that is not the kube crate's.

mod world;

use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, StatusCode, header};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _},
};
use world::{World, idle, within};

type Result = std::result::Result<WebSocketStream<TlsStream<TcpStream>>, Error>;

async fn open(world: &World, query: &str, change: impl FnOnce(&mut http::HeaderMap)) -> Result {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let ca = CertificateDer::from_pem_slice(world.cluster.ca_certificate().as_bytes()).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).expect("a CA");
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(world.cluster.address()).await.expect("connected");
    let name = ServerName::from(world.cluster.address().ip());
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS");
    let url = format!("wss://{}/api/v1/namespaces/default/pods/p/exec?{query}", world.cluster.address());
    let mut request = url.into_client_request().expect("a request");
    let bearer = format!("Bearer {}", world.cluster.bearer_token());
    request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_str(&bearer).expect("a header"));
    change(request.headers_mut());
    Box::pin(within("an answer", client_async(request, tls))).await.map(|(socket, _)| socket)
}

fn protocol(name: &'static str) -> impl FnOnce(&mut http::HeaderMap) {
    move |headers| {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
}

fn refusal(result: Result) -> StatusCode {
    match result {
        Err(Error::Http(response)) => response.status(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("accepted"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn v4_has_the_same_channels_and_no_half_close() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let query = "command=head&command=-n1&stdin=true&stdout=true&stderr=true";
    let mut socket = open(&world, query, protocol("v3.channel.k8s.io, v4.channel.k8s.io")).await.expect("v4");
    // Without v5 this is a channel like any other that is not there.
    socket.send(Message::Binary(vec![255, 0].into())).await.expect("sent");
    socket.send(Message::Binary(b"\0one\ntwo\n".to_vec().into())).await.expect("sent");
    let (mut out, mut status) = (Vec::new(), serde_json::Value::Null);
    while let Some(Ok(message)) = within("a message", socket.next()).await {
        match message {
            Message::Binary(data) if data.first() == Some(&1) => out.extend(data.slice(1..)),
            Message::Binary(data) if data.first() == Some(&3) => {
                status = serde_json::from_slice(&data.slice(1..)).expect("a Status");
            }
            Message::Close(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(out, b"one\n");
    assert_eq!(status["status"], "Success");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_spoken_is_refused_in_so_many_words() {
    let world = World::start().await;
    world.run(&idle("p")).await;
    let query = "command=true&stdout=true";
    assert_eq!(refusal(open(&world, query, protocol("base64.channel.k8s.io")).await), StatusCode::FORBIDDEN);
    let spdy = |headers: &mut http::HeaderMap| {
        headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    };
    assert_eq!(refusal(open(&world, query, spdy).await), StatusCode::BAD_REQUEST);
    let v5 = || protocol("v5.channel.k8s.io");
    assert_eq!(refusal(open(&world, "stdout=true", v5()).await), StatusCode::BAD_REQUEST);
    assert_eq!(refusal(open(&world, "command=true", v5()).await), StatusCode::BAD_REQUEST);
    let nobody = |headers: &mut http::HeaderMap| {
        headers.remove(header::AUTHORIZATION);
    };
    assert_eq!(refusal(open(&world, query, nobody).await), StatusCode::UNAUTHORIZED);
    world.end().await;
}
