//! What a runtime tells the CNI plugin.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| redirector_fuzz::cni::run(text));
