//! Two minutes in which everything that may die does: every session's bytes are checked both ways all the while, and what its
//! user notices is measured.
//!
//! `cargo test --workspace --test soak -- --ignored --nocapture`; `PODBAY_SOAK_SESSIONS` and `PODBAY_SOAK_SECONDS` make it
//! another size.

use podbay_tests::{
    Master, Setup, World,
    ours::{Part, is_ours},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::{
    io::{Read as _, Write as _},
    process::{Child, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What a session sends and waits for before it sends more.
const BLOCK: usize = 2048;
/// A session's pause between two blocks: a hundred sessions then keep two cores busy, but not so that they measure themselves.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a backend is killed.
const KILL_EVERY: Duration = Duration::from_secs(10);
/// After a kill nothing else is broken for so long, so that what it costs can be told.
const QUIET: Duration = Duration::from_secs(2);
/// So many sessions start at once; more would meet the frontend's `maxStartups`.
const WAVE: usize = 10;

/// The end of the soak: whoever waits for something until then wakes.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<bool>,
    wake: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }

    /// Whether it rang within this time.
    fn rings_within(&self, time: Duration) -> bool {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (rung, _) = self.wake.wait_timeout_while(rung, time, |rung| !*rung).unwrap_or_else(PoisonError::into_inner);
        *rung
    }
}

/// One round trip of a block.
#[derive(Debug, Clone, Copy)]
struct Trip {
    from: Instant,
    took: Duration,
}

/// Sends blocks of ever other bytes through `cat` and back until the bell rings; every byte is compared.
fn converses(mut client: Child, seed: u64, running: &AtomicUsize, bell: &Bell) -> Vec<Trip> {
    let mut stdin = client.stdin.take().expect("piped");
    let mut stdout = client.stdout.take().expect("piped");
    let mut random = StdRng::seed_from_u64(seed);
    let mut trips = Vec::new();
    let mut total = 0;
    loop {
        let mut block = [0; BLOCK];
        random.fill(&mut block);
        let from = Instant::now();
        stdin.write_all(&block).expect("takes it");
        let mut back = [0; BLOCK];
        stdout.read_exact(&mut back).unwrap_or_else(|err| panic!("session {seed}, after {total} bytes: {err}"));
        assert!(block == back, "session {seed}: other bytes came back after {total}");
        total += BLOCK;
        if trips.is_empty() {
            running.fetch_add(1, Ordering::Relaxed);
        }
        trips.push(Trip { from, took: from.elapsed() });
        if bell.rings_within(PAUSE) {
            break;
        }
    }
    drop(stdin);
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("ends");
    let output = client.wait_with_output().expect("ends");
    assert_eq!(rest.len(), 0, "session {seed}: bytes came twice");
    assert_eq!(output.status.code(), Some(9), "session {seed}: {}", String::from_utf8_lossy(&output.stderr));
    trips
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// The longest that each session waited for an answer which a kill could have delayed.
fn gaps(sessions: &[Vec<Trip>], kills: &[Instant]) -> Vec<Duration> {
    let mut gaps = Vec::new();
    for trips in sessions {
        for kill in kills {
            let touched = |trip: &&Trip| trip.from + trip.took >= *kill && trip.from < *kill + QUIET;
            gaps.extend(trips.iter().filter(touched).map(|trip| trip.took).max());
        }
    }
    gaps.sort_unstable();
    gaps
}

fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len().saturating_sub(1)) * percent / 100).copied().unwrap_or_default()
}

