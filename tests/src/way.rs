//! The way from backends to the API server, as something that a test can cut: the same on any cluster, and nobody's rights are
//! needed for it.

use kube::config::Kubeconfig;
use std::path::Path;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
    task::JoinSet,
};

/// Passes connections on to one address, until it is told to cut all that there are. It ends with this.
#[derive(Debug)]
pub struct Way {
    cuts: watch::Sender<u64>,
    _runtime: Runtime,
}

impl Way {
    /// Opens one to where this kubeconfig's cluster is, and writes to `to` the same kubeconfig by this way.
    pub fn open(from: &Path, to: &Path) -> Self {
        let mut kubeconfig = Kubeconfig::read_from(from).expect("a kubeconfig");
        let server = kubeconfig.clusters.iter().find_map(|named| named.cluster.as_ref()?.server.clone());
        let server: http::Uri = server.expect("a server").parse().expect("an address");
        let (host, port) = (server.host().expect("a host").to_owned(), server.port_u16().unwrap_or(443));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (cuts, cut) = watch::channel(0);
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("binds");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(accept(listener, format!("{host}:{port}"), cut));
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            let path = server.path().trim_end_matches('/');
            cluster.server = Some(format!("https://{address}{path}"));
            // The certificate is for the server's own name.
            cluster.tls_server_name.get_or_insert_with(|| host.clone());
        }
        std::fs::write(to, serde_yaml::to_string(&kubeconfig).expect("YAML")).expect("writes");
        Self { cuts, _runtime: runtime }
    }

    /// Every connection that there is breaks; new ones are passed on.
    pub fn cuts(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }
}

async fn accept(listener: TcpListener, to: String, cut: watch::Receiver<u64>) {
    let mut passed = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        passed.spawn(pass(near, to.clone(), cut.clone()));
        while passed.try_join_next().is_some() {}
    }
}

async fn pass(mut near: TcpStream, to: String, mut cut: watch::Receiver<u64>) {
    cut.mark_unchanged();
    let both = async {
        // Where nobody listens, the connection ends as it began.
        if let Ok(mut far) = TcpStream::connect(&to).await {
            let _ = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
    };
    tokio::select! {
        () = both => {}
        _ = cut.changed() => {}
    }
}
