//! Files that the backend writes: each appears whole, by rename.

use podbay_agent_wire::{
    host::{LinkKey, Refusal},
    proto::{Reason, WriteFile},
};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

/// Files under way at once.
const MAX_OPEN: usize = 16;

/// Files under way, by link and id.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<(LinkKey, u64), Partial>);

/// Removed unless it is put in its place.
#[derive(Debug)]
struct Partial {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    length: u64,
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

impl Files {
    /// Takes a piece. `None`: more are to come.
    pub fn write(&mut self, link: LinkKey, piece: &WriteFile) -> Option<Result<(), Refusal>> {
        let key = (link, piece.id);
        let result = self.piece(key, piece);
        match result {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(error) => {
                self.0.remove(&key);
                let message = format!("{}: {error}", OsStr::from_bytes(&piece.path).display());
                Some(Err(Refusal { reason: Reason::FileFailed, message }))
            }
        }
    }

    fn piece(&mut self, key: (LinkKey, u64), piece: &WriteFile) -> io::Result<bool> {
        if piece.offset == 0 {
            if self.0.len() >= MAX_OPEN {
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many files at once"));
            }
            self.0.insert(key, Partial::create(Path::new(OsStr::from_bytes(&piece.path)), key.1)?);
        }
        let Some(partial) = self.0.get_mut(&key).filter(|partial| partial.length == piece.offset) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a piece that is not the next one"));
        };
        partial.file.write_all(&piece.data)?;
        partial.length += piece.data.len() as u64;
        if !piece.last {
            return Ok(false);
        }
        partial.file.set_permissions(Permissions::from_mode(piece.mode & 0o7777))?;
        fs::rename(&partial.temporary, &partial.path)?;
        self.0.remove(&key);
        Ok(true)
    }

    /// The link is gone, and with it the rest of its files.
    pub fn link_closed(&mut self, link: LinkKey) {
        self.0.retain(|(of, _), _| *of != link);
    }
}

impl Partial {
    fn create(path: &Path, id: u64) -> io::Result<Self> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(folder)?;
        // Short, so that it fits where the name itself does.
        let stem: String = name.to_string_lossy().chars().take(16).collect();
        let temporary = folder.join(format!(".{stem}.{}.{id}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        Ok(Self { file, temporary, path: path.to_owned(), length: 0 })
    }
}
