//! `cargo xtask fuzz`: the targets in `fuzz/`, run by libFuzzer.
//!
//! cargo-fuzz needs unstable flags of rustc, which RUSTC_BOOTSTRAP=1 allows to any compiler. Without a sanitizer: what
//! is fuzzed has no unsafe code, and debug assertions and overflow checks are on (`cargo xtask asan` is for what has).

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{apt, cmd::Cmd, crates::Program, project};

const CARGO_FUZZ: Program = Program { name: "cargo-fuzz", version: "0.13.2" };

/// What is fuzzed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Flags and environment variables
    Flags,
    /// Policy files, TOML and JSON
    Policy,
    /// What iptables-save, -S and -vnL print
    Import,
    /// A pod's annotations: downward API, JSON map, Pod
    Annotations,
    /// What a client sends to the agent's socket
    Request,
    /// What a runtime tells the CNI plugin
    Cni,
    /// Files of /proc: mounts, cgroups, processes, sockets
    Proc,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Flags => "flags",
            Self::Policy => "policy",
            Self::Import => "import",
            Self::Annotations => "annotations",
            Self::Request => "request",
            Self::Cni => "cni",
            Self::Proc => "proc",
        }
    }

    /// Inputs to begin with.
    const fn seeds(self) -> &'static str {
        match self {
            Self::Flags => "fuzz/seeds/flags",
            Self::Policy => "fuzz/seeds/policy",
            Self::Import => "redirector-user/src/import/testdata",
            Self::Annotations => "fuzz/seeds/annotations",
            Self::Request => "fuzz/seeds/request",
            Self::Cni => "fuzz/seeds/cni",
            Self::Proc => "fuzz/seeds/proc",
        }
    }
}

/// Runs one target or all.
pub fn run(target: Option<Target>, seconds: u32, input: Option<&Path>) -> Result<()> {
    let cargo_fuzz = CARGO_FUZZ.find_or_install()?;
    if apt::find_program("c++").is_none() {
        apt::install(&["g++"], false)?;
    }
    let chosen = target.map_or_else(|| Target::value_variants().to_vec(), |one| vec![one]);
    chosen.into_iter().try_for_each(|target| run_one(&cargo_fuzz, target, seconds, input))
}

fn run_one(cargo_fuzz: &Path, target: Target, seconds: u32, input: Option<&Path>) -> Result<()> {
    let name = target.name();
    let command = Cmd::new(cargo_fuzz)
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["run", "--sanitizer", "none", "--target-dir"])
        .arg(project::cache("fuzz"))
        .arg(name)
        .dir(project::root());
    let what =
        || format!("the target `{name}` has failed: its input is named above, and `--input` runs it again");
    if let Some(input) = input {
        return command
            .arg(fs::canonicalize(input).context(input.display().to_string())?)
            .run()
            .with_context(what);
    }
    let corpus = format!("fuzz/corpus/{name}");
    fs::create_dir_all(project::root().join(&corpus)).context("cannot make the corpus directory")?;
    command
        .args([corpus.as_str(), target.seeds(), "--"])
        .arg(format!("-dict=fuzz/dictionaries/{name}"))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=20", "-print_final_stats=1"])
        .run()
        .with_context(what)
}
