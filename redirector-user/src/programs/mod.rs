//! The eBPF object: which hooks there are, how their programs are loaded, and what the instances of a node share of it.

pub mod hooks;
pub mod maps;
pub mod node;
pub mod object;
