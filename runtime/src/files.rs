//! Files as they were when they were read, so that a later look finds out whether they have changed.
//!
//! By content rather than by a watch of the system: a Kubernetes volume changes by a symbolic link two directories away, editors
//! rename, other tools write in place, some file systems tell nothing, and all of it comes through like this
//! (docs/design/0012-reload.md).

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    hash::{BuildHasher as _, RandomState},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::LazyLock,
};
use zeroize::Zeroizing;

/// No file of a configuration is larger.
const MOST: u64 = 4 * 1024 * 1024;

/// Keyed anew in each process: what is remembered of a secret is of no use to anybody, and nobody makes two contents look the same.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Files, and what they held: a hash each, `None` where one could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen(BTreeMap<PathBuf, Option<u64>>);

impl Seen {
    /// What these files hold now. Blocks as reading files does.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        Self(
            files.into_iter().map(|file| (file.clone(), hash(read(file).ok().as_deref().map(Vec::as_slice)))).collect(),
        )
    }

    /// The file held this when it was read; `None` = it could not be read. The first time counts: should it have changed until a
    /// second one, the next look finds it changed. What a later look would not read (a pipe, or more than 4 MiB) is not noted.
    pub fn note(&mut self, file: &Path, contents: Option<&[u8]>) {
        let too_large = contents.is_some_and(|contents| contents.len() as u64 > MOST);
        if too_large || fs::metadata(file).is_ok_and(|meta| !meta.is_file()) {
            return;
        }
        if let Entry::Vacant(entry) = self.0.entry(file.to_owned()) {
            entry.insert(hash(contents));
        }
    }

    /// What the same files hold now. Blocks as reading files does.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::of(self.0.keys())
    }

    /// Which files these are.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }
}

fn hash(contents: Option<&[u8]>) -> Option<u64> {
    contents.map(|contents| HASHER.hash_one(contents))
}

/// A regular file of at most 4 MiB: whatever else a name leads to may never end, or give something else each time.
fn read(file: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let unfit = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if !fs::metadata(file)?.is_file() {
        return unfit("is no regular file");
    }
    let mut contents = Zeroizing::new(Vec::new());
    fs::File::open(file)?.take(MOST + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > MOST { unfit("is larger than 4 MiB") } else { Ok(contents) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_found_however_it_comes_about() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a"), "one").expect("writes");
        let seen = Seen::of([&path("a"), &path("b")]);
        assert_eq!(seen, seen.again());
        // In place, of the same length.
        fs::write(path("a"), "two").expect("writes");
        let second = seen.again();
        assert_ne!(seen, second);
        // By rename, with the same contents: no change.
        fs::write(path("new"), "two").expect("writes");
        fs::rename(path("new"), path("a")).expect("renames");
        assert_eq!(second, seen.again());
        // One that appears, and one that goes.
        fs::write(path("b"), "").expect("writes");
        let third = seen.again();
        assert_ne!(second, third);
        fs::remove_file(path("a")).expect("removes");
        assert_ne!(third, seen.again());
        // As Kubernetes does: the link `..data` leads to another directory.
        for (version, text) in [("1", "x"), ("2", "y")] {
            fs::create_dir(path(version)).expect("a directory");
            fs::write(path(version).join("file"), text).expect("writes");
        }
        std::os::unix::fs::symlink("1", path("..data")).expect("a link");
        std::os::unix::fs::symlink("..data/file", path("file")).expect("a link");
        let seen = Seen::of([&path("file")]);
        std::os::unix::fs::symlink("2", path("..data_tmp")).expect("a link");
        fs::rename(path("..data_tmp"), path("..data")).expect("renames");
        assert_ne!(seen, seen.again());
    }

    #[test]
    fn what_was_noted_first_counts_and_no_contents_are_shown() {
        let mut seen = Seen::default();
        seen.note(Path::new("/nosuch/file"), Some(b"secret"));
        let first = seen.clone();
        seen.note(Path::new("/nosuch/file"), None);
        assert_eq!(seen, first);
        assert!(!format!("{seen:?}").contains("secret"));
        assert_ne!(seen, seen.again(), "it can't be read any more");
    }

    #[test]
    fn what_no_look_could_compare_is_not_looked_at() {
        let dir = tempfile::tempdir().expect("a directory");
        let large = dir.path().join("large");
        fs::File::create(&large).and_then(|file| file.set_len(MOST + 1)).expect("a file");
        let mut seen = Seen::default();
        seen.note(dir.path(), None);
        seen.note(Path::new("/dev/null"), Some(b""));
        seen.note(&large, Some(&fs::read(&large).expect("reads")));
        assert_eq!((seen.files().count(), &seen), (0, &seen.again()));
        // One that grows beyond it has changed, once.
        let file = dir.path().join("grows");
        fs::write(&file, "x").expect("writes");
        seen.note(&file, Some(b"x"));
        fs::rename(&large, &file).expect("renames");
        let later = seen.again();
        assert!(seen != later && later == later.again());
    }
}
