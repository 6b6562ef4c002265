//! Changes to the pod's namespace: what attach adds to its devices, addresses, rules and routes.

pub mod classifier;
mod routing_table;
pub mod tproxy;
pub mod virtual_interfaces;
