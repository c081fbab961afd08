//! The port's calls.

use super::{Call, FakeCluster, Fault, Program, Shared, Step, script::What, store, store::State};
use crate::cluster::{Cluster, ClusterError, Output, PodChange, PodRef, StreamEnd, StreamRequest, Streams};
use async_trait::async_trait;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Event, Pod},
};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

impl FakeCluster {
    /// A unary call: counted, with its fault, bounded.
    async fn call<T>(
        &self,
        call: Call,
        act: impl FnOnce(&mut State) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        let (result, delay) = {
            let mut state = self.state();
            let http = state.http;
            let late = || Err(ClusterError::Timeout(http));
            let fault = state.faults.next(call);
            match (state.down.clone(), fault) {
                (Some(error @ ClusterError::Timeout(_)), _) => (Err(error), http),
                (Some(error), _) | (None, Some(Fault::Fail(error))) => (Err(error), Duration::ZERO),
                (None, None) => (act(&mut state), Duration::ZERO),
                (None, Some(Fault::Hang)) => (late(), http),
                (None, Some(Fault::LoseAnswer(error))) => {
                    let _ = act(&mut state);
                    let delay = if matches!(error, ClusterError::Timeout(_)) { http } else { Duration::ZERO };
                    (Err(error), delay)
                }
                (None, Some(Fault::Slow(delay))) => {
                    let result = act(&mut state);
                    if delay > http { (late(), http) } else { (result, delay) }
                }
            }
        };
        self.bump();
        if delay.is_zero() {
            tokio::task::yield_now().await;
        } else {
            sleep(delay).await;
        }
        result
    }

