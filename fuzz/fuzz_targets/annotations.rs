//! A pod's annotations: a downward-API file, a JSON map or a Pod.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| redirector_fuzz::annotations::run(text));
