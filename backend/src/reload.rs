//! A configuration that changes while the process runs: what counts at once for new connections, and what needs a restart.
//!
//! What a connection was opened with is in its handle (policy, template, timeouts), and so it keeps that. Here the rest is changed:
//! what new connections are opened with, who may call, and where pods are looked for.

use crate::{
    config::{Config, Grpc, Tls},
    kubernetes::KubeCluster,
    process::warn_of_shared,
    service::{Live, Service},
};
use podbay_backend_core::{
    cluster::{Cluster, ClusterError},
    config::{Connection, Ownership, Settings},
    handle::KeyRing,
    identity,
    ownership::Scope,
};
use podbay_runtime::{
    config::{Document, Mistakes},
    reload::{Refused, Reload},
    telemetry::{self, Log},
    tls::Followed,
};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};

/// What was bound, connected or begun at the start, and stays.
#[derive(Debug)]
pub(crate) struct Fixed {
    connection: Connection,
    /// The connection's key, and that of its kubeconfig.
    names: [&'static str; 2],
    ownership: Ownership,
    listen: SocketAddr,
    admin: Option<SocketAddr>,
    files: [PathBuf; 3],
    reload_interval: Duration,
    max_connections: usize,
    /// There are `handleKeys`: handles of a key of this process alone would open with none of them.
    keys: bool,
    log: Log,
}

impl Fixed {
    /// Taken apart in full: of a new key somebody has to say whether it is fixed.
    pub(crate) fn of(config: &Config) -> Self {
        let Config { settings, webhook: _, grpc, log, warnings: _ } = config;
        let Settings { connection, pod: _, timeouts: _, ownership, security: _, namespaces: _, base: _, kuberun } =
            settings;
        let Grpc { listen, admin_listen, tls, callers: _, keys, max_connections, drain_timeout: _ } = grpc;
        let Tls { cert, key, client_ca, reload_interval } = tls;
        Self {
            connection: connection.clone(),
            names: match kuberun {
                None => ["kubernetes.connection", "kubernetes.connection.kubeconfig"],
                Some(_) => ["kuberun.connection", "kuberun.connection.kubeconfig"],
            },
            ownership: ownership.clone(),
            listen: *listen,
            admin: *admin_listen,
            files: [cert, key, client_ca].map(Clone::clone),
            reload_interval: *reload_interval,
            max_connections: *max_connections,
            keys: keys.is_some(),
            log: log.clone(),
        }
    }

    /// The keys in which a new configuration differs. In the order of docs/configuration.md's table.
    fn differs(&self, new: &Self) -> Vec<&'static str> {
        let Log { level: _, format, destination } = &self.log;
        [
            ("grpc.listen", self.listen != new.listen),
            ("grpc.adminListen", self.admin != new.admin),
            ("grpc.tls", self.files != new.files || self.reload_interval != new.reload_interval),
            ("grpc.maxConnections", self.max_connections != new.max_connections),
            ("grpc.handleKeys", self.keys != new.keys),
            (new.names[0], self.connection != new.connection),
            ("ownership", self.ownership != new.ownership),
            ("log.format", *format != new.log.format),
            ("log.destination", *destination != new.log.destination),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// The process, as its configuration sees it.
pub(crate) struct Reloading {
    pub fixed: Fixed,
    pub live: Live,
    /// Tells the reaper.
    pub scope: watch::Sender<Scope>,
    pub tls: Arc<Followed<rustls::ServerConfig>>,
    /// The cluster, where it has clients to be made anew.
    pub kube: Option<Arc<KubeCluster>>,
}

impl Reload for Reloading {
    type Config = Config;

    fn read(document: Document) -> Result<Config, Mistakes> {
        Config::from_document(document)
    }

    async fn take(&self, config: Config) -> Result<Vec<&'static str>, Refused> {
        let mut waiting = self.fixed.differs(&Fixed::of(&config));
        let Config { mut settings, webhook, grpc, log, warnings } = config;
        settings.connection.clone_from(&self.fixed.connection);
        settings.ownership.clone_from(&self.fixed.ownership);
        let Grpc { callers, keys, drain_timeout, .. } = grpc;
        let before = self.live.now();
        let http = settings.timeouts.http;
        self.can_look(&before, &settings).await?;
        if let Some(kube) = &self.kube {
            let same = kube.renew(&self.fixed.connection, http).await.map_err(|error| error.to_string())?;
            if !same {
                waiting.push(self.fixed.names[1]);
            }
        }

        // From here on nothing can fail.
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        if let Some(kuberun) = settings.kuberun {
            kuberun.warn(None);
        }
        warn_of_shared(&settings);
        telemetry::set_level(&log);
        let keys: Arc<KeyRing> = match keys {
            Some(keys) if self.fixed.keys => Arc::new(keys),
            Some(_) | None => Arc::clone(before.connections.keys()),
        };
        let lifecycle = before.connections.lifecycle().with_timeouts(settings.timeouts);
        let idle_timeout = settings.pod.persistent.as_ref().map(|which| which.idle_timeout);
        let connections = before.connections.changed(lifecycle.clone(), Arc::new(settings), keys, webhook);
        self.scope.send_modify(|scope| {
            scope.lifecycle.clone_from(&lifecycle);
            scope.namespaces = connections.places().to_vec();
            // Without pods that stay the file says nothing about those that are left of earlier ones.
            scope.idle_timeout = idle_timeout.unwrap_or(scope.idle_timeout);
        });
        let sessions = before.sessions.with_lifecycle(lifecycle);
        self.change(&before, |service| Service { connections, sessions, callers, drain_timeout, ..service });
        let metrics = &before.metrics;
        Arc::clone(&self.tls).look(|good| metrics.reloaded(good)).await;
        Ok(waiting)
    }
}

impl Reloading {
    fn change(&self, before: &Service, change: impl FnOnce(Service) -> Service) {
        self.live.set(change(before.clone()));
    }

