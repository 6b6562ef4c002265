//! Files that are too long to be read at once.

use std::fs;

use anyhow::{Result, ensure};

use crate::project;

const MAX_LINES: usize = 400;

/// Fails with every Rust file of more than [`MAX_LINES`].
pub fn check() -> Result<()> {
    let root = project::root();
    let listed = project::git(&["ls-files", "-z", "--", "*.rs"])?;
    let mut long = Vec::new();
    for file in listed.split_terminator('\0') {
        // Listed, but removed in the working tree: nothing to read.
        let Ok(text) = fs::read_to_string(root.join(file)) else { continue };
        let lines = text.lines().count();
        if lines > MAX_LINES {
            long.push(format!("{file} has {lines} lines, more than {MAX_LINES}"));
        }
    }
    ensure!(!listed.is_empty(), "git lists no Rust file");
    ensure!(long.is_empty(), "{}", long.join("\n"));
    Ok(())
}
