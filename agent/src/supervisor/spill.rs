//! Files for output that nobody takes now: unlinked as soon as they are open, so nothing is left behind whatever happens.

use podbay_agent_wire::output::{Spill, Spills};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    process,
};

/// See the module.
#[derive(Debug)]
pub struct SpillFolder {
    folder: PathBuf,
    opened: u64,
}

impl SpillFolder {
    /// Files go there.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, opened: 0 }
    }
}

impl Spills for SpillFolder {
    fn open(&mut self) -> io::Result<Box<dyn Spill>> {
        self.opened += 1;
        let path = self.folder.join(format!("spill-{}-{}", process::id(), self.opened));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(path)?;
        Ok(Box::new(SpillFile(file)))
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