    /// The fault of a call that opens a stream: it is not bounded.
    async fn opening(&self, call: Call) -> Result<(), ClusterError> {
        let (down, fault) = {
            let mut state = self.state();
            let fault = state.faults.next(call);
            (state.down.clone(), fault)
        };
        match (down, fault) {
            (Some(error), _) | (None, Some(Fault::Fail(error) | Fault::LoseAnswer(error))) => Err(error),
            (None, Some(Fault::Hang)) => pending().await,
            (None, Some(Fault::Slow(delay))) => {
                sleep(delay).await;
                Ok(())
            }
            (None, None) => {
                tokio::task::yield_now().await;
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Cluster for FakeCluster {
    async fn create_pod(&self, pod: &Pod) -> Result<Pod, ClusterError> {
        self.call(Call::CreatePod, |state| {
            let made = state.create_pod(pod)?;
            let steps = (state.on_create)(&made);
            self.spawn(live(self.shared.clone(), reference(&made), steps));
            Ok(made)
        })
        .await
    }

    async fn try_pod(&self, pod: &Pod) -> Result<Pod, ClusterError> {
        self.call(Call::TryPod, |_| Ok(pod.clone())).await
    }

    async fn get_pod(&self, pod: &PodRef) -> Result<Pod, ClusterError> {
        self.call(Call::GetPod, |state| state.pod(pod).cloned()).await
    }

    async fn list_pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>, ClusterError> {
        self.call(Call::ListPods, |state| {
            let pods = state.pods.iter().filter(|((ns, _), pod)| {
                (namespace.is_empty() || ns == namespace) && store::selects(selector, &pod.metadata)
            });
            Ok(pods.map(|(_, pod)| pod.clone()).collect())
        })
        .await
    }

    async fn annotate_pod(&self, pod: &PodRef, version: &str, key: &str, value: &str) -> Result<(), ClusterError> {
        self.call(Call::AnnotatePod, |state| {
            if state.pod(pod)?.metadata.resource_version.as_deref() != Some(version) {
                return Err(ClusterError::Conflict { message: "the object has been modified".into() });
            }
            state.change_pod(&pod.namespace, &pod.name, |pod| {
                pod.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
            });
            Ok(())
        })
        .await
    }

    async fn delete_pod(&self, pod: &PodRef, grace: Option<Duration>) -> Result<(), ClusterError> {
        self.call(Call::DeletePod, |state| {
            let (uid, left) = state.begin_delete(pod, grace)?;
            if left.is_zero() {
                state.remove_pod(&pod.namespace, &pod.name, uid.as_deref());
                return Ok(());
            }
            let (shared, pod) = (self.shared.clone(), pod.clone());
            self.spawn(async move {
                sleep(left).await;
                shared.state().remove_pod(&pod.namespace, &pod.name, uid.as_deref());
                shared.bump();
            });
            Ok(())
        })
        .await
    }

    async fn delete_pod_unchanged(&self, pod: &Pod) -> Result<(), ClusterError> {
        let reference = reference(pod);
        let changed = {
            let state = self.state();
            let now = state.pod(&reference)?;
            now.metadata.resource_version != pod.metadata.resource_version
        };
        if changed {
            return Err(ClusterError::Conflict {
                message: "the ResourceVersion in the precondition does not match".into(),
            });
        }
        self.delete_pod(&reference, None).await
    }

    async fn patch_pod(&self, pod: &PodRef, patch: serde_json::Value) -> Result<Pod, ClusterError> {
        self.call(Call::PatchPod, |state| state.patch_pod(pod, &patch)).await
    }

    async fn watch_pod(&self, pod: &PodRef) -> Result<mpsc::Receiver<PodChange>, ClusterError> {
        self.opening(Call::WatchPod).await?;
        let (sender, receiver) = mpsc::channel(16);
        self.spawn(watch_pod(self.shared.clone(), pod.clone(), sender));
        Ok(receiver)
    }

    async fn pod_events(&self, pod: &PodRef) -> Result<Vec<Event>, ClusterError> {
        self.call(Call::PodEvents, |state| {
            let uid = state.pod(pod)?.metadata.uid.clone().unwrap_or_default();
            Ok(state.events.get(&uid).cloned().unwrap_or_default())
        })
        .await
    }

    async fn stream(&self, pod: &PodRef, request: &StreamRequest) -> Result<Streams, ClusterError> {
        self.opening(Call::Stream).await?;
        let (program, half_close, pod) = {
            let state = self.state();
            (state.on_stream.clone(), state.half_close, reference(state.pod(pod)?))
        };
        let (output, from_program) = mpsc::channel(16);
        let (to_program, input) = mpsc::channel(16);
        let size = watch::Sender::new(None);
        let seen = Program {
            pod: pod.clone(),
            request: request.clone(),
            output: output.clone(),
            input,
            size: size.subscribe(),
        };
        let shared = self.shared.clone();
        let mut broken = shared.broken.subscribe();
        let running = program(seen);
        self.spawn(async move {
            let end = tokio::select! {
                end = running => end,
                _ = broken.changed() => StreamEnd::Lost("the connection broke".into()),
                () = pod_gone(&shared, &pod) => StreamEnd::Lost("the pod is gone".into()),
                () = output.closed() => return,
            };
            let _ = output.send(Output::End(end)).await;
        });
        Ok(Streams { output: from_program, input: to_program, size, half_close })
    }

    async fn list_leases(&self, namespace: &str, selector: &str) -> Result<Vec<Lease>, ClusterError> {
        self.call(Call::ListLeases, |state| {
            let all =
                state.leases.iter().filter(|((ns, _), one)| ns == namespace && store::selects(selector, &one.metadata));
            Ok(all.map(|(_, lease)| lease.clone()).collect())
        })
        .await
    }

    async fn get_lease(&self, namespace: &str, name: &str) -> Result<Lease, ClusterError> {
        self.call(Call::GetLease, |state| state.lease(namespace, name).cloned()).await
    }

    async fn create_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        self.call(Call::CreateLease, |state| state.create_lease(lease)).await
    }

    async fn replace_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        self.call(Call::ReplaceLease, |state| state.replace_lease(lease)).await
    }

    async fn delete_lease(&self, lease: &Lease) -> Result<(), ClusterError> {
        self.call(Call::DeleteLease, |state| state.delete_lease(lease)).await
    }

    async fn ping(&self) -> Result<(), ClusterError> {
        self.call(Call::Ping, |_| Ok(())).await
    }
}

fn reference(pod: &Pod) -> PodRef {
    PodRef {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone(),
    }
}

/// A pod's script, for as long as that pod is there.
async fn live(shared: Arc<Shared>, pod: PodRef, steps: Vec<Step>) {
    for step in steps {
        sleep(step.after).await;
        let mut state = shared.state();
        if state.pod(&pod).is_err() {
            return;
        }
        match step.what {
            What::Change(change) => {
                state.change_pod(&pod.namespace, &pod.name, |pod| change(pod));
            }
            What::Event(mut event) => {
                event.last_timestamp = Some(state.now());
                state.events.entry(pod.uid.clone().unwrap_or_default()).or_default().push(*event);
            }
            What::Gone => state.remove_pod(&pod.namespace, &pod.name, pod.uid.as_deref()),
        }
        drop(state);
        shared.bump();
    }
}

async fn pod_gone(shared: &Shared, pod: &PodRef) {
    let mut changed = shared.changed.subscribe();
    while shared.state().pod(pod).is_ok() {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Sends what a watch sees, until the pod is gone or nobody listens.
async fn watch_pod(shared: Arc<Shared>, pod: PodRef, sender: mpsc::Sender<PodChange>) {
    let mut changed = shared.changed.subscribe();
    let mut interruptions = shared.state().interruptions;
    let mut last: Option<Pod> = None;
    let mut was_down = false;
    loop {
        let news = {
            let state = shared.state();
            let broken = std::mem::replace(&mut interruptions, state.interruptions) != state.interruptions;
            let down = state.down.is_some();
            let fell = !std::mem::replace(&mut was_down, down) && down;
            if broken || fell {
                last = last.filter(|_| down);
                Some(PodChange::Interrupted("the watch broke".into()))
            } else if down {
                None
            } else {
                match state.pod(&pod) {
                    Err(_) => Some(PodChange::Gone(last.take().map(Box::new))),
                    Ok(now)
                        if last.as_ref().map(|pod| &pod.metadata.resource_version)
                            == Some(&now.metadata.resource_version) =>
                    {
                        None
                    }
                    Ok(now) => Some(PodChange::Now(Box::new(last.insert(now.clone()).clone()))),
                }
            }
        };
        if let Some(news) = news {
            let end = matches!(news, PodChange::Gone(_));
            if sender.send(news).await.is_err() || end {
                return;
            }
            continue;
        }
        tokio::select! {
            change = changed.changed() => if change.is_err() { return },
            () = sender.closed() => return,
        }
    }
}
