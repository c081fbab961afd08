//! Proxies on the way to the API, which are not built: what would ask for one is refused by its name.
//!
//! kube looks for one with a kubeconfig only: at the cluster's `proxy-url`, then at `HTTPS_PROXY` and `https_proxy`. Without the feature
//! that would use it, it reads no `NO_PROXY` either, so an exception doesn't count; and `HTTP_PROXY` it never reads.

use kube::config::Kubeconfig;
use std::path::Path;

/// Where kube would look, in its order, after the kubeconfig.
const VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];

/// What asks for a proxy, with what to do; `None` where nothing does. Values are not shown: they may hold a password.
pub(super) fn asked_for(
    kubeconfig: &Kubeconfig,
    context: Option<&str>,
    file: &Path,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<String> {
    let given = |value: Option<String>| value.is_some_and(|value| !value.is_empty());
    if let Some(cluster) = cluster(kubeconfig, context).filter(|cluster| given(cluster.proxy_url.clone())) {
        let name = &cluster.name;
        let file = file.display();
        return Some(format!(
            "{file}: cluster {name:?} has a proxy-url, and proxies are not supported: take it out, the API must be reached directly"
        ));
    }
    let name = VARIABLES.into_iter().find(|name| given(variable(name)))?;
    Some(format!(
        "{name} is set, and proxies are not supported (nor exceptions, NO_PROXY): start this program without it, the API must be reached directly"
    ))
}

/// The cluster's name and its proxy.
struct Chosen {
    name: String,
    proxy_url: Option<String>,
}

/// The context's. `None` where there is none: that is told by kube.
fn cluster(kubeconfig: &Kubeconfig, context: Option<&str>) -> Option<Chosen> {
    let context = context.or(kubeconfig.current_context.as_deref())?;
    let name = &kubeconfig.contexts.iter().find(|one| one.name == context)?.context.as_ref()?.cluster;
    let cluster = kubeconfig.clusters.iter().find(|one| one.name == *name)?.cluster.as_ref()?;
    Some(Chosen { name: name.clone(), proxy_url: cluster.proxy_url.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
current-context: direct
contexts:
- {name: direct, context: {cluster: near, user: u}}
- {name: far, context: {cluster: behind, user: u}}
clusters:
- {name: near, cluster: {server: 'https://near', proxy-url: ''}}
- {name: behind, cluster: {server: 'https://far', proxy-url: 'http://u:secret@p:1'}}
users: [{name: u, user: {}}]
";

    fn told(context: Option<&str>, set: &[&str]) -> String {
        let kubeconfig = Kubeconfig::from_yaml(FILE).expect("a kubeconfig");
        let variable = |name: &str| match set.contains(&name) {
            true => Some("http://u:secret@p:1".to_owned()),
            false if name == "HTTPS_PROXY" => Some(String::new()),
            false => None,
        };
        asked_for(&kubeconfig, context, Path::new("/k"), variable).unwrap_or_default()
    }

    #[test]
    fn what_asks_for_a_proxy_is_named_and_its_value_is_not_shown() {
        for (context, set, begins) in [
            (None, &[][..], ""),
            (None, &["HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY"], ""),
            (Some("far"), &[], "/k: cluster \"behind\" has a proxy-url, "),
            (Some("far"), &["HTTPS_PROXY"], "/k: cluster \"behind\" has a proxy-url, "),
            (None, &["HTTPS_PROXY", "https_proxy"], "HTTPS_PROXY is set, "),
            (Some("direct"), &["https_proxy", "NO_PROXY"], "https_proxy is set, "),
            // Told by kube.
            (Some("nosuch"), &[], ""),
        ] {
            let told = told(context, set);
            assert!(told.starts_with(begins) && told.is_empty() == begins.is_empty(), "{context:?} {set:?}: {told}");
            assert!(!told.contains("secret"), "{told}");
        }
    }
}
