//! What a client sends to the agent's socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| redirector_fuzz::request::run(bytes));
