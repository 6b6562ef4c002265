//! `cargo xtask deny`: which licences and sources the dependencies have, by `deny.toml`.

use anyhow::{Context as _, Result};

use crate::cmd::Cmd;
use crate::crates::Program;
use crate::project;

const CARGO_DENY: Program = Program { name: "cargo-deny", version: "0.20.2" };

/// Checks licences, bans and sources; with `advisories` also the database of known faults, which is downloaded.
pub fn check(advisories: bool) -> Result<()> {
    let program = CARGO_DENY.find_or_install()?;
    let database: &[&str] = if advisories { &["advisories"] } else { &[] };
    Cmd::new(program)
        .args(["--workspace", "--locked", "check"])
        .args(["licenses", "bans", "sources"])
        .args(database)
        .dir(project::root())
        .run()
        .context("the dependencies do not keep to deny.toml")
}
