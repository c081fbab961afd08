//! What a minicluster is started with.

use crate::image::{self, Image};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use tokio::net::TcpListener;

/// How a minicluster is to be.
#[derive(Debug)]
pub struct Options {
    /// Bound by the caller, to a loopback address: anything else is refused, since whoever can reach the API with its
    /// credentials runs programs as this user.
    pub listener: TcpListener,
    /// Where pods get their directories; made if missing. `None`: a new one below the system's temporary directory.
    pub state_dir: Option<PathBuf>,
    /// Images by their full names. Default: [`image::built_in`].
    pub images: BTreeMap<String, Image>,
    /// A program that calls [`crate::helper::maybe_run`] first. `None`: this one, or `podbay-minicluster` beside it
    /// ([`crate::helper::find`]).
    pub helper: Option<PathBuf>,
    /// What `/version` says.
    pub version: String,
    /// `terminationGracePeriodSeconds` of pods that don't say (Kubernetes: 30 s). Whole seconds.
    pub grace: Duration,
    /// What pods get at [`crate::Minicluster::shutdown`]: zero kills at once.
    pub shutdown_grace: Duration,
    /// First pause between pulls of an image and between restarts; it doubles up to `max_backoff`. A kubelet's is 10 s.
    pub backoff: Duration,
    /// See `backoff`. A kubelet's is 300 s.
    pub max_backoff: Duration,
    /// How often a watch that wants bookmarks gets one. The real server: about once a minute.
    pub bookmarks: Duration,
    /// Namespaces to begin with, besides `default` and `kube-system`.
    pub namespaces: Vec<String>,
}

impl Options {
    /// The defaults, on a listener.
    pub fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            state_dir: None,
            images: image::built_in(),
            helper: None,
            // 1.33: no WatchList, WebSockets end in the API server.
            version: "v1.33.4+podbay-minicluster".into(),
            grace: Duration::from_secs(30),
            shutdown_grace: Duration::ZERO,
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_mins(5),
            bookmarks: Duration::from_mins(1),
            namespaces: Vec::new(),
        }
    }
}
