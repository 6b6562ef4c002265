//! The eBPF object: which hooks there are, and how their programs are loaded.

pub mod hooks;
pub mod object;
