//! A container's termination message: where it leaves one, and what is taken for it once it has ended.

use super::log::Log;
use k8s_openapi::api::core::v1::Container;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A termination message's length (Kubernetes' limits; the second is for messages taken from the log).
const MESSAGE: usize = 4096;
const MESSAGE_FROM_LOG: usize = 2048;
const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

/// The message of a container in a pod with this folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct TerminationMessage<'a> {
    pub spec: &'a Container,
    pub folder: &'a Path,
}

impl TerminationMessage<'_> {
    /// Makes its file, empty, where it is below the pod's folder; gives its path.
    pub fn prepare(self) -> io::Result<PathBuf> {
        let file = self.file();
        if file.starts_with(self.folder) {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&file, b"")?;
        }
        Ok(file)
    }

    /// What a container that has ended with this code has left; else the end of its log, where its policy says so.
    pub fn read(self, code: i32, log: &Log) -> Option<String> {
        let text = |bytes: &[u8], limit: usize| {
            let from = bytes.len().saturating_sub(limit);
            String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
        };
        let written = fs::read(self.file()).unwrap_or_default();
        if !written.is_empty() {
            let head = written.get(..MESSAGE.min(written.len())).unwrap_or_default();
            return Some(String::from_utf8_lossy(head).into_owned());
        }
        let fallback = self.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if !fallback || code == 0 {
            return None;
        }
        let (tail, _) = log.read(log.tail(80));
        (!tail.is_empty()).then(|| text(&tail, MESSAGE_FROM_LOG))
    }

    /// A file of the container's own for the default path, else the very path.
    fn file(self) -> PathBuf {
        match self.spec.termination_message_path.as_deref() {
            None | Some("" | DEFAULT_MESSAGE_PATH) => {
                self.folder.join(".podbay").join(&self.spec.name).join("termination-log")
            }
            Some(path) => Path::new("/").join(path),
        }
    }
}
