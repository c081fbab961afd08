//! What connections leave behind, however they and the parts end: nothing. Seeded, so that a run can be told again:
//! `PODBAY_TEST_SEED` names another one.

use podbay_tests::{Setup, World};
use std::{
    io::Read as _,
    process::{Child, Stdio},
    time::Duration,
};

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

#[test]
fn a_hundred_connections_and_random_kills_leave_nothing() {
    let seed = seed();
    for mode in ["connection", "session", "connection+podbay"] {
        eprintln!("PODBAY_TEST_SEED={seed}, mode {mode}");
        let mut dice = Dice(seed);
        let mut world = World::with(Setup::Apart, mode, |config| {
            let config = config.replace("  pod:\n    mode:", "  timeouts: {podStop: 10s}\n  pod:\n    mode:");
            config + "ownership: {leaseDuration: 6s, backendWait: 2s}\n"
        });
        for wave in 0..WAVES {
            let mut clients: Vec<Child> = (0..CLIENTS).map(|_| client(&world, &mut dice)).collect();
            // Some run by now, some are still being started: kills meet both.
            let waited = dice.below(CLIENTS);
            let _ = clients[waited].stdout.as_mut().expect("piped").read(&mut [0; 3]);
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
        world.ends_clean();
    }
}
