//! A manifest file, and a second version of it, from text to table.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| controlplane::source::hostile::play(bytes));
