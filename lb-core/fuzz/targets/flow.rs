//! The UDP flow table in a hostile world.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_core::flow::simulation::play(bytes));
