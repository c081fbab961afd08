//! What a scenario does over a world's gRPC contract: Podbay's own client, and an operator's calls.

use super::World;
use crate::process::program;
use podbay::v1::{self, connection_service_client::ConnectionServiceClient};
use std::process::Command;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

impl World {
    /// Podbay's own client over gRPC: `command`, and what follows it. It knows every replica.
    ///
    /// # Panics
    /// If the configuration can't be read.
    pub fn podbay(&self, command: &str, arguments: &[&str]) -> Command {
        let mut podbay = Command::new(program("podbay"));
        let addresses: Vec<String> = ["podbay.yaml", "second.yaml"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(self.state.join(name)).ok())
            .map(|text| grpc_address(&text))
            .collect();
        podbay.arg(command).arg("--server").arg(self.state.join("grpc.env")).args(["--address", &addresses.join(",")]);
        podbay.args(["--user", "demo"]).arg("--state-dir").arg(self.file("client")).args(arguments);
        podbay
    }

    /// Ends every connection there is, as an operator does over gRPC, with this message for its user. Gives how many.
    pub fn terminates_all(&self, message: &str) -> usize {
        self.as_operator(async |mut client| {
            let list = v1::ListConnectionsRequest::default();
            let connections = client.list_connections(list).await.expect("lists").into_inner().connections;
            for one in &connections {
                let connection_id = one.connection_id.clone();
                let request = v1::TerminateConnectionRequest { connection_id, message: message.to_owned() };
                client.terminate_connection(request).await.expect("ends it");
            }
            connections.len()
        })
    }

    fn as_operator<T>(&self, what: impl AsyncFnOnce(ConnectionServiceClient<Channel>) -> T) -> T {
        self.by_grpc(async |channel| what(ConnectionServiceClient::new(channel)).await)
    }

    /// Calls a backend, with the demo's client certificate, which may act for everybody and has the operator right.
    ///
    /// # Panics
    /// If it can't be reached.
    pub fn by_grpc<T>(&self, what: impl AsyncFnOnce(Channel) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let read = |name: &str| std::fs::read_to_string(self.state.join(name)).expect(name);
        let env = read("grpc.env");
        let address = env.lines().find_map(|line| line.strip_prefix("PODBAY_ADDRESS=")).expect("an address");
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")))
            .identity(Identity::from_pem(read("client.crt"), read("client.key")))
            .domain_name("localhost");
        let address = format!("https://{address}");
        runtime.block_on(async {
            let endpoint = Endpoint::from_shared(address).and_then(|at| at.tls_config(tls)).expect("an endpoint");
            what(endpoint.connect().await.expect("connects")).await
        })
    }
}

/// Where a backend with this configuration listens.
pub(super) fn grpc_address(config: &str) -> String {
    let grpc = config.split("\ngrpc:\n").nth(1).expect("a section grpc");
    grpc.lines().find_map(|line| line.trim().strip_prefix("listen: ")).expect("an address").to_owned()
}
