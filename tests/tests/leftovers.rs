//! What connections leave behind, however they and the parts end: nothing. Seeded, so that a run can be told again:
//! `PODBAY_TEST_SEED` names another one.

use podbay_tests::{Setup, World, ours::is_ours};
use std::{
    collections::BTreeSet,
    io::Read as _,
    process::{Child, Stdio},
    time::Duration,
};

const MODES: [&str; 3] = ["connection", "session", "connection+podbay"];
const WAVES: usize = 10;
const CLIENTS: usize = 10;

/// Xorshift: random enough to kill by.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).expect("small")
    }
}

fn seed() -> u64 {
    std::env::var("PODBAY_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_124)
}

fn client(world: &World, dice: &mut Dice) -> Child {
    let commands = [
        "echo up; sleep 1000",
        "echo up; cat >/dev/null",
        "echo up; exec sh -c 'sleep 1000 & sleep 1000'",
        "echo up; trap '' HUP TERM; sleep 1000",
        "echo up; yes",
        "true",
    ];
    let mut ssh = world.ssh(&[]);
    ssh.arg(commands[dice.below(commands.len())]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    ssh.spawn().expect("starts")
}

/// Processes of this machine that a pod of these names started: the kubelet gives each the name as `HOSTNAME`. (Those of the embedded
/// cluster's pods are looked for by `ends_clean`.)
fn processes_of(pods: &BTreeSet<String>) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let of_a_pod = |entry: std::fs::DirEntry| {
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let name = environment.split(|byte| *byte == 0).find_map(|set| set.strip_prefix(b"HOSTNAME="))?;
        let name = String::from_utf8_lossy(name).into_owned();
        pods.contains(&name).then(|| format!("{name}: {}", entry.path().display()))
    };
    entries.filter_map(of_a_pod).collect()
}

#[test]
fn a_hundred_connections_and_random_kills_leave_nothing() {
    let seed = seed();
    for mode in MODES {
        eprintln!("PODBAY_TEST_SEED={seed}, mode {mode}");
        let mut dice = Dice(seed);
        let mut world = World::with(Setup::Apart, mode, |config| {
            let config = config.replace("  pod:\n    mode:", "  timeouts: {podStop: 10s}\n  pod:\n    mode:");
            config + "ownership: {leaseDuration: 6s, backendWait: 2s}\n"
        });
        let mut pods = BTreeSet::new();
        for wave in 0..WAVES {
            let mut clients: Vec<Child> = (0..CLIENTS).map(|_| client(&world, &mut dice)).collect();
            // Some run by now, some are still being started: kills meet both.
            let waited = dice.below(CLIENTS);
            let _ = clients[waited].stdout.as_mut().expect("piped").read(&mut [0; 3]);
            let now = world.pods();
            if world.real().is_some() && is_ours() && wave == 0 {
                let seen = now.iter().cloned().collect();
                podbay_tests::wait_until("a pod's processes are seen", || !processes_of(&seen).is_empty());
            }
            pods.extend(now);
            for _ in 0..dice.below(CLIENTS) {
                let _ = clients[dice.below(CLIENTS)].kill();
            }
            if wave % 2 == 0 {
                let part = ["frontend", "backend", "backend-2"][dice.below(3)];
                world.take(part).kill();
                world.restart(part);
            }
            for mut client in clients {
                let _ = client.kill();
                client.wait().expect("ends");
            }
        }
        // The clients are gone; what a killed frontend had is the reaper's after the lease, and each pod has its podStop.
        let began = std::time::Instant::now();
        podbay_tests::wait_until("no pod is left", || world.pods().is_empty());
        assert!(began.elapsed() < Duration::from_secs(45), "after {:?}", began.elapsed());
        assert_eq!(processes_of(&pods), Vec::<String>::new());
        if mode == MODES[0] {
            // A frontend takes its lease along; those of killed ones are kept for ten durations, so that who comes back learns his fate.
            world.take("frontend").stop();
            let patience = 2 * podbay_tests::PATIENCE;
            podbay_tests::wait_so_long("no lease is left", patience, || world.leases().is_empty());
        }
        world.ends_clean();
    }
}
