//! `write-file`: stdin to a file of mode 0600.
//!
//! The original truncates the file and writes into it, so a program that starts meanwhile reads a part. Here the file appears
//! whole, by rename, wherever that is a change that nobody else can notice: the old one is ours, a regular file with one name,
//! or there is none. Elsewhere (a symbolic link, a mounted file, a folder that is not writable) it is written in place.

use super::Failure;
use rustix::{
    fs::{FileType, Mode, OFlags, RawMode},
    io::Errno,
    process::{geteuid, getpid},
    stdio::stdin,
};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

const MODE: RawMode = 0o600;
/// A pipe's whole content on Linux.
const BUFFER: usize = 64 * 1024;

pub(super) fn run(mut args: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    let path =
        args.next().filter(|path| !path.is_empty()).ok_or_else(|| Failure::usage("write-file: a path is missing"))?;
    write(Path::new(&path)).map_err(|error| Failure::failed(1, format!("{}: {error}", path.display())))?;
    Ok(0)
}

fn write(path: &Path) -> io::Result<()> {
    if let Some(new) = replaceable(path).then(|| beside(path)).flatten()
        && let Ok(file) = create(&new)
    {
        let done = copy_stdin(&file).and_then(|()| put_in_place(&new, path, &file));
        if done.is_err() {
            // Without it the folder is as it was.
            let _ = fs::remove_file(&new);
        }
        return done;
    }
    let file = open_in_place(path)?;
    copy_stdin(&file)
}

/// Whether a rename over the path does to others what writing into it would.
fn replaceable(path: &Path) -> bool {
    match rustix::fs::lstat(path) {
        Ok(stat) => {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && stat.st_nlink == 1
                && stat.st_uid == geteuid().as_raw()
        }
        Err(error) => error == Errno::NOENT,
    }
}

/// A name in the same folder, short enough for every file system; `None` where the path names no file.
fn beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.as_bytes();
    let mut new = OsString::from(".");
    new.push(OsStr::from_bytes(name.get(..200).unwrap_or(name)));
    new.push(format!(".podbay-{}", getpid().as_raw_nonzero()));
    Some(path.with_file_name(new))
}

fn create(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(MODE))?.into())
}

fn put_in_place(new: &Path, path: &Path, file: &File) -> io::Result<()> {
    // The umask may have taken bits away.
    rustix::fs::fchmod(file, Mode::from_raw_mode(MODE))?;
    if fs::rename(new, path).is_err() {
        // A mounted file (EBUSY), or whatever else forbids it: stdin is used up, so copy what we have.
        io::copy(&mut File::open(new)?, &mut open_in_place(path)?)?;
        fs::remove_file(new)?;
    }
    Ok(())
}

/// As the original does it.
fn open_in_place(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file: File = rustix::fs::open(path, flags, Mode::from_raw_mode(MODE))?.into();
    rustix::fs::fchmod(&file, Mode::from_raw_mode(MODE))?;
    Ok(file)
}

fn copy_stdin(mut file: &File) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match rustix::io::read(stdin(), &mut buffer[..]) {
            Ok(0) => return Ok(()),
            Ok(n) => file.write_all(buffer.get(..n).unwrap_or_default())?,
            Err(Errno::INTR) => {}
            // The original takes any read error for the end, and says that all is well.
            Err(error) => return Err(error.into()),
        }
    }
}
