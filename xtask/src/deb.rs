//! The Debian package: the static program, its systemd unit, documentation. `[package.metadata.deb]` of redirector-user says
//! what is in it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::cmd::Cmd;
use crate::crates::Program;
use crate::project;
use crate::vm::Arch;

const CARGO_DEB: Program = Program { name: "cargo-deb", version: "3.8.0" };
/// The systemd unit of the agent.
pub const UNIT: &str = "redirector-agent.service";

/// Packs the program that cargo has built for `target` below `built`; the package's name.
pub fn package(arch: Arch, target: &str, built: &Path, directory: &Path) -> Result<String> {
    unit()?;
    let name = format!("redirector_{}_{}.deb", env!("CARGO_PKG_VERSION"), arch.debian());
    Cmd::new(CARGO_DEB.find_or_install()?)
        // The program is stripped, and static: there is nothing to depend on.
        .args(["deb", "--quiet", "--no-build", "--no-strip", "--package", "redirector-user"])
        .args(["--target", target])
        .arg("--output")
        .arg(directory.join(&name))
        .hidden_env("CARGO_TARGET_DIR", built)
        .hidden_env("SOURCE_DATE_EPOCH", epoch()?)
        .dir(project::root())
        .run()?;
    let contents = Cmd::new("dpkg-deb").arg("--contents").arg(directory.join(&name)).quiet(true).read()?;
    for wanted in [
        "./usr/bin/redirector",
        "./usr/lib/systemd/system/redirector-agent.service",
        "./usr/share/man/man1/redirector.1.gz",
    ] {
        ensure!(contents.lines().any(|line| line.ends_with(wanted)), "{name} has no {wanted}");
    }
    Ok(name)
}

/// The unit, for a program that a package has installed; what users install by hand is in /usr/local.
fn unit() -> Result<()> {
    let place = project::root().join("target/deb");
    fs::create_dir_all(&place)?;
    let text = fs::read_to_string(project::root().join("deploy/systemd").join(UNIT))?;
    fs::write(place.join(format!("redirector.{UNIT}")), text.replace("/usr/local/bin/", "/usr/bin/"))?;
    Ok(())
}

/// The day of the last release, in seconds: the time of all files.
fn epoch() -> Result<String> {
    let text = fs::read_to_string(project::root().join("CHANGELOG.md"))?;
    let date = text.lines().find_map(|line| line.strip_prefix("## [")?.split_once("] - "));
    let (_, date) = date.context("CHANGELOG.md names no release with its date")?;
    Ok(Cmd::new("date").args(["--utc", "--date", date, "+%s"]).quiet(true).read()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_all_files_is_that_of_a_release() {
        assert!(epoch().unwrap().parse::<u64>().unwrap() > 1_700_000_000);
    }
}
