//! Lines of `authorized_keys`.

use russh::keys::PublicKey;

/// Why a line can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a key.
    #[error("is no OpenSSH public key (TYPE BASE64 COMMENT)")]
    Malformed,
    /// A restriction that would not be kept must not be ignored.
    #[error("has the option {0:?}, which is not supported yet: a restriction is never ignored")]
    Option(String),
}

/// Reads one line: `type base64 comment`. Lines with options are refused by the option's name.
pub fn parse_authorized_key(line: &str) -> Result<PublicKey, KeyError> {
    let line = line.trim();
    if let Ok(key) = PublicKey::from_openssh(line) {
        return Ok(key);
    }
    // Options come first, then a type; spaces may stand in quotes.
    let mut quoted = false;
    let end = line.find(|c: char| {
        quoted ^= c == '"';
        c.is_whitespace() && !quoted
    });
    let Some((options, rest)) = end.map(|end| line.split_at(end)) else { return Err(KeyError::Malformed) };
    if PublicKey::from_openssh(rest.trim_start()).is_err() {
        return Err(KeyError::Malformed);
    }
    let first = options.split(['=', ',']).next().unwrap_or_default();
    Err(KeyError::Option(first.chars().take(40).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    #[test]
    fn reads_keys_and_refuses_options() {
        let key = parse_authorized_key(KEY).expect("a key");
        assert_eq!(parse_authorized_key(&format!("  {KEY} me@here # x\n")).expect("a key").key_data(), key.key_data());
        for (options, named) in [
            ("restrict", "restrict"),
            ("command=\"/bin/x # y\",no-pty", "command"),
            ("cert-authority", "cert-authority"),
        ] {
            assert_eq!(parse_authorized_key(&format!("{options} {KEY}")), Err(KeyError::Option(named.to_owned())));
        }
        for wrong in ["", "ssh-ed25519", "ssh-ed25519 AAAA", "# comment", "no key"] {
            assert_eq!(parse_authorized_key(wrong), Err(KeyError::Malformed), "{wrong}");
        }
    }
}
