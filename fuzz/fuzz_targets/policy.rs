//! A policy file, TOML or JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| redirector_fuzz::policy::run(text));
