//! Requests to rtnetlink: dumps that are read whole, changes that are acknowledged.

mod dump;

pub(crate) use dump::*;
