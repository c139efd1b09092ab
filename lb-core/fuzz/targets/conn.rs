//! A connection's life over a hostile completion ring.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_core::conn::sim::play(bytes));
