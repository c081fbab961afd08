//! `ssh.perSourcePenalties` and `ssh.perSourcePenaltyExemptList`, with OpenSSH's names.

use crate::auth::Network;
use podbay_frontend_core::penalties::{Costs, Overflow};
use podbay_runtime::config::Section;

/// Unless given: whoever is on this host, which is where tunnels and proxies come from.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1"];

/// What failures cost.
#[derive(Debug, Clone)]
pub struct PenaltyConfig {
    /// `None` = nothing.
    pub costs: Option<Costs>,
    /// Who is never punished.
    pub exempt: Vec<Network>,
}

impl Default for PenaltyConfig {
    fn default() -> Self {
        let exempt = LOOPBACK.iter().filter_map(|network| network.parse().ok()).collect();
        Self { costs: Some(Costs::default()), exempt }
    }
}

impl PenaltyConfig {
    pub(super) fn from_section(ssh: &mut Section) -> Self {
        let mut this = Self::default();
        if let Some(texts) = ssh.get::<Vec<String>>("perSourcePenaltyExemptList") {
            this.exempt.clear();
            for text in texts {
                match text.parse() {
                    Ok(network) => this.exempt.push(network),
                    Err(error) => ssh.mistake("perSourcePenaltyExemptList", format!("{error}")),
                }
            }
        }
        let mut section = ssh.section("perSourcePenalties");
        let mut costs = Costs::default();
        for (key, value) in [
            ("authfail", &mut costs.auth_fail),
            ("noauth", &mut costs.no_auth),
            ("grace-exceeded", &mut costs.grace_exceeded),
            ("min", &mut costs.min),
            ("max", &mut costs.max),
        ] {
            *value = section.or(key, *value);
        }
        if costs.max < costs.min {
            section.mistake("max", "must not be shorter than min: no penalty would have an effect");
        }
        let [four, six] = &mut costs.max_sources;
        for (key, value) in [("max-sources4", four), ("max-sources6", six)] {
            *value = section.or(key, *value);
            if !(1..=1_000_000).contains(value) {
                section.mistake(key, "must be 1 to 1000000");
            }
        }
        match section.or("overflow", "permissive".to_owned()).as_str() {
            "permissive" => {}
            "deny-all" => costs.overflow = Overflow::DenyAll,
            _ => section.mistake("overflow", "must be permissive or deny-all"),
        }
        for key in ["crash", "invaliduser", "refuseconnection", "overflow6"] {
            section.refuse(key, "that offence is not told apart here: authfail, noauth and grace-exceeded are");
        }
        if !section.or("enabled", true) {
            this.costs = None;
            return this;
        }
        this.costs = Some(costs);
        this
    }
}
