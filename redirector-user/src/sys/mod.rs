//! System calls that no library offers as we need them. All unsafe code of this crate is here.
#![expect(unsafe_code, reason = "raw system calls; each with its SAFETY comment")]

pub mod arenas;
pub mod bpf;
mod insn;
pub mod netns;
pub mod nsid;
pub mod poll;
pub mod program_query;
pub mod sk_lookup_entry;
pub mod sockmap_copy;
pub mod sockopt;
pub mod test_run;
pub mod thread;
pub mod userns;
pub mod workers;
pub mod xtables;