/// For two seconds there is no API: said to the embedded one, killed where the cluster is ours. Others' is left alone.
fn has_an_outage(world: &World) -> bool {
    if world.real().is_none() {
        world.fault(r#"{"do": {"action": "apiDown", "millis": 2000}}"#);
    } else if is_ours() {
        Part::ApiServer.restarts(Duration::from_secs(2));
    } else {
        return false;
    }
    true
}

#[test]
#[ignore = "two minutes of load: .ci/run runs it alone"]
fn no_session_and_no_byte_is_lost_whatever_dies() {
    let mut world = World::cuttable("connection+podbay", |config| config);
    let embedded = world.real().is_none();
    let sessions = usize::try_from(number("PODBAY_SOAK_SESSIONS", if embedded { 100 } else { 20 })).expect("a number");
    let length = Duration::from_secs(number("PODBAY_SOAK_SECONDS", 120));
    let (running, bell) = (Arc::new(AtomicUsize::new(0)), Arc::new(Bell::default()));
    let mut clients = Vec::new();
    while clients.len() < sessions {
        for _ in 0..WAVE.min(sessions - clients.len()) {
            let mut ssh = world.ssh(&[]);
            let ssh = ssh.arg("cat; exit 9").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let client = ssh.spawn().expect("starts");
            let (seed, running, bell) = (clients.len() as u64, Arc::clone(&running), Arc::clone(&bell));
            clients.push(thread::spawn(move || converses(client, seed, &running, &bell)));
        }
        let until = clients.len();
        podbay_tests::wait_until("they run", || {
            assert!(!clients.iter().any(thread::JoinHandle::is_finished), "a session ended at its start");
            running.load(Ordering::Relaxed) == until
        });
    }

    let begun = Instant::now();
    let mut random = StdRng::seed_from_u64(u64::MAX);
    let mut kills = Vec::new();
    let (mut cuts, mut outages) = (0, 0);
    for part in ["backend", "backend-2"].into_iter().cycle() {
        if begun.elapsed() >= length {
            break;
        }
        kills.push(Instant::now());
        world.take(part).kill();
        world.restart(part);
        // Between two kills: cut streams at a random moment, and twice no API for a while.
        let next = QUIET + Duration::from_millis(random.random_range(0..3000));
        assert!(!bell.rings_within(next), "nobody rings yet");
        world.cuts_streams();
        cuts += 1;
        if outages < 2 && begun.elapsed() > length / 3 * (outages + 1) && has_an_outage(&world) {
            outages += 1;
        }
        let last = kills.last().map(Instant::elapsed).unwrap_or_default();
        assert!(!bell.rings_within(KILL_EVERY.saturating_sub(last)), "nobody rings yet");
        assert!(!clients.iter().any(thread::JoinHandle::is_finished), "a session ended");
    }
    bell.ring();

    let trips: Vec<_> = clients.into_iter().map(|client| client.join().expect("a session failed")).collect();
    let blocks: usize = trips.iter().map(Vec::len).sum();
    let gaps = gaps(&trips, &kills);
    println!(
        "{sessions} sessions, {} kills of a replica, {cuts} cuts of all streams, {outages} outages of the API in {} s{}: {} KiB each way, \
         each byte once; longest \
         round trip of a session after a kill: p50 {} ms, p99 {} ms, longest {} ms",
        kills.len(),
        begun.elapsed().as_secs(),
        if embedded || is_ours() { "" } else { " (none: the cluster is not ours)" },
        blocks * BLOCK / 1024,
        quantile(&gaps, 50).as_millis(),
        quantile(&gaps, 99).as_millis(),
        quantile(&gaps, 100).as_millis(),
    );
    world.ends_clean();
}

#[test]
#[ignore = "a thousand pods: .ci/run runs it alone"]
fn the_first_byte_of_a_thousand_programs_arrives() {
    let world = World::with(Setup::Apart, "session+podbay", |config| config);
    thread::scope(|scope| {
        for connection in 0..8 {
            let world = &world;
            scope.spawn(move || {
                let master = Master::start(world);
                for n in 0..125 {
                    let program = format!("printf '{connection} {n}'; exit 3");
                    master.run(&program, b"").is(3, &format!("{connection} {n}"), "");
                }
                master.ends();
            });
        }
    });
    world.ends_clean();
}
