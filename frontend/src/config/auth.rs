//! The `auth` section, in the form of ContainerSSH 0.5 and that of 0.4.

use crate::auth::{AuthConfig, Authorities, parse_authorized_key};
use podbay_runtime::{
    config::Section,
    webhook::{Client, Endpoint, endpoint},
};
use russh::keys::PublicKey;
use std::{path::Path, time::Duration};

/// `authTimeout`, unless given.
const BUDGET: Duration = Duration::from_mins(1);

const LEGACY: &str = "CONFIG_AUTH_URL_DEPRECATED: auth.url is ContainerSSH 0.4's form: use auth.password and auth.publicKey with method: webhook";

pub(super) fn from_section(mut auth: Section) -> AuthConfig {
    let mut config = AuthConfig::default();
    // Of 0.4: `password` is true or false there.
    let password_is_map = auth.is_map("password") || auth.describing();
    // Empty, as ContainerSSH dumps it: the form is not used.
    let empty = auth.text("url").is_some_and(|url| url.is_empty());
    let legacy = auth.has("url") && !empty;
    let flag = |auth: &mut Section, key: &str| if auth.is_map(key) { true } else { auth.or(key, true) };
    let (password, public_key) = (flag(&mut auth, "password"), flag(&mut auth, "pubkey"));
    if auth.has("pubkey") && !legacy && !empty {
        auth.mistake("pubkey", "belongs to the form with auth.url; here it is publicKey with method: webhook");
    }
    if auth.has("password") && !password_is_map && !legacy && !empty {
        auth.mistake("password", "is true or false only beside auth.url; here it is a map with method: webhook");
    }
    // Without url it tells of keys that make no sense alone.
    let client = endpoint(&mut auth, BUDGET).map(|mut endpoint| {
        endpoint.of_0_4 = true;
        Client::new(endpoint)
    });
    if legacy {
        config.warnings.push(LEGACY.to_owned());
        config.password = client.clone().filter(|_| password);
        config.public_key = client.filter(|_| public_key);
        if !password && !public_key {
            auth.mistake("url", "password and pubkey are both false, so nobody is asked");
        }
    }
    if password_is_map {
        config.password = method(auth.section("password"), &["kerberos"]).or(config.password);
    }
    config.public_key = method(auth.section("publicKey"), &[]).or(config.public_key);
    config.authz = method(auth.section("authz"), &[]);
    for (key, name, instead) in [
        (
            "keyboardInteractive",
            "oauth2",
            "let a webhook check passwords, or sign user certificates after the browser's login (auth.trustedUserCAKeys)",
        ),
        (
            "gssapi",
            "kerberos",
            "use public keys, certificates (auth.trustedUserCAKeys) or a webhook that checks the password by Kerberos",
        ),
    ] {
        let mut section = auth.section(key);
        section.ignore(name);
        match section.or("method", String::new()).as_str() {
            "" => {}
            method if method == name => section.mistake("method", format!("{name} is not supported: {instead}")),
            _ => section.mistake("method", format!("is neither empty nor {name} ({name} is not supported)")),
        }
    }
    auth.refuse(
        "oauth2",
        "neither here nor under keyboardInteractive: let a webhook check passwords, or sign user certificates",
    );
    config.authorities = authorities(&mut auth);
    config
}

/// `{method: webhook, webhook: {…}}`
fn method(mut section: Section, refused: &[&str]) -> Option<Client> {
    let method = section.or("method", String::new());
    for other in refused {
        section.ignore(other);
    }
    match method.as_str() {
        "" if !section.describing() => {
            let webhook = section.section("webhook");
            if webhook.text("url").is_some_and(|url| !url.is_empty()) {
                webhook.warn("url", "has no effect: method is not webhook");
            }
            webhook.leave();
            None
        }
        "" | "webhook" => {
            let present = section.has("webhook");
            let mut webhook = section.section("webhook");
            if !webhook.describing() && (!present || !webhook.has("url")) {
                webhook.mistake("url", "is missing");
            }
            endpoint(&mut webhook, BUDGET).map(|endpoint: Endpoint| Client::new(endpoint))
        }
        other if refused.contains(&other) => {
            section.mistake(
                "method",
                format!("{other} is not supported: use webhook, and let the server behind it ask {other}"),
            );
            None
        }
        _ => {
            section.mistake("method", "must be webhook, or empty (off)");
            None
        }
    }
}

