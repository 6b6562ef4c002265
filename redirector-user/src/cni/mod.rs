//! CNI: the protocol between plugin and agent, and the plugin.

pub mod plugin;
pub mod protocol;
