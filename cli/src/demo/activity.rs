//! What the demo shows: connections and pods as they come and go, on stdout; warnings on stderr.

use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

const TARGET: &str = "podbay::activity";

/// Sends them there. `RUST_LOG` widens what goes to stderr.
pub fn init() {
    let shown = fmt::layer()
        .with_writer(std::io::stdout)
        .with_target(false)
        .with_level(false)
        .with_ansi(false)
        .without_time()
        // Both sides tell of a connection; one line is enough here.
        .with_filter(filter_fn(|event| {
            let module = event.module_path().unwrap_or_default();
            event.target() == TARGET && !module.starts_with("podbay_backend_core::connections")
        }));
    let rest = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    let log = fmt::layer().with_writer(std::io::stderr).with_filter(rest);
    let _ = tracing_subscriber::registry().with(shown).with(log).try_init();
}
