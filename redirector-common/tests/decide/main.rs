//! The decision against an independent reading of the rules.
//!
//! [`rules`] writes the iptables rules of a policy down as data, in the order in which istio-iptables makes them (every
//! user, group, port and network a rule of its own), and walks them first match first. [`setup`] makes the
//! same policy in the kernel's form. Nothing but the names of verdicts and counters is shared with `decide`.

mod known;
mod properties;
mod rules;
mod setup;
