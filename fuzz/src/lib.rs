//! What must hold of every input, beyond that reading it never panics. A module for each kind of input, with
//! `run`; the fuzz targets call it with what libFuzzer makes up, `redirector-user/tests/fuzz_seeds.rs` with the
//! seeds and with what was once found.

pub mod annotations;
pub mod cni;
mod connections;
pub mod flags;
pub mod import;
pub mod policy;
pub mod proc;
pub mod request;
mod round_trip;
