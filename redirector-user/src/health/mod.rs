//! What is wrong with an instance, and with the node: one answer for `status`, `list`, `show` and `verify`.
//!
//! `gather` reads what the kernel shows; the other files judge it, each its own part, by functions that read nothing.
//! What cannot be read is a finding too ([`finding::Level::Unknown`]): an error while reading is no verdict.

pub mod captures;
pub mod connections;
pub mod finding;
mod gather;
mod hooks;
mod listeners;
mod netfilter;
pub mod node;
mod processes;
mod proxy_user;
mod raw_sockets;
mod refusers;
mod resolvers;
mod room;
mod routing;
pub mod snapshot;
mod state;
mod traffic_control;
mod waiting;

pub use finding::{Finding, Health, Level, has_fault};
pub use gather::{connections_of, instance, known_to_programs};
pub use processes::NodeProcesses;
