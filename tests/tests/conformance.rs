//! The conformance table: every mode, agent level, kind of program and way to end, by the stock client; printed at the end. A cell
//! is what the user must see, so that one that is wrong fails the test.

use podbay_tests::{PATIENCE, Setup, World, only_embedded, wait_until};
use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

const MODES: [&str; 2] = ["connection", "session"];
const LEVELS: [&str; 3] = ["none", "containerssh", "podbay"];
const KINDS: [&str; 3] = ["shell", "exec", "subsystem"];
const ENDS: [&str; 6] = ["exit code", "signal", "disconnect", "pod death", "stream cut", "replica kill"];

/// A shell of the given kind, whose lines the test types.
struct Probe {
    client: Child,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// One for all of a column: what is wrong is so for all of them at once.
    deadline: Instant,
}

fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&all);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            to.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..n]);
        }
    });
    all
}

impl Probe {
    fn start(world: &World, kind: &str, tty: bool) -> Self {
        let mut ssh = match kind {
            "subsystem" => world.ssh(&[if tty { "-tt" } else { "-T" }, "-s"]),
            _ => world.ssh(&[if tty { "-tt" } else { "-T" }]),
        };
        match kind {
            "exec" => drop(ssh.arg("exec /bin/sh")),
            "subsystem" => drop(ssh.arg("probe")),
            _ => {}
        }
        let mut client =
            ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let stdout = collect(client.stdout.take().expect("piped"));
        let stderr = collect(client.stderr.take().expect("piped"));
        Self { client, stdout, stderr, deadline: Instant::now() + PATIENCE }
    }

