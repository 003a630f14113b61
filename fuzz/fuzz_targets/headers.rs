#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| orchestra_fuzz::headers(input));
