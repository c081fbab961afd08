//! A replica whose clock is wrong: it takes nobody's pod, and serves; or it says what it can't do.

use podbay_tests::{Loop, PATIENCE, Setup, World, faketime, wait_until};
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

/// Owners renew every third of it.
const LEASE: &str = "\nownership: {leaseDuration: 3s, backendWait: 1s}\n";

/// How often a backend has asked for the leases, by its metrics.
fn looks(admin: &str) -> u32 {
    let Ok(mut stream) = TcpStream::connect(admin) else { return 0 };
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    let ask = format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).expect("writes");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads");
    let name = "podbay_kubernetes_request_seconds_count{verb=\"list_leases\"} ";
    text.lines().find_map(|line| line.strip_prefix(name)).map_or(0, |count| count.parse().expect("a number"))
}

/// Restarts the second replica with this clock; returns where its metrics are.
fn with_clock(world: &mut World, clock: &str) -> String {
    let admin = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let path = world.state().join("second.yaml");
    let text = std::fs::read_to_string(&path).expect("reads");
    std::fs::write(&path, text.replacen("\ngrpc:\n", &format!("\ngrpc:\n  adminListen: {admin}\n"), 1))
        .expect("writes");
    world.take("backend-2").stop();
    world.restart_by("backend-2", &faketime(clock).iter().map(String::as_str).collect::<Vec<_>>());
    admin
}

#[test]
fn a_replica_whose_clock_is_off_takes_nobodys_pod_and_serves() {
    // A real cluster's certificates begin when it is made, so a clock that is behind meets another error there (tests/real.rs).
    let clocks: &[&str] = if podbay_tests::cluster::is_real() { &["+3h"] } else { &["+3h", "-3h"] };
    for clock in clocks {
        let mut world = World::with(Setup::Apart, "connection+podbay", |config| config + LEASE);
        let mut run = Loop::start(&world, 256 << 10);
        run.goes_on(64 << 10);
        let admin = with_clock(&mut world, clock);
        // Long enough for it to judge that nobody renews a lease, if it went by its clock: it looks once a lease's duration or more often.
        wait_until("it has looked for pods without an owner", || looks(&admin) >= 4);
        assert_eq!(world.pods().len(), 1, "{clock}: the pod is not there");
        run.goes_on(64 << 10);
        // What the other replica owned goes on with it, and so do new connections.
        world.take("backend").kill();
        let looked = looks(&admin);
        world.run("echo in").is(0, "in\n", "");
        run.goes_on(64 << 10);
        wait_until("it has looked again, alone", || looks(&admin) >= looked + 4);
        run.ends_whole();
        world.restart("backend");
        world.ends_clean();
    }
}
