//! What the demo shows: connections and pods as they come and go, on stdout; warnings on stderr.

use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

const TARGET: &str = "podbay::activity";

/// Sends them there. `RUST_LOG` widens what goes to stderr.
pub fn init() {
    let shown = fmt::layer()
        .with_writer(std::io::stdout)
        .with_target(false)
        .with_level(false)
        .without_time()
        .with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO));
    let rest = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    let log = fmt::layer().with_writer(std::io::stderr).with_filter(rest);
    let _ = tracing_subscriber::registry().with(shown).with(log).try_init();
}
