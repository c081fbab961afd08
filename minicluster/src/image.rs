//! Images: not files, but tables that say which programs "are in" an image and where the host has them.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

/// The image that has everything that the host has.
pub const DEMO: &str = "podbay/demo:1";

/// Where programs without a slash in their name are looked up, if the program's PATH does not say otherwise.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image. The table applies to `argv[0]` of what the cluster itself starts (the container's program and execs); what a
/// program of the image starts by itself is looked up on the host as always. It isolates nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub cmd: Vec<String>,
    /// ENV.
    pub env: Vec<(String, String)>,
    /// Absolute path in the image → the host's executable.
    pub programs: BTreeMap<PathBuf, PathBuf>,
    /// Any other absolute path is the host's file of that name.
    pub host_files: bool,
}

/// Why a program can't be had from an image, in the words of runc.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotFound {
    #[error("exec: \"{0}\": executable file not found in $PATH")]
    InPath(String),
    #[error("exec: \"{0}\": stat {0}: no such file or directory")]
    File(String),
    #[error("exec: \"{0}\": permission denied")]
    NotExecutable(String),
}

impl Image {
    /// The host's whole file system, with `/bin/bash` (where the host has it) as its CMD, else `/bin/sh`.
    pub fn host() -> Self {
        let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
        Self { cmd: vec![shell.into()], host_files: true, ..Self::default() }
    }

    /// Only these programs, each at the same path in the image and on the host; its CMD is the first one.
    pub fn only<'a>(programs: impl IntoIterator<Item = &'a str>) -> Self {
        let programs: Vec<&str> = programs.into_iter().collect();
        Self {
            cmd: programs.first().map(|&program| program.to_owned()).into_iter().collect(),
            programs: programs.into_iter().map(|program| (program.into(), program.into())).collect(),
            ..Self::default()
        }
    }

    /// Adds a program: `host` under the name `path`.
    #[must_use]
    pub fn with_program(mut self, path: impl Into<PathBuf>, host: impl Into<PathBuf>) -> Self {
        self.programs.insert(path.into(), host.into());
        self
    }

    /// Sets CMD.
    #[must_use]
    pub fn with_cmd<'a>(mut self, cmd: impl IntoIterator<Item = &'a str>) -> Self {
        self.cmd = cmd.into_iter().map(str::to_owned).collect();
        self
    }

    /// The host's executable for `argv[0]`, with the program's PATH and working directory.
    pub(crate) fn resolve(&self, name: &str, path: &str, cwd: &Path) -> Result<PathBuf, NotFound> {
        if name.contains('/') {
            let file = normal(&cwd.join(name));
            return match self.file(&file) {
                Some(host) if is_executable(&host) => Ok(host),
                Some(_) => Err(NotFound::NotExecutable(name.into())),
                None => Err(NotFound::File(name.into())),
            };
        }
        path.split(':')
            .filter(|folder| folder.starts_with('/') && !name.is_empty())
            .filter_map(|folder| self.file(&Path::new(folder).join(name)))
            .find(|host| is_executable(host))
            .ok_or_else(|| NotFound::InPath(name.into()))
    }

    /// What the image has at a path, if it (and the host) has anything there.
    fn file(&self, path: &Path) -> Option<PathBuf> {
        let host = match self.programs.get(path) {
            Some(host) => host.clone(),
            None if self.host_files => path.to_owned(),
            None => return None,
        };
        host.exists().then_some(host)
    }
}

/// Without `.` and `..`, as written (symbolic links are not followed).
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => normal.push(part),
        }
    }
    normal
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The built-in images: `podbay/demo:1` (the host's files) and `podbay/noshell:1` (`cat`, `sleep`, `true`, `false` and
/// nothing else).
pub fn built_in() -> BTreeMap<String, Image> {
    let sftp = "/usr/lib/openssh/sftp-server";
    let noshell =
        Image::only(["/bin/cat", "/bin/true", "/bin/false", "/bin/sleep"]).with_cmd(["/bin/sleep", "infinity"]);
    [(DEMO, Image::host().with_program(sftp, sftp)), ("podbay/noshell:1", noshell)]
        .map(|(name, image)| (name.to_owned(), image))
        .into()
}

/// Whether a name can be an image's at all (`distribution/reference`, roughly): lower case path, optional tag and digest.
pub(crate) fn is_valid_name(name: &str) -> bool {
    let (name, digest) = name.split_once('@').map_or((name, None), |(name, digest)| (name, Some(digest)));
    let (host, last) = name.rsplit_once('/').map_or(("", name), |(host, last)| (host, last));
    let (last, tag) = last.split_once(':').map_or((last, None), |(last, tag)| (last, Some(tag)));
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    let registry = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || ".-:".contains(c));
    let mut parts = host.split('/');
    let first = parts.next().unwrap_or_default();
    (host.is_empty() || (registry(first) || part(first)) && parts.all(part))
        && part(last)
        && tag.is_none_or(|tag| {
            (1..=128).contains(&tag.len()) && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        })
        && digest.is_none_or(|digest| digest.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_table_has() {
        let image = Image::only(["/bin/cat"]).with_program("/app/run", "/bin/true");
        let resolve = |name: &str| image.resolve(name, PATH, Path::new("/app"));
        assert_eq!(resolve("cat"), Ok("/bin/cat".into()));
        assert_eq!(resolve("/bin/cat"), Ok("/bin/cat".into()));
        assert_eq!(resolve("./run"), Ok("/bin/true".into()));
        assert_eq!(resolve("../app/run"), Ok("/bin/true".into()));
        assert_eq!(resolve("sh").expect_err("absent").to_string(), "exec: \"sh\": executable file not found in $PATH");
        assert_eq!(
            resolve("/bin/sh").expect_err("absent").to_string(),
            "exec: \"/bin/sh\": stat /bin/sh: no such file or directory"
        );
        assert!(resolve("").is_err());
    }

    #[test]
    fn the_host_image_has_what_the_host_has() {
        let image = Image::host();
        assert!(image.resolve("sh", PATH, Path::new("/")).is_ok());
        assert_eq!(
            image.resolve("/etc/passwd", PATH, Path::new("/")),
            Err(NotFound::NotExecutable("/etc/passwd".into()))
        );
        assert_eq!(image.resolve("sh", "/nowhere", Path::new("/")), Err(NotFound::InPath("sh".into())));
    }

    #[test]
    fn names() {
        for good in ["a", "podbay/demo:1", "localhost:5000/a/b:x", "a@sha256:00", "Example.com/a"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["A", "", "a:", "a b", "a/B:1", "a//b", ":1"] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
