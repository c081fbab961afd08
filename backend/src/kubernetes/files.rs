//! Whether the files of `kubernetes.connection` can be used. Connects to nothing.

use futures::FutureExt as _;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use podbay_backend_core::config::{Connection, Pem};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::path::{Path, PathBuf};

/// Those that are read when the clients are made. (`cacertFile` is read as it changes by kube, `bearerTokenFile` by ourselves.)
pub(crate) fn files(connection: &Connection) -> Vec<&PathBuf> {
    match connection {
        Connection::InCluster => Vec::new(),
        Connection::Kubeconfig { file, .. } => vec![file],
        Connection::Explicit(explicit) => [&explicit.cert, &explicit.key]
            .into_iter()
            .filter_map(|pem| match pem {
                Some(Pem::File(path)) => Some(path),
                Some(Pem::Inline(_)) | None => None,
            })
            .collect(),
    }
}

/// What is wrong, by key.
pub(crate) fn problems(connection: &Connection) -> Vec<(&'static str, String)> {
    match connection {
        // Kubernetes puts them into every pod, and they are nowhere else: `--check` may be.
        Connection::InCluster => Vec::new(),
        Connection::Kubeconfig { file, context } => {
            let problem = match Kubeconfig::read_from(file) {
                Err(error) => Some(("kubeconfig", error.to_string())),
                Ok(kubeconfig) => {
                    let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
                    // It waits for nothing; should a later kube do so, the start finds what this has not.
                    let read = Config::from_custom_kubeconfig(kubeconfig, &options).now_or_never();
                    let key = if context.is_some() { "context" } else { "kubeconfig" };
                    read.and_then(Result::err).map(|error| (key, error.to_string()))
                }
            };
            problem.into_iter().collect()
        }
        Connection::Explicit(explicit) => {
            let certificates = |pem| file(pem).and_then(no_certificate);
            let key = file(explicit.key.as_ref()).and_then(|path| {
                let read = PrivateKeyDer::from_pem_file(path);
                read.err().map(|error| format!("{}: {error}", path.display()))
            });
            let found = [
                ("certFile", certificates(explicit.cert.as_ref())),
                ("keyFile", key),
                ("cacertFile", certificates(explicit.cacert.as_ref())),
            ];
            found.into_iter().filter_map(|(key, problem)| Some((key, problem?))).collect()
        }
    }
}

fn file(pem: Option<&Pem>) -> Option<&Path> {
    match pem {
        Some(Pem::File(path)) => Some(path),
        Some(Pem::Inline(_)) | None => None,
    }
}

fn no_certificate(path: &Path) -> Option<String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Some(format!("{} holds no PEM certificate", path.display())),
        Ok(_) => None,
        Err(error) => Some(format!("{}: {error}", path.display())),
    }
}