/// Each entry is a key, or a file with keys, one a line.
fn authorities(auth: &mut Section) -> Authorities {
    let entries: Vec<String> = auth.get("trustedUserCAKeys").unwrap_or_default();
    let mut keys: Vec<PublicKey> = Vec::new();
    for entry in entries {
        let entry = entry.trim();
        let (whose, text) = if entry.contains(' ') {
            (String::new(), Ok(entry.to_owned()))
        } else {
            (format!("{entry}: "), auth.text_file(Path::new(entry)))
        };
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                auth.mistake("trustedUserCAKeys", format!("{whose}{error}"));
                continue;
            }
        };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match parse_authorized_key(line) {
                Ok(key) => keys.push(key),
                Err(error) => auth.mistake("trustedUserCAKeys", format!("{whose}a line {error}")),
            }
        }
    }
    if keys.is_empty() && auth.has("trustedUserCAKeys") {
        auth.mistake("trustedUserCAKeys", "names no key");
    }
    Authorities::new(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podbay_runtime::config::Document;

    fn read(text: &str) -> Result<AuthConfig, String> {
        let document = Document::parse("t", text).expect("YAML");
        let config = from_section(document.root().section("auth"));
        document.finish().map(|()| config).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn both_forms_are_read() {
        let config = read("auth: {url: 'http://h:1/x', timeout: 3s, authTimeout: 20s, pubkey: false}").expect("0.4");
        assert!(config.password.is_some() && config.public_key.is_none() && config.authz.is_none());
        assert_eq!(config.warnings.len(), 1);
        let endpoint = config.password.as_ref().expect("a client").endpoint();
        assert_eq!((endpoint.timeout, endpoint.budget), (Duration::from_secs(3), Duration::from_secs(20)));
        assert!(endpoint.of_0_4);
        let config = read(
            "auth: {url: 'http://old', password: {method: webhook, webhook: {url: 'http://new'}}, keyboardInteractive: {method: ''}}",
        )
        .expect("both");
        assert_eq!(config.password.expect("a client").endpoint().url, "http://new");
        assert_eq!(config.public_key.expect("a client").endpoint().url, "http://old");
        let config = read(
            "auth:
  publicKey: {method: webhook, webhook: {url: 'http://a', authTimeout: 5s}}
  authz: {method: webhook, webhook: {url: 'http://b'}}
  trustedUserCAKeys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ca]",
        )
        .expect("0.5");
        assert!(config.password.is_none() && config.public_key.is_some());
        assert!(!config.authz.expect("a client").endpoint().of_0_4);
        assert!(!config.authorities.is_empty() && config.warnings.is_empty());
        assert!(!read("auth: {}").expect("nothing").lets_anybody_in());
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (text, told) in [
            (
                "password: {method: kerberos, kerberos: {keytab: x}}",
                "auth.password.method: kerberos is not supported: use webhook",
            ),
            ("gssapi: {method: kerberos}", "auth.gssapi.method: kerberos is not supported: use public keys"),
            (
                "keyboardInteractive: {method: oauth2, oauth2: {provider: x}}",
                "auth.keyboardInteractive.method: oauth2 is not supported: let a",
            ),
            ("keyboardInteractive: {method: x}", "is neither empty nor oauth2"),
            ("oauth2: {clientId: x}", "auth.oauth2: is not supported"),
            ("publicKey: {method: webhook}", "auth.publicKey.webhook.url: is missing"),
            ("publicKey: {method: hook}", "auth.publicKey.method: must be webhook"),
            ("authz: {url: 'http://x'}", "auth.authz.url: unknown key"),
            ("password: true", "auth.password: is true or false only beside auth.url"),
            ("pubkey: true", "auth.pubkey: belongs to the form with auth.url"),
            ("url: 'http://x', password: false, pubkey: false", "nobody is asked"),
            ("trustedUserCAKeys: []", "names no key"),
            ("trustedUserCAKeys: [/nosuch/file]", "/nosuch/file: "),
            ("trustedUserCAKeys: ['ssh-ed25519 nonsense']", "a line is no OpenSSH public key"),
        ] {
            let mistakes = read(&format!("auth: {{{text}}}")).expect_err(text);
            assert!(mistakes.contains(told), "{text}: {mistakes}");
        }
    }
}
