//! Configurations that can't work are told before anything is sent.

mod support;

use podbay_backend_core::cluster::{Cluster as _, ClusterError};

#[tokio::test]
async fn an_api_server_that_is_not_there_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let cluster = support::cluster(&format!("host: \"http://{address}\"")).await;
    let error = cluster.ping().await.expect_err("nothing listens there");
    assert!(matches!(&error, ClusterError::Unavailable { message, .. } if message.contains("refused")), "{error}");
    let error = cluster.stream(&support::pod(), &support::exec(&["x"], false)).await.expect_err("nothing listens");
    assert!(matches!(error, ClusterError::Unavailable { .. }), "{error}");
}
