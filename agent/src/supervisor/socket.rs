//! Where supervisor and `attach` meet.
//!
//! A path socket that only its user may use, in a folder that is that user's or the pod's. Never an abstract one: those belong to the
//! network namespace, which a pod with `hostNetwork` shares with the node. The lock beside it says who is the supervisor.

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::{
    fs::{FlockOperation, Mode, flock},
    io::Errno,
    process::{geteuid, umask},
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

/// The socket's name in its folder.
const NAME: &str = "agent.sock";
/// The agent's own volume.
const VOLUME: &str = "/run/podbay-agent";

/// Names the one folder where supervisor and `attach` meet, where the container's environment says so: for pods that share
/// their files with others.
pub const DIR: &str = "PODBAY_AGENT_DIR";

/// Where a supervisor of this user may be, best first.
pub fn places() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os(DIR).filter(|folder| !folder.is_empty()) {
        return vec![Path::new(&folder).join(NAME)];
    }
    // Kubernetes shares /dev/shm among the containers of a pod; each has a mount namespace of its own.
    let container = fs::metadata("/proc/self/ns/mnt").map_or(0, |namespace| namespace.ino());
    let shared_memory = format!("/dev/shm/podbay-agent-{}-{container}", geteuid().as_raw());
    vec![Path::new(VOLUME).join(NAME), Path::new(&shared_memory).join(NAME)]
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
        let mut last = None;
        for place in places() {
            match Self::at(&place) {
                Err(error @ PlaceError::Io(..)) => last = Some(error),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| PlaceError::Io(PathBuf::new(), io::ErrorKind::NotFound.into())))
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
        let listener = short(path).and_then(|(short, _folder)| UnixListener::bind(short));
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

/// The path by way of its open folder: a socket's address has 107 bytes, a folder's path may have more.
fn short(path: &Path) -> io::Result<(PathBuf, File)> {
    let (folder, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    let folder = File::open(folder)?;
    Ok((Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name), folder))
}

/// Connects to this user's supervisor at `path`, or at one of [`places`].
pub fn connect(path: Option<&Path>) -> io::Result<UnixStream> {
    let places = path.map_or_else(places, |path| vec![path.to_owned()]);
    let mut last = io::ErrorKind::NotFound.into();
    for place in places {
        let stream = short(&place).and_then(|(short, _folder)| UnixStream::connect(short));
        match stream.and_then(|stream| if is_ours(&stream) { Ok(stream) } else { Err(not_ours()) }) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The agent's volume is for all users of the pod, and so is the kernel's shared memory: who listens there need not be us.
fn not_ours() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the supervisor there is another user's, or another container's")
}

/// Whether the other end is the same user's, in this container: the kernel tells process 0 for one that we can't see.
pub fn is_ours(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw() && peer.pid() != 0)
}
