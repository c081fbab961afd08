//! What is remembered of sessions that were begun here: a file for each, for this user alone (a handle is a credential).

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use podbay::{ConnectionId, OwnerId, SessionId};
use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

/// A session, and how far its output was taken.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    pub session: SessionId,
    pub connection: ConnectionId,
    /// Ours: its lease can be renewed.
    pub owner: OwnerId,
    pub user: String,
    pub handle: Vec<u8>,
    /// Bytes that were written here.
    pub stdout: u64,
    pub stderr: u64,
    pub terminal: bool,
}

/// The directory.
#[derive(Debug)]
pub struct Store(PathBuf);

impl Store {
    /// Makes it where it is missing.
    pub fn open(given: Option<PathBuf>) -> anyhow::Result<Self> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = given
            .or_else(|| var("XDG_STATE_HOME").map(|dir| dir.join("podbay")))
            .or_else(|| var("HOME").map(|dir| dir.join(".local/state/podbay")))
            .context("no HOME: give --state-dir")?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("can't make {}", dir.display()))?;
        let meta = fs::metadata(&dir)?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            bail!("{} is not a directory that only you can write to; choose another --state-dir", dir.display());
        }
        Ok(Self(dir))
    }

    fn path(&self, session: SessionId) -> PathBuf {
        self.0.join(format!("{session}.session"))
    }

    /// Writes a record whole, with mode 0600.
    pub fn save(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.path(record.session);
        let new = path.with_extension("new");
        let text = serde_json::json!({
            "session": record.session.to_string(),
            "connection": record.connection.to_string(),
            "owner": record.owner.to_string(),
            "user": record.user,
            "handle": STANDARD.encode(&record.handle),
            "stdout": record.stdout,
            "stderr": record.stderr,
            "terminal": record.terminal,
        });
        // What an earlier, broken try left may have any mode.
        let _ = fs::remove_file(&new);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(text.to_string().as_bytes()))
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// Forgets a session.
    pub fn remove(&self, session: SessionId) {
        // One that is not there is forgotten.
        let _ = fs::remove_file(self.path(session));
    }

    /// The sessions whose id begins so. Files that can't be read are told and passed over.
    pub fn find(&self, prefix: &str) -> anyhow::Result<Vec<Record>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0).with_context(|| format!("can't read {}", self.0.display()))? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            if path.extension().is_none_or(|extension| extension != "session") || !name.starts_with(prefix) {
                continue;
            }
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // Ended meanwhile by another podbay.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
            };
            match parse(&text) {
                Some(record) => found.push(record),
                None => eprintln!("podbay: {} is damaged; passed over", path.display()),
            }
        }
        found.sort_by_key(|record| record.session);
        Ok(found)
    }
}

fn parse(text: &str) -> Option<Record> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let word = |name: &str| value.get(name)?.as_str();
    Some(Record {
        session: word("session")?.parse().ok()?,
        connection: word("connection")?.parse().ok()?,
        owner: word("owner")?.parse().ok()?,
        user: word("user")?.to_owned(),
        handle: STANDARD.decode(word("handle")?).ok()?,
        stdout: value.get("stdout")?.as_u64()?,
        stderr: value.get("stderr")?.as_u64()?,
        terminal: value.get("terminal")?.as_bool()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_are_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(Some(dir.path().join("a/b"))).expect("opens");
        let mut record = Record {
            session: SessionId::from_bytes([0xab; 16]),
            connection: ConnectionId::from_bytes([1; 16]),
            owner: OwnerId::from_bytes([2; 16]),
            user: "alice".into(),
            handle: vec![0, 1, 255],
            stdout: 1 << 40,
            stderr: 0,
            terminal: false,
        };
        store.save(&record).expect("saves");
        record.stderr = 7;
        store.save(&record).expect("saves again");
        assert!(store.find("ab").expect("reads") == vec![record.clone()]);
        assert!(store.find("ac").expect("reads").is_empty());
        let mode = fs::metadata(store.path(record.session)).expect("there").mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(store.0.join("abc.session"), "{").expect("writes");
        assert_eq!(store.find("ab").expect("reads").len(), 1, "the damaged one is passed over");
        store.remove(record.session);
        assert!(store.find("abab").expect("reads").is_empty());
    }
}
