//! One pod's life: scheduled, containers started, stopped, removed.

use super::{
    Kubelet, NODE, PodHandle, Stop,
    container::{self, ContainerTask},
    events::{Note, Source},
    now,
};
use crate::{
    kinds::Kind,
    store::{Key, text},
};
use k8s_openapi::api::core::v1::Pod;
use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

pub(super) async fn run(kubelet: Arc<Kubelet>, handle: Arc<PodHandle>, pod: Pod) {
    let pod = Arc::new(pod);
    let mut stop = handle.stop.subscribe();
    let scheduled = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| stop.deleted) => false,
        () = schedule(&kubelet, &handle, &pod) => true,
    };
    let folder = folder(&kubelet, &handle);
    if scheduled {
        match fs::create_dir_all(&folder) {
            Ok(()) => run_containers(&kubelet, &handle, &pod, &folder).await,
            Err(error) => tracing::error!(pod = %handle.name, %error, "no directory for the pod"),
        }
    }
    // Closed only with the handle, which we hold.
    let _ = stop.wait_for(|stop| stop.deleted).await;
    if let Some(delay) = kubelet.faults.slow_delete(&handle.namespace, &handle.name) {
        sleep(delay).await;
    }
    remove(&kubelet, &handle, &folder);
}

/// Short, for the sake of socket paths; readable, for the sake of a shell's prompt.
fn folder(kubelet: &Kubelet, handle: &PodHandle) -> PathBuf {
    let name: String = handle.name.chars().take(40).collect();
    let uid: String = handle.uid.chars().take(8).collect();
    kubelet.settings.pods.join(format!("{name}-{uid}"))
}

fn remove(kubelet: &Kubelet, handle: &PodHandle, folder: &PathBuf) {
    handle.removed.cancel();
    let removed = fs::remove_dir_all(folder);
    if let Err(error) =
        removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
    {
        tracing::warn!(pod = %handle.name, %error, "the pod's directory is left");
    }
    let key = Key::new(Kind::Pod, &handle.namespace, &handle.name);
    // Gone already if it was deleted without grace.
    let _ = kubelet.store.delete(&key, |object| {
        if text(object, "/metadata/uid") == handle.uid {
            Ok(())
        } else {
            Err(crate::status::ApiError::not_found(Kind::Pod, &handle.name))
        }
    });
    kubelet.lock().remove(&handle.uid);
}

/// Returns when a node was found.
async fn schedule(kubelet: &Kubelet, handle: &PodHandle, pod: &Pod) {
    let mut changed = kubelet.faults.subscribe();
    loop {
        changed.mark_unchanged();
        let Some(why) = kubelet.faults.unschedulable(&handle.namespace, &handle.name) else { break };
        let new = {
            let mut state = handle.lock();
            state.course.unschedulable.replace(why.clone()).as_ref() != Some(&why)
        };
        if new {
            let note = Note {
                source: Source::Scheduler,
                warning: true,
                reason: "FailedScheduling",
                message: &why,
                container: None,
            };
            kubelet.recorder.write(handle, &note);
            kubelet.publish(handle, pod);
        }
        if changed.changed().await.is_err() {
            break;
        }
    }
    {
        let mut state = handle.lock();
        state.course.unschedulable = None;
        state.course.started = Some(now());
    }
    let message = format!("Successfully assigned {}/{} to {NODE}", handle.namespace, handle.name);
    let note =
        Note { source: Source::Scheduler, warning: false, reason: "Scheduled", message: &message, container: None };
    kubelet.recorder.write(handle, &note);
    kubelet.publish(handle, pod);
}

/// Until all have ended for good.
async fn run_containers(kubelet: &Arc<Kubelet>, handle: &Arc<PodHandle>, pod: &Arc<Pod>, folder: &std::path::Path) {
    let spec = pod.spec.as_ref();
    let mut containers = JoinSet::new();
    for container in spec.map(|spec| spec.containers.as_slice()).unwrap_or_default() {
        let task = ContainerTask::new(kubelet, handle, pod, container, folder);
        containers.spawn(task.run());
    }
    let seconds = spec.and_then(|spec| spec.active_deadline_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    let deadline = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let expired = async {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(expired);
    let mut armed = true;
    loop {
        tokio::select! {
            next = containers.join_next() => match next {
                Some(_) => {}
                None => break,
            },
            () = &mut expired, if armed => {
                armed = false;
                exceed_deadline(kubelet, handle, pod);
            }
        }
    }
    handle.lock().course.over = true;
    kubelet.publish(handle, pod);
}

fn exceed_deadline(kubelet: &Kubelet, handle: &PodHandle, pod: &Pod) {
    handle.lock().course.deadline_exceeded = true;
    let note = Note {
        source: Source::Kubelet,
        warning: false,
        reason: "DeadlineExceeded",
        message: "Pod was active on the node longer than the specified deadline",
        container: None,
    };
    kubelet.recorder.write(handle, &note);
    let grace = container::grace(pod);
    handle.stop.send_modify(|stop| {
        stop.kill_at.get_or_insert(Instant::now() + grace);
    });
}

/// Waits for `stop`, at most for a time; whether it came.
pub(super) async fn stopped_within(stop: &mut watch::Receiver<Stop>, time: Duration) -> bool {
    tokio::time::timeout(time, stop.wait_for(|stop| stop.kill_at.is_some())).await.is_ok()
}
