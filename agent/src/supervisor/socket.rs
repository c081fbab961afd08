//! Where supervisor and `attach` meet.
//!
//! A path socket that only its user may use, in a folder that is that user's or the pod's. Never an abstract one: those belong to the
//! network namespace, which a pod with `hostNetwork` shares with the node. The lock beside it says who is the supervisor.

use rustix::{
    fs::{FlockOperation, Mode, flock},
    io::Errno,
    net::sockopt::socket_peercred,
    process::{geteuid, umask},
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// The socket's name in its folder.
const NAME: &str = "agent.sock";
/// The agent's own volume.
const VOLUME: &str = "/run/podbay-agent";

/// Where a supervisor of this user may be, best first.
pub fn places() -> [PathBuf; 2] {
    let shared_memory = format!("/dev/shm/podbay-agent-{}", geteuid().as_raw());
    [Path::new(VOLUME).join(NAME), Path::new(&shared_memory).join(NAME)]
}

/// The one supervisor at its socket.
#[derive(Debug)]
pub struct Place {
    /// Not blocking.
    pub listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

/// Why a place can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Another supervisor has it.
    #[error("a supervisor runs already")]
    Taken,
    /// The system's word.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

impl Place {
    /// Listens at `path`, or at the best of [`places`].
    pub fn take(path: Option<&Path>) -> Result<Self, PlaceError> {
        if let Some(path) = path {
            return Self::at(path);
        }
        let [best, other] = places();
        match Self::at(&best) {
            Err(PlaceError::Io(..)) => Self::at(&other),
            done => done,
        }
    }

    fn at(path: &Path) -> Result<Self, PlaceError> {
        let error = |error: io::Error| PlaceError::Io(path.to_owned(), error);
        let folder = path.parent().ok_or_else(|| error(io::ErrorKind::InvalidInput.into()))?;
        sound_folder(folder).map_err(error)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path.with_extension("lock"))
            .map_err(error)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(PlaceError::Taken),
            Err(errno) => return Err(error(errno.into())),
        }
        // Who had it is gone: the lock is ours.
        match fs::remove_file(path) {
            Err(gone) if gone.kind() != io::ErrorKind::NotFound => return Err(error(gone)),
            Ok(()) | Err(_) => {}
        }
        let before = umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// The folder, for what else the supervisor keeps.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The lock stands until after this, so it is ours still.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the folder where it is missing. One where others may put things (`/dev/shm` is for all) must be ours alone.
fn sound_folder(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let meta = fs::symlink_metadata(folder)?;
    let ours = meta.uid() == geteuid().as_raw() && meta.mode() & 0o022 == 0;
    if folder.starts_with("/dev/shm") && !(meta.is_dir() && ours) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the folder is another user's"));
    }
    Ok(())
}

/// Connects to a supervisor at `path`, or at one of [`places`].
pub fn connect(path: Option<&Path>) -> io::Result<UnixStream> {
    if let Some(path) = path {
        return UnixStream::connect(path);
    }
    let [best, other] = places();
    UnixStream::connect(best).or_else(|error| {
        sound_folder_to_read(&other)?;
        // The first place is the one to tell about, if both fail.
        UnixStream::connect(other).map_err(|_| error)
    })
}

/// Nobody else may pose as the supervisor.
fn sound_folder_to_read(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path.parent().unwrap_or(path))?;
    if meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the folder is another user's"))
}

/// Whether the other end is the same user's.
pub fn is_ours(stream: &UnixStream) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid == geteuid())
}
