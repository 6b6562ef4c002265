//! Where things are in this checkout, and building its own programs.

use std::{
    collections::BTreeMap,
    env,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{cmd::Cmd, exit};

/// The root of the checkout.
///
/// `cargo run` says at run time where the package is; the compile-time value would point to another
/// checkout if somebody copied a whole tree with its `target` directory.
pub fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A place for things that are downloaded or built once; git ignores it.
pub fn cache(name: &str) -> PathBuf {
    root().join(".cache").join(name)
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command of the toolchain that runs us, in the root of the checkout.
pub fn cargo() -> Cmd {
    Cmd::new(env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)).dir(root())
}

/// True if we run as root: the owner of our `/proc` entry is our effective user.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// An error for commands that are pointless without root.
pub fn need_root(verb: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    Err(exit::with_code(
        exit::USAGE,
        format!(
            "`cargo xtask {verb}` loads programs into the kernel and makes network namespaces: it needs root.\n\
             Try: sudo -E env \"PATH=$PATH\" cargo xtask {verb}"
        ),
    ))
}

/// What is built, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build.
    Dev,
    /// As `Dev`, without the agent: half the work. The programs have a directory of their own, so that no test takes them
    /// for the whole.
    WithoutAgent,
    /// What users run.
    Release,
}

/// Built programs by name.
pub struct Binaries(BTreeMap<String, PathBuf>);

impl Binaries {
    /// From the JSON messages of `cargo build`.
    pub fn of(messages: &str) -> Self {
        Self(messages.lines().filter_map(executable).collect())
    }

    /// The path of the program `name`.
    pub fn get(&self, name: &str) -> Result<&Path> {
        self.0.get(name).map(PathBuf::as_path).with_context(|| {
            format!("cargo built no program called `{name}`; is it still in its Cargo.toml?")
        })
    }
}

/// One line of `cargo build --message-format=json`; only what we look at.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds `redirector` and the programs of `redirector-tests` (all of them, or those in `only`).
///
/// Always with the same pair of packages, so that cargo resolves the same features and reuses what
/// the last command built. Cargo itself says where the programs are, because a user's configuration
/// may move the target directory.
pub fn build(profile: Profile, only: &[&str]) -> Result<Binaries> {
    let mut cargo = cargo().args(["build", "-p", "redirector-user", "-p", "redirector-tests"]);
    match profile {
        Profile::Dev => {}
        Profile::WithoutAgent => {
            cargo = cargo
                .arg("--no-default-features")
                .hidden_env("CARGO_BUILD_BUILD_DIR", target())
                .hidden_env("CARGO_TARGET_DIR", target().join("without-agent"));
        }
        Profile::Release => cargo = cargo.arg("--release"),
    }
    if only.is_empty() {
        cargo = cargo.arg("--bins");
    }
    for name in only {
        cargo = cargo.args(["--bin", name]);
    }
    let messages = cargo.arg("--message-format=json-render-diagnostics").read()?;
    Ok(Binaries::of(&messages))
}

fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Message = serde_json::from_str(line).ok()?;
    Some((message.target?.name, message.executable?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_executables_out_of_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"demo"},"executable":"/t/debug/demo"}"#;
        assert_eq!(executable(line), Some(("demo".into(), "/t/debug/demo".into())));
        let library = r#"{"reason":"compiler-artifact","target":{"name":"lib"},"executable":null}"#;
        assert_eq!(executable(library), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(executable("not json"), None);
    }
}
