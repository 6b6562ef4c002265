//! From a policy and a namespace to the contents of the maps.

pub mod owners;
pub mod tables;
