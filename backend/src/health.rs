//! What this process tells of itself by `grpc.health.v1`: itself, and apart from that whether the Kubernetes API answers.

use podbay::v1::{connection_service_server::ConnectionServiceServer, session_service_server::SessionServiceServer};
use podbay_backend_core::cluster::Cluster;
use podbay_runtime::codes;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic_health::{ServingStatus, server::HealthReporter};

/// The name that tells whether the API answers. Balancers never eject a backend for it: an API restart would empty the
/// whole Service at once.
pub const KUBERNETES: &str = "kubernetes";

const EVERY: Duration = Duration::from_secs(5);

/// Changes its mind after this many answers in a row that say otherwise: one lost ping is no outage.
const CONVINCED: u32 = 2;

/// A state that doesn't flutter. Pure.
#[derive(Debug, Default)]
struct Steady {
    state: Option<bool>,
    against: u32,
}

impl Steady {
    /// Takes an answer; gives the state where it changed.
    fn hear(&mut self, answer: bool) -> Option<bool> {
        match self.state {
            Some(state) if state == answer => {
                self.against = 0;
                None
            }
            Some(_) if self.against + 1 < CONVINCED => {
                self.against += 1;
                None
            }
            Some(_) | None => {
                self.against = 0;
                self.state = Some(answer);
                self.state
            }
        }
    }
}

/// Says whether this process takes work.
pub(crate) async fn tell_serving(reporter: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in ["", ConnectionServiceServer::<()>::NAME, SessionServiceServer::<()>::NAME] {
        reporter.set_service_status(name, status).await;
    }
}

/// Asks the API again and again, and tells.
pub(crate) async fn watch_kubernetes(reporter: HealthReporter, cluster: Arc<dyn Cluster>, stop: CancellationToken) {
    let mut steady = Steady::default();
    let work = async {
        loop {
            let answer = cluster.ping().await;
            if let Some(up) = steady.hear(answer.is_ok()) {
                match &answer {
                    Ok(()) => tracing::info!(code = codes::KUBERNETES_AVAILABLE, "the Kubernetes API answers"),
                    Err(error) => {
                        tracing::warn!(code = codes::KUBERNETES_UNAVAILABLE, %error, "the Kubernetes API does not answer");
                    }
                }
                let status = if up { ServingStatus::Serving } else { ServingStatus::NotServing };
                reporter.set_service_status(KUBERNETES, status).await;
            }
            sleep(EVERY).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_ping_is_no_outage() {
        let mut steady = Steady::default();
        let told: Vec<_> = [true, false, true, false, false, false, true, true].map(|up| steady.hear(up)).to_vec();
        assert_eq!(told, [Some(true), None, None, None, Some(false), None, None, Some(true)]);
        assert_eq!(Steady::default().hear(false), Some(false));
    }
}
