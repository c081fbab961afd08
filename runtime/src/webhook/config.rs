//! The keys of an HTTP client, as ContainerSSH names them.

use crate::{
    config::{Secret, Section},
    tls::{self, Choice, PemText},
};
use hyper::Uri;
use rustls::{ClientConfig, pki_types::ServerName};
use std::{fmt, sync::Arc, time::Duration};

/// Where a webhook is, and how it is asked.
#[derive(Clone)]
pub struct Endpoint {
    /// As configured; paths are put behind it.
    pub url: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
    /// Absent: plain HTTP.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// One call.
    pub timeout: Duration,
    /// All calls of one question.
    pub budget: Duration,
    /// It was configured in ContainerSSH 0.4's form, and is asked as 0.4 does.
    pub of_0_4: bool,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("url", &self.url).finish_non_exhaustive()
    }
}

/// The keys that this reads.
const KEYS: [&str; 8] = ["url", "timeout", "authTimeout", "cacert", "cert", "key", "allowRedirects", "tlsVersion"];

/// Reads the HTTP client's keys of a section; `None` where there is no `url`, or a mistake was recorded. `budget` is the default of
/// `authTimeout`.
pub fn endpoint(section: &mut Section, budget: Duration) -> Option<Endpoint> {
    let url: Option<String> = section.get("url").filter(|url: &String| !url.is_empty());
    read(section, url, Some(budget))
}

/// The same for what is asked once, with a URL to go by where none is given; `None` where a mistake was recorded.
pub fn endpoint_at(section: &mut Section, url: &str) -> Option<Endpoint> {
    let url = section.filled("url", url.to_owned());
    read(section, Some(url), None)
}

fn read(section: &mut Section, url: Option<String>, budget: Option<Duration>) -> Option<Endpoint> {
    let mut bound = |key: &str, default| {
        let value = section.filled(key, default);
        if value < Duration::from_millis(100) {
            section.mistake(key, "must be at least 100ms");
        }
        value
    };
    let timeout = bound("timeout", Duration::from_secs(2));
    let budget = budget.map_or(timeout, |budget| bound("authTimeout", budget));
    if section.or("allowRedirects", false) {
        section.mistake(
            "allowRedirects",
            "redirects are never followed, they would take secrets elsewhere: name the final url",
        );
    }
    // An empty url switches it off, and whatever stands beside that: ContainerSSH dumps all of it with its defaults.
    let off = section.text("url").is_some_and(|url| url.is_empty())
        // Without TLS these say nothing.
        || url.as_ref().is_some_and(|url| url.starts_with("http:"));
    let choice = if off {
        for key in ["curves", "cipher"] {
            section.words(key);
        }
        Choice::default()
    } else {
        Choice::read(section)
    };
    // The lowest that is taken.
    let old = section.word("tlsVersion", &[("1.2", true), ("1.3", false)], "1.3").unwrap_or(false);
    let mut text = |key: &str| {
        let given: Secret = section.get(key)?;
        if let Some(file) = PemText::file(given.expose()) {
            section.names_files([&file]);
        }
        match PemText::read(given.expose()) {
            Ok(text) => text,
            Err(error) => {
                section.mistake(key, error);
                None
            }
        }
    };
    let (ca, cert, key) = (text("cacert"), text("cert"), text("key"));
    let has = |key: &str| section.has(key);
    if has("cert") != has("key") {
        section.mistake("cert", "cert and key belong together");
        return None;
    }
    let Some(url) = url else {
        if let Some(lone) = KEYS.into_iter().filter(|key| *key != "url").find(|key| section.has(key) && !off) {
            section.mistake(lone, "says how to ask a webhook, but there is no url");
        }
        return None;
    };
    match parse(&url) {
        Ok((secure, host, port, path)) => {
            let tls = if secure {
                let identity = cert.as_ref().zip(key.as_ref());
                let config =
                    tls::web_client(ca.as_ref(), identity, old, &choice).map_err(|error| ("cacert", error.to_string()));
                let name = ServerName::try_from(host.clone()).map_err(|error| ("url", error.to_string()));
                match config.and_then(|config| name.map(|name| (config, name))) {
                    Ok(tls) => Some(tls),
                    Err((key, error)) => {
                        section.mistake(key, error);
                        return None;
                    }
                }
            } else {
                None
            };
            Some(Endpoint { url, host, port, path, tls, timeout, budget, of_0_4: false })
        }
        Err(why) => {
            section.mistake("url", why);
            None
        }
    }
}

/// Scheme, host, port and path.
fn parse(url: &str) -> Result<(bool, String, u16, String), &'static str> {
    let whole: Uri = url.parse().map_err(|_| "is no URL")?;
    let secure = match whole.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err("must begin with https:// or http://"),
    };
    let authority = whole.authority().ok_or("names no host")?;
    if authority.as_str().contains('@') {
        return Err("must hold no user name or password: webhooks know their callers by client certificates");
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let path = whole.path_and_query().map_or("", |path| path.as_str()).to_owned();
    Ok((secure, host, port, path))
}
