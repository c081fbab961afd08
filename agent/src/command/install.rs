//! `install`: copies this program to where an image can find it. An init container runs it, so no `cp` is needed there.

use super::Failure;
use rustix::process::getpid;
use std::{
    ffi::OsString,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

const SELF: &str = "/proc/self/exe";
const NAME: &str = "podbay-agent";
const MODE: u32 = 0o755;

pub(super) fn run(mut args: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    let path =
        args.next().filter(|path| !path.is_empty()).ok_or_else(|| Failure::usage("install: a path is missing"))?;
    if args.next().is_some() {
        return Err(Failure::usage("install: one path, no more"));
    }
    let mut path = PathBuf::from(path);
    if path.is_dir() {
        path.push(NAME);
    }
    install(&path).map_err(|error| Failure::failed(1, format!("{}: {error}", path.display())))?;
    Ok(0)
}

/// By rename: whoever executes it meanwhile gets the old one or the new one, whole.
fn install(path: &Path) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".new-{}", getpid().as_raw_nonzero()));
    let new = path.with_file_name(name);
    let copied = copy(&new).and_then(|()| fs::rename(&new, path));
    if copied.is_err() {
        let _ = fs::remove_file(&new);
    }
    copied
}

fn copy(new: &Path) -> io::Result<()> {
    let mut source = File::open(SELF)?;
    let mut file = File::create_new(new)?;
    io::copy(&mut source, &mut file)?;
    // Whatever the umask: any user's programs shall run it.
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.sync_all()
}