    /// A namespace in which pods may not even be looked for would stop the reaper in all others too. An API that does not answer
    /// is no reason: so it is at a start.
    async fn can_look(&self, before: &Service, settings: &Settings) -> Result<(), Refused> {
        let cluster: &Arc<dyn Cluster> = before.connections.lifecycle().cluster();
        for namespace in settings.namespaces.places() {
            if before.connections.looks_in(namespace) {
                continue;
            }
            let looked = timeout(settings.timeouts.http, cluster.list_pods(namespace, &identity::all())).await;
            if let Ok(Err(error @ ClusterError::Forbidden { .. })) = looked {
                return Err(format!("pods can't be looked for in the namespace {namespace:?}: {error}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
kubernetes:
  pod: {disableAgent: true, metadata: {namespace: ns}}
grpc:
  listen: 127.0.0.1:1
  tls: {certFile: DIR/cert.pem, keyFile: DIR/key.pem, clientCAFile: DIR/cert.pem}
  callers: [{name: 'dns:frontend.podbay', service: frontend, users: ['*']}]
";

    #[test]
    fn what_needs_a_restart_is_named_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        for name in ["cert.pem", "other.pem"] {
            std::fs::write(dir.path().join(name), made.cert.pem()).expect("written");
        }
        std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).expect("written");
        let fixed = |old: &str, new: &str| {
            let text = FILE.replacen(old, new, 1).replace("DIR", &dir.path().display().to_string());
            assert!(old.is_empty() || FILE.contains(old), "{old}");
            let document = Document::parse("t", &text).expect("YAML");
            Fixed::of(&Config::from_document(document).unwrap_or_else(|mistakes| panic!("{mistakes}")))
        };
        let started = fixed("", "");
        let key = "handleKeys: [{id: one, key: 'MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE='}]\n  callers";
        for (old, new, keys) in [
            ("", "", &[][..]),
            ("  listen: 127.0.0.1:1", "  listen: 127.0.0.1:2", &["grpc.listen"]),
            ("  callers", "  adminListen: 127.0.0.1:3\n  callers", &["grpc.adminListen"]),
            ("clientCAFile: DIR/cert.pem", "clientCAFile: DIR/other.pem", &["grpc.tls"]),
            ("tls: {", "tls: {reloadInterval: 1s, ", &["grpc.tls"]),
            ("  callers", "  maxConnections: 7\n  callers", &["grpc.maxConnections"]),
            ("callers", key, &["grpc.handleKeys"]),
            ("  pod", "  connection: {host: h}\n  pod", &["kubernetes.connection"]),
            ("\ngrpc", "\nownership: {leaseDuration: 10s}\ngrpc", &["ownership"]),
            // Leases stay where they are, where nothing says where that is, too.
            ("namespace: ns", "namespace: other", &["ownership"]),
            ("\ngrpc", "\nlog: {level: debug, format: json}\ngrpc", &["log.format"]),
            ("\ngrpc", "\nlog: {destination: stdout}\nsecurity: {shell: {mode: disable}}\ngrpc", &["log.destination"]),
            ("  pod: {", "  timeouts: {podStart: 1s, http: 1s}\n  pod: {mode: session, ", &[]),
            ("  callers: [{", "  drainTimeout: 1s\n  callers: [{operator: true, ", &[]),
        ] {
            assert_eq!(started.differs(&fixed(old, new)), keys, "{new}");
        }
    }
}
