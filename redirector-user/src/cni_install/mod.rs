//! Puts the CNI plugin onto a node and takes it off again: its binary, and its entry in the runtime's lists of plugins.
//!
//! Only files that are fully understood are touched. Each is kept beside its replacement, and comes back as it was.

mod binary;
mod cache;
mod files;
mod install;
mod list;
mod network;
/// Where CRI-O keeps how pods were set up.
pub const CACHE_DIR: &str = "/var/lib/cni";

#[cfg(test)]
mod tests;
mod uninstall;

pub use binary::probe;
pub use install::{Installed, Places, check, install, linked_files, other_plugins};
pub use network::{first_network, has_network};
pub use uninstall::{Removal, uninstall};
