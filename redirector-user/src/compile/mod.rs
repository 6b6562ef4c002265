//! From a policy and a namespace to the contents of the maps.

pub mod id_map;
pub mod mapped_policy;
pub mod tables;
