//! Files for output that nobody takes now: unlinked as soon as they are open, so nothing is left behind whatever happens.

use podbay_agent_wire::output::{Spill, Spills};
use std::{
    env,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process,
};

/// See the module.
#[derive(Debug)]
pub struct SpillFolder {
    folders: Vec<PathBuf>,
    opened: u64,
}

impl SpillFolder {
    /// Files go to the first of `folders` that takes them.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders, opened: 0 }
    }

    /// Where files go if nobody says: beside the socket, but rather anywhere else than in /dev/shm, which is memory.
    pub fn places(beside: &Path) -> Vec<PathBuf> {
        let mut folders = vec![beside.to_owned(), env::temp_dir()];
        if beside.starts_with("/dev/shm") {
            folders.reverse();
        }
        folders
    }
}

impl Spills for SpillFolder {
    fn open(&mut self) -> io::Result<Box<dyn Spill>> {
        self.opened += 1;
        let name = format!("podbay-spill-{}-{}", process::id(), self.opened);
        let mut last = io::ErrorKind::NotFound.into();
        for folder in &self.folders {
            let path = folder.join(&name);
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            match file.and_then(|file| fs::remove_file(path).map(|()| file)) {
                Ok(file) => return Ok(Box::new(SpillFile(file))),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

#[derive(Debug)]
struct SpillFile(File);

impl Spill for SpillFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_that_takes_a_file_has_it_and_shows_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spills = SpillFolder::new(vec!["/proc/nope".into(), folder.path().to_owned()]);
        let mut file = spills.open().expect("a file");
        file.write_at(b"hello", 3).expect("written");
        let mut read = [0; 5];
        file.read_at(&mut read, 3).expect("read");
        assert_eq!(&read, b"hello");
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
        assert!(SpillFolder::new(vec!["/proc/nope".into()]).open().is_err());
        assert_eq!(SpillFolder::places(Path::new("/dev/shm/x"))[1], Path::new("/dev/shm/x"));
        assert_eq!(SpillFolder::places(Path::new("/run/x"))[0], Path::new("/run/x"));
    }
}
