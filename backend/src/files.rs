//! The files that the backend's configuration names, tried out when it is read: what is wrong with them is a mistake like
//! others, so `--check` tells it too. (Those of `grpc.handleKeys` are read where that is.)

use crate::{Config, kubernetes};
use podbay_runtime::{
    config::Section,
    tls::{self, TlsError},
};

/// Notes the files, and records what stands against serving with these files.
pub(crate) fn check(config: &Config, root: &Section) {
    let files = &config.grpc.tls;
    root.names_files([&files.cert, &files.key, &files.client_ca]);
    root.names_files(kubernetes::files(&config.settings.connection));
    if let Err(error) = tls::server(&files.cert, &files.key, Some(&files.client_ca)) {
        let key = match &error {
            TlsError::File { path, .. } if *path == files.client_ca => "clientCAFile",
            TlsError::File { path, .. } if *path == files.key => "keyFile",
            TlsError::File { .. } | TlsError::Config(_) => "certFile",
        };
        root.mistake_at(&["grpc", "tls", key], error.to_string());
    }
    for (key, file) in [("certFile", &files.cert), ("clientCAFile", &files.client_ca)] {
        if let Some(why) = tls::out_of_time(file) {
            root.warn_at(&["grpc", "tls", key], why);
        }
    }
    for (key, problem) in kubernetes::problems(&config.settings.connection) {
        // A mistake is one line; kube shows what a kubeconfig looks like there as well.
        let problem = problem.lines().next().unwrap_or_default();
        root.mistake_at(&["kubernetes", "connection", key], problem);
    }
}
