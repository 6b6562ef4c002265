//! The programs that run in the guest: the product and every test, built once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::arch::Arch;
use super::libcni;
use crate::{cmd::Cmd, kubernetes, project};

/// Name of the program that resolves a name with musl.
pub const RESOLVE: &str = "resolve";
/// Name of the program whose first instruction connects.
pub const FIRST: &str = "first";
/// Name of the program that calls libcni.
pub const LIBCNI: &str = "libcni";
/// Name of the kubelet of a node's tests.
const KUBELET: &str = "kubelet";
/// The test file that talks to a container runtime: its dependencies are built for no other.
pub const CRI: &str = "cri";

/// Built programs: `redirector` and the test programs by name.
pub struct Programs {
    files: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Programs {
    /// Builds the product and these tests: static, if the compiler has a target for that; else their libraries go with them.
    /// The product is not built if there is one.
    pub fn build(arch: Arch, product: Option<PathBuf>, tests: &BTreeSet<&str>) -> Result<Self> {
        let mut cargo =
            project::cargo().args(["build", "--profile", "vm", "-p", "redirector-tests", "--bin", "probe"]);
        if product.is_none() {
            cargo = cargo.args(["-p", "redirector-user", "--bin", "redirector"]);
        }
        if tests.contains(CRI) {
            cargo = cargo.args(["--features", "redirector-tests/cri"]);
        }
        // By name, or cargo would build the unit tests of both packages with all they need.
        for test in tests {
            cargo = cargo.args(["--test", test]);
        }
        match arch.static_target() {
            Some(target) => cargo = arch.compile_for(&target, cargo),
            None if arch.is_foreign() => return Err(arch.no_static_target()),
            None => {}
        }
        let messages = cargo.arg("--message-format=json-render-diagnostics").read()?;
        let product = product.map(|file| ("redirector".to_owned(), file));
        let files = messages.lines().filter_map(program).chain(product).collect();
        let mut programs = Self { files };
        programs.files.get("redirector").context("cargo built no program `redirector`")?;
        if !arch.is_foreign() && tests.contains("dns") {
            programs.files.insert(RESOLVE.to_owned(), compiled(RESOLVE, "fixtures/resolve.c", &["-static"])?);
        }
        if tests.contains(CRI) {
            let flags = ["-O1", "-static", "-nostdlib", "-fno-stack-protector"];
            programs.files.insert(FIRST.to_owned(), compiled(FIRST, "tools/node/first.c", &flags)?);
            programs.files.insert(LIBCNI.to_owned(), libcni::ensure()?);
            programs.files.insert(KUBELET.to_owned(), kubernetes::ensure()?.join(KUBELET));
        }
        Ok(programs)
    }

    /// Where each is in the guest (cargo's layout, by which tests find the probe), and here.
    pub fn files(&self) -> impl Iterator<Item = (String, &Path)> {
        self.files.iter().map(|(name, file)| (name.clone(), file.as_path()))
    }
}

/// A program in C that tests run: there is no compiler in a guest.
fn compiled(name: &str, source: &str, flags: &[&str]) -> Result<PathBuf> {
    let program = project::target().join("vm").join(name);
    fs::create_dir_all(project::target().join("vm"))?;
    let source = project::root().join("tests").join(source);
    Cmd::new("musl-gcc").args(flags).arg("-o").arg(&program).arg(source).quiet(true).run()?;
    Ok(program)
}

/// Names of all test programs.
pub fn test_files() -> Result<Vec<String>> {
    let entries = fs::read_dir(project::root().join("tests/tests")).context("cannot read tests/tests")?;
    let name = |file: PathBuf| {
        let name = file.file_name()?.to_str()?;
        if file.join("main.rs").is_file() { Some(name) } else { name.strip_suffix(".rs") }.map(str::to_owned)
    };
    let mut names: Vec<_> = entries.filter_map(|entry| name(entry.ok()?.path())).collect();
    names.sort();
    Ok(names)
}

fn program(line: &str) -> Option<(String, PathBuf)> {
    let message: Message = serde_json::from_str(line).ok()?;
    let (target, executable) = (message.target?, message.executable?);
    let in_deps = executable.parent().is_some_and(|dir| dir.ends_with("deps"));
    match target.kind.first()?.as_str() {
        "test" => Some((format!("deps/{}", target.name), executable)),
        // Unit tests of a program are in `deps`, the program is not.
        "bin" if !in_deps => Some((target.name, executable)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_tests_are_told_apart() {
        let line = |kind: &str, file: &str| {
            format!(r#"{{"target":{{"name":"n","kind":["{kind}"]}},"executable":"{file}"}}"#)
        };
        assert_eq!(program(&line("test", "/x/deps/n-1")), Some(("deps/n".into(), "/x/deps/n-1".into())));
        assert_eq!(program(&line("bin", "/x/n")), Some(("n".into(), "/x/n".into())));
        assert_eq!(program(&line("bin", "/x/deps/n-2")), None);
        assert_eq!(program(&line("lib", "/x/deps/n-3")), None);
    }
}
