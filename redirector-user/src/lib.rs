//! redirector: what Istio's `istio-init` does with iptables, done with eBPF.
//!
//! The library behind the command line: targets, policies, instances.
#![deny(unsafe_code)]

pub mod agent;
pub mod classifier;
pub mod cli;
pub mod cni;
pub mod config;
pub mod error;
pub mod explain;
pub mod import;
mod input;
pub mod instance;
pub mod kernel;
pub mod mirror;
pub mod original_dst;
mod routing_table;
pub mod rules;
pub mod sys;
pub mod target;
mod text;
pub mod tproxy;
pub mod verify;
pub mod virtual_interfaces;

pub use error::{Error, Result};
