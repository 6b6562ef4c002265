//! The program that calls libcni as CRI-O does (`tests/tools/node/libcni.go`), from Debian's packages of Go and of libcni.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::archive::{Archive, Wanted};
use crate::cmd::Cmd;
use crate::sources::sha256;
use crate::{deps, project};

const GO: &str = "golang-1.24";
const LIBCNI: &str = "golang-github-appc-cni-dev";
/// The compiler is in the first; libcni knows GC since version 1.2, which is in the second.
const SUITES: &[(&str, &str)] = &[("debian", "trixie"), ("debian", "sid")];

/// The program, built if need be.
pub fn ensure() -> Result<PathBuf> {
    let source = project::root().join("tests/tools/node/libcni.go");
    let text = fs::read(&source).with_context(|| source.display().to_string())?;
    let program = project::cache("vm").join(format!("libcni-{}", &sha256(&text)[..8]));
    if program.is_file() {
        return Ok(program);
    }
    let work = project::cache("vm").join("libcni.build");
    let archive = Archive::open(
        &work.join("archive"),
        Wanted { arch: deps::DEBIAN_ARCH, suites: SUITES, sources: false },
    )?;
    let root = work.join("root");
    archive.unpack(&[&format!("{GO}-go"), &format!("{GO}-src"), LIBCNI], &root)?;
    let go = root.join("usr/lib").join(GO.replace("lang", ""));
    let fresh = work.join("libcni");
    Cmd::new(go.join("bin/go"))
        .args(["build", "-trimpath", "-o"])
        .args([&fresh, &source])
        .hidden_env("GOROOT", &go)
        .hidden_env("GOPATH", root.join("usr/share/gocode"))
        .hidden_env("GOCACHE", work.join("cache"))
        .hidden_env("GO111MODULE", "off")
        .hidden_env("CGO_ENABLED", "0")
        .run()?;
    fs::rename(fresh, &program).with_context(|| program.display().to_string())?;
    fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
    Ok(program)
}
