//! Programs from the Python index, in virtual environments in `.cache`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cmd::Cmd;
use crate::{apt, project};

/// The `bin` directory of an environment that has these packages, made if need be.
pub fn environment(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let venv = project::cache(name);
    // Written last: an interrupted download is not taken for a finished one.
    let complete = venv.join("complete");
    if fs::read_to_string(&complete).ok() != Some(packages.join("\n")) {
        Cmd::new(interpreter()?).args(["-m", "venv", "--clear"]).arg(&venv).quiet(true).run()?;
        Cmd::new(venv.join("bin/python3"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"])
            // Some ask for a newer Python than their code needs.
            .arg("--ignore-requires-python")
            .args(packages)
            .quiet(true)
            .run()
            .with_context(|| {
                format!("cannot download {}; is the Python package index reachable?", packages.join(", "))
            })?;
        fs::write(complete, packages.join("\n"))?;
    }
    Ok(venv.join("bin"))
}

/// A Python that can make virtual environments. Debian's own cannot until `python3-venv` is there,
/// while one from pyenv can.
fn interpreter() -> Result<&'static str> {
    let usable = |python: &&str| Cmd::new(python).args(["-c", "import ensurepip, venv"]).probe().is_some();
    if let Some(python) = ["python3", "/usr/bin/python3"].iter().find(|python| usable(python)) {
        return Ok(python);
    }
    apt::install(&["python3-venv"], true)?;
    Ok("/usr/bin/python3")
}
