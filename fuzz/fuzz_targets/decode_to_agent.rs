#![no_main]

#[path = "../../agent/wire/tests/fuzz/targets.rs"]
#[allow(dead_code)]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::decode_to_agent(bytes));
