//! The conformance table: every mode, agent level, kind of program and way to end, by the stock client; printed at the end. A cell
//! is what the user must see, and what must be left of it, so that one that is wrong fails the test.
//!
//! The same on any cluster. `PODBAY_TEST_BLOCKS=persistent+none,session+podbay` makes only these blocks of it,
//! `PODBAY_TEST_WORLDS` so many at once.

use podbay_tests::{
    PATIENCE, World,
    cluster::{has_containerssh_agent, is_real},
    wait_until,
};
use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Child, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const MODES: [&str; 3] = ["connection", "session", "persistent"];
/// `injected`: podbay-agent again, brought by `kubernetes.pod.agentInjection` into an image without. On the embedded cluster that is
/// the change of the pod only: the image has the agent where the init container would have put it.
const LEVELS: [&str; 4] = ["none", "containerssh", "podbay", "injected"];
const KINDS: [&str; 3] = ["shell", "exec", "subsystem"];
const ENDS: [&str; 6] = ["exit code", "signal", "disconnect", "pod death", "stream cut", "replica kill"];
/// Blocks of the table at once, each with a Podbay of its own and six pods. They wait more than they work; on a real cluster, whose
/// pods take a second of work each, less so.
const WORLDS: [usize; 2] = [4, 3];

/// Within which a pod is gone after its connection: the demo's grace period.
const POD_GOES: Duration = Duration::from_secs(2);
/// Within which a program is gone that heeds neither HUP nor TERM: 5 s for each (docs/backend.md).
const PROGRAM_GOES: Duration = Duration::from_secs(10);
/// For machines that others use as well, and a kubelet that looks once a second.
const SLACK: Duration = Duration::from_secs(15);

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
        // The client has ended; its reader may still have some.
        while Arc::strong_count(&self.stderr) > 1 && Instant::now() < self.deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let told = Self::text(&self.stderr);
        if told.contains("podbay: the pod was deleted") { Ok(()) } else { Err(format!("another reason: {told:?}")) }
    }

    /// Turns it into a program that nothing but KILL ends, not even the end of its input. Gives its pod and process id.
    fn turns_deaf(&mut self) -> Result<(String, u32), String> {
        self.types("trap '' HUP INT TERM; echo a''t=$POD/$$,; while :; do sleep 1; done\n");
        self.shows("at=")?;
        loop {
            let text = Self::text(&self.stdout);
            let at = text.split_once("at=").and_then(|(_, rest)| rest.split_once(',')).map(|(at, _)| at);
            if let Some(at) = at {
                let place = at.split_once('/').and_then(|(pod, pid)| Some((pod.to_owned(), pid.parse().ok()?)));
                return place.ok_or_else(|| format!("it says that it is {at:?}"));
            }
            if Instant::now() > self.deadline {
                return Err(format!("never says where it is: {text:?}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
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

/// Each user leaves without a word. His own program must be gone in time, or his pod where that is his alone.
fn disconnect(world: &World, mode: &str, probe: &mut Probe) -> Cell {
    let (pod, pid) = probe.turns_deaf()?;
    let left = Instant::now();
    probe.client.kill().expect("it runs");
    probe.status()?;
    if mode == "persistent" {
        // Seen from within, as another user of the pod.
        let there = format!("[ -e /proc/{pid} ] && ! grep -q '^State:.*Z' /proc/{pid}/status 2>/dev/null");
        let tries = 10 * (PROGRAM_GOES + SLACK).as_secs();
        let script = format!("n=0; while {there}; do n=$((n+1)); [ $n -lt {tries} ] || exit 1; sleep 0.1; done");
        let seen = world.run(&script);
        let pods = world.pods();
        return match (seen.status.code(), pods.contains(&pod)) {
            (Some(0), true) if left.elapsed() < PROGRAM_GOES + SLACK => Ok(()),
            _ => Err(format!("after {:?} process {pid} of {pod}: {seen:?}; pods {pods:?}", left.elapsed())),
        };
    }
    while world.pods().contains(&pod) {
        if left.elapsed() > POD_GOES + SLACK {
            return Err(format!("after {:?} there still is {pod}", left.elapsed()));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What becomes of one session for each kind, without and with a terminal, when this happens to all of them.
fn column(world: &mut World, mode: &str, level: &str, end: &str) -> Vec<Cell> {
    let kinds = KINDS.iter().flat_map(|kind| [(*kind, false), (*kind, true)]);
    let mut probes: Vec<Probe> = kinds.map(|(kind, tty)| Probe::start(world, kind, tty)).collect();
    let mut cells: Vec<Cell> = probes
        .iter_mut()
        .map(|probe| {
            probe.types("echo rea''dy\n");
            probe.shows("ready")
        })
        .collect();
    let durable = matches!(level, "podbay" | "injected");
    // All at once, so that the time of each is its own.
    let each = |probes: &mut Vec<Probe>, cells: &mut Vec<Cell>, judge: &(dyn Fn(&mut Probe) -> Cell + Sync)| {
        let deadline = Instant::now() + PATIENCE;
        thread::scope(|scope| {
            for (probe, cell) in probes.iter_mut().zip(cells).filter(|(_, cell)| cell.is_ok()) {
                probe.deadline = deadline;
                scope.spawn(move || *cell = judge(probe));
            }
        });
    };
    let goes_on_or_is_lost = |probe: &mut Probe| if durable { probe.goes_on() } else { probe.is_lost() };
    match end {
        "exit code" => each(&mut probes, &mut cells, &|probe| {
            probe.types("exit 7\n");
            probe.ends_with(7)
        }),
        "signal" => each(&mut probes, &mut cells, &|probe| {
            probe.types("kill -9 $$\n");
            // OpenSSH's client says 255 for an exit-signal; who has none gets the shells' number.
            probe.ends_with(if durable { 255 } else { 137 })
        }),
        "disconnect" => {
            let world = &*world;
            each(&mut probes, &mut cells, &|probe| disconnect(world, mode, probe));
        }
        "pod death" => {
            world.pods().iter().for_each(|pod| world.deletes(pod));
            each(&mut probes, &mut cells, &Probe::is_killed);
        }
        "stream cut" => {
            world.cuts_streams();
            each(&mut probes, &mut cells, &goes_on_or_is_lost);
        }
        "replica kill" => {
            for part in ["backend", "backend-2"] {
                world.take(part).kill();
                world.restart(part);
            }
            each(&mut probes, &mut cells, &goes_on_or_is_lost);
        }
        other => panic!("{other}?"),
    }
    drop(probes);
    if mode != "persistent" {
        // Whatever it was, nothing is left of it.
        wait_until("no pod is left", || world.pods().is_empty());
    }
    cells
}

/// One mode at one level: a column for each end. Or why there can be none here.
fn block(mode: &str, level: &str) -> Result<Vec<Vec<Cell>>, String> {
    if level == "containerssh" {
        has_containerssh_agent()?;
    }
    let setup = if level == "none" { mode.to_owned() } else { format!("{mode}+{level}") };
    let mut world = World::cuttable(&setup, |config| {
        // Whatever stands there: another subsystem, which can be typed at; and programs know their pod.
        let with = config.replace("    subsystems: {", "    subsystems: {probe: /bin/sh, ");
        let with =
            if with == config { config.replace("grpc:\n", "    subsystems: {probe: /bin/sh}\ngrpc:\n") } else { with };
        let env = "env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]";
        with.replace("        - name: shell\n", &format!("        - name: shell\n          {env}\n"))
            .replace("persistentIdleTimeout: 10m", "persistentIdleTimeout: 6s")
    });
    let columns = ENDS.iter().map(|end| column(&mut world, mode, level, end)).collect();
    world.ends_clean();
    Ok(columns)
}

/// What became of each of these blocks, several at a time.
fn all(blocks: &[(&str, &str)]) -> Vec<Result<Vec<Vec<Cell>>, String>> {
    let worlds = std::env::var("PODBAY_TEST_WORLDS").map_or(WORLDS[usize::from(is_real())], |n| n.parse().expect("n"));
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..worlds.min(blocks.len()) {
            scope.spawn(|| {
                while let Some((n, (mode, level))) = {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    blocks.get(n).map(|block| (n, block))
                } {
                    let began = Instant::now();
                    // The others' part of the table is worth seeing, whatever became of this one.
                    let block = catch_unwind(AssertUnwindSafe(|| block(mode, level))).unwrap_or_else(|_| {
                        let wrong = || Err("the block was not finished: see the panic above".to_owned());
                        Ok(vec![(0..2 * KINDS.len()).map(|_| wrong()).collect(); ENDS.len()])
                    });
                    eprintln!("{mode}, {level}: {} s", began.elapsed().as_secs());
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((n, block));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, block)| block).collect()
}

#[test]
fn every_mode_level_program_and_end() {
    let wanted = std::env::var("PODBAY_TEST_BLOCKS");
    let blocks: Vec<_> = MODES
        .iter()
        .flat_map(|mode| LEVELS.map(|level| (*mode, level)))
        .filter(|(mode, level)| match &wanted {
            Ok(wanted) => wanted.split(',').any(|one| one == format!("{mode}+{level}")),
            Err(_) => true,
        })
        .collect();
    assert!(!blocks.is_empty(), "{wanted:?} names none");
    let mut table = format!("{:<46}", "mode, agent, program, terminal");
    for end in ENDS {
        write!(table, "{end:<14}").expect("writes");
    }
    table.push('\n');
    let (mut wrong, mut missing) = (Vec::new(), Vec::new());
    for ((mode, level), block) in blocks.iter().zip(all(&blocks)) {
        for (row, (kind, tty)) in KINDS.iter().flat_map(|kind| [(kind, "pipes"), (kind, "terminal")]).enumerate() {
            write!(table, "{:<46}", format!("{mode}, {level}, {kind}, {tty}")).expect("writes");
            for (n, end) in ENDS.iter().enumerate() {
                let word = match block.as_ref().map(|columns| &columns[n][row]) {
                    Ok(Ok(())) => "ok",
                    Ok(Err(why)) => {
                        wrong.push(format!("{mode}, {level}, {kind}, {tty}, {end}: {why}"));
                        "WRONG"
                    }
                    Err(_) => "-",
                };
                write!(table, "{word:<14}").expect("writes");
            }
            table.push('\n');
        }
        if let Err(why) = block {
            missing.push(format!("{mode}, {level}: not here, since {why}\n"));
        }
    }
    table.push_str(&missing.concat());
    println!("{table}");
    assert!(wrong.is_empty(), "{table}\n{}", wrong.join("\n"));
}
