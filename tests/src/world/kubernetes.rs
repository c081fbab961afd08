//! What a scenario sees and does in a world's cluster, by its API.

use super::World;
use crate::cluster::with_client;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};

impl World {
    /// Names of the pods there are now.
    pub fn pods(&self) -> Vec<String> {
        self.on_cluster(async |pods| {
            let list = pods.list(&ListParams::default()).await.expect("lists");
            list.items.into_iter().filter_map(|pod| pod.metadata.name).collect()
        })
    }

    /// Names of the leases there are now: of owners, and marks of ended connections.
    pub fn leases(&self) -> Vec<String> {
        let namespace = self.real.as_ref().map_or("default", |real| &real.namespace);
        let leases = async |client| Api::<Lease>::namespaced(client, namespace).list(&ListParams::default()).await;
        let items = self.with_client(leases).expect("lists").items;
        items.into_iter().filter_map(|lease| lease.metadata.name).collect()
    }

    /// Makes a namespace in the embedded cluster, and gives its name.
    pub fn namespace(&self, name: &str) -> String {
        self.with_client(async |client| {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let namespace = Namespace { metadata, ..Namespace::default() };
            Api::all(client).create(&PostParams::default(), &namespace).await.expect("a namespace");
        });
        name.to_owned()
    }

    /// The pods there are in another namespace now.
    pub fn pods_in(&self, namespace: &str) -> Vec<Pod> {
        let pods = async |client| Api::<Pod>::namespaced(client, namespace).list(&ListParams::default()).await;
        self.with_client(pods).expect("lists").items
    }

    /// Deletes a pod with a grace period of one second, as `kubectl delete --now` does.
    pub fn deletes(&self, pod: &str) {
        self.on_cluster(async |pods| {
            pods.delete(pod, &DeleteParams::default().grace_period(1)).await.expect("deletes");
        });
    }

    /// Tells the embedded cluster of a fault, as docs/minicluster.md writes them ([`Setup::Apart`] only).
    pub fn fault(&self, fault: &str) {
        let request = http::Request::post("/minicluster/faults").header("content-type", "application/json");
        let request = request.body(fault.as_bytes().to_vec()).expect("a request");
        self.with_client(async |client| {
            client.request_text(request).await.expect("the fault is taken");
        });
    }

    fn on_cluster<T>(&self, what: impl AsyncFnOnce(Api<Pod>) -> T) -> T {
        let namespace = self.real.as_ref().map_or("default", |real| &real.namespace);
        self.with_client(async |client| what(Api::namespaced(client, namespace)).await)
    }

    fn with_client<T>(&self, what: impl AsyncFnOnce(Client) -> T) -> T {
        with_client(&self.kubeconfig(), what)
    }
}
