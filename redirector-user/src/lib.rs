//! redirector: what Istio's `istio-init` does with iptables, done with eBPF.
//!
//! The library behind the command line: targets, policies, instances.
#![deny(unsafe_code)]

#[cfg(feature = "agent")]
pub mod agent;
pub mod base;
pub mod check;
pub mod cli;
pub mod cni;
pub mod cni_install;
pub mod compile;
pub mod explain;
pub mod health;
pub mod import;
pub mod instance;
pub mod kernel;
pub mod netdev;
pub mod netlink;
pub mod original_dst;
pub mod pod;
pub mod policy;
pub mod programs;
pub mod routes;
pub mod rules;
pub mod sys;
pub mod verify;

pub use base::{Error, Result};