    fn types(&mut self, line: &str) {
        if let Some(stdin) = &mut self.client.stdin {
            // One whose client has ended says so by its status.
            let _ = stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush());
        }
    }

    fn text(of: &Mutex<Vec<u8>>) -> String {
        String::from_utf8_lossy(&of.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until this is in the output.
    fn shows(&mut self, text: &str) -> Result<(), String> {
        while !Self::text(&self.stdout).contains(text) {
            let ended = self.client.try_wait().expect("waits");
            let read = Arc::strong_count(&self.stdout) == 1;
            // Of a client that has ended, the reader may still have some.
            if (ended.is_some() && read && !Self::text(&self.stdout).contains(text)) || Instant::now() > self.deadline {
                return Err(format!("never shows {text:?} ({ended:?}): {}", Self::text(&self.stderr)));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn status(&mut self) -> Result<ExitStatus, String> {
        loop {
            if let Some(status) = self.client.try_wait().expect("waits") {
                return Ok(status);
            }
            if Instant::now() > self.deadline {
                return Err(format!("does not end: {}", Self::text(&self.stderr)));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn ends_with(&mut self, code: i32) -> Result<(), String> {
        let status = self.status()?;
        if status.code() == Some(code) {
            return Ok(());
        }
        Err(format!("{status} where {code} was due: {}", Self::text(&self.stderr)))
    }

    /// It goes on where it was.
    fn goes_on(&mut self) -> Result<(), String> {
        self.types("echo a''gain; exit 5\n");
        self.shows("again")?;
        self.ends_with(5)
    }

    /// Its pod was: nothing that could be taken for its own end, and the user reads why.
    fn is_killed(&mut self) -> Result<(), String> {
        self.is_lost()?;
        let told = Self::text(&self.stderr);
        if told.contains("podbay: the pod was deleted") { Ok(()) } else { Err(format!("another reason: {told:?}")) }
    }

    /// It is over, and the user reads why.
    fn is_lost(&mut self) -> Result<(), String> {
        self.ends_with(255)?;
        // The last words may be on their way still.
        while !Self::text(&self.stderr).contains("podbay: ") {
            if Instant::now() > self.deadline {
                return Err(format!("no reason is told: {:?}", Self::text(&self.stderr)));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

type Cell = Result<(), String>;

/// What becomes of one session for each kind, without and with a terminal, when this happens to all of them.
fn column(world: &mut World, level: &str, end: &str) -> Vec<Cell> {
    let kinds = KINDS.iter().flat_map(|kind| [(*kind, false), (*kind, true)]);
    let mut probes: Vec<Probe> = kinds.map(|(kind, tty)| Probe::start(world, kind, tty)).collect();
    let mut cells: Vec<Cell> = probes
        .iter_mut()
        .map(|probe| {
            probe.types("echo rea''dy\n");
            probe.shows("ready")
        })
        .collect();
    let durable = level == "podbay";
    let mut each = |cells: &mut Vec<Cell>, judge: &dyn Fn(&mut Probe) -> Cell| {
        let deadline = Instant::now() + PATIENCE;
        for (probe, cell) in probes.iter_mut().zip(cells) {
            probe.deadline = deadline;
            if cell.is_ok() {
                *cell = judge(probe);
            }
        }
    };
    match end {
        "exit code" => each(&mut cells, &|probe| {
            probe.types("exit 7\n");
            probe.ends_with(7)
        }),
        "signal" => each(&mut cells, &|probe| {
            probe.types("kill -9 $$\n");
            // OpenSSH's client says 255 for an exit-signal; who has none gets the shells' number.
            probe.ends_with(if durable { 255 } else { 137 })
        }),
        "disconnect" => each(&mut cells, &|probe| {
            probe.client.kill().expect("it runs");
            probe.status().map(drop)
        }),
        "pod death" => {
            world.pods().iter().for_each(|pod| world.deletes(pod));
            each(&mut cells, &Probe::is_killed);
        }
        "stream cut" => {
            world.fault(r#"{"do": {"action": "breakStreams", "how": "cut"}}"#);
            each(&mut cells, &|probe| if durable { probe.goes_on() } else { probe.is_lost() });
        }
        "replica kill" => {
            for part in ["backend", "backend-2"] {
                world.take(part).kill();
                world.restart(part);
            }
            each(&mut cells, &|probe| if durable { probe.goes_on() } else { probe.is_lost() });
        }
        other => panic!("{other}?"),
    }
    drop(probes);
    // Whatever it was, nothing is left of it.
    wait_until("no pod is left", || world.pods().is_empty());
    cells
}

/// One mode at one level: a column for each end.
fn block(mode: &str, level: &str) -> Vec<Vec<Cell>> {
    let setup = if level == "none" { mode.to_owned() } else { format!("{mode}+{level}") };
    let mut world = World::with(Setup::Apart, &setup, |config| {
        // Whatever stands there: another subsystem, which can be typed at.
        let with = config.replace("    subsystems: {", "    subsystems: {probe: /bin/sh, ");
        if with == config { config.replace("grpc:\n", "    subsystems: {probe: /bin/sh}\ngrpc:\n") } else { with }
    });
    let columns = ENDS.iter().map(|end| column(&mut world, level, end)).collect();
    world.ends_clean();
    columns
}

#[test]
fn every_mode_level_program_and_end() {
    if only_embedded("its faults are injected into the embedded one") {
        return;
    }
    let mut table = format!("{:<46}", "mode, agent, program, terminal");
    for end in ENDS {
        write!(table, "{end:<14}").expect("writes");
    }
    table.push('\n');
    let mut wrong = Vec::new();
    for mode in MODES {
        // Worlds wait more than they work.
        let blocks: Vec<_> = thread::scope(|scope| {
            let running = LEVELS.map(|level| scope.spawn(move || block(mode, level)));
            running.into_iter().map(|one| one.join().expect("a whole block")).collect()
        });
        for (level, columns) in LEVELS.iter().zip(blocks) {
            for (row, (kind, tty)) in KINDS.iter().flat_map(|kind| [(kind, "pipes"), (kind, "terminal")]).enumerate() {
                write!(table, "{:<46}", format!("{mode}, {level}, {kind}, {tty}")).expect("writes");
                for (end, column) in ENDS.iter().zip(&columns) {
                    let cell = &column[row];
                    write!(table, "{:<14}", if cell.is_ok() { "ok" } else { "WRONG" }).expect("writes");
                    if let Err(why) = cell {
                        wrong.push(format!("{mode}, {level}, {kind}, {tty}, {end}: {why}"));
                    }
                }
                table.push('\n');
            }
        }
    }
    table.push_str("persistent: not in this table; tests/tests/persistent.rs tells it\n");
    println!("{table}");
    assert!(wrong.is_empty(), "{table}\n{}", wrong.join("\n"));
}
