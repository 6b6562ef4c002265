//! Flags and variables, a line each.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| redirector_fuzz::flags::run(text));
