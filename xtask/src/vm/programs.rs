//! The programs that run in the guest: the product and every test, built once.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{cmd::Cmd, project};

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
    pub fn build(tests: &BTreeSet<&str>) -> Result<Self> {
        let mut cargo = project::cargo().args(["build", "--profile", "vm"]);
        cargo = cargo.args(["-p", "redirector-user", "-p", "redirector-tests"]);
        cargo = cargo.args(["--bin", "redirector", "--bin", "probe"]);
        // By name, or cargo would build the unit tests of both packages with all they need.
        for test in tests {
            cargo = cargo.args(["--test", test]);
        }
        if let Some(target) = static_target() {
            cargo = cargo.args(["--target", &target]);
        }
        let messages = cargo.arg("--message-format=json-render-diagnostics").read()?;
        let files = messages.lines().filter_map(program).collect();
        let programs = Self { files };
        programs.files.get("redirector").context("cargo built no program `redirector`")?;
        Ok(programs)
    }

    /// Where each is in the guest (cargo's layout, by which tests find the probe), and here.
    pub fn files(&self) -> impl Iterator<Item = (String, &Path)> {
        self.files.iter().map(|(name, file)| (name.clone(), file.as_path()))
    }
}

/// Names of all test programs.
pub fn test_files() -> Result<Vec<String>> {
    let entries = fs::read_dir(project::root().join("tests/tests")).context("cannot read tests/tests")?;
    let name = |file: PathBuf| file.file_name()?.to_str()?.strip_suffix(".rs").map(str::to_owned);
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

/// The musl target of this machine, if the toolchain has it or rustup can add it.
fn static_target() -> Option<String> {
    let target = format!("{}-unknown-linux-musl", env::consts::ARCH);
    let installed = || {
        let libraries = Cmd::new("rustc").args(["--print", "target-libdir", "--target", &target]).probe()?;
        Path::new(&libraries).is_dir().then_some(())
    };
    installed().or_else(|| {
        Cmd::new("rustup").args(["target", "add", &target]).probe()?;
        installed()
    })?;
    Some(target)
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
