//! Follows one pod: a read, then a watch from there; both again, with backoff, when the watch breaks.

use super::{Unary, error::cluster_error};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{WatchEvent, WatchParams},
};
use podbay_backend_core::cluster::{ClusterError, PodChange, PodRef};
use std::{pin::pin, time::Duration};
use tokio::{sync::mpsc, time::timeout};

/// The API server ends a watch after this long; it also bounds how long a dead connection can go unnoticed.
const WATCH_SECONDS: u32 = 60;
/// A watch that says nothing for longer is dead: the server owed us its end.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
const BACKOFF: std::ops::Range<Duration> = Duration::from_millis(200)..Duration::from_secs(15);

/// Why a watch ended.
enum Ended {
    /// The consumer is gone, or was told that the pod is.
    Done,
    /// In order, at the end of its time.
    InTime,
    /// 410: what we know is too old to go on from.
    Expired,
    /// Anything else.
    Broken(String),
}

/// Runs until the receiver is dropped or `Gone` was sent.
pub(super) async fn follow(unary: Unary, api: Api<Pod>, pod: PodRef, changes: mpsc::Sender<PodChange>) {
    let gone = changes.clone();
    tokio::select! {
        () = gone.closed() => {}
        () = work(&unary, &api, &pod, &changes) => {}
    }
}

async fn work(unary: &Unary, api: &Api<Pod>, pod: &PodRef, changes: &mpsc::Sender<PodChange>) {
    let mut last: Option<Box<Pod>> = None;
    let mut failures: u32 = 0;
    loop {
        let trouble = match unary.run("get_pod", api.get(&pod.name)).await {
            Ok(now) if pod.uid.is_some() && now.metadata.uid != pod.uid => return tell_gone(changes, last).await,
            Err(ClusterError::NotFound { .. }) => return tell_gone(changes, last).await,
            Ok(now) => {
                let known = last.as_ref().and_then(|pod| pod.metadata.resource_version.as_deref());
                if known.is_none() || known != now.metadata.resource_version.as_deref() {
                    let now = Box::new(now);
                    last = Some(now.clone());
                    if changes.send(PodChange::Now(now)).await.is_err() {
                        return;
                    }
                }
                match watch(api, pod, &mut last, changes, &mut failures).await {
                    Ended::Done => return,
                    Ended::InTime | Ended::Expired => continue,
                    Ended::Broken(why) => why,
                }
            }
            Err(error) => error.to_string(),
        };
        if changes.send(PodChange::Interrupted(trouble)).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff(failures, jitter())).await;
        failures = failures.saturating_add(1);
    }
}

/// One watch from the last version that was seen.
async fn watch(
    api: &Api<Pod>,
    pod: &PodRef,
    last: &mut Option<Box<Pod>>,
    changes: &mpsc::Sender<PodChange>,
    failures: &mut u32,
) -> Ended {
    let Some(version) = last.as_ref().and_then(|pod| pod.metadata.resource_version.clone()) else {
        return Ended::Broken("the pod has no resourceVersion".to_owned());
    };
    let params = WatchParams::default().fields(&format!("metadata.name={}", pod.name)).timeout(WATCH_SECONDS);
    let events = match timeout(SILENCE, api.watch(&params, &version)).await {
        Err(_) => return Ended::Broken("the watch was not answered".to_owned()),
        Ok(Err(error)) => return broken(&error),
        Ok(Ok(events)) => events,
    };
    let mut events = pin!(events.into_stream());
    loop {
        let event = match timeout(SILENCE, events.next()).await {
            Err(_) => return Ended::Broken("the watch said nothing for too long".to_owned()),
            Ok(None) => return Ended::InTime,
            Ok(Some(Err(error))) => return broken(&error),
            Ok(Some(Ok(event))) => event,
        };
        *failures = 0;
        match event {
            WatchEvent::Added(now) | WatchEvent::Modified(now) => {
                if pod.uid.is_some() && now.metadata.uid != pod.uid {
                    tell_gone(changes, last.take()).await;
                    return Ended::Done;
                }
                let now = Box::new(now);
                *last = Some(now.clone());
                if changes.send(PodChange::Now(now)).await.is_err() {
                    return Ended::Done;
                }
            }
            WatchEvent::Deleted(now) => {
                tell_gone(changes, Some(Box::new(now))).await;
                return Ended::Done;
            }
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) if status.code == 410 => return Ended::Expired,
            WatchEvent::Error(status) => return Ended::Broken(status.message.clone()),
        }
    }
}

fn broken(error: &kube::Error) -> Ended {
    match error {
        kube::Error::Api(status) if status.code == 410 => Ended::Expired,
        other => Ended::Broken(cluster_error(other).to_string()),
    }
}

async fn tell_gone(changes: &mpsc::Sender<PodChange>, last: Option<Box<Pod>>) {
    let _ = changes.send(PodChange::Gone(last)).await;
}

/// Doubling, with a jitter of half: many replicas must not return to a sick API server at once. `jitter` is 0 to 1.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let full = BACKOFF.start.saturating_mul(1 << failures.min(10)).min(BACKOFF.end);
    full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

fn jitter() -> f64 {
    rand::random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_bound() {
        assert_eq!(backoff(0, 1.0), Duration::from_millis(200));
        assert_eq!(backoff(0, 0.0), Duration::from_millis(100));
        assert_eq!(backoff(3, 1.0), Duration::from_millis(1600));
        assert_eq!(backoff(u32::MAX, 1.0), Duration::from_secs(15));
    }
}
