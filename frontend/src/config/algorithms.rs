//! Names of algorithms, as ContainerSSH's configuration writes them, and what of them is offered.

use podbay_runtime::config::Section;
use russh::{cipher, kex, mac};

/// What is offered, most wanted first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Algorithms {
    /// The client's first choice among these is taken. AES-GCM first and no chacha20: OpenSSH would choose that, and it is
    /// several times slower here.
    pub ciphers: Vec<cipher::Name>,
    /// Post-quantum first.
    pub kex: Vec<kex::Name>,
    /// For ciphers that need one.
    pub macs: Vec<mac::Name>,
}

impl Default for Algorithms {
    fn default() -> Self {
        Self {
            ciphers: vec![cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::AES_256_CTR, cipher::AES_128_CTR],
            // Group exchange is left out on purpose: less to reach before authentication.
            kex: vec![
                kex::MLKEM768X25519_SHA256,
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::DH_G16_SHA512,
                kex::DH_G18_SHA512,
                kex::DH_G14_SHA256,
                // ContainerSSH's, for clients that have nothing else in common with the above (JSch 0.1).
                kex::ECDH_SHA2_NISTP521,
                kex::ECDH_SHA2_NISTP384,
                kex::ECDH_SHA2_NISTP256,
            ],
            macs: vec![mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512],
        }
    }
}

const CIPHERS: [cipher::Name; 6] = [
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

const KEXES: [kex::Name; 12] = [
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_G14_SHA256,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA1,
    kex::DH_G15_SHA512,
    kex::DH_G17_SHA512,
];

const MACS: [mac::Name; 6] = [
    mac::HMAC_SHA256_ETM,
    mac::HMAC_SHA512_ETM,
    mac::HMAC_SHA256,
    mac::HMAC_SHA512,
    mac::HMAC_SHA1,
    mac::HMAC_SHA1_ETM,
];

/// ContainerSSH takes these, and they are too weak to offer: they are left out of lists, which ContainerSSH 0.3 dumps with them.
const BROKEN: [&str; 7] = [
    "aes128-cbc",
    "arcfour256",
    "arcfour128",
    "arcfour",
    "tripledescbcID",
    "diffie-hellman-group1-sha1",
    "hmac-sha1-96",
];

impl Algorithms {
    /// Reads `ciphers`, `kex` and `macs`; an absent or empty list means the default.
    pub fn from_section(ssh: &mut Section) -> Self {
        let default = Self::default();
        Self {
            ciphers: list(ssh, "ciphers", &CIPHERS, default.ciphers),
            kex: list(ssh, "kex", &KEXES, default.kex),
            macs: list(ssh, "macs", &MACS, default.macs),
        }
    }
}

fn list<N: AsRef<str> + Copy>(ssh: &mut Section, key: &str, known: &[N], default: Vec<N>) -> Vec<N> {
    let names: Vec<String> = ssh.filled(key, default.iter().map(|name| name.as_ref().to_owned()).collect());
    let mut found = Vec::new();
    for name in &names {
        match known.iter().find(|known| known.as_ref() == name) {
            Some(known) => found.push(*known),
            None if BROKEN.contains(&name.as_str()) => {
                ssh.warn(key, format!("{name} is broken and is not offered: take it out"));
            }
            None => {
                let names: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
                ssh.mistake(key, format!("{name} is not known here; known are {}", names.join(", ")));
            }
        }
    }
    if found.is_empty() && !names.is_empty() && names.iter().all(|name| BROKEN.contains(&name.as_str())) {
        ssh.mistake(key, "names only what is broken and not offered: leave the key out, or name others");
    }
    if found.is_empty() { default } else { found }
}
