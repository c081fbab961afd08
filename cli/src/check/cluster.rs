//! `podbay check --cluster` and `--try-pod`: what a configuration's cluster says to it.

use podbay::v1::Progress;
use podbay_backend::{
    kubernetes::KubeCluster,
    metrics::{Equivalents, KubernetesMetrics},
};
use podbay_backend_core::{
    cluster::Cluster, config::Settings, identity, link::Found, pod_security, probe::Trial, template,
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::mpsc;

/// News of a start that wait to be shown.
const NEWS: usize = 16;

/// Asks the cluster what a backend will ask of it, and with `try_pod` lets it make one pod. Leaves nothing there. Whether all of it went
/// well.
pub async fn try_cluster(settings: &Settings, try_pod: bool) -> bool {
    let mut registry = prometheus_client::registry::Registry::default();
    let containerssh = Equivalents::new(&mut registry, false);
    let metrics = KubernetesMetrics::new(&mut registry, containerssh);
    let cluster: Arc<dyn Cluster> = match KubeCluster::new(&settings.connection, settings.timeouts.http, metrics).await
    {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => {
            eprintln!("cluster: {error}");
            return false;
        }
    };
    let (namespace, leases) = (settings.pod.namespace(), settings.ownership.namespace.as_str());
    let who = identity::Identity {
        connection: podbay::ConnectionId::from_bytes([0; 16]),
        owner: podbay::OwnerId::from_bytes([0; 16]),
        caller: "podbay check".into(),
        user: identity::User::named("podbay-check"),
        remote: None,
    };
    let mut pod = template::connection_pod(&settings.pod, &who, &BTreeMap::new());
    if !tell("the API answers", cluster.ping().await) {
        return false;
    }
    let selector = identity::all();
    let listed = cluster.list_pods(namespace, &selector).await.map(drop);
    let mut good = tell(&format!("pods can be listed in namespace {namespace}"), listed);
    let listed = cluster.list_leases(leases, &selector).await.map(drop);
    good &= tell(&format!("leases can be listed in namespace {leases}"), listed);
    let mut tried = cluster.try_pod(&pod).await;
    if let Err(error) = &tried
        && pod_security::comply(&mut pod, error)
    {
        println!(
            "cluster: namespace {namespace} asks for Pod Security restricted: pods get what they lack of it; images that run as \
             root need kubernetes.pod.spec.securityContext.runAsUser"
        );
        tried = cluster.try_pod(&pod).await;
    }
    let tried = tried.map(drop).map_err(|error| format!("{error}{}", pod_security::hint(&pod, &error)));
    good &= tell(&format!("a pod would be taken in namespace {namespace} (a dry run: images are not pulled)"), tried);
    if try_pod && good {
        good &= real_pod(settings, cluster).await;
    } else if try_pod {
        eprintln!("cluster: no pod is tried: see above");
    }
    good
}

fn tell<E: std::fmt::Display>(what: &str, result: Result<(), E>) -> bool {
    match result {
        Ok(()) => {
            println!("cluster: {what}: good");
            true
        }
        Err(error) => {
            eprintln!("cluster: {what}: {error}");
            false
        }
    }
}

/// A pod that runs, its agent's level, and its end.
async fn real_pod(settings: &Settings, cluster: Arc<dyn Cluster>) -> bool {
    let Some(trial) = Trial::of(settings) else {
        println!("cluster: mode persistent without createMissingPods makes no pods: none is tried");
        return true;
    };
    let (name, image) = (trial.name().to_owned(), trial.image().to_owned());
    let (news, mut told) = mpsc::channel::<Progress>(NEWS);
    let showing = async {
        let mut last = String::new();
        while let Some(progress) = told.recv().await {
            if !progress.message.is_empty() && progress.message != last {
                eprintln!("cluster: pod {name}: {}", progress.message);
                last = progress.message;
            }
        }
    };
    let trying = async move {
        let interrupted = async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        Box::pin(trial.run(settings, cluster, &news, interrupted)).await
    };
    let ((outcome, gone), ()) = tokio::join!(trying, showing);
    let good = match outcome {
        Ok(outcome) => {
            println!("cluster: pod {name} ran after {:.1} s: good", outcome.took.as_secs_f64());
            println!("cluster: agent level of {image}: {}", level(outcome.agent));
            true
        }
        Err(refusal) => {
            eprintln!("cluster: pod {name}: {}", refusal.message);
            false
        }
    };
    good & tell(&format!("pod {name} was deleted"), gone.map_err(|refusal| refusal.message))
}

fn level(found: Option<Found>) -> &'static str {
    match found {
        None | Some(Found::Nothing) => {
            "none, as pod.disableAgent says (no signals; sessions end with their connection to the cluster)"
        }
        Some(Found::Containerssh) => {
            "containerssh-agent (signals; sessions end with their connection to the cluster, which podbay-agent's do not)"
        }
        Some(Found::Podbay) => "podbay-agent (everything)",
    }
}
