//! Programs under test, and what they leave.

use super::{PATIENCE, cluster::is_real};
use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Waits for a condition.
///
/// # Panics
/// If it does not come within [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_so_long(what, PATIENCE, condition);
}

/// Waits for a condition that may take longer.
///
/// # Panics
/// If it does not come in this time.
#[track_caller]
pub fn wait_so_long(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The program of the workspace with this name.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("an executable");
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built: cargo build --workspace"))
}

/// A file of the folder `tests/` of the project.
pub fn program_of_tests(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// What a program is started by for a wall clock that is so far off (`+3h`, `-2d`); its monotonic clock goes right. The program keeps
/// the process id, which Debian's `faketime` does not let it.
pub fn faketime(clock: &str) -> Vec<String> {
    let folders = std::fs::read_dir("/usr/lib").expect("reads").filter_map(Result::ok);
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let library = libraries.find(|path| path.is_file()).expect("faketime is installed (tests/run does it)");
    let set = [format!("LD_PRELOAD={}", library.display()), format!("FAKETIME={clock}")];
    ["env".to_owned()].into_iter().chain(set).chain(["FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned()]).collect()
}

/// The Python of the peers' environment, with Ansible; made here where `tests/run` has not.
pub fn python() -> PathBuf {
    static MADE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let made = Command::new(program_of_tests("peers/environment")).stderr(Stdio::inherit()).output().expect("runs");
        assert!(made.status.success(), "no Python environment: see above");
        PathBuf::from(String::from_utf8(made.stdout).expect("a path").trim())
    })
    .clone()
}

/// What a finished program left.
#[derive(Debug)]
pub struct Answered {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Answered {
    /// Exactly this came of it.
    #[track_caller]
    pub fn is(&self, code: i32, stdout: &str, stderr: &str) {
        let text = String::from_utf8_lossy(&self.stdout);
        assert_eq!((self.status.code(), &*text, self.told().as_str()), (Some(code), stdout, stderr));
    }

    /// Stderr without the lines that say what a start waits for: a real cluster on a busy machine is slow enough for them.
    pub fn told(&self) -> String {
        let waits = ["podbay: waiting for ", "podbay: starting the container", "podbay: scheduled", "podbay: pulling"];
        let shown = |line: &&str| !is_real() || !waits.iter().any(|wait| line.starts_with(wait));
        self.stderr.split_inclusive('\n').filter(shown).collect()
    }
}

/// Runs a program to its end, within [`PATIENCE`], with this on its stdin.
#[track_caller]
pub fn finish(command: &mut Command, stdin: &[u8]) -> Answered {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let (mut to, stdin) = (child.stdin.take().expect("piped"), stdin.to_vec());
    // A program may end without reading all of it.
    let writer = thread::spawn(move || drop(to.write_all(&stdin)));
    let stdout = read_all(child.stdout.take().expect("piped"));
    let stderr = read_all(child.stderr.take().expect("piped"));
    let status = ends(&mut child);
    writer.join().expect("no panic");
    let stderr = String::from_utf8_lossy(&stderr.join().expect("no panic")).into_owned();
    Answered { status, stdout: stdout.join().expect("no panic"), stderr }
}

fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

#[track_caller]
fn ends(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("waits") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("a program does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A program that runs until it is told to end. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    /// Lines of both outputs, as they come.
    log: Arc<Mutex<String>>,
}

impl Running {
    /// Starts it.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect(name);
        let log = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().expect("piped"), &log);
        collect(child.stderr.take().expect("piped"), &log);
        Self { name: name.to_owned(), child, log }
    }

    /// Everything it has said.
    pub fn said(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has said this.
    #[track_caller]
    pub fn says(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.said().contains(text) {
            let ended = self.child.try_wait().expect("waits");
            assert!(ended.is_none(), "{} ended ({ended:?}): {}", self.name, self.said());
            assert!(Instant::now() < deadline, "{} never said {text:?}: {}", self.name, self.said());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("waits").is_none()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory now, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Asks it to end, and waits.
    #[track_caller]
    pub fn stop(self) -> ExitStatus {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.ends()
    }

    /// Waits for its (successful) end.
    #[track_caller]
    pub fn ends(mut self) -> ExitStatus {
        let status = ends(&mut self.child);
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.said());
        status
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("it is there");
    }

    /// Kills it as a crash would.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {} said:\n{}", self.name, self.said());
        }
    }
}

fn collect(from: impl Read + Send + 'static, log: &Arc<Mutex<String>>) {
    let log = Arc::clone(log);
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
        }
    });
}

/// Processes whose command line names this path, other than the caller.
pub fn processes_naming(path: &Path) -> Vec<String> {
    let needle = path.display().to_string();
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").expect("/proc");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && *pid != own)
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (line.contains(&needle) || cwd.starts_with(path)).then(|| format!("{pid} {line}"))
        })
        .collect()
}
