//! Which Kubernetes a scenario runs on.

use k8s_openapi::{
    api::{
        authentication::v1::TokenRequest,
        core::v1::{Namespace, ServiceAccount},
        rbac::v1::{Role, RoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config, Resource,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Names the kubeconfig of a real cluster that scenarios may use. Not `KUBECONFIG`, which on many people's machines names a
/// cluster that tests have no business on.
pub const REAL: &str = "PODBAY_TEST_KUBECONFIG";
/// Names the image of the pods there.
const IMAGE: &str = "PODBAY_TEST_IMAGE";
/// Names the image of pods with podbay-agent at `/usr/bin/containerssh-agent`.
const AGENT_IMAGE: &str = "PODBAY_TEST_AGENT_IMAGE";

/// Names an image that has podbay-agent, and need have nothing else, as `/podbay-agent` (`deploy/agent-image`).
const INJECTED_IMAGE: &str = "PODBAY_TEST_INJECTED_IMAGE";
/// Names where ContainerSSH's agent, or the double of it, is in the image with the agent: not every image has one.
const CONTAINERSSH_AGENT: &str = "PODBAY_TEST_CONTAINERSSH_AGENT";

/// Whether scenarios run on a real cluster.
pub fn is_real() -> bool {
    std::env::var_os(REAL).is_some()
}

/// The image of the pods there.
pub fn image() -> Option<String> {
    is_real().then(|| std::env::var(IMAGE).unwrap_or_else(|_| "localhost/podbay-debian:1".to_owned()))
}

/// The image of pods with the agent there.
pub fn agent_image() -> String {
    std::env::var(AGENT_IMAGE).unwrap_or_else(|_| "localhost/podbay-debian-agent:1".to_owned())
}

/// The image that brings the agent into pods. The embedded cluster runs no init container, so there any name will do.
pub fn injected_image() -> String {
    std::env::var(INJECTED_IMAGE).unwrap_or_else(|_| "localhost/podbay-agent:1".to_owned())
}

/// Whether pods can have ContainerSSH's agent, or why not.
///
/// # Errors
/// The reason.
pub fn has_containerssh_agent() -> Result<(), String> {
    if is_real() && std::env::var_os(CONTAINERSSH_AGENT).is_none() {
        return Err(format!("{CONTAINERSSH_AGENT} does not say where the image has it"));
    }
    Ok(())
}

/// Its path in pods that have it.
pub fn containerssh_agent() -> String {
    let double = || super::program("containerssh-agent-double").display().to_string();
    if is_real() { std::env::var(CONTAINERSSH_AGENT).expect(CONTAINERSSH_AGENT) } else { double() }
}

/// A namespace of a scenario's own on a real cluster; it is deleted with this.
#[derive(Debug)]
pub struct RealCluster {
    /// Of an administrator.
    pub kubeconfig: PathBuf,
    pub namespace: String,
    pub image: String,
    /// Further ones, by [`Self::another`].
    others: Vec<String>,
}

impl RealCluster {
    /// The cluster that the environment names, with a new namespace.
    pub fn from_env() -> Option<Self> {
        let kubeconfig = PathBuf::from(std::env::var_os(REAL)?);
        let unique = hex::encode(rand::random::<[u8; 5]>());
        let this = Self { kubeconfig, namespace: format!("podbay-test-{unique}"), image: image()?, others: Vec::new() };
        this.make_namespace(&this.namespace);
        Some(this)
    }

    fn make_namespace(&self, name: &str) {
        with_client(&self.kubeconfig, async |client| {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let namespace = Namespace { metadata, ..Namespace::default() };
            Api::all(client.clone()).create(&PostParams::default(), &namespace).await.expect("a namespace");
            // Pods are refused until the namespace has its account.
            let accounts: Api<ServiceAccount> = Api::namespaced(client, name);
            let deadline = tokio::time::Instant::now() + super::PATIENCE;
            while accounts.get_opt("default").await.expect("answers").is_none() {
                assert!(tokio::time::Instant::now() < deadline, "the namespace gets no service account");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
    }

    /// Makes one more namespace, where the service account of [`Self::least_privilege`] has the same rights, and gives its name.
    pub fn another(&mut self, suffix: &str) -> String {
        let name = format!("{}-{suffix}", self.namespace);
        self.make_namespace(&name);
        self.others.push(name.clone());
        with_client(&self.kubeconfig, async |client| {
            for document in self.rbac().into_iter().filter(|document| document["kind"] != "ServiceAccount") {
                self.create_in(&client, &name, document).await;
            }
        });
        name
    }

    /// What `deploy/rbac.yaml` says, for the service account in this scenario's own namespace.
    fn rbac(&self) -> Vec<serde_json::Value> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the project").join("deploy/rbac.yaml");
        let text = std::fs::read_to_string(file).expect("reads");
        let parts = text.split("\n---").filter(|part| part.contains("kind:"));
        parts
            .map(|part| {
                let mut document: serde_json::Value = serde_yaml::from_str(part).expect("YAML");
                if let Some(subjects) = document.get_mut("subjects").and_then(|subjects| subjects.as_array_mut()) {
                    for subject in subjects {
                        subject["namespace"] = self.namespace.clone().into();
                    }
                }
                document
            })
            .collect()
    }

    /// Makes what `deploy/rbac.yaml` says in the namespace, and a kubeconfig at `path` for its service account.
    pub fn least_privilege(&self, path: &Path) {
        let token = with_client(&self.kubeconfig, async |client| {
            let mut account = None;
            for document in self.rbac() {
                if document["kind"] == "ServiceAccount" {
                    account = document["metadata"]["name"].as_str().map(str::to_owned);
                }
                self.create_in(&client, &self.namespace, document).await;
            }
            let accounts: Api<ServiceAccount> = Api::namespaced(client, &self.namespace);
            let request = TokenRequest::default();
            let (account, post) = (account.expect("an account"), PostParams::default());
            accounts
                .create_token_request(&account, &post, &request)
                .await
                .expect("a token")
                .status
                .expect("a token")
                .token
        });
        let mut config = Kubeconfig::read_from(&self.kubeconfig).expect("a kubeconfig");
        for user in &mut config.auth_infos {
            let token = token.as_ref().map(|token| token.clone().into());
            user.auth_info = Some(kube::config::AuthInfo { token, ..Default::default() });
        }
        std::fs::write(path, serde_yaml::to_string(&config).expect("YAML")).expect("writes");
    }

    async fn create_in(&self, client: &Client, namespace: &str, document: serde_json::Value) {
        match document["kind"].as_str() {
            Some("ServiceAccount") => self.create::<ServiceAccount>(client, namespace, document).await,
            Some("Role") => self.create::<Role>(client, namespace, document).await,
            Some("RoleBinding") => self.create::<RoleBinding>(client, namespace, document).await,
            other => panic!("{other:?} in deploy/rbac.yaml"),
        }
    }

    async fn create<K>(&self, client: &Client, namespace: &str, document: serde_json::Value)
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let mut object: K = serde_json::from_value(document).expect("an object");
        object.meta_mut().namespace = Some(namespace.to_owned());
        Api::<K>::namespaced(client.clone(), namespace).create(&PostParams::default(), &object).await.expect("is made");
    }
}

/// Objects of a kind that only one scenario needs. In paths, `NAMESPACE` stands for the scenario's own.
impl RealCluster {
    /// Makes an object.
    pub fn makes(&self, path: &str, object: &serde_json::Value) {
        let request = http::Request::post(self.path(path)).header("content-type", "application/json");
        self.asks(request.body(object.to_string().into_bytes()).expect("a request"));
    }

    /// Changes one.
    pub fn patches(&self, path: &str, patch: &str) {
        let request = http::Request::patch(self.path(path)).header("content-type", "application/merge-patch+json");
        self.asks(request.body(patch.as_bytes().to_vec()).expect("a request"));
    }

    /// Reads one.
    pub fn gets(&self, path: &str) -> serde_json::Value {
        self.asks(http::Request::get(self.path(path)).body(Vec::new()).expect("a request"))
    }

    /// Deletes an object when what this gives is dropped: one that no namespace takes with it.
    pub fn deletes_later(&self, path: &str) -> Later {
        Later { kubeconfig: self.kubeconfig.clone(), path: self.path(path) }
    }

    fn path(&self, path: &str) -> String {
        path.replace("NAMESPACE", &self.namespace)
    }

    fn asks(&self, request: http::Request<Vec<u8>>) -> serde_json::Value {
        with_client(&self.kubeconfig, async |client| client.request(request).await.expect("the API takes it"))
    }
}

/// See [`RealCluster::deletes_later`].
#[derive(Debug)]
pub struct Later {
    kubeconfig: PathBuf,
    path: String,
}

impl Drop for Later {
    fn drop(&mut self) {
        with_client(&self.kubeconfig, async |client| {
            let request = http::Request::delete(&self.path).body(Vec::new()).expect("a request");
            let _ = client.request_text(request).await;
        });
    }
}

impl Drop for RealCluster {
    fn drop(&mut self) {
        with_client(&self.kubeconfig, async |client| {
            // Whatever is left in it goes with it; a scenario that cares has looked before.
            let namespaces = Api::<Namespace>::all(client);
            for name in [&self.namespace].into_iter().chain(&self.others) {
                let _ = namespaces.delete(name, &DeleteParams::default()).await;
            }
        });
    }
}

/// Speaks to a cluster.
pub fn with_client<T>(kubeconfig: &Path, what: impl AsyncFnOnce(Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let client = Client::try_from(config.expect("a configuration")).expect("a client");
        what(client).await
    })
}

/// What a kubeconfig says, in the keys that ContainerSSH has for it (`kubernetes.connection`, `kuberun.connection`).
pub fn connection(kubeconfig: &Path) -> serde_json::Map<String, serde_json::Value> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = std::fs::read_to_string(kubeconfig).expect("a kubeconfig");
    let whole: serde_json::Value = serde_yaml::from_str(&text).expect("YAML");
    let text = |pointer: &str| whole.pointer(pointer).and_then(serde_json::Value::as_str);
    let pem = |pointer: &str| {
        let data = STANDARD.decode(text(pointer)?).expect("base64");
        Some(String::from_utf8(data).expect("PEM"))
    };
    [
        ("host", text("/clusters/0/cluster/server").map(str::to_owned)),
        ("cacert", pem("/clusters/0/cluster/certificate-authority-data")),
        ("bearerToken", text("/users/0/user/token").map(str::to_owned)),
        ("cert", pem("/users/0/user/client-certificate-data")),
        ("key", pem("/users/0/user/client-key-data")),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), value?.into())))
    .collect()
}
