//! Files of /proc.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| redirector_fuzz::proc::run(text));
