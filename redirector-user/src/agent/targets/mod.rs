//! Targets that the files of `--config` name.

pub mod awaited;
pub mod capture;
pub mod files;
pub mod path;
mod pid_file;
