//! Files that are too long to be read at once.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::project;

const MAX_LINES: usize = 400;

/// Fails with every Rust file of more than [`MAX_LINES`].
pub fn check() -> Result<()> {
    let root = project::root();
    let mut long = Vec::new();
    visit(&root, &mut |file, lines| {
        if lines > MAX_LINES {
            let file = file.strip_prefix(&root).unwrap_or(file);
            long.push(format!("{} has {lines} lines, more than {MAX_LINES}", file.display()));
        }
    })?;
    ensure!(long.is_empty(), "{}", long.join("\n"));
    Ok(())
}

/// Each Rust file below `dir` with its lines, but for what is built or cached.
fn visit(dir: &Path, found: &mut dyn FnMut(&Path, usize)) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if name != "target" && !name.starts_with('.') {
                visit(&path, found)?;
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            found(&path, text.lines().count());
        }
    }
    Ok(())
}
