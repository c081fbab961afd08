//! The host key that the server makes for itself, once.

use podbay_runtime::codes;
use russh::keys::{Algorithm, HashAlg, PrivateKey, decode_secret_key, ssh_key::LineEnding};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use tracing::{info, warn};

const NAME: &str = "ssh_host_ed25519_key";

/// Why there is no host key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// A file or directory can't be used.
    #[error("can't keep the host key in {}: {error} (set frontend.stateDir, or give ssh.hostkeys)", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no private key that can be read", .0.display())]
    Malformed(PathBuf),
    /// No key could be made.
    #[error("can't make a host key: {0}")]
    Make(String),
}

/// The server's own host key, kept in its state directory.
pub fn kept(state_dir: &Path) -> Result<PrivateKey, HostKeyError> {
    keep(&state_dir.join(NAME))
}

/// Makes sure that there is an Ed25519 key in this file, and returns its public half as an `authorized_keys` line.
///
/// # Errors
/// Where the file can't be read or written, or holds something else.
pub fn ensure_key(path: &Path) -> Result<String, HostKeyError> {
    let line = keep(path)?.public_key().to_openssh();
    line.map_err(|error| HostKeyError::Make(error.to_string()))
}

/// Reads the kept key, or makes one and keeps it, readable by this user alone. Two processes that start at once get the
/// same key.
fn keep(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let (path, state_dir) = (path.to_owned(), path.parent().unwrap_or(Path::new(".")));
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| HostKeyError::Io { path, error }
    };
    match fs::read_to_string(&path) {
        Ok(text) => return read(&path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&path)(error)),
    }
    fs::create_dir_all(state_dir).map_err(failed(state_dir))?;
    let made = |error: russh::keys::ssh_key::Error| HostKeyError::Make(error.to_string());
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(made)?;
    let text = key.to_openssh(LineEnding::LF).map_err(made)?;
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&draft);
    let written = write_new(&draft, text.as_bytes()).and_then(|()| match fs::hard_link(&draft, &path) {
        // Another process was faster: its key counts.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    });
    let _ = fs::remove_file(&draft);
    written.map_err(failed(&path))?;
    info!(code = codes::CORE_NO_HOST_KEYS, path = %path.display(), fingerprint = %key.fingerprint(HashAlg::Sha256), "made a host key");
    let text = fs::read_to_string(&path).map_err(failed(&path))?;
    read(&path, &text)
}

fn read(path: &Path, text: &str) -> Result<PrivateKey, HostKeyError> {
    if fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o077 != 0) {
        warn!(path = %path.display(), "others can read the host key: chmod 600");
    }
    decode_secret_key(text, None).map_err(|_| HostKeyError::Malformed(path.to_owned()))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_a_key_once_and_keeps_it_to_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = dir.path().join("deep/er");
        let first = kept(&state).expect("a key");
        let again = kept(&state).expect("a key");
        assert_eq!(first.public_key().key_data(), again.public_key().key_data());
        let mode = fs::metadata(state.join(NAME)).expect("the file").mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&state).expect("lists").count(), 1, "drafts are left");
    }

    #[test]
    fn never_replaces_what_it_can_t_read() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(NAME), "something").expect("writes");
        assert!(matches!(kept(dir.path()), Err(HostKeyError::Malformed(_))));
        assert_eq!(fs::read_to_string(dir.path().join(NAME)).expect("reads"), "something");
    }
}
