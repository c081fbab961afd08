//! `curves` and `cipher` of ContainerSSH's HTTP clients and servers: which groups and suites of TLS are used.

use crate::config::Section;
use rustls::{CipherSuite, NamedGroup, crypto::CryptoProvider};

/// What is left of the provider's; by default all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    groups: Option<Vec<NamedGroup>>,
    /// Of TLS 1.2; those of 1.3 are always there, as in Go.
    suites: Option<Vec<CipherSuite>>,
}

impl Choice {
    /// Reads both keys: lists, or texts with `:` between the names. An empty one means the default.
    pub fn read(section: &mut Section) -> Self {
        let groups = named(section, "curves", group).filter(|groups| {
            if groups.is_empty() {
                section.mistake("curves", "names none that is built: x25519, secp256r1, secp384r1");
            }
            !groups.is_empty()
        });
        let suites = named(section, "cipher", suite);
        Self { groups, suites }
    }

    /// Takes away what is not chosen.
    pub(super) fn narrow(&self, provider: &mut CryptoProvider) {
        if let Some(groups) = &self.groups {
            provider.kx_groups.retain(|group| groups.contains(&group.name()));
        }
        if let Some(suites) = &self.suites {
            provider.cipher_suites.retain(|suite| suite.tls13().is_some() || suites.contains(&suite.suite()));
        }
    }
}

/// What a known name means.
enum Meaning<T> {
    /// One to choose.
    One(T),
    /// Nothing to choose: one that is always there, or that is not built here.
    Nothing,
}

/// What the names mean; `None` where there are none, or one that nobody knows (a mistake).
fn named<T>(section: &mut Section, key: &str, known: impl Fn(&str) -> Option<Meaning<T>>) -> Option<Vec<T>> {
    let names = section.words(key).filter(|names| names.iter().any(|name| !name.is_empty()))?;
    let (mut found, mut all) = (Vec::new(), true);
    for name in &names {
        match known(name) {
            Some(Meaning::One(one)) => found.push(one),
            Some(Meaning::Nothing) => {}
            None => {
                section.mistake(key, format!("{name} is not known"));
                all = false;
            }
        }
    }
    all.then_some(found)
}

/// ContainerSSH's names.
fn group(name: &str) -> Option<Meaning<NamedGroup>> {
    match name {
        "x25519" | "X25519" => Some(Meaning::One(NamedGroup::X25519)),
        "secp256r1" | "prime256v1" => Some(Meaning::One(NamedGroup::secp256r1)),
        "secp384r1" => Some(Meaning::One(NamedGroup::secp384r1)),
        "secp521r1" => Some(Meaning::Nothing),
        _ => None,
    }
}

/// The names of IANA, OpenSSL and GnuTLS.
fn suite(name: &str) -> Option<Meaning<CipherSuite>> {
    let plain = name.replace('-', "_").replace("AES128", "AES_128").replace("AES256", "AES_256").replace("WITH_", "");
    let plain = plain.strip_prefix("TLS_").unwrap_or(&plain);
    let plain =
        plain.strip_suffix("POLY1305_SHA256").map_or_else(|| plain.to_owned(), |rest| format!("{rest}POLY1305"));
    match plain.as_str() {
        "AES_128_GCM_SHA256" | "AES_256_GCM_SHA384" | "CHACHA20_POLY1305" => Some(Meaning::Nothing),
        "ECDHE_ECDSA_AES_128_GCM_SHA256" => Some(Meaning::One(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)),
        "ECDHE_ECDSA_AES_256_GCM_SHA384" => Some(Meaning::One(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384)),
        "ECDHE_ECDSA_CHACHA20_POLY1305" => {
            Some(Meaning::One(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256))
        }
        "ECDHE_RSA_AES_128_GCM_SHA256" => Some(Meaning::One(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)),
        "ECDHE_RSA_AES_256_GCM_SHA384" => Some(Meaning::One(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384)),
        "ECDHE_RSA_CHACHA20_POLY1305" => Some(Meaning::One(CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    fn read(text: &str) -> Result<Choice, String> {
        let document = Document::parse("t", &format!("w: {{{text}}}")).expect("YAML");
        let choice = Choice::read(&mut document.root().section("w"));
        document.finish().map(|()| choice).map_err(|mistakes| mistakes.to_string())
    }

    fn left(choice: &Choice) -> (Vec<NamedGroup>, usize) {
        let mut provider = rustls::crypto::ring::default_provider();
        choice.narrow(&mut provider);
        let old = provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none()).count();
        assert_eq!(provider.cipher_suites.len() - old, 3, "1.3 stays");
        (provider.kx_groups.iter().map(|group| group.name()).collect(), old)
    }

    #[test]
    fn lists_take_away_what_they_do_not_name() {
        assert_eq!(read("curves: [], cipher: ''"), Ok(Choice::default()));
        assert_eq!(left(&Choice::default()).1, 6);
        // ContainerSSH's defaults, as it dumps them.
        let dumped = read(
            "curves: [x25519, secp256r1, secp384r1, secp521r1], cipher: [TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384,
              TLS_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]",
        );
        let (groups, suites) = left(&dumped.expect("the defaults"));
        assert_eq!((groups.len(), suites), (3, 2));
        let one = "curves: 'prime256v1:secp521r1', cipher: ECDHE-RSA-AES128-GCM-SHA256";
        assert_eq!(left(&read(one).expect("one")), (vec![NamedGroup::secp256r1], 1));
        for name in [
            "TLS_ECDHE_RSA_AES_256_GCM_SHA384",
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
            "ECDHE-RSA-CHACHA20-POLY1305",
        ] {
            assert_eq!(left(&read(&format!("cipher: [{name}]")).expect(name)).1, 1, "{name}");
        }
    }

    #[test]
    fn names_that_mean_nothing_are_mistakes() {
        for (text, told) in [
            ("curves: [x448]", "w.curves: x448 is not known"),
            ("curves: [secp521r1]", "w.curves: names none that is built"),
            ("cipher: 'TLS_AES_128_GCM_SHA256:RC4'", "w.cipher: RC4 is not known"),
        ] {
            let mistakes = read(text).expect_err(text);
            assert!(mistakes.contains(told), "{text}: {mistakes}");
        }
    }
}
