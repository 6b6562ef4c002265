//! What iptables-save, iptables -S or iptables -vnL prints.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| redirector_fuzz::import::run(text));
