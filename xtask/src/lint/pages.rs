//! Paths that the pages for contributors name: each leads somewhere.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::project;

const PAGES: [&str; 2] = ["ARCHITECTURE.md", "CONTRIBUTING.md"];
/// Where a path may begin, besides the root of the checkout.
const ROOTS: [&str; 4] = ["", "redirector-user/src", "tests", "tests/src"];

/// Fails with every path that leads nowhere.
pub fn check() -> Result<()> {
    let root = project::root();
    let mut missing = Vec::new();
    for page in PAGES {
        let text = fs::read_to_string(root.join(page)).context(page)?;
        for path in paths(&text) {
            if !ROOTS.iter().any(|start| root.join(start).join(&path).exists()) {
                missing.push(format!("{page} names {path}, which is not there"));
            }
        }
    }
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}

/// `a/b.rs`, `a/{b,c}.rs` and `a/b/` between backquotes, braces expanded.
fn paths(text: &str) -> Vec<String> {
    let code = text.split('`').skip(1).step_by(2);
    let is_path = |word: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./{},".contains(c);
        word.contains('/') && !word.starts_with(['/', '.']) && word.chars().all(plain) && word.contains(".rs")
            || word.ends_with('/') && word.contains("src") && word.chars().all(plain)
    };
    code.filter(is_path).flat_map(expanded).collect()
}

fn expanded(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((names, behind)) = rest.split_once('}') else { return vec![path.to_owned()] };
    names.split(',').flat_map(|name| expanded(&format!("{before}{name}{behind}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_other_code() {
        let text = "`a/{b,c/d}.rs` and `x/src/` but `/proc/x` `a/b` `1.2.3.4/8` `cargo run a/b.rs` `e.rs`";
        assert_eq!(paths(text), ["a/b.rs", "a/c/d.rs", "x/src/"]);
    }
}
