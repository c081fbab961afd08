//! What the supervisor learns from the system and leaves to it.

use crate::process::Exit;
use podbay_agent_wire::{budget::Budget, id::Instance};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::Path,
};

/// A new random instance.
pub fn instance() -> io::Result<Instance> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Instance(bytes))
}

/// Bytes for all windows, by the container's memory limit (cgroup v2, then v1).
pub fn memory_budget() -> usize {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = files.iter().find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    Budget::of_limit(limit)
}

/// Kills for want of memory in this container so far (cgroup v2).
pub fn oom_kills() -> u64 {
    let events = fs::read_to_string("/sys/fs/cgroup/memory.events").unwrap_or_default();
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or(0)
}

/// Writes how a session's program ended to where the kubelet takes it into the pod's status (at most 4 KiB there). It is the
/// last resort of a backend that could not collect the exit; nobody can be told if it fails.
pub fn write_termination_message(path: &Path, exit: Exit) {
    let message = match exit {
        Exit::Code(code) => format!("{{\"podbay\":1,\"code\":{code}}}\n"),
        Exit::Signal { core_dumped, .. } => {
            let name = exit.signal_name().unwrap_or_default();
            format!("{{\"podbay\":1,\"signal\":\"{name}\",\"core\":{core_dumped}}}\n")
        }
    };
    let file = OpenOptions::new().write(true).truncate(true).open(path);
    let _ = file.and_then(|mut file| file.write_all(message.as_bytes()));
}
