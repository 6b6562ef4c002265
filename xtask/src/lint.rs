//! `cargo xtask lint`: what a reviewer should not have to say.

use std::time::Instant;

use anyhow::Result;

use crate::project;

/// Formatting, clippy and documentation; warnings are errors.
pub fn all() -> Result<()> {
    timed("fmt", || project::cargo().args(["fmt", "--all", "--check"]).run())?;
    // Not of the workspace; `fuzz_seeds` compiles what is in it.
    let fuzz = ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"];
    timed("fmt of fuzz", || project::cargo().args(fuzz).run())?;
    timed("clippy", || project::cargo().args(["clippy", "--all-targets", "--", "-Dwarnings"]).run())?;
    // What `cargo xtask demo` builds.
    let without =
        ["clippy", "-p", "redirector-user", "--no-default-features", "--all-targets", "--", "-Dwarnings"];
    timed("clippy without the agent", || project::cargo().args(without).run())?;
    timed("doc", || project::cargo().args(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-Dwarnings").run())
}

fn timed(name: &str, part: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let result = part();
    eprintln!("lint: {name} took {} s", start.elapsed().as_secs());
    result
}
