//! Pods of the node: their sources, and which of them are captured how.

pub mod cache;
pub mod capture;
pub mod model;
mod paced;
pub mod source_api;
mod source_files;
#[cfg(test)]
mod tests;
