//! Debian packages: look for the program first, install only what is missing.

use std::{
    env,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context as _, Result};

use crate::{cmd::Cmd, exit, project};

/// Where `program` is. The `sbin` directories are searched too: they are not in the `PATH` of an
/// ordinary user, yet `iptables` and `bpftool` live there.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Installs `packages` with apt-get, or says what the user has to install.
pub fn install(packages: &[&str], quiet: bool) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(exit::with_code(
            exit::CANNOT,
            format!(
                "missing here: what Debian packages as `{list}`, and there is no apt-get to install it.\n\
                 Install the equivalents of your distribution and try again."
            ),
        ));
    }
    if !project::is_root() {
        return Err(exit::with_code(
            exit::CANNOT,
            format!("packages are missing and only root can install them: sudo apt-get install {list}"),
        ));
    }
    update(quiet)?;
    // `--no-install-recommends`: a CI machine does not want hundreds of megabytes of documentation.
    apt_get(quiet).args(["install", "-y", "--no-install-recommends"]).args(packages).run().with_context(
        || format!("cannot install {list}; is a Debian mirror reachable and `bookworm-security` configured?"),
    )
}

/// `apt-get update`, once per run of xtask: the lists of a fresh machine are empty.
fn update(quiet: bool) -> Result<()> {
    static UPDATED: OnceLock<()> = OnceLock::new();
    if UPDATED.get().is_none() {
        apt_get(quiet).arg("update").run()?;
        let _ = UPDATED.set(());
    }
    Ok(())
}

fn apt_get(quiet: bool) -> Cmd {
    // Another apt-get may run on a machine that has just booted: wait for its lock, but not for ever.
    Cmd::new("/usr/bin/apt-get")
        .args(["-qq", "-o", "DPkg::Lock::Timeout=180", "-o", "Dpkg::Use-Pty=0"])
        .hidden_env("DEBIAN_FRONTEND", "noninteractive")
        .quiet(quiet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }
}
