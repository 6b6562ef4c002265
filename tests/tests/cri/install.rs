//! docs/install.md, word for word: the blocks of commands that are marked as a shell's.

use std::process::Command;

use anyhow::{Context, ensure};
use redirector_tests::harness::command::run;
use redirector_tests::harness::retry;

use crate::node::{DIST, list, sh};

const PAGE: &str = include_str!("../../../docs/install.md");

/// Runs what a section of the page says, where the files are.
pub fn follow(section: &str) -> anyhow::Result<String> {
    let (_, text) = PAGE.split_once(&format!("\n## {section}\n")).context("the page has no such section")?;
    let text = text.split("\n## ").next().unwrap_or_default();
    let (_, block) = text.split_once("```sh\n").context("the section has no commands")?;
    let (commands, _) = block.split_once("```").context("a block ends")?;
    let mut shell = Command::new("sh");
    run(shell.args(["-euxc", commands]).current_dir(DIST), "").with_context(|| section.to_owned())
}

fn captured() -> anyhow::Result<bool> {
    Ok(list()?.iter().any(|instance| instance["name"] == "file-shop"))
}

/// A unit with a network of its own, delegated to, in its slice: captured, and through an upgrade, until its file goes.
pub fn captures_a_unit() -> anyhow::Result<()> {
    follow("Capture a unit")?;
    retry::until("the unit to be captured", || captured().ok().filter(|captured| *captured))?;
    let pid = || sh("systemctl show --property MainPID --value redirector-agent");
    let before = pid()?;
    follow("Upgrade")?;
    ensure!(before != pid()?, "the upgrade has not started the agent anew");
    ensure!(captured()?, "the upgrade let go of what was captured");
    Ok(())
}

/// Nothing is left of the package, and nothing is captured.
pub fn removes() -> anyhow::Result<()> {
    follow("Remove")?;
    for path in ["/usr/bin/redirector", "/etc/redirector", "/usr/lib/systemd/system/redirector-agent.service"]
    {
        ensure!(!std::path::Path::new(path).exists(), "{path} is left");
    }
    ensure!(sh("systemctl is-active redirector-agent").is_err(), "the agent still runs");
    sh("systemctl stop shop")?;
    Ok(())
}
