//! Requests to rtnetlink: dumps that are read whole, changes that are acknowledged.

mod dump;
mod proc_net;
pub mod sock_diag;

pub(crate) use dump::*;
