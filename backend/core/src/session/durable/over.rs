//! How a program's end is told: from the agent's word, and from what the pod's status shows then or soon afterwards.

use crate::{
    cluster::{Cluster, ClusterError, PodRef, StreamEnd},
    ownership::Leases,
    session::ending::{self, STOPPED, explained, of_broken, of_lost_program, of_pod},
};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use podbay::{
    ConnectionId,
    v1::{self, exit::End},
};
use std::sync::Arc;

/// Of a link that was not made again.
pub(super) const RESTARTED: &str = "its container was restarted";

/// How a program came to its end.
pub(super) enum Over {
    /// By itself; `stopping`: while its container was being stopped.
    Exit { exit: v1::Exit, stopping: bool },
    /// Its pod or container is gone, as this shows.
    Gone(Box<Result<Pod, ClusterError>>),
    /// Its supervisor is another one.
    Lost,
    /// It can't be reached, and may run on.
    Unreachable(v1::Exit),
}

/// What the client is told of an end.
pub(super) struct Told {
    /// Why, where Exit is the program's own word.
    pub notice: Option<String>,
    pub exit: v1::Exit,
}

/// What is told of an end, from what the pod and the connection's marks show. Waits a little where the pod's status may come behind.
pub(super) async fn told(
    over: Over,
    of: (Arc<dyn Cluster>, Leases),
    pod: PodRef,
    contents: (ConnectionId, String),
) -> Told {
    let ((cluster, leases), (connection, console)) = (of, contents);
    let (notice, mut exit) = match over {
        Over::Exit { exit, stopping } => {
            let why = if stopping {
                explained(&*cluster, &pod, &console, STOPPED).await
            } else if ending::may_be_the_pods(&exit) {
                of_pod(&cluster.get_pod(&pod).await, &console)
            } else {
                None
            };
            match why {
                Some(why) if ending::may_be_the_pods(&exit) => (None, why),
                // It was told to end, and ended by itself.
                Some(why) => (ending::words(why), exit),
                None if stopping => (None, ending::stopped(exit)),
                None => (None, exit),
            }
        }
        Over::Gone(found) => match of_pod(&found, &console) {
            Some(exit) => (None, exit),
            None => (None, of_broken(&*cluster, &pod, &console, &StreamEnd::Lost(RESTARTED.to_owned())).await),
        },
        Over::Unreachable(exit) => (None, exit),
        Over::Lost => (None, of_lost_program(&cluster.get_pod(&pod).await, &console)),
    };
    if (notice.is_some() || ending::may_be_the_pods(&exit))
        && let Some(refusal) = leases.terminated(connection).await
    {
        match notice {
            Some(_) => return Told { notice: Some(refusal.message), exit },
            None => exit = v1::Exit { end: Some(End::Lost(refusal)) },
        }
    }
    if let Some(End::Lost(refusal)) = &mut exit.end {
        refusal.connection_id = connection.to_string();
    }
    Told { notice, exit }
}

/// Never, where nothing has ended. Cancel safe.
pub(super) async fn ended(ending: &mut Option<BoxFuture<'static, Told>>) -> Told {
    match ending {
        Some(ending) => ending.await,
        None => std::future::pending().await,
    }
}
