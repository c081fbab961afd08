//! Both ends together over simulated byte streams: arbitrary cuts, delays, links that are lost on one side first, replicas that take
//! each other's programs. Every byte arrives once and in order, every signal acts once, every exit is told once and last.

mod world;

use proptest::prelude::*;
use world::{Options, World};

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_replica_over_links_that_break(seed: u64, sessions in 1usize..6) {
        World::new(&Options { seed, replicas: 1, sessions, budget: 16 << 20 }).run(1500);
    }

    #[test]
    fn replicas_that_take_over_from_each_other(seed: u64, sessions in 1usize..5) {
        World::new(&Options { seed, replicas: 3, sessions, budget: 16 << 20 }).run(1500);
    }

    #[test]
    fn little_memory_makes_it_slow_and_nothing_else(seed: u64) {
        World::new(&Options { seed, replicas: 2, sessions: 5, budget: 2 * 16 * 1024 * 3 * 5 }).run(1000);
    }
}
