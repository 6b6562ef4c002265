//! `cargo xtask asan`: user space under AddressSanitizer, for its unsafe code (`sys`, the ABI types): the unit tests, and
//! as root end-to-end tests of a command that is built so.

use anyhow::{Context as _, Result};

use crate::cmd::Cmd;
use crate::{deps, envoy, project};

/// Tests that between them call every function of `sys`.
const FILES: [&str; 6] =
    ["lifecycle", "shared_programs", "status_netfilter", "trace", "user_namespace", "virtual_interfaces"];

/// A test with a time limit, which is not meant for a sanitizer.
const TIMED: &str = "long_lists_take_no_longer";

/// Runs these test files, or those above.
pub fn run(files: &[String]) -> Result<()> {
    let unit_tests = ["test", "-p", "redirector-common", "-p", "redirector-user", "--lib"];
    cargo(&unit_tests).args(["--", "--skip", TIMED]).run()?;
    if !project::is_root() {
        eprintln!("note: not root: no end-to-end tests");
        return Ok(());
    }
    deps::all(true)?;
    let build = ["build", "-p", "redirector-user", "--bin", "redirector"];
    let messages = cargo(&build).arg("--message-format=json-render-diagnostics").read()?;
    let programs = project::Binaries::of(&messages);
    let mut tests = project::cargo()
        .args(["test", "--no-fail-fast", "-p", "redirector-tests"])
        .env("REDIRECTOR_BIN", programs.get("redirector")?)
        .env("REDIRECTOR_ENVOY", envoy::ensure()?)
        .env("REDIRECTOR_TESTS_PRIVILEGED", "required");
    let all = FILES.map(str::to_owned);
    for file in if files.is_empty() { &all } else { files } {
        tests = tests.args(["--test", file]);
    }
    tests
        .run()
        .context("if AddressSanitizer reports something, it stands in the command's standard error above")
}

/// The flag is unstable, which RUSTC_BOOTSTRAP=1 allows to any compiler. With a target given, build scripts go without it.
fn cargo(words: &[&str]) -> Cmd {
    project::cargo()
        .args(words)
        .arg("--target")
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .arg("--target-dir")
        .arg(project::target().join("asan"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
}
