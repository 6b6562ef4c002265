//! `cargo xtask lint`: what a reviewer should not have to say.

mod circles;
mod floors;
mod imports;
mod pages;
mod sizes;
mod tokens;

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::{cmd::Cmd, project};

/// A part of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Formatting.
    Fmt,
    /// Imports of redirector-user's modules against the floors in ARCHITECTURE.md.
    Floors,
    /// Paths that ARCHITECTURE.md and CONTRIBUTING.md name.
    Pages,
    /// Lines of each file.
    Sizes,
    /// clippy, with and without the agent.
    Clippy,
    /// Documentation of the code.
    Doc,
}

/// Runs one part, or all.
pub fn run(only: Option<Part>) -> Result<()> {
    let parts = Part::value_variants().iter().copied();
    for part in parts.filter(|part| only.is_none_or(|only| only == *part)) {
        let start = Instant::now();
        let result = check(part);
        eprintln!("lint: {part:?} took {} s", start.elapsed().as_secs());
        result?;
    }
    Ok(())
}

fn check(part: Part) -> Result<()> {
    match part {
        Part::Fmt => {
            // rustfmt.toml cannot say it: the stable rustfmt reads unstable options from the command line only.
            let grouped = ["--check", "--", "--config", "group_imports=StdExternalCrate"];
            cargo("fmt", &["--all"]).args(grouped).run()?;
            // Not of the workspace; `fuzz_seeds` compiles what is in it.
            cargo("fmt", &["--manifest-path", "fuzz/Cargo.toml"]).args(grouped).run()
        }
        Part::Floors => floors::check(),
        Part::Pages => pages::check(),
        Part::Sizes => sizes::check(),
        Part::Clippy => {
            cargo("clippy", &["--all-targets", "--", "-Dwarnings"]).run()?;
            // What `cargo xtask demo` builds.
            let without =
                ["-p", "redirector-user", "--no-default-features", "--all-targets", "--", "-Dwarnings"];
            cargo("clippy", &without).run()
        }
        Part::Doc => cargo("doc", &["--no-deps"]).env("RUSTDOCFLAGS", "-Dwarnings").run(),
    }
}

fn cargo(verb: &str, arguments: &[&str]) -> Cmd {
    project::cargo().arg(verb).args(arguments)
}
